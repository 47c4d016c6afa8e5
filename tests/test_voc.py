"""Reading a VOC-layout folder: labels, checks, masks; tiny folders, and the real piece of VOC where it is."""

import errno
import io
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from ssdd.data import codec, exif, labels
from ssdd.data.class_names import VOC_CLASSES
from ssdd.data.codec import encode_mask, image_bytes, read_image, read_mask, voc_palette
from ssdd.data.problems import DataError
from ssdd.data.records import Examined, examine, find_masks, stray_masks
from ssdd.data.voc import fingerprint, open_folder, read_split, stats

WIDTH, HEIGHT = 8, 6
REAL = Path(__file__).parents[2] / "shared" / "voc"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the piece of VOC is not at {REAL}")


def load(folder, split: str, skip_broken: bool = False, **options) -> Examined:
    """What a job would read of a list. DataError where the job would end."""
    examined = examine(folder, split, **options)
    examined.check(skip_broken)
    return examined


def encode(array: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask_of(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))


def xml_of(*names: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>" for name in names
    )
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


class Builder:
    """Writes a VOC-layout folder; every image is 8x6."""

    def __init__(self, root: Path):
        self.root = root
        (root / "JPEGImages").mkdir()

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def images(self, *ids: str) -> "Builder":
        for image_id in ids:
            self.write(f"JPEGImages/{image_id}.jpg", encode(pixels()))
        return self

    def split(self, *lines: str, name: str = "train") -> "Builder":
        self.write(f"ImageSets/Segmentation/{name}.txt", "".join(f"{line}\n" for line in lines))
        return self

    def csv(self, *lines: str) -> "Builder":
        self.write("labels.csv", "".join(f"{line}\n" for line in lines))
        return self

    def xml(self, image_id: str, *names: str) -> "Builder":
        self.write(f"Annotations/{image_id}.xml", xml_of(*names))
        return self

    def mask(self, image_id: str, *values: int) -> "Builder":
        self.write(f"SegmentationClass/{image_id}.png", encode_mask(mask_of(*values)))
        return self

    def records(self, split: str = "train", **options):
        return load(open_folder(self.root), split, **options).records

    def presence(self, **options) -> dict[str, tuple[int, ...]]:
        return {record.image_id: record.presence for record in self.records(**options)}

    def error(self, split: str = "train", **options) -> str:
        with pytest.raises(DataError) as caught:
            self.records(split, **options)
        return str(caught.value)


@pytest.fixture
def voc(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


# ------------------------------------------------------------------------------------------------ folder


def test_classes_default_to_voc(voc):
    folder = open_folder(voc.root)
    assert folder.classes == ("background", *VOC_CLASSES)
    assert folder.num_classes == 21
    assert (VOC_CLASSES[0], VOC_CLASSES[14], VOC_CLASSES[19]) == ("aeroplane", "person", "tvmonitor")


@pytest.mark.parametrize("text", ["cat\ndog\n", "\ufeffbackground\n\n cat \n\ndog", "cat\r\ndog\r\n"])
def test_classes_file(voc, text):
    voc.write("classes.txt", text)
    assert open_folder(voc.root).classes == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog\ncat\n", "more than once: cat; keep one"),
        ("cat\nbackground\n", "'background' is not in the first line"),
        ("\n", "has 0 foreground classes; write 1 to 254"),
        ("\n".join(f"c{i}" for i in range(255)), "has 255 foreground classes; write 1 to 254"),
        (b"caf\xe9\n", "save it as UTF-8"),
    ],
)
def test_bad_classes_file(voc, content, message):
    path = voc.write("classes.txt", content)
    with pytest.raises(DataError, match=message) as caught:
        open_folder(voc.root)
    assert str(path) in str(caught.value)


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder; give the folder that holds JPEGImages"):
        open_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="no JPEGImages/ folder; put the images there"):
        open_folder(tmp_path)


def test_root_becomes_absolute(voc, monkeypatch):
    monkeypatch.chdir(voc.root)
    assert open_folder(Path(".")).root == voc.root


# ------------------------------------------------------------------------------------------------ splits


def test_split_keeps_order_and_drops_columns(voc):
    voc.images("a", "b", "c.v2").split("b 1", "", "  a\t-1  ", "c.v2", "   ")
    assert read_split(open_folder(voc.root), "train") == ["b", "a", "c.v2"]


def test_without_image_sets_train_is_all_images(voc):
    voc.images("b", "a").write("JPEGImages/c d.PNG", encode(pixels(), "PNG"))
    voc.write("JPEGImages/._a.jpg", "resource fork")
    voc.write("JPEGImages/notes.txt", "no image")
    folder = open_folder(voc.root)
    assert read_split(folder, "train") == ["a", "b", "c d"]
    with pytest.raises(DataError, match=r"val\.txt: no such split.*one of: none"):
        read_split(folder, "val")


def test_without_image_sets_and_images(voc):
    with pytest.raises(DataError, match=r"JPEGImages: is empty; put \.jpg"):
        read_split(open_folder(voc.root), "train")


@pytest.mark.parametrize("split", ["test", "../val", ".val"])
def test_missing_split_names_the_others(voc, split):
    voc.split("a", name="val").split("a", name="train")
    with pytest.raises(DataError, match=r"no such split; write the ids there.* use one of: train, val$"):
        read_split(open_folder(voc.root), split)


def test_empty_split(voc):
    voc.split("", "  ")
    with pytest.raises(DataError, match=r"train\.txt: is empty; write one image id"):
        read_split(open_folder(voc.root), "train")


def test_unsafe_and_duplicate_ids_are_all_listed(voc):
    unsafe = ["/etc/passwd", "../x", "a/b", "a\\b", "..", ".hidden", "a..b", "nul\0"]
    voc.split("a", *unsafe, "b", "a")
    with pytest.raises(DataError) as caught:
        read_split(open_folder(voc.root), "train")
    text = str(caught.value)
    assert "9 problems" in text
    assert "unsafe id (8): write plain file names" in text
    assert "duplicate id (1): keep it once" in text
    assert "train.txt, line 11: 'a'" in text
    for line, image_id in enumerate(unsafe, start=2):
        assert f"train.txt, line {line}: {image_id!r}" in text


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("header", [(), ("image_id,classes",), ("\ufeffImage_ID,classes", "")])
def test_labels_csv(voc, header):
    voc.images("a", "b").csv(*header, "a,cat;aeroplane;cat", 'b, " dog ;"', "other,unicorn")
    assert voc.presence() == {"a": (1, 8), "b": (12,)}


def test_labels_xml_counts_difficult_objects_and_not_parts(voc):
    voc.images("a").xml("a", "person", "cat", "person")
    assert voc.presence() == {"a": (8, 15)}


def test_labels_mask_drops_background_and_ignore(voc):
    voc.images("a").mask("a", 0, 20, 3, 255)
    assert voc.presence() == {"a": (3, 20)}


def test_order_of_label_sources(voc):
    voc.images("a", "b", "c").mask("a", 1).mask("b", 1).mask("c", 2).xml("a", "bicycle").xml("c", "bicycle")
    assert voc.presence() == {"a": (2,), "b": (1,), "c": (2,)}
    voc.csv("a,bird", "b,aeroplane", "c,bicycle")
    assert voc.presence() == {"a": (3,), "b": (1,), "c": (2,)}


def test_labels_csv_hides_the_other_sources(voc):
    voc.images("a", "b").csv("a,bird").mask("b", 1).xml("b", "bicycle")
    text = voc.error()
    assert "missing labels (1): add a line `image_id,class;class` to labels.csv" in text
    assert f"{voc.root}/labels.csv: no line for image_id 'b'" in text


def test_own_classes(voc):
    voc.write("classes.txt", "tree\nhouse\n")
    voc.images("a", "b").mask("a", 0, 2).mask("b", 1, 255)
    assert voc.presence() == {"a": (2,), "b": (1,)}


def test_records(voc):
    voc.images("b").split("b", "a").csv("a,cat", "b,dog").mask("a", 8)
    voc.write("JPEGImages/a.png", encode(pixels(), "PNG"))
    b, a = voc.records()
    assert (b.image_id, b.image_path, b.mask_path) == ("b", voc.root / "JPEGImages" / "b.jpg", None)
    assert (a.image_path.name, a.mask_path) == ("a.png", voc.root / "SegmentationClass" / "a.png")
    assert pickle.loads(pickle.dumps([a, b])) == [a, b]


def test_without_need_labels_nothing_is_read(voc):
    voc.images("a", "b").csv("a,unicorn").mask("a", 0)
    assert voc.presence(need_labels=False) == {"a": (), "b": ()}


# ------------------------------------------------------------------------------------------------ problems


def test_every_problem_is_in_one_error(voc):
    ids = ["fine", "gone", "cut", "text", "twice", "unknown", "none", "nolabel", "fields", "again", "nomask"]
    ids += ["size", "value", "colour", "grey16"]
    voc.split(*ids).images(*ids)
    (voc.root / "JPEGImages/gone.jpg").unlink()
    voc.write("JPEGImages/cut.jpg", encode(pixels(0, 60, 80))[:-40])
    voc.write("JPEGImages/text.jpg", "<html>not found</html>")
    voc.write("JPEGImages/twice.png", encode(pixels(), "PNG"))
    labelled = [image_id for image_id in ids if image_id not in ("unknown", "none", "nolabel", "fields")]
    rows = [f"{image_id},cat" for image_id in labelled]
    voc.csv(*rows, "unknown,cat;Kat;Dog", "none,;", "fields,cat,dog", "again,dog")
    for image_id in ids:
        voc.mask(image_id, 8)
    (voc.root / "SegmentationClass/nomask.png").unlink()
    voc.write("SegmentationClass/size.png", encode_mask(np.zeros((7, 9), np.uint8)))
    voc.mask("value", 0, 21, 254, 255)
    voc.write("SegmentationClass/colour.png", encode(pixels(), "PNG"))
    voc.write("SegmentationClass/grey16.png", encode(mask_of(8).astype(np.uint16), "PNG"))

    images, labels, masks = (voc.root / name for name in ("JPEGImages", "labels.csv", "SegmentationClass"))
    text = voc.error()
    for expected in [
        f"{voc.root}, split 'train': 13 problems",
        "missing image (1): put the file there, or take the id out of the split",
        f"{images}/gone.jpg (or .jpeg, .png)",
        "unreadable image (2): copy it again from its source",
        f"{images}/cut.jpg: image file is truncated",
        f"{images}/text.jpg: not a JPEG or PNG file",
        "ambiguous image (1): keep one of the files",
        f"{images}/twice.jpg: there is also twice.png",
        "unknown class (1): use a name from classes.txt",
        f"{labels}, line 12 (unknown), classes: 'Dog', 'Kat'",
        "no class (1): name at least one foreground class",
        f"{labels}, line 13 (none), classes: no foreground class",
        "missing labels (1): add a line `image_id,class;class`",
        f"{labels}: no line for image_id 'nolabel'",
        "malformed labels (2): write `image_id,class;class`",
        f"{labels}, line 14 (fields): number of fields is 3, not 2",
        f"{labels}, line 6, 15 (again): the image_id is repeated",
        "bad mask (4): store class indices in an 8-bit palette or greyscale PNG of the image's size",
        f"{masks}/size.png: size 9x7, but the image has 8x6",
        f"{masks}/value.png: values [21, 254] outside 0..20 and 255",
        f"{masks}/colour.png: not a palette PNG nor an 8-bit greyscale one",
        f"{masks}/grey16.png: not a palette PNG",
    ]:
        assert expected in text
    assert "fine" not in text


def test_sound_records_come_with_the_problems_of_the_others(voc):
    ids = ["b", "cut", "a", "none", "tiny"]
    voc.split(*ids).images(*ids).csv("a,cat", "b,dog", "cut,cat", "none,", "tiny,dog", "elsewhere,cat")
    voc.write("JPEGImages/cut.jpg", encode(pixels(0, 60, 80))[:-40])
    voc.write("JPEGImages/tiny.jpg", encode(pixels(0, 1, 1)))
    examined = load(open_folder(voc.root), "train", skip_broken=True)
    assert [record.image_id for record in examined.records] == ["b", "a", "tiny"]
    assert [(kind, voc.root.name in detail) for kind, detail in examined.problems] == [
        ("unreadable image", True),
        ("no class", True),
    ]


def test_a_class_of_every_image_and_masks_without_a_photograph_are_warned_of(voc):
    voc.split("a", "b").images("a", "b").csv("a,cat;dog", "b,cat").mask("a", 0, 8, 12).mask("cats_1", 0, 8)
    (warning,) = load(open_folder(voc.root), "train").warnings
    assert warning.startswith("every image has the class cat, so a classifier cannot learn where it is")
    assert load(open_folder(voc.root), "train", need_labels=False).warnings == []
    (warning,) = stray_masks(open_folder(voc.root))
    assert warning.startswith("1 masks belong to no photograph, for example ")
    assert "SegmentationClass/cats_1.png: " in warning


def test_problems_of_xml_and_masks_as_labels(voc):
    voc.images("broken", "strange", "empty", "nothing", "background", "badmask")
    voc.write("Annotations/broken.xml", "<annotation><object>")
    voc.xml("strange", "unicorn", "cat").xml("empty").mask("background", 0, 255).mask("badmask", 77)
    text = voc.error()
    for expected in [
        ": 6 problems",  # a bad mask is not reported as missing labels too
        f"{voc.root}/Annotations/broken.xml: not readable XML",
        f"{voc.root}/Annotations/strange.xml, object/name: 'unicorn'",
        f"{voc.root}/Annotations/empty.xml, object/name: no foreground class",
        f"nothing: neither labels.csv nor {voc.root}/Annotations/nothing.xml nor a mask",
        f"{voc.root}/SegmentationClass/background.png: no foreground class",
        f"{voc.root}/SegmentationClass/badmask.png: values [77] outside",
    ]:
        assert expected in text


def test_existing_masks_are_checked_though_not_needed(voc):
    voc.images("a", "b").csv("a,cat", "b,cat").mask("a", 99)
    for options in ({}, {"need_labels": False}):
        text = voc.error(**options)
        assert "a.png: values [99]" in text
        assert "99 -> 8 (cat)" in text


def test_long_lists_are_cut_in_the_message_only(voc):
    voc.images("a").split(*(f"id{number:02}" for number in range(25)))
    voc.csv(*(f"id{number:02},cat" for number in range(25)))
    with pytest.raises(DataError) as caught:
        voc.records()
    text = str(caught.value)
    assert "missing image (25)" in text
    assert "id19.jpg" in text
    assert "id20.jpg" not in text
    assert text.endswith("... and 5 more")
    assert len(caught.value.problems) == 25
    again = pickle.loads(pickle.dumps(caught.value))  # as between Ray's processes
    assert (str(again), again.problems) == (text, caught.value.problems)


def test_labels_csv_that_is_not_text(voc):
    voc.images("a").write("labels.csv", b"a,caf\xe9\n")
    assert "labels.csv: cannot be read" in voc.error()


# ------------------------------------------------------------------------------------------------ fingerprint


@pytest.fixture
def two(voc) -> Builder:
    return voc.images("a", "b", "other").split("a", "b").mask("a", 1).mask("b", 2).xml("a", "cat")


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


@pytest.mark.parametrize("name", ["JPEGImages/a.jpg", "SegmentationClass/b.png", "Annotations/a.xml"])
def test_fingerprint_follows_each_input(two, name):
    before = fingerprint(open_folder(two.root), "train")
    assert fingerprint(open_folder(two.root), "train") == before
    touch(two.root / name)
    touched = fingerprint(open_folder(two.root), "train")
    (two.root / name).unlink()
    assert len({before, touched, fingerprint(open_folder(two.root), "train")}) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "a,cat\nb,cat\n"),
        ("classes.txt", "cat\ndog\n"),
        ("ImageSets/Segmentation/train.txt", "b\na\n"),
        ("Annotations/b.xml", xml_of("cat")),
        ("JPEGImages/b.png", "a second image of that id"),
    ],
)
def test_fingerprint_follows_new_input(two, name, content):
    before = fingerprint(open_folder(two.root), "train")
    two.write(name, content)
    assert fingerprint(open_folder(two.root), "train") != before


def test_fingerprint_ignores_what_is_not_read(two):
    before = fingerprint(open_folder(two.root), "train")
    two.split("other", name="val").write("JPEGImages/other.jpg", "changed")
    two.write("JPEGImages/new.jpg", "new")
    two.split("a", "b 1")
    assert fingerprint(open_folder(two.root), "train") == before
    two.csv("a,cat", "b,cat")
    with_csv = fingerprint(open_folder(two.root), "train")
    touch(two.root / "Annotations/a.xml")
    assert fingerprint(open_folder(two.root), "train") == with_csv


# ------------------------------------------------------------------------------------------ images, masks


def test_read_image_from_path_and_bytes(voc):
    data = encode(pixels(), "PNG")
    path = voc.write("JPEGImages/a.png", data)
    for source in (path, str(path), data):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.flags.writeable
        np.testing.assert_array_equal(image, pixels())


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_metadata_with_a_length_beyond_the_file_is_left_as_it_is(form):
    metadata = Image.Exif()
    metadata[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(stream, form, exif=metadata)
    data = bytearray(stream.getvalue())
    assert len(exif.without_metadata(bytes(data))) < len(data)
    marker = data.index(b"\xff\xe1") + 2 if form == "JPEG" else data.index(b"eXIf") - 4
    data[marker : marker + 2] = b"\xff\xff" if form == "JPEG" else b"\x7f\xff"
    assert exif.without_metadata(bytes(data)) == data


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(voc, kind, orientation):
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    metadata[0x010E] = "a description"
    path = voc.write("photo", encode(pixels(), kind, exif=metadata))
    stored = read_image(encode(pixels(), kind))
    turned = {
        **{1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]},
        **{5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1)},
        **{7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored)},
    }
    np.testing.assert_array_equal(read_image(image_bytes(path, apply_exif=True)), turned[orientation])
    np.testing.assert_array_equal(read_image(image_bytes(path, apply_exif=False)), stored)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_read_image_converts_other_modes(mode):
    buffer = io.BytesIO()
    source = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255)).convert(mode)
    options = {"transparency": bytes([0, 255])} if mode == "P" else {}
    source.save(buffer, "JPEG" if mode == "CMYK" else "PNG", **options)
    image = read_image(buffer.getvalue())
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.min() > 250


def test_read_image_keeps_the_high_byte_of_16_bits():
    grey = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    image = read_image(encode(grey, "PNG"))
    assert image.dtype == np.uint8
    assert image.tolist() == [[[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_reading_damaged_files(voc, read):
    whole = encode_mask(np.random.default_rng(0).integers(0, 21, (60, 80), dtype=np.uint8))
    damaged = [b"", b"GIF89a", whole[:20], whole[:-200], whole[:60] + b"x" + whole[60:]]
    for number, data in enumerate(damaged):
        path = voc.write(f"{number}.png", data)
        with pytest.raises(DataError, match=f"{number}.png: .*; "):
            read(path)
    with pytest.raises(DataError, match=r"absent\.png"):
        read(voc.root / "absent.png")
    with pytest.raises(DataError, match=r"^bytes: "):
        read(b"")


def test_other_formats_are_refused():
    with pytest.raises(DataError, match="not a JPEG or PNG"):
        read_image(encode(pixels(), "BMP"))


@given(
    st.sampled_from([1, 2, 4, 16, 21, 256]).flatmap(
        lambda classes: arrays(np.uint8, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, classes - 1))
    )
)
def test_mask_round_trip(mask):
    again = read_mask(encode_mask(mask))
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, mask)


def test_mask_png_has_the_palette_and_few_bits():
    mask = np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_mask(mask))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[mask])
    assert len(encode_mask(mask)) < 64 * 64 / 4 + 200  # two bits a pixel, then the filter bytes and headers
    np.testing.assert_array_equal(read_mask(encode_mask(mask.T)), mask.T)  # not contiguous


def test_greyscale_masks():
    np.testing.assert_array_equal(read_mask(encode(mask_of(0, 8, 255), "PNG")), mask_of(0, 8, 255))
    with pytest.raises(DataError, match="8-bit greyscale"):  # one bit: Pillow would read 0 and 255
        read_mask(encode(mask_of(0, 1).astype(bool), "PNG"))


@pytest.mark.parametrize("mask", [np.zeros((2, 2), int), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8)])
def test_encode_mask_refuses_other_arrays(mask):
    with pytest.raises(ValueError, match=r"uint8 \(H, W\)"):
        encode_mask(mask)


def test_palette():
    palette = voc_palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    first += [(128, 128, 128), (64, 0, 0), (192, 0, 0)]
    assert [tuple(colour) for colour in palette[:10].tolist()] == first
    assert palette[20].tolist() == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


# ------------------------------------------------------------------------------------------------ real VOC


@needs_real
def test_real_splits():
    folder = open_folder(REAL)
    ids = {split: read_split(folder, split) for split in ("train", "train_aug", "val")}
    assert {split: len(names) for split, names in ids.items()} == {
        "train": 669,
        "train_aug": 1435,
        "val": 336,
    }
    assert not set(ids["val"]) & set(ids["train_aug"])


@needs_real
def test_real_labels_come_from_the_masks():
    records = load(open_folder(REAL), "val").records
    assert len(records) == 336
    assert records[0].image_id == "2007_000033"
    assert records[0].presence == (1,)
    counts = Counter(index for record in records for index in record.presence)
    assert set(counts) == set(range(1, 21))
    for record in records[:20]:
        values = set(np.unique(read_mask(record.mask_path)).tolist()) - {0, 255}
        assert set(record.presence) == values
        assert read_mask(record.mask_path).shape == read_image(record.image_path).shape[:2]


@needs_real
def test_real_palette_and_mask_size():
    record = load(open_folder(REAL), "val").records[0]
    with Image.open(record.mask_path) as image:
        assert image.getpalette() == voc_palette().ravel().tolist()
    assert len(encode_mask(read_mask(record.mask_path))) <= record.mask_path.stat().st_size


def test_masks_of_another_method(two, tmp_path):
    folder = open_folder(two.root)
    ids = read_split(folder, "train")
    masks = tmp_path / "masks"
    with pytest.raises(DataError, match="no such folder"):
        find_masks(folder, ids, masks)
    masks.mkdir()
    for image_id in ids:
        (masks / f"{image_id}.png").write_bytes(encode_mask(mask_of(0, 1)))
    (found,), warnings = find_masks(folder, ids, masks)
    paths = [mask.path for mask in found]
    assert warnings == []
    assert paths == [masks / f"{image_id}.png" for image_id in ids]
    before = stats(paths)
    touch(paths[0])
    assert stats(paths) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing mask"),
        (encode_mask(np.zeros((2, 3), np.uint8)), "size 3x2, but the image has 8x6"),
        (encode_mask(mask_of(0, 255)), "value 255 outside 0..20"),
        (encode(pixels(), "PNG"), "not a palette PNG"),
        (b"no picture", "not a palette PNG"),
    ],
)
def test_a_mask_of_another_method_that_does_not_fit(two, tmp_path, content, message):
    folder = open_folder(two.root)
    first, *rest = read_split(folder, "train")
    masks = tmp_path / "masks"
    masks.mkdir()
    for image_id in rest:
        (masks / f"{image_id}.png").write_bytes(encode_mask(mask_of(0, 1)))
    if content is not None:
        (masks / f"{first}.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        find_masks(folder, [first, *rest], masks)
    assert f"{first}.png" in str(error.value)
    assert len(error.value.problems) == 1


def test_an_error_of_the_disk_is_not_taken_for_a_broken_image(voc, monkeypatch):
    path = voc.root / "JPEGImages" / "a.jpg"

    def stale(self):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    for read in (codec.probe_image, codec.read_mask, labels.read_xml):
        with pytest.raises(OSError, match="Stale file handle"):
            read(path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="No such file or directory"):
        codec.probe_image(path.with_name("missing.jpg"))
