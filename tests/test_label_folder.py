"""A data folder out of labels as people have them: what comes out is what the jobs then read."""

import json
import os
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from small import ROOT
from test_voc import encode, load, pixels, xml_of

from ssdd.data import label_folder
from ssdd.data.codec import read_image
from ssdd.data.label_folder import Labels, read, write
from ssdd.data.problems import DataError
from ssdd.data.voc import open_folder, read_split


def photograph(path, seed, kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels(seed), kind))
    return path


def made(folder):
    """The classes of each image of a data folder by id, as a job reads them: of both lists."""
    opened = open_folder(folder)
    out = {}
    for split in opened.lists().names():
        for record in load(opened, split).records:
            out[record.image_id] = tuple(opened.classes[index] for index in record.presence)
    return out


def test_class_folders(tmp_path):
    source = tmp_path / "photos"
    photograph(source / "cat" / "1.jpg", 1)
    photograph(source / "cat" / "in" / "2.JPG", 2)
    photograph(source / "dog" / "1.jpg", 3)  # another photograph of the same name
    photograph(source / "dog" / "both.jpg", 2)  # the same photograph as cat/in/2.JPG
    photograph(source / "background" / "empty.jpg", 4)
    photograph(source / "unlabeled" / "later.jpg", 5)
    photograph(source / "loose.jpg", 7)
    photograph(source / "dog" / ".thumbnails" / "1.jpg", 6)
    (source / "cat" / "notes.txt").write_text("no photograph")
    (source / "bird").mkdir()
    (source / "bird" / "1.heic").write_bytes(b"")
    report = write(read(source), tmp_path / "data", val=0)
    assert made(tmp_path / "data") == {"cat_1": ("cat",), "dog_1": ("dog",), "2": ("cat", "dog")}
    assert (report.images, report.same, report.train, report.val) == (3, 1, 3, 0)
    assert report.classes == {"cat": 2, "dog": 2}
    assert [path.name for path in report.unlabelled] == ["empty.jpg", "later.jpg", "loose.jpg"]
    lines = "\n".join(report.lines())
    assert "3 images without a class are left out" in lines
    assert f"2 files without the suffix of a photograph are left out: {source / 'bird' / '1.heic'}, " in lines
    assert "1 classes without an image are left out: bird" in lines
    assert os.path.samefile(source / "cat" / "1.jpg", tmp_path / "data" / "JPEGImages" / "cat_1.jpg")
    write(read(source), tmp_path / "copied", val=0, copy=True)
    assert not os.path.samefile(source / "cat" / "1.jpg", tmp_path / "copied" / "JPEGImages" / "cat_1.jpg")
    with pytest.raises(DataError, match="already exists; name a new folder"):
        write(read(source), tmp_path / "data")


def test_folders_of_splits_are_no_classes(tmp_path):
    photograph(tmp_path / "photos" / "train" / "cat" / "1.jpg", 1)
    photograph(tmp_path / "photos" / "val" / "cat" / "2.jpg", 2)
    with pytest.raises(DataError, match=f"its folders train, val are parts .* for example {tmp_path}/photos/train"):
        read(tmp_path / "photos")
    assert read(tmp_path / "photos" / "train").classes == ["cat"]
    photograph(tmp_path / "photos" / "test" / "3.jpg", 3)
    with pytest.raises(DataError, match=f"its folders test, train, val are .* for example {tmp_path}/photos/train"):
        read(tmp_path / "photos")
    photograph(tmp_path / "vehicles" / "train" / "1.jpg", 1)
    photograph(tmp_path / "vehicles" / "bus" / "2.jpg", 2)
    assert read(tmp_path / "vehicles").classes == ["bus", "train"]


def test_coco(tmp_path):
    for k in (1, 2, 3):
        photograph(tmp_path / "images" / "sub" / f"{k}.jpg", k)
    data = {
        "images": [{"id": 10 * k, "file_name": f"sub/{k}.jpg"} for k in (1, 2, 3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "unused"}],
        "annotations": [{"image_id": 10, "category_id": c} for c in (7, 3, 7)] + [{"image_id": 20, "category_id": 7}],
    }
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(data))
    report = write(read(source, tmp_path / "images"), tmp_path / "data", val=0)
    assert open_folder(tmp_path / "data").classes == ("background", "cat", "dog"), "in the order of the categories' ids"
    assert made(tmp_path / "data") == {"1": ("cat", "dog"), "2": ("dog",)}
    assert [path.name for path in report.unlabelled] == ["3.jpg"]
    with pytest.raises(DataError, match=r"missing image \(3\)") as error:
        read(source)
    assert "set the folder of the photographs with --images" in str(error.value)
    source.write_text('{"images": []}')
    with pytest.raises(DataError, match=r"is not a COCO annotation file \(KeyError: 'categories'\)"):
        read(source)
    data["images"].append({"id": 40, "file_name": "sub/2.jpg"})  # two merged files: the same image, another class
    data["annotations"].append({"image_id": 40, "category_id": 3})
    source.write_text(json.dumps(data))
    assert read(source, tmp_path / "images").images[tmp_path / "images" / "sub" / "2.jpg"] == {"cat", "dog"}


def test_xml(tmp_path):
    photograph(tmp_path / "JPEGImages" / "a.png", 1, "PNG")
    photograph(tmp_path / "JPEGImages" / "b.jpg", 2)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(xml_of("cat", "dog", "cat").replace("x.jpg", "a.png"))
    (tmp_path / "Annotations" / "b.xml").write_text(xml_of("dog").replace("<filename>x.jpg</filename>", ""))
    write(read(tmp_path / "Annotations"), tmp_path / "data", val=0)
    assert made(tmp_path / "data") == {"a": ("cat", "dog"), "b": ("dog",)}
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"b\.xml: not readable XML"):
        read(tmp_path / "Annotations")
    (tmp_path / "Annotations" / "b.xml").write_text(xml_of("dog").replace("x.jpg", "a.png"))  # a stale file name
    assert read(tmp_path / "Annotations").images[tmp_path / "JPEGImages" / "b.jpg"] == {"dog"}
    (tmp_path / "Annotations" / "c.xml").write_text(xml_of("dog").replace("x.jpg", "b.jpg"))
    with pytest.raises(DataError, match=r"c\.xml: .*b\.xml is about the same image"):
        read(tmp_path / "Annotations")


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,cat\nb b.jpg,dog\na.jpg,dog\n",
        "file,label\na.jpg,cat;dog\nb b.jpg,dog\n",
        "a.jpg\tcat;dog\nb b.jpg\tdog\n",
        "a.jpg;cat\nb b.jpg;dog\na.jpg;dog\n",
        "a.jpg;cat;dog\nb b.jpg;dog\n",
        'file;class\na.jpg;"cat;dog"\nb b.jpg;dog\n',
        '"file";"class"\n"a.jpg";"cat"\n"a.jpg";"dog"\n"b b.jpg";"dog"\n',
        "file,label\ra.jpg,cat;dog\rb b.jpg,dog\r",
    ],
)
def test_csv(tmp_path, text):
    for name, seed in (("a.jpg", 1), ("b b.jpg", 2)):
        photograph(tmp_path / name, seed)
    (tmp_path / "labels.csv").write_text(text, newline="")
    write(read(tmp_path / "labels.csv"), tmp_path / "data", val=0)
    assert made(tmp_path / "data") == {"a": ("cat", "dog"), "b b": ("dog",)}
    (tmp_path / "labels.csv").write_text("file,label\n\na.jpg,cat,dog\n")
    with pytest.raises(DataError, match="line 3: has 3 fields, not 2"):
        read(tmp_path / "labels.csv")


def test_class_folders_with_numbers_lose_them(tmp_path):
    for k, name in enumerate(("1_a", "2_b", "10_c")):
        photograph(tmp_path / "photos" / name / "x.jpg", k)
    write(read(tmp_path / "photos"), tmp_path / "data", val=0)
    assert open_folder(tmp_path / "data").classes == ("background", "a", "b", "c"), "in the order of the numbers"
    assert made(tmp_path / "data") == {"1_a_x": ("a",), "2_b_x": ("b",), "10_c_x": ("c",)}
    for k, name in enumerate(("01_7up", "02_coke")):
        photograph(tmp_path / "drinks" / name / "x.jpg", k)
    assert read(tmp_path / "drinks").classes == ["7up", "coke"]
    for names in (("0-10", "10-20"), ("2_wheeler", "4_wheeler")):
        source = tmp_path / names[0]
        for k, name in enumerate(names):
            photograph(source / name / "x.jpg", k)
        with pytest.raises(DataError, match=f"classes {names[0]}, {names[1]}: .*rename the classes"):
            read(source)
    labels = Labels([str(k) for k in range(255)], {tmp_path / "photos" / "1_a" / "x.jpg": {"0"}})
    with pytest.raises(DataError, match="classes: has 255 foreground classes; write 1 to 254"):
        write(labels, tmp_path / "more")


def test_ids_are_different_on_disks_that_ignore_case_and_can_be_read_back(tmp_path):
    source = tmp_path / "photos"
    for k, name in enumerate(("IMG.jpg", "img .jpg", " c.jpg")):
        photograph(source / f"class{k}" / name, k)
    write(read(source), tmp_path / "data", val=0)
    assert made(tmp_path / "data") == {"class0_IMG": ("class0",), "class1_img": ("class1",), "c": ("class2",)}


def test_a_link_never_replaces_a_photograph(tmp_path, monkeypatch):
    photograph(tmp_path / "photos" / "cat" / "a.jpg", 1)
    photograph(tmp_path / "photos" / "cat" / "b.jpg", 2)
    monkeypatch.setattr(label_folder, "_ids", lambda paths: dict.fromkeys(paths, "same"))  # as if the disk folded names
    before = (tmp_path / "photos" / "cat" / "a.jpg").read_bytes()
    with pytest.raises(FileExistsError):
        write(read(tmp_path / "photos"), tmp_path / "data")
    assert (tmp_path / "photos" / "cat" / "a.jpg").read_bytes() == before
    assert not (tmp_path / "data").exists()


def test_the_val_list_leaves_every_class_images_to_train_on(tmp_path):
    source = tmp_path / "photos"
    for k in range(30):
        photograph(source / ("rare" if k < 2 else "cat" if k % 2 else "dog") / f"{k}.jpg", k)
    report = write(read(source), tmp_path / "data", val=0.5)
    assert (report.train, report.val) == (15, 15)
    opened = open_folder(tmp_path / "data")
    assert not set(read_split(opened, "train")) & set(read_split(opened, "val"))
    trained = {name for record in load(opened, "train").records for name in record.presence}
    assert trained == {1, 2, 3}
    again = write(read(source), tmp_path / "again", val=0.5)
    assert again == report
    assert read_split(open_folder(tmp_path / "again"), "val") == read_split(opened, "val")


def test_other_formats_become_png_and_damaged_files_are_listed(tmp_path):
    source = tmp_path / "photos"
    for kind, suffix in (("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif")):
        path = source / "cat" / f"{suffix}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(pixels(len(suffix))).save(path, kind, **options)
    Image.fromarray(pixels(9)).convert("CMYK").save(source / "cat" / "printed.tif")
    photograph(source / "cat" / "misnamed.jpg", 9, "PNG")
    first, second = (Image.fromarray(pixels(seed)) for seed in (20, 21))
    first.save(source / "cat" / "telephone.jpg", "MPO", save_all=True, append_images=[second])
    write(read(source), tmp_path / "data", val=0)
    images = {path.name: read_image(path) for path in (tmp_path / "data" / "JPEGImages").iterdir()}
    assert set(images) == {"webp.png", "bmp.png", "tif.png", "misnamed.png", "telephone.jpg", "printed.png"}
    np.testing.assert_array_equal(images["bmp.png"], np.asarray(Image.open(source / "cat" / "bmp.bmp")))
    (source / "cat" / "cut.jpg").write_bytes(encode(np.zeros((60, 80, 3), np.uint8))[:-40])
    Image.fromarray(np.zeros((6, 8), np.float32)).save(source / "cat" / "depth.tif")
    with pytest.raises(DataError, match=r"unreadable image \(2\)") as error:
        write(read(source), tmp_path / "more")
    assert "cut.jpg" in str(error.value)
    assert "depth.tif: its pixels have 32 bits" in str(error.value)
    assert not (tmp_path / "more").exists()


def test_what_is_no_source_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no folders with photographs"):
        read(tmp_path)
    (tmp_path / "x.pdf").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder nor a"):
        read(tmp_path / "x.pdf")
    photograph(tmp_path / "photos" / "a;b" / "1.jpg", 1)
    with pytest.raises(DataError, match=r"labels\.csv separates classes by `;`; rename them"):
        write(read(tmp_path / "photos"), tmp_path / "data")
    photograph(tmp_path / "empty" / "background" / "1.jpg", 1)
    with pytest.raises(DataError, match="no image has a class"):
        write(read(tmp_path / "empty"), tmp_path / "data")


def test_the_job_makes_a_folder_that_the_check_finds_nothing_wrong_with(tmp_path, monkeypatch, capsys):
    for k in range(10):
        photograph(tmp_path / "photos" / ("cat" if k % 2 else "dog") / f"{k}.jpg", k)
    for script, args, code in (
        ("label", [tmp_path / "photos", "--output", tmp_path / "data", "--val", "0.2"], None),
        ("check", ["--data", tmp_path / "data"], 0),
        ("label", [tmp_path / "photos", "--output", tmp_path / "data"], "label: "),
    ):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / "ray_jobs" / f"{script}.py"), run_name="__main__")
            ended = None
        except SystemExit as end:
            ended = end.code
        assert ended == code or (isinstance(code, str) and ended.startswith(code))
    out = capsys.readouterr().out
    assert "10 images: 8 in the list train, 2 in val" in out
    assert "list train: 8 images, 8 without a problem" in out
