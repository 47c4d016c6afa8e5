"""Data that could be misread without a word: other numberings, names in other spellings, missing permissions."""

import io
import json
import os
import runpy
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from small import ROOT
from test_voc import HEIGHT, WIDTH, Builder, encode, load, mask_of, pixels, xml_of

from ssdd.data.class_names import is_background
from ssdd.data.codec import encode_mask, read_image, voc_palette
from ssdd.data.mask_values import MaskUse, best_renumbering, check, other_colours
from ssdd.data.problems import DataError
from ssdd.data.records import ReadOptions, find_masks
from ssdd.data.voc import fingerprint, open_folder, read_split

CLASSES = ("background", "square", "disc", "bar")


@pytest.fixture
def folder(tmp_path):
    """Three foreground classes, no images yet."""
    builder = Builder(tmp_path)
    builder.write("classes.txt", "square\ndisc\nbar\n")
    return builder


def indexed(values, palette):
    """A palette PNG with given colours (N, 3)."""
    image = Image.frombytes("P", (WIDTH, HEIGHT), mask_of(*values).tobytes())
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- values of masks


@pytest.mark.parametrize("need_labels", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_list_of_masks_of_0_and_255_is_refused(folder, need_labels, labelled):
    folder.images("a", "b").mask("a", 0, 255).mask("b", 0)
    if labelled:
        folder.csv("a,disc", "b,square")
    for skip in (False, True):
        text = folder.error(need_labels=need_labels, skip_broken=skip)
        assert "store the index of the object's class in place of 255" in text
        assert "a.png: all 2 masks hold only the values 0 and 255 (class 1 is 'square')" in text


def test_one_mask_with_a_class_makes_255_mean_no_label(folder):
    folder.images("a", "b").mask("a", 0, 255).mask("b", 0, 2)
    assert folder.presence(need_labels=False) == {"a": (), "b": ()}
    folder.mask("a", 0).mask("b", 0)
    assert folder.presence(need_labels=False) == {"a": (), "b": ()}  # photographs of background alone


@pytest.mark.parametrize("numbers", [(10, 20, 30), (2, 3, 1), (0, 1, 2), (3, 2, 1)])
@pytest.mark.parametrize("need_labels", [True, False])
def test_another_numbering_is_refused_with_the_renumbering(folder, numbers, need_labels):
    """Also where 0 is a class, so that the background has another value."""
    background = 0 if 0 not in numbers else 7
    shown = {"a": (1,), "b": (2,), "c": (3,), "d": (1, 2), "e": (2, 3)}
    folder.images(*shown).csv(*(f"{i},{';'.join(CLASSES[c] for c in own)}" for i, own in shown.items()))
    for image_id, own in shown.items():
        folder.mask(image_id, background, *(numbers[c - 1] for c in own), 255)
    for skip in (False, True):
        text = folder.error(need_labels=need_labels, skip_broken=skip)
        assert "masks with another numbering" in text
        assert "renumber the values of the masks, or order classes.txt by them" in text
        for index, number in enumerate(numbers, start=1):
            assert f"{number} -> {index} ({CLASSES[index]})" in text
        assert f"{background} -> 0 (background)" in text


@given(st.permutations(range(1, 7)), st.lists(st.sets(st.integers(1, 6), min_size=1, max_size=3), max_size=8))
def test_the_renumbering_is_found(order, more):
    """Any permutation, from images that tell the classes apart."""
    labels = [{index} for index in range(1, 7)] + more
    uses = [
        MaskUse(str(k), frozenset({0, *(order[index - 1] for index in own)}), frozenset(own))
        for k, own in enumerate(labels)
    ]
    wanted = {0: 0} | {order[index - 1]: index for index in range(1, 7)}
    assert best_renumbering(uses, 7) == wanted
    classes = ("background", *"abcdef")
    problems, warnings = check(uses, classes, has_voc_classes=False)
    agreeing = sum({order[index - 1] for index in own} == own for own in labels)
    assert bool(problems) == (agreeing < len(labels) / 2)
    assert bool(warnings) == (len(labels) / 2 <= agreeing < len(labels))


def test_masks_that_contradict_most_labels_are_refused_and_a_few_are_listed(folder):
    ids = [f"i{k}" for k in range(10)]
    classes = [k % 3 + 1 for k in range(10)]
    folder.images(*ids).csv(*(f"{i},{CLASSES[c]}" for i, c in zip(ids, classes, strict=True)))
    for image_id, own in zip(ids, classes, strict=True):
        folder.mask(image_id, 0, own)
    examined = load(open_folder(folder.root), "train")
    assert examined.warnings == []
    folder.mask("i0", 0, 2)
    for need_labels in (True, False):
        examined = load(open_folder(folder.root), "train", need_labels=need_labels)
        (warning,) = examined.warnings
        assert warning.startswith("1 of 10 masks hold other classes than the image-level labels: ")
        assert "i0.png (mask: disc (2); labels: square (1))" in warning
    rng = np.random.default_rng(0)
    for image_id in ids[:6]:
        folder.mask(image_id, 0, *rng.permutation([1, 2, 3])[:2])  # no renumbering explains these
    for skip in (False, True):
        assert "6 of 10 masks hold other classes" in folder.error(skip_broken=skip)


def test_labels_of_a_scored_list_may_be_absent_or_unusable(folder):
    folder.images("a", "b").mask("a", 1).mask("b", 2).csv("a,unicorn")
    assert set(folder.presence(need_labels=False)) == {"a", "b"}


def test_masks_of_nothing_but_255_are_not_compared(folder):
    folder.images("a", "b").mask("a", 255).mask("b", 0, 2).csv("a,square", "b,disc")
    assert load(open_folder(folder.root), "train").warnings == []


def test_a_quantised_colour_mask_is_told_by_its_palette():
    """With VOC's classes the colours say it; with others only where the labels contradict, too."""
    voc_uses = [MaskUse("a.png", frozenset({0, 1}), None, ((1, 8),))]
    problems, _ = check(voc_uses, ("background", *(f"c{k}" for k in range(1, 21))), has_voc_classes=True)
    assert problems == [("masks with another class's colour", "a.png: value 1 (c1) has VOC's colour of 8 (c8)")]
    assert check(voc_uses, CLASSES, has_voc_classes=False) == ([], [])
    labelled = [MaskUse("a.png", frozenset({0, 1}), frozenset({2}), ((1, 2),))]
    kinds = [kind for kind, _ in check(labelled, CLASSES, has_voc_classes=False)[0]]
    assert "masks with another class's colour" in kinds


def test_palettes_are_read_from_the_files(tmp_path):
    voc = Builder(tmp_path).images("a")
    colours = voc_palette()[[0, 8, 15]]
    voc.write("SegmentationClass/a.png", indexed((0, 1, 2), colours))  # as Pillow's quantize() leaves it
    for options in (dict(need_labels=True), dict(need_labels=False), dict(skip_broken=True)):
        text = voc.error(**options)
        assert "value 1 (aeroplane) has VOC's colour of 8 (cat), 2 (bicycle) has VOC's colour of 15 (person)" in text
    voc.write("SegmentationClass/a.png", indexed((0, 1, 2), [[0, 0, 0], [255, 0, 0], [0, 255, 0]]))
    assert voc.presence() == {"a": (1, 2)}
    voc.write("SegmentationClass/a.png", indexed((0, 1, 2, 255), voc_palette()))
    assert voc.presence() == {"a": (1, 2)}


def test_other_methods_masks_are_compared_but_may_miss_classes(folder, tmp_path):
    masks = tmp_path / "knowledge"
    masks.mkdir()
    shown = {"a": (1,), "b": (2,), "c": (1, 2), "d": (3,)}
    folder.images(*shown)
    opened = open_folder(folder.root)

    def write(numbers):
        for image_id, own in shown.items():
            (masks / f"{image_id}.PNG").write_bytes(encode_mask(mask_of(0, numbers[own[0]])))
        return find_masks(opened, list(shown), masks, presence=list(shown.values()))

    (found,), warnings = write({1: 1, 2: 2, 3: 3})
    assert [mask.path.name for mask in found] == ["a.PNG", "b.PNG", "c.PNG", "d.PNG"]
    assert warnings == []
    with pytest.raises(DataError, match=r"2 -> 1 \(square\), 3 -> 2 \(disc\)"):
        write({1: 2, 2: 3, 3: 1})
    (_, warnings) = write({1: 1, 2: 2, 3: 1})
    (warning,) = warnings
    assert "1 of 4 masks hold other classes" in warning
    assert "d.PNG (mask: square (1); labels: bar (3))" in warning


def uses_of(*images):
    """Masks from pairs of their values and their images' labels."""
    return [MaskUse(f"{k}.png", frozenset(values), frozenset(own)) for k, (values, own) in enumerate(images)]


def test_empty_seeds_agree():
    seeds = uses_of(*[({0}, {1})] * 3, ({0, 1}, {1}))
    assert check(seeds, CLASSES, has_voc_classes=False, may_lack_classes=True) == ([], [])


def test_seeds_that_contradict_most_labels_are_refused():
    rng = np.random.default_rng(0)
    images = [({0, own % 3 + 1 + int(rng.integers(2)) * (own % 3 == 0)}, {own}) for own in (1, 2, 3, 1, 2, 3)]
    problems, _ = check(uses_of(*images, *images[:2]), CLASSES, has_voc_classes=False, may_lack_classes=True)
    assert problems


@pytest.mark.parametrize("count", [1, 20])
def test_blank_masks_do_not_make_0_a_class(count):
    """A mask that is inverted on this advice would be worse than none."""
    problems, _ = check(uses_of(*[({0, 5}, {1})] * count, ({0}, {1})), ("background", "car"), has_voc_classes=False)
    text = problems[0][1]
    assert ("5 -> 1 (car)" in text) == (count == 20)
    assert "0 -> 1" not in text or count == 1


def test_a_background_of_255_is_found():
    masks = uses_of(({0, 255}, {1}), ({1, 255}, {2}), ({2, 255}, {3}), ({0, 1, 255}, {1, 2}))
    problems, _ = check(masks, CLASSES, has_voc_classes=False)
    assert "0 -> 1 (square), 1 -> 2 (disc), 2 -> 3 (bar), 255 -> 0 (background)" in problems[0][1]


def test_a_palette_that_is_filled_up_with_black_is_vocs():
    palette = np.zeros((256, 3), np.uint8)
    palette[:21] = voc_palette()[:21]
    assert other_colours(frozenset({0, 7, 255}), palette, 21) == ()
    assert other_colours(frozenset({0, 1}), voc_palette()[[0, 8]], 21) == ((1, 8),)
    assert other_colours(frozenset({0, 1}), None, 21) == ()


# --------------------------------------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "head",
    [
        *("background", "Background", "BACKGROUND", "__background__", "_background_", "bg", "BG", "0 background"),
        *("0: Background", "0\tbg", "__ignore__\n_background_", "-1 __ignore__\n0 _background_", "Back_Ground", ""),
    ],
)
def test_background_in_the_head_is_no_class(folder, head):
    numbered = head[:1] in "-0" and head
    names = [f"{k} {name}" if numbered else name for k, name in enumerate(CLASSES[1:], start=1)]
    folder.write("classes.txt", "\n".join([head, *names]))
    assert open_folder(folder.root).classes == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square\nBackground\ndisc", "'Background' is not in the first line"),
        ("square\n__bg__", "'__bg__' is not in the first line"),
        ("background\nBackground\nsquare", "'Background' is not in the first line"),
        ("void\nsquare", "'void' is no class: pixels without a label have the value 255"),
        ("background\nsquare\nUnlabelled", "'Unlabelled' is no class"),
        ("__ignore__\nsquare", "'__ignore__' is no class"),
        ("_background_\n__ignore__\nsquare", "'__ignore__' is no class"),
        ("0 square\n1 disc", "'0 square' has the number 0, but by its place the class has the value 1"),
        ("1 square\n3 disc", "'3 disc' has the number 3, but by its place the class has the value 2"),
        ("0 background\n2 square", "'2 square' has the number 2, but by its place the class has the value 1"),
        ("0 ignore\n1 background\n2 square", "'0 ignore' has the number 0, but by its place"),
        ("void\nbackground\nsquare", "'void' is no class"),
        ("unlabeled\nbackground\nsquare", "'unlabeled' is no class"),
        ("background\n2 square\n1 disc", "'2 square' has the number 2, but by its place the class has the value 1"),
        ("0 background\n1 square\n255 void", "'255 void' is no class"),
        ("background (0)\nsquare", "the first line 'background (0)' seems to mean the background"),
        ("background:0,0,0::\nsquare:1,1,1::", "seems to mean the background"),
        ("1 euro\n2 euro", "names appear more than once: euro (without the number at the beginning of each line)"),
    ],
)
def test_class_lists_that_would_shift_the_classes_are_refused(folder, text, message):
    path = folder.write("classes.txt", text)
    with pytest.raises(DataError, match=r"classes\.txt") as caught:
        open_folder(folder.root)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["0=background\n1=square\n2=disc", "[0] bg\n[1] square\n[2] disc", "1) square\n2) disc"]
)
def test_numbers_in_front_are_dropped_in_many_forms(folder, text):
    folder.write("classes.txt", text)
    assert open_folder(folder.root).classes == ("background", "square", "disc")
    folder.images("a", "b").csv("a,1 square", "b,2 disc;1 square")
    assert folder.presence() == {"a": (1,), "b": (1, 2)}
    assert "unknown class" in folder.csv("a,2 square", "b,disc").error()


def test_numbers_that_some_names_have_belong_to_the_names(folder):
    folder.write("classes.txt", "2 wheeler\ncar")
    assert open_folder(folder.root).classes[1:] == ("2 wheeler", "car")


@pytest.mark.parametrize("name", ["background", "Background", "__background__", "BG", "_background_"])
def test_background_in_labels(folder, name):
    assert is_background(name)
    folder.images("a", "b").csv(f"a,disc;{name}", f"b,{name};bar")
    assert folder.presence() == {"a": (2,), "b": (3,)}
    (folder.root / "labels.csv").unlink()
    folder.write("Annotations/a.xml", xml_of(name, "square")).with_name("b.xml").write_text(xml_of("bar", name))
    assert folder.presence() == {"a": (1,), "b": (3,)}


# --------------------------------------------------------------------------------------------------- names


def test_a_line_is_an_id_first(folder):
    folder.images("my photo 1", "my photo 2", "my photo", "cat", "cat 2", "dog")
    folder.split("my photo 1", "my photo 2", "cat 2", "dog 1", "dog  -1 x", "gone 1", name="list")
    with pytest.raises(DataError) as caught:
        folder.records("list", need_labels=False)
    assert "JPEGImages/dog  -1 x.jpg" in str(caught.value)
    assert "JPEGImages/gone 1.jpg" in str(caught.value)
    folder.split("my photo 1", "my photo 2", "cat 2", "dog -1", name="list")
    opened = open_folder(folder.root)
    assert read_split(opened, "list") == ["my photo 1", "my photo 2", "cat 2", "dog"]
    folder.split("dog.jpg", name="list")
    assert "there is an image 'dog': write ids without suffix" in folder.error("list", need_labels=False)


@pytest.mark.parametrize(
    ("image", "mask", "xml"), [(".JPG", ".PNG", ".XML"), (".JPEG", ".Png", ".Xml"), (".Jpg", ".png", ".xml")]
)
def test_suffixes_in_any_case(folder, image, mask, xml):
    folder.write(f"JPEGImages/a{image}", encode(pixels()))
    folder.write(f"SegmentationClass/a{mask}", encode_mask(mask_of(0, 2)))
    folder.write(f"Annotations/a{xml}", xml_of("disc"))
    (record,) = folder.records()
    assert (record.image_path.name, record.mask_path.name, record.presence) == (f"a{image}", f"a{mask}", (2,))
    before = fingerprint(open_folder(folder.root), "train")
    folder.write(f"SegmentationClass/a{mask}", encode_mask(mask_of(0, 2, 2, 0, 2, 3)))
    assert fingerprint(open_folder(folder.root), "train") != before
    folder.write("SegmentationClass/a.pNG", encode_mask(mask_of(0, 2)))
    assert "ambiguous mask" in folder.error()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_one_name_in_two_unicode_forms(folder, forms):
    names = ["grün", "blåbär"]
    listed, stored = ([unicodedata.normalize(form, name) for name in names] for form in forms)
    folder.images(*stored).split(*listed).csv(f"{listed[0]},disc", f"{stored[1]},square")
    for name, index in zip(stored, (2, 1), strict=True):
        folder.mask(name, 0, index)
    folder.write("classes.txt", f"square\ndisc\n{unicodedata.normalize(forms[0], 'blåbär')}")
    records = folder.records()
    assert [(record.image_id, record.presence) for record in records] == [("grün", (2,)), ("blåbär", (1,))]
    folder.csv(f"{listed[0]},{unicodedata.normalize(forms[1], 'blåbär')};disc", f"{stored[1]},square")
    assert folder.presence(need_labels=True)["grün"] == (2, 3)


def test_labels_csv_with_another_separator(folder):
    folder.images("a", "b", "c")
    for lines in (
        ("image_id;classes", "a;square", "b;disc;bar", 'c;"square;bar"'),
        ("Image_ID\tclasses", "a\tsquare", "b\tdisc;bar", "c\tsquare,bar"),
        ('"image_id"|"classes"', "a|square", "b|disc|bar", "c|square;bar"),
    ):
        assert folder.csv(*lines).presence() == {"a": (1,), "b": (2, 3), "c": (1, 3)}
    for lines in (
        ("image_id;classes", "a,square", "b;disc", "c;disc"),
        ("my images", "a;square", "b,disc", "c,disc"),
        ("a square", "b,disc", "c,disc"),
        ("a\tsquare", "b,disc", "c,disc"),
    ):
        text = folder.csv(*lines).error()
        assert "malformed labels (1): write `image_id,class;class`" in text
        assert "(a): its fields are separated by" in text
        assert "missing labels" not in text
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        text = folder.csv(*(f"{i}{separator}square" for i in "abc")).error()
        assert f"its fields are separated by {name}; write `image_id,class;class`, or begin the file with" in text


# ------------------------------------------------------------------------------------------------ pictures


def test_large_images_are_refused_by_the_field(folder):
    folder.images("a").csv("a,disc")
    opened = open_folder(folder.root)
    with pytest.raises(DataError, match="8x6 are more than 47 pixels") as caught:
        load(opened, "train", options=ReadOptions(max_pixels=47))
    assert "--max-pixels" in str(caught.value)
    assert [kind for kind, _ in caught.value.problems] == ["large image"]
    assert len(load(opened, "train", options=ReadOptions(max_pixels=48)).records) == 1


def test_what_pillow_refuses_has_its_own_remedy(folder, monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG", pnginfo=text)
    folder.write("JPEGImages/a.png", buffer.getvalue())
    message = folder.error(need_labels=False)
    assert "save it without its metadata" in message
    assert "copy it again" not in message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    folder.write("JPEGImages/a.png", encode(pixels(), "PNG"))
    message = folder.error(need_labels=False)
    assert "shrink it: Pillow reads at most 179 million pixels" in message
    assert "copy it again" not in message


def test_a_damaged_png_is_still_found(folder):
    """Pillow reads a PNG's metadata by decoding it, and forgives what it should not."""
    whole, refused = encode(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8), "PNG"), 0
    for place in range(200, len(whole) - 100, 500):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        folder.write("JPEGImages/a.png", damaged)
        refused += "unreadable image" in folder.error(need_labels=False)
        with pytest.raises(DataError, match="copy it again"):
            read_image(damaged)
    assert refused > 10


def test_a_mask_that_fits_the_rotated_photograph(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.write("JPEGImages/a.jpg", encode(pixels(), exif=exif))
    upright = np.resize(mask_of(0, 2), (WIDTH, HEIGHT))
    folder.write("SegmentationClass/a.png", encode_mask(upright))
    text = folder.error(need_labels=False)
    assert "size 6x8 of the photograph after its EXIF rotation" in text
    assert "give --apply-exif" in text
    examined = load(open_folder(folder.root), "train", options=ReadOptions(apply_exif=True))
    assert examined.warnings == []
    folder.mask("a", 0, 2)
    examined = load(open_folder(folder.root), "train")
    assert examined.warnings == ["1 of 1 photographs have an EXIF rotation, which is ignored; see --apply-exif"]
    text = folder.error(need_labels=False, options=ReadOptions(apply_exif=True))
    assert "size 8x6 of the photograph before its EXIF rotation" in text
    assert "leave --apply-exif out" in text
    folder.write("SegmentationClass/a.png", encode_mask(np.zeros((3, 3), np.uint8)))
    assert "size 3x3, but the image has 8x6" in folder.error(need_labels=False)
    (folder.root / "SegmentationClass/a.png").unlink()
    for kind, mask in (("mask of the turned image", upright), ("bad mask", np.zeros((3, 3), np.uint8))):
        folder.write("knowledge/a.png", encode_mask(mask))
        with pytest.raises(DataError) as caught:
            find_masks(open_folder(folder.root), ["a"], folder.root / "knowledge")
        assert caught.value.problems[0][0] == kind


# --------------------------------------------------------------------------------------------- permissions


CLOSED = [
    *((name, 0o000) for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets", "classes.txt")),
    *(("labels.csv", 0o000), ("JPEGImages/a.jpg", 0o000), ("SegmentationClass/a.png", 0o000)),
    *(("Annotations/a.xml", 0o000), (".", 0o000), ("SegmentationClass", 0o444), ("JPEGImages", 0o111)),
    *(("ImageSets/Segmentation/train.txt", 0o000), ("ImageSets/Segmentation", 0o000)),
]
"""What another user may not read, and the mode that it gets."""
READ_AS_ANOTHER_USER = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from ssdd.data.problems import DataError
from ssdd.data.records import examine
from ssdd.data.voc import fingerprint, open_folder
from ssdd.presets import mini
from ssdd.reports import data_check
def load(folder, split):
    examine(folder, split).check(False)
roots = json.loads(sys.argv[1])
load(open_folder(Path(roots[0])), "train")  # while root: Python itself may be closed to others
os.chmod(Path(roots[0], "JPEGImages"), 0)
os.setuid(65534)
said = []
for root in roots:
    for read in (load, fingerprint):
        try:
            read(open_folder(Path(root)), "train")
            said.append("nothing")
        except DataError as error:
            said.append(str(error))
    errors = data_check.run(replace(mini(), data=Path(root))).errors
    assert any("permission denied" in error for error in errors), (root, errors)
print(json.dumps(said))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become another user")
def test_a_missing_permission_does_not_mean_absent(tmp_path):
    """A file alone can be told by its size and time, so that its fingerprint needs no permission."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "pytest-", "popen-")):  # pytest's folders are closed to other users
            folder.chmod(0o755)
    roots = []
    for number, (name, mode) in enumerate(CLOSED):
        (tmp_path / str(number)).mkdir()
        data = Builder(tmp_path / str(number)).images("a").mask("a", 0, 2).xml("a", "disc").split("a")
        data.write("classes.txt", "square\ndisc\nbar\n")
        if name == "labels.csv":
            data.csv("a,disc")
        if number > 0:
            (data.root / name).chmod(mode)
        roots.append(str(data.root))
    command = [sys.executable, "-c", READ_AS_ANOTHER_USER, json.dumps(roots)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for (name, _), of_load, of_fingerprint in zip(CLOSED, said[::2], said[1::2], strict=True):
        is_file = "/a." in name or name == "labels.csv"
        for text in (of_load,) if is_file else (of_load, of_fingerprint):
            assert "no permission" in text or text.startswith(str(tmp_path)), name
            assert "permission denied" in text, name
            assert "chmod -R a+rX" in text, name
            assert "copy it again" not in text, name
        assert not is_file or of_fingerprint == "nothing"


# ----------------------------------------------------------------------------------------------- check.py


def run_check(monkeypatch, capsys, *args):
    """Exit code and output of ray_jobs/check.py."""
    monkeypatch.setattr(sys, "argv", ["check.py", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "ray_jobs" / "check.py"), run_name="__main__")
    return ended.value.code, capsys.readouterr()


def test_check_prints_what_a_job_would_read(folder, monkeypatch, capsys, tmp_path):
    folder.images("a", "b", "c").split("a", "b").split("c", name="val").split("c", name="other")
    folder.mask("a", 0, 1).mask("b", 2).mask("c", 0, 3, 255)
    code, shown = run_check(
        monkeypatch, capsys, "--data", folder.root, "--json", tmp_path / "x.json", "--sheet", tmp_path / "x.png"
    )
    assert code == 0, shown.out
    assert "list train: 2 images, 2 without a problem" in shown.out
    assert "lists that were not read: other" in shown.out
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["classes"] == list(CLASSES)
    half, whole = WIDTH * HEIGHT // 2, WIDTH * HEIGHT
    assert report["lists"]["train"]["classes"] == {
        "background": {"images": 1, "pixels": half},
        "square": {"images": 1, "pixels": half},
        "disc": {"images": 1, "pixels": whole},
        "bar": {"images": 0, "pixels": 0},
    }
    assert report["lists"]["val"]["classes"]["(no label)"] == {"images": 1, "pixels": whole // 3}
    assert (report["errors"], report["warnings"]) == ([], [])
    assert read_image(tmp_path / "x.png").shape[1] == 1300


def test_check_reports_errors_of_every_list_and_of_other_masks(folder, monkeypatch, capsys, tmp_path):
    folder.images("a", "b").split("a").split("b", name="val").mask("a", 0, 1).mask("b", 0, 255)
    for name in ("knowledge", "advice"):
        folder.write(f"{name}/a.png", encode_mask(mask_of(0, 9)))
    code, shown = run_check(
        *(monkeypatch, capsys, "--data", folder.root, "--json", tmp_path / "x.json"),
        *("--knowledge", folder.root / "knowledge", "--advice", folder.root / "advice"),
    )
    assert code == 2
    errors = json.loads((tmp_path / "x.json").read_text())["errors"]
    assert len(errors) == 2
    assert "only the values 0 and 255" in errors[0]
    assert "knowledge/a.png: value 9 outside 0..3" in errors[1]
    assert all(error.splitlines()[0] in shown.out for error in errors)


def test_check_without_a_folder(monkeypatch, capsys, tmp_path):
    code, shown = run_check(monkeypatch, capsys, "--data", tmp_path / "nowhere")
    assert (code, "no such folder" in shown.out) == (2, True)
    code, shown = run_check(monkeypatch, capsys)
    assert (code, "--data: name the folder" in shown.err) == (2, True)


def test_check_needs_no_ray():
    code = "import runpy, sys; runpy.run_path('ray_jobs/check.py'); print({'ray', 'mlflow'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    assert done.stdout.strip() == "set()"


def test_a_list_is_found_by_any_spelling_of_its_name(folder):
    folder.images("a").mask("a", 0, 1)
    folder.write(f"ImageSets/Segmentation/{unicodedata.normalize('NFD', 'prüfung')}.TXT", "a\n")
    opened = open_folder(folder.root)
    assert read_split(opened, unicodedata.normalize("NFC", "prüfung")) == ["a"]
    assert read_split(opened, unicodedata.normalize("NFD", "prüfung")) == ["a"]
    assert "prüfung" in opened.lists()
