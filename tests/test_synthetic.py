"""The embedded data set: what it promises about its files, its masks and its randomness."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.data import drawn_scenes, synthetic, voc
from ssdd.data.drawn_objects import CLASSES, KINDS, Look

SIZE = (80, 64)
COUNTS = {"train": 6, "val": 3}


def draw(root: Path, seed: int = 0, **counts: int) -> Path:
    return synthetic.generate(root, size=SIZE, seed=seed, **(COUNTS | counts))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def mask_of(root: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "voc")


def names(root: Path) -> list[str]:
    lists = [root / "ImageSets/Segmentation" / f"{split}.txt" for split in COUNTS]
    return [name for path in lists for name in path.read_text().split()]


def test_same_seed_same_bytes(root, tmp_path):
    again = draw(tmp_path / "again")
    assert contents(again) == contents(root)
    fingerprints = {voc.fingerprint(voc.open_folder(folder), "train") for folder in (again, root)}
    assert len(fingerprints) == 1, "two machines find the same artifacts"


def test_other_seed_other_pictures(root, tmp_path):
    other = contents(draw(tmp_path / "other", seed=1))
    pictures = [name for name in other if name.endswith((".jpg", ".png"))]
    assert pictures
    assert all(other[name] != contents(root)[name] for name in pictures)


def test_pictures_do_not_depend_on_how_many_are_drawn(root, tmp_path):
    few, many = contents(draw(tmp_path / "few", train=2, val=1)), contents(root)
    for name in ("train_0000", "train_0001", "val_0000"):
        for path in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"):
            assert few[path] == many[path]


def test_splits_differ():
    one, two = (drawn_scenes.render(0, split, 0, SIZE)[0] for split in drawn_scenes.SPLITS)
    assert (one != two).any()


def test_layout(root):
    assert names(root) == [f"{split}_{i:04d}" for split, count in COUNTS.items() for i in range(count)]
    assert {path.stem for path in (root / "JPEGImages").glob("*.jpg")} == set(names(root))
    assert {path.stem for path in (root / "SegmentationClass").glob("*.png")} == set(names(root))
    assert (root / "classes.txt").read_text().split() == list(CLASSES)
    for name in names(root):
        picture = Image.open(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(root / "SegmentationClass" / f"{name}.png")
        assert (picture.mode, mask.mode) == ("RGB", "P")
        assert picture.size == mask.size == SIZE
        palette = mask.getpalette()
        assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert palette[-3:] == [224, 224, 192]


def test_labels_are_the_classes_in_the_masks(root):
    header, *rows = (root / "labels.csv").read_text().splitlines()
    assert header == "image_id,classes"
    labels = dict(row.split(",") for row in rows)
    assert list(labels) == names(root)
    for name, classes in labels.items():
        present = [i for i in np.unique(mask_of(root, name)) if i not in (0, drawn_scenes.IGNORE)]
        assert present
        assert classes.split(";") == [CLASSES[i - 1] for i in present]


def test_masks_hold_legal_values_and_thin_borders(root):
    legal = [*range(len(CLASSES) + 1), drawn_scenes.IGNORE]
    for name in names(root):
        mask = mask_of(root, name)
        assert np.isin(mask, legal).all()
        assert (mask == 0).any()
        assert 0 < (mask == drawn_scenes.IGNORE).mean() < 0.2


def test_objects_never_touch_the_background_without_a_border():
    _, mask = drawn_scenes.render(0, "train", 0, SIZE)
    for one, two in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
        apart = (one == two) | (one == drawn_scenes.IGNORE) | (two == drawn_scenes.IGNORE)
        assert apart.all()


def test_every_class_is_drawn():
    masks = [drawn_scenes.render(0, "train", i, SIZE)[1] for i in range(40)]
    counts = np.bincount(np.concatenate([np.unique(mask) for mask in masks]), minlength=256)
    assert (counts[1 : len(CLASSES) + 1] >= 3).all()
    covered = np.mean([(mask > 0) & (mask < drawn_scenes.IGNORE) for mask in masks])
    assert 0.1 < covered < 0.4


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(3))
def test_shapes_stay_within_the_local_frame(name, seed):
    rng = np.random.default_rng(seed)
    kind = KINDS[name]
    look = Look.draw(rng, np.array([120, 90, 60], np.float32))
    for part in kind.draw(rng, look):
        assert part.outline.ndim == 2
        assert part.outline.shape[1] == 2
        assert np.abs(part.outline).max() < 2  # what the area of a shape is measured in


def test_complete_folder_is_returned_untouched(root, monkeypatch):
    def refuse(*args):
        raise AssertionError("drawn again")

    monkeypatch.setattr(drawn_scenes, "render", refuse)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert draw(root) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_parameters_do_not_overwrite(root):
    before = contents(root)
    with pytest.raises(FileExistsError):
        draw(root, seed=5)
    assert contents(root) == before


def test_folder_remembers_its_parameters(root):
    record = json.loads((root / synthetic.RECORD).read_text())
    assert record["seed"] == 0
    assert record["size"] == list(SIZE)
    assert {split: record[split] for split in COUNTS} == COUNTS


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    render = drawn_scenes.render

    def interrupted(seed, split, index, size):
        if (split, index) == ("train", 3):
            raise KeyboardInterrupt
        return render(seed, split, index, size)

    monkeypatch.setattr(drawn_scenes, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "voc")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    draw(tmp_path / "voc")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_the_other_of_two_racing_drawings_yields(tmp_path, monkeypatch):
    write = synthetic._write

    def overtaken(folder, *args):
        monkeypatch.setattr(synthetic, "_write", write)
        draw(tmp_path / "voc", train=1, val=1)
        write(folder, *args)

    monkeypatch.setattr(synthetic, "_write", overtaken)
    assert draw(tmp_path / "voc", train=1, val=1) == tmp_path / "voc"
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]
