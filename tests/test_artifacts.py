"""Artifacts appear whole or not at all; tables have every row once."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from filelock import FileLock

from ssdd.storage import artifacts
from ssdd.storage.artifacts import Artifact, Store, whole, write_text
from ssdd.storage.tables import TableError, cut, open_table, read_joined, write_table

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int64())])
IDS = ["d", "b", "a", "e", "c"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def content(text: str):
    return lambda folder: (folder / "content").write_text(text)


def table(path: Path, schema: pa.Schema = SCHEMA, ids: list[str] = IDS, **columns):
    """A table in parts of two; `columns` give a value for an image id, `value` is the id's code."""
    path.mkdir()
    columns = {"value": ord} | columns
    rows = [{"image_id": i} | {name: make(i) for name, make in columns.items()} for i in sorted(ids)]
    return write_table(path, cut(ids, 2), schema, rows)


def test_an_artifact_is_built_once_and_found_again(store):
    first = store.build("thing", {"a": 1, "b": 2}, content("x"))
    again = Store(store.workspace).build("thing", {"b": 2, "a": 1}, content("y"))
    assert again == first == store.identify("thing", {"a": 1, "b": 2})
    assert (first.path / "content").read_text() == "x"
    assert first.path.parent == store.workspace / "artifacts"


def test_a_folder_whose_recipe_was_taken_out_is_made_again(store):
    first = store.build("thing", {}, content("x"))
    (first.path / "recipe.json").unlink()
    assert store.build("thing", {}, content("y")) == first
    assert (first.path / "content").read_text() == "y"


def test_another_recipe_or_name_gives_another_folder(store):
    recipes = [("thing", {"a": 1}), ("thing", {"a": 2}), ("thing", {"a": 1, "b": None}), ("other", {"a": 1})]
    made = [store.build(name, recipe, content("x")) for name, recipe in recipes]
    assert len({artifact.path for artifact in made}) == 4
    assert all(artifact.path.is_dir() for artifact in made)


def test_identify_makes_nothing(store):
    assert not store.identify("thing", {}).path.exists()
    assert not store.root.exists()


def test_an_exception_leaves_nothing_and_the_next_build_succeeds(store):
    def fail(folder: Path) -> None:
        content("half")(folder)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.build("thing", {}, fail)
    assert list(store.root.iterdir()) == []
    assert (store.build("thing", {}, content("whole")).path / "content").read_text() == "whole"


def test_what_a_killed_job_left_is_deleted_when_it_is_old(store):
    name = store.identify("thing", {}).path.name
    for left, days in ((f".{name}.old", 9), (f".{name}.new", 1), (".built-0123.old", 9)):
        (store.root / left).mkdir(parents=True)
        os.utime(store.root / left, (time.time() - 24 * 3600 * days,) * 2)
    store.build("thing", {}, content("whole"))
    with FileLock(store.workspace / artifacts.LOCKS / "built-0123.lock"):  # somebody builds it
        store.remove_unfinished()
    assert {path.name for path in store.root.iterdir()} == {name, f".{name}.new", ".built-0123.old"}


def test_the_folder_has_its_name_only_when_it_is_whole(store):
    def make(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        assert not store.identify("thing", {}).path.exists()
        content("x")(folder)

    assert {path.name for path in store.build("thing", {}, make).path.iterdir()} == {"content", "recipe.json"}


def test_the_key_follows_from_nested_artifacts_and_dataclasses(store):
    @dataclass(frozen=True)
    class Settings:
        value: int

    def key(base: int, value: int) -> str:
        inner = store.identify("inner", {"base": base})
        return store.identify("outer", {"list": [{"inner": inner}], "settings": Settings(value)}).key

    assert key(1, 1) == key(1, 1)
    assert len({key(1, 1), key(2, 1), key(1, 2)}) == 3


def test_the_key_follows_from_a_number_s_value_and_not_from_its_type(store):
    keys = {store.identify("a", {"weight": weight, "rest": [0.5, float("inf")]}).key for weight in (5, 5.0)}
    assert len(keys) == 1
    assert store.identify("a", {"weight": 5.5, "rest": [0.5, float("inf")]}).key not in keys


def test_the_key_does_not_depend_on_the_workspace(tmp_path):
    one, other = (
        s.identify("outer", {"inner": s.identify("inner", {})}) for s in (Store(tmp_path / "a"), Store(tmp_path / "b"))
    )
    assert one.key == other.key


@pytest.mark.parametrize("name", ["images-train", "images-train.v2", "images-train aug", 'images-"é"'])
def test_the_lineage_has_artifacts_of_any_name(store, name):
    first = store.build(name, {}, content("x"))
    second = store.build("seeds", {"images": first}, content("y"))
    assert store.lineage([second]) == [first, second]


def test_a_recipe_of_something_else_is_refused(store):
    with pytest.raises(TypeError, match="object"):
        store.identify("thing", {"a": object()})


def test_two_that_need_the_same_artifact_make_it_once(store):
    begun, made = threading.Barrier(2, timeout=20), []

    def build(text: str) -> Artifact:
        begun.wait()
        return Store(store.workspace).build("thing", {}, make(text))

    def make(text: str):
        def fill(folder: Path) -> None:
            time.sleep(0.2)
            made.append(text)
            content(text)(folder)

        return fill

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(build, ["x", "y"])
    assert one == other
    assert [(one.path / "content").read_text()] == made
    assert list(store.root.iterdir()) == [one.path]


def test_write_text_replaces(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_write_text_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(artifacts.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_cut_keeps_the_order():
    assert cut(IDS, 2) == (("d", "b"), ("a", "e"), ("c",))
    assert cut(IDS, 10) == (tuple(IDS),)


def test_rows_in_any_order_come_back_in_the_list_s(tmp_path):
    written = table(tmp_path / "t")
    read = open_table(tmp_path / "t")
    assert read == written
    assert read.rows == 5
    assert read.columns() == ["image_id", "value"]
    assert list(read) == [{"image_id": i, "value": ord(i)} for i in IDS]
    assert read.read(1, ["value"]) == [{"value": ord("a")}, {"value": ord("e")}]


def test_columns_outside_the_schema_are_dropped(tmp_path):
    assert table(tmp_path / "t", extra=str).columns() == ["image_id", "value"]


def test_joined_columns_come_from_the_first_table_that_has_them(tmp_path):
    one = table(tmp_path / "one")
    schema = SCHEMA.append(pa.field("name", pa.string()))
    two = table(tmp_path / "two", schema, value=lambda i: -1, name=str.upper)
    for part, ids in enumerate(one.parts):
        expected = [{"image_id": i, "value": ord(i), "name": i.upper()} for i in ids]
        assert read_joined([one, two], part, ["name", "value"]) == expected
    assert [row["value"] for row in read_joined([two, one], 0, ["value"])] == [-1, -1]


def test_joining_names_the_columns_that_are_missing(tmp_path):
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    with pytest.raises(TableError, match="no column mask, depth in one, two"):
        read_joined([one, two], 0, ["value", "mask", "depth"])


@pytest.mark.parametrize("ids", [IDS[::-1], ["d", "x", "a"], ["d"]])
def test_joining_tables_of_different_images_is_refused(tmp_path, ids):
    one, two = table(tmp_path / "one"), table(tmp_path / "two", ids=ids)
    with pytest.raises(TableError, match="two and one hold different images in part 0"):
        read_joined([one, two], 0, ["value"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b"], "no row for 3 images, first .'c', 'd', 'e'"),
        ([], "no row for 5 images"),
        ([*IDS, "a"], "image a came twice or is not"),
        (["a", "a"], "image a came twice or is not"),
        ([*IDS, "z"], "image z came twice or is not in the list"),
    ],
)
def test_every_row_is_needed_once(store, ids, message):
    rows = [{"image_id": i, "value": 0} for i in ids]
    with pytest.raises(TableError, match=message):
        store.build("table", {}, lambda folder: write_table(folder, cut(IDS, 2), SCHEMA, rows))
    assert list(store.root.iterdir()) == []


def test_a_table_that_was_interrupted_is_never_visible(store):
    def rows():
        for i in IDS[:3]:  # the first part is on disk by then
            yield {"image_id": i, "value": 0}
        assert len(list(store.root.glob(".table-*/part-*.parquet"))) == 1
        assert not store.identify("table", {}).path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build("table", {}, lambda folder: write_table(folder, cut(IDS, 2), SCHEMA, rows()))
    assert list(store.root.iterdir()) == []


def test_a_whole_folder_appears_or_nothing(tmp_path):
    def make(fails):
        with whole(tmp_path / "out") as aside:
            aside.mkdir()
            (aside / "a").write_text("a")
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        make(fails=True)
    assert not list(tmp_path.iterdir())
    make(fails=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "a"
