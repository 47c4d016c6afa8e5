"""Pictures, as far as a test can look at them."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from small import ROOT

from ssdd.data import codec
from ssdd.reports import figures
from ssdd.storage import maps

CLASSES = ("background", "cat", "dog")


def mask(*values):
    return codec.encode_mask(np.array([values], np.uint8))


@pytest.fixture
def row():
    image = codec.encode_mask(np.zeros((1, 5), np.uint8))  # any decodable image
    d = maps.pack_unit(np.zeros((1, 5), np.float32))
    masks = {"knowledge": mask(0, 0, 0, 0, 0), "advice": mask(1, 0, 1, 2, 1), "refined": mask(1, 1, 0, 0, 0)}
    return {"image_id": "a", "image": image, "truth": mask(1, 1, 1, 1, 255), "d_knowledge": d, "d_advice": d, **masks}


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_gain_is_green_where_only_the_first_is_right_and_red_where_only_the_second_is(row):
    picture = figures._gain("refined", "advice")(row)
    same, better, worse, both_wrong, unlabelled = picture[0].tolist()
    assert same == [255, 255, 255]
    assert better[1] > max(better[0], better[2])
    assert worse[0] > max(worse[1], worse[2])
    assert both_wrong == unlabelled == [190, 190, 190]
    assert figures._gain("refined", "advice")({**row, "truth": None}) is None


def test_pictures_without_the_data_show_masks_alone(row):
    whole, own = (titles(figures.refinement([row], CLASSES, show_data)) for show_data in (True, False))
    assert (whole[0], whole[-1]) == ("image", "truth")
    assert own == whole[1:-1]


def test_predictions_are_compared_with_the_baseline_where_there_is_one(row):
    both = {**row, "baseline": row["advice"], "dynamic": row["refined"], "dynamic_crf": row["truth"]}
    picture = figures.predictions([both], CLASSES)
    gain = picture.axes[titles(picture).index("against baseline")].images[0].get_array()
    np.testing.assert_array_equal(gain, figures._gain("dynamic", "baseline")(both))  # like with like: without CRF
    del both["baseline"]
    assert "against baseline" not in titles(figures.predictions([both], CLASSES))
    knowledge = {"image_id": "a", "image": row["image"], "truth": None, "baseline_knowledge": row["knowledge"]}
    assert len(titles(figures.predictions([knowledge], CLASSES, show_data=False))) == 1


def test_predictions_show_the_masks_that_the_networks_learn_from_before_the_networks_masks(row):
    models = ("baseline_knowledge", "gentle_baseline", "baseline_refined", "dynamic")
    shown = titles(figures.predictions([row | dict.fromkeys(models, row["refined"])], CLASSES))
    assert [title.partition(" ")[0] for title in shown[:4]] == ["image", "knowledge", "advice", "refined"]
    assert len(set(shown)) == len(shown) == 9


@pytest.mark.parametrize("name", ["$a$b$", "$\\frac$", "_hidden"])
def test_names_are_drawn_as_they_are(row, name):
    classes = ("background", name, "dog")
    samples = [(name, np.zeros((4, 5, 3), np.uint8), np.array([[0, 1, 2, 255, 1]] * 4, np.uint8), [name])]
    for figure in (figures.refinement([{**row, "image_id": name}], classes), figures.data_sheet(samples, classes)):
        figure.savefig(io.BytesIO())
        shown = [
            text.get_text().strip() for axis in figure.axes for text in (axis.yaxis.label, axis.title, *axis.texts)
        ]
        shown += [text.get_text().strip() for legend in figure.legends for text in legend.get_texts()]
        assert any(name in text for text in shown)
    legend = figures.refinement([row], classes).legends[0]
    assert name in [text.get_text().strip() for text in legend.get_texts()]


def test_an_overlay_leaves_the_background_and_colours_the_rest():
    image = np.full((1, 3, 3), 100, np.uint8)
    picture = figures.overlay(image, np.array([[0, 1, 255]], np.uint8))
    assert (picture.dtype, picture[0, 0].tolist()) == (np.uint8, [100, 100, 100])
    assert picture[0, 1].tolist() == [int(0.45 * 100 + 0.55 * 128), 45, 45]
    assert picture[0, 2].tolist() == [int(0.45 * 100 + 0.55 * 255)] * 3


def test_a_backend_that_a_notebook_has_named_does_not_end_the_import():
    backend = "module://matplotlib_inline.backend_inline"
    code = "import os; import ssdd.reports.figures as f; f.Figure().savefig(os.devnull, format='png'); "
    code += "print(os.environ['MPLBACKEND'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MPLBACKEND": backend},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == backend


def test_values_along_one_parameter_are_drawn_as_dots():
    values = {(x, y): x + y for x in (0.0, 0.1) for y in (0.0, 0.1)}
    assert isinstance(figures.heat_map(values, ("a", "b"), "c").axes[0].collections[0], QuadMesh)
    line = figures.heat_map({(x, 0.0): x for x in (0.0, 0.1, 0.2)}, ("a", "b"), "c")
    (dots,) = line.axes[0].collections
    assert len(dots.get_offsets()) == 3
