"""The page of a job: numbers, names, pictures, curves, and where they are gathered."""

import json
import re
import shlex
import threading
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from ssdd.data.class_names import VOC_CLASSES
from ssdd.presets import mini
from ssdd.reports import figures, page
from ssdd.reports.page import Page, Stage
from ssdd.reports.scores import Scores, read_scores, write_scores
from ssdd.runtime.progress import Console
from ssdd.runtime.session import Session
from ssdd.stages import images, report
from ssdd.storage.artifacts import ABOUT, Store
from ssdd.storage.tables import cut, write_table

HOSTILE = "a<b&c\"d'<script>"
SCORES = Scores(
    {"train.knowledge": 41.23456789, "round1.train.refined": 40.0, "val.dynamic": 100 / 3, "val.dynamic_crf": 7.0},
    {"val.dynamic": {"background": 70.5, HOSTILE: None}, "val.dynamic_crf": {"background": 7.0, HOSTILE: 1 / 7}},
    {"train.differing": 3.5, "train.advice_true": 60.0, "train.advice_false": 40.0, "train.auc_gap": 0.6449},
    {"val.dynamic": 1.29444},
)
HISTORY = [
    {"step": k, "epoch": k / 2, "seconds": k, "loss.class": 1 / k, "lr": 0.01, "images_per_s": 9} for k in (1, 2)
]
STAGE = Stage(name="classifier", artifact="classifier-0", origin="reused", seconds=65, history=HISTORY)


def a_page(**changes):
    nothing = dict(job="dynamic", about="now", command=("dynamic.py",), tables=[], pictures={}, stages=[])
    return Page(**nothing | dict(facts={}, changes={}, notices={}) | changes)


class Reader(HTMLParser):
    """Tables as lists of rows of (text, exact value); every address; tags; text."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.addresses, self.tags, self.text, self.in_cell = [], [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name.endswith(("src", "href"))]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(["", None])
            self.in_cell = True
        elif tag == "data":
            self.tables[-1][-1][-1][1] = float(dict(attrs)["value"])

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1][0] += data.strip()


def read(**changes):
    return Reader(page.render(a_page(**changes)))


def test_the_numbers_are_those_of_the_metrics_file(tmp_path):
    write_scores(tmp_path / "metrics.json", SCORES)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    tables = read(tables=page.score_tables(read_scores(tmp_path / "metrics.json"))).tables[:-1]  # without the stages
    means, classes = {}, {}
    for (_, *columns), *rows in tables[:-1]:
        for (name, _), *cells in rows:
            means[name] = cells[0][1]
            shown = zip(columns, cells, strict=True)
            classes[name] = {c: cell[1] for (c, _), cell in shown if "/" not in c and "mean" not in c}
    assert means == {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert {name: values for name, values in classes.items() if values} == metrics["per_class"]
    assert tables[0][1] == [["val.dynamic", None], ["33.3", 100 / 3], ["1.29", 1.29444], ["70.5", 70.5], ["–", None]]
    difference = {name: cells[0] for (name, _), *cells in tables[-1][1:]}
    assert difference["AUC of d^K - d^A for true advice"] == ["0.64", 0.6449]
    assert len(difference) == len(metrics["difference"])


def test_the_scored_list_comes_first_and_the_precondition_is_judged():
    tables = page.score_tables(SCORES)
    assert [table.title.partition(",")[0] for table in tables] == [
        "Networks on the list val",
        "Masks of the training images",
        "round1: Masks of the training images",
        "Where the two masks of a module differ",
    ]
    assert tables[-1].note.endswith("? seeds yes.")


def test_vocs_classes_stand_over_the_papers_rows():
    per_class = dict.fromkeys(("background", *VOC_CLASSES), 50.0)
    (val, train) = page.score_tables(
        Scores({"val.dynamic": 50.0, "train.advice": 50.0}, {"val.dynamic": per_class, "train.advice": per_class})
    )
    assert [name.partition(" (")[0] for name in val.rows] == ["val.dynamic", "PSA, Table 1", "SSDD, Table 1"]
    assert val.rows[list(val.rows)[-1]][0].value == pytest.approx(64.9, abs=0.06)
    assert list(train.rows) == ["train.advice"], "Table 1 is of val"


def test_names_are_text_whatever_is_in_them():
    stage = Stage(name=HOSTILE, artifact=HOSTILE, origin=HOSTILE, seconds=1, history=HISTORY)
    changes = dict(facts={"data": HOSTILE}, changes={HOSTILE: (HOSTILE, HOSTILE)}, notices={HOSTILE: HOSTILE})
    everything = dict(job=HOSTILE, about=HOSTILE, command=(HOSTILE,), stages=[stage], **changes)
    found = read(tables=page.score_tables(SCORES), pictures={f"{HOSTILE}.png": b"x"}, **everything)
    assert "script" not in found.tags
    assert found.text.count(HOSTILE) == 18


def test_nothing_is_fetched():
    found = read(tables=page.score_tables(SCORES), pictures={"refinement.png": b"png"}, stages=[STAGE])
    assert found.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in found.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"url\((?!#)|@import", page.render(a_page(stages=[STAGE])))


def test_a_training_has_a_panel_for_losses_and_learning_rate_and_one_that_was_scored_for_iou():
    scored = [*HISTORY, {"step": 2, "epoch": 1.0, "seconds": 3, "iou": 40.0}]
    html = page.render(a_page(stages=[STAGE, Stage(name="b", artifact="b", origin="", seconds=1, history=scored)]))
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', html)
    assert labels == [
        *("losses of classifier", "learning rate of classifier"),
        *("losses of b", "learning rate of b", "mean IoU (%) of b"),
    ]
    assert "reused, 1 min 05 s</span></h3>" in html
    assert not re.search(r' id="\w+_\d+"', html), "ids of matplotlib would be there twice"


def test_a_long_curve_is_drawn_as_means_of_its_pieces():
    xs = np.arange(1000.0)
    (line,) = figures.curves({"a": (xs, xs**2)}, points=10).axes[0].lines
    assert len(line.get_xdata()) == 10
    assert line.get_ydata()[0] == pytest.approx((xs[:100] ** 2).mean())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not stored"), (3.21, "3.2 s"), (59.97, "60.0 s"), (65, "1 min 05 s"), (3725.2, "1 h 02 min")],
)
def test_durations(seconds, text):
    assert page.duration(seconds) == text


@pytest.fixture
def session(tmp_path):
    """A session without Ray and MLflow, in whose workspace artifacts of both an earlier version and this one are."""
    session = object.__new__(Session)
    session.config, session.workspace, session.store = mini(), tmp_path, Store(tmp_path)
    session.job, session.command, session.used, session.pictures = "evaluate", ("evaluate.py", HOSTILE), {}, []
    session.stop, session.console, session.logged = threading.Event(), Console(), []
    session.plan = SimpleNamespace(workers=1, use_gpu=False, unit=1)
    session.tracker = SimpleNamespace(tags={}, file=session.logged.append)
    return session


def make_images(folder):
    schema = pa.schema([("image_id", pa.string())])
    write_table(folder, cut(["a", "b"], 1), schema, [{"image_id": i} for i in "ab"])
    (folder / images.SKIPPED).write_text("".join(f"line {k}\n" for k in range(300)))
    (folder / images.WARNINGS).write_text(f"{HOSTILE}\n")


def draw(session, name, artifact):
    (session.workspace / "figures").mkdir(exist_ok=True)
    path = session.workspace / "figures" / f"{name}.png"
    Figure(figsize=(1, 1)).savefig(path, metadata={"Source": artifact.path.name})
    return path


def test_a_report_shows_what_its_artifacts_follow_from_whoever_made_them(session):
    recipe = {"files": [], "classes": ["background", HOSTILE]}
    train = session.store.build("images-train", recipe, make_images)  # by an earlier version
    other = session.store.build("other", {}, lambda folder: None)
    trained = {"history": HISTORY, "seconds": 3725.0}
    dynamic = session.build("dynamic", {"images": train}, lambda folder: trained)
    session.used.clear()  # of the job that trained
    made = session.build("predictions", {"models": {"dynamic": dynamic.path.name}}, lambda folder: None)
    assert [a.name for a in session.store.lineage([made])] == ["images-train", "dynamic", "predictions"]
    session.pictures.append(draw(session, "predictions-x-val", made))
    for name, artifact in (("refinement", dynamic), ("predictions-old", made), ("reliability", other)):
        draw(session, name, artifact)
    report.write(session, SCORES, "x-val")
    assert read_scores(session.workspace / "metrics-x-val.json") == SCORES
    html = (session.workspace / "report-x-val.html").read_text()
    assert session.logged == [session.workspace / "report-x-val.html"]
    stages = Reader(html).tables[-1][1:]
    assert [[text for text, _ in row[:3]] for row in stages[:2]] == [
        ["images-train", "reused", "not stored"],
        ["dynamic", "reused", "1 h 02 min"],
    ]
    assert [text for text, _ in stages[2][:2]] == ["predictions", "made by this job"]
    assert "Artifacts of earlier versions" in html
    assert re.findall("<code>figures/(.*?)</code>", html) == ["predictions-x-val.png", "refinement.png"]
    text = Reader(html).text
    assert "line 199\n... and 100 more lines in artifacts/images-train" in text
    assert text.count(HOSTILE) == 3, "in the classes, a warning, and the table"
    assert f"evaluate.py {shlex.quote(HOSTILE)} " in text


def test_without_the_data_no_earlier_picture_is_shown(session):
    made = session.build("refined", {}, lambda folder: None)
    draw(session, "refinement", made)
    session.config = replace(mini(), evaluate=replace(mini().evaluate, show_data=False))
    report.write(session, SCORES)
    assert "<img" not in (session.workspace / "report.html").read_text()
    session.pictures.append(draw(session, "predictions-val", made))
    report.write(session, SCORES)
    html = (session.workspace / "report.html").read_text()
    assert re.findall("<code>figures/(.*?)</code>", html) == ["predictions-val.png"]


def test_files_that_are_no_pictures_do_not_end_a_job(session):
    draw(session, "refinement", session.build("refined", {}, lambda folder: None))
    for name in ("._refinement.png", "broken.png"):
        (session.workspace / "figures" / name).write_bytes(b"no picture")
    report.write(session, SCORES)
    html = (session.workspace / "report.html").read_text()
    assert re.findall("<code>figures/(.*?)</code>", html) == ["refinement.png"]


def test_scores_of_other_networks_are_not_kept(session):
    networks = {"dynamic": session.workspace / "artifacts" / "dynamic-1"}
    report.write(session, SCORES, networks=networks)
    assert report.earlier_scores(session, networks) == SCORES
    assert report.earlier_scores(session, networks | {"baseline": session.workspace}) == Scores({}, {})
    write_scores(session.workspace / "metrics.json", SCORES)  # as an earlier version wrote it
    assert report.earlier_scores(session, networks) == SCORES


def test_lists_of_two_data_folders_with_the_same_name_are_both_shown(session):
    recipes = ({"files": [k], "classes": ["background", "cat"]} for k in range(2))
    lists = [session.build("images-train", recipe, make_images) for recipe in recipes]
    report.write(session, SCORES)
    text = Reader((session.workspace / "report.html").read_text()).text
    assert all(f"list train ({a.path.name})" in text and f"list train ({a.path.name}): warnings" in text for a in lists)


def test_what_a_job_has_made_stays_made_when_it_is_asked_for_again(session):
    for _ in range(2):
        made = session.build("thing", {}, lambda folder: None)
    (used,) = session.used.values()
    assert used.ran
    assert json.loads((made.path / ABOUT).read_text()).keys() == {"seconds"}
