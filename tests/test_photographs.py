"""Which photographs a text names, what their outputs are called, and how they are decoded."""

import io
import os
import string
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ssdd.data import codec, photographs
from ssdd.data.photographs import output_names
from ssdd.data.problems import DataError
from ssdd.storage.paths import to_path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.tiff", "sub/note.txt", ".hidden/d.jpg", ".e.jpg", "out/masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_gives_its_photographs_and_those_of_its_subfolders(folder):
    listed = photographs.find(str(folder), folder / "out")
    assert listed.root == folder
    assert listed.names == ["a.jpg", "sub/b.PNG", "sub/deep/c.tiff"]
    assert listed.others == 1


def test_the_output_is_no_input(folder):
    (folder / "link").symlink_to(folder)
    (folder / "output-2").mkdir()
    (folder / "output-2" / "b.jpg").write_bytes(b"")
    for text in (folder, folder / "link", folder / "**" / "*.*", folder / "sub" / ".."):
        names = photographs.find(str(text), folder / "link" / "out").names
        assert "a.jpg" in names
        assert "output-2/b.jpg" in names
        assert not [name for name in names if name.startswith("out/")]
    (folder / "output-2" / photographs.RECORD).write_text("{}")
    assert "output-2/b.jpg" in photographs.find(str(folder), folder / "out").names, "a name that others use, too"
    (folder / "output-2" / photographs.TABLE).mkdir()
    listed = photographs.find(str(folder), folder / "out")
    assert (listed.names, listed.outputs) == (["a.jpg", "sub/b.PNG", "sub/deep/c.tiff"], 1)


def test_a_file_is_named_in_its_folder_whatever_its_suffix(folder):
    listed = photographs.find(str(folder / "sub" / "note.txt"), folder / "out")
    assert (listed.root, listed.names) == (folder / "sub", ["note.txt"])


@pytest.mark.parametrize(
    ("pattern", "root", "names"),
    [
        ("*.jpg", "", ["a.jpg"]),
        ("sub/*", "sub", ["b.PNG", "note.txt"]),
        ("s*/deep/*.tif?", "", ["sub/deep/c.tiff"]),
        ("sub/**/*.*[Gf]", "sub", ["b.PNG", "deep/c.tiff"]),
    ],
)
def test_a_globs_root_is_its_fixed_part(folder, pattern, root, names):
    listed = photographs.find(str(folder / pattern), folder / "out")
    assert (listed.root, listed.names) == (folder / root, names)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder):
    (folder / "x[1].jpg").write_bytes(b"")
    assert photographs.find(str(folder / "x[1].jpg"), folder / "out").names == ["x[1].jpg"]


def test_nothing_to_predict_is_an_error_that_names_the_input(folder):
    (folder / "empty").mkdir()
    for name in ("absent", "empty", "*.gif"):
        with pytest.raises(DataError, match=f"--input .*{name.replace('*', '[*]')}"):
            photographs.find(str(folder / name), folder / "out")
    with pytest.raises(ValueError, match="http:// is not supported"):
        photographs.find("http://host/a.jpg", folder / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_is_refused(folder):
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(DataError, match="is not UTF-8; rename"):
        photographs.find(str(folder), folder / "out")


def test_objects_of_a_store(bucket):
    root = to_path(f"{bucket}/photographs")
    for name in ("a.jpg", "sub/b.png", "sub/.hidden/c.png", "note.txt"):
        (root / name).write_bytes(b"x")
    listed = photographs.find(str(root), to_path(f"{bucket}/out"))
    assert (listed.root, listed.names, listed.others) == (root, ["a.jpg", "sub/b.png"], 1)
    assert photographs.find(str(root / "sub/b.png"), root / "out").names == ["b.png"]
    assert photographs.find(str(root), root / "sub").names == ["a.jpg"]
    with pytest.raises(DataError, match="a glob cannot name objects"):
        photographs.find(str(root / "*.jpg"), root / "out")


def test_outputs_that_would_collide_keep_their_suffix():
    assert output_names(["a.jpg", "b/a.jpg", "c.x.png"]) == ["a", "b/a", "c.x"]
    assert output_names(["a.jpg", "a.png", "b.png"]) == ["a.jpg", "a.png", "b"]
    assert output_names(["a.jpg", "a.png", "a.jpg.webp"]) == ["a.jpg", "a.png", "a.jpg.webp"]
    assert output_names(["a.png"], taken={"a"}) == ["a.png"]


NAMES = st.lists(st.text("ab./", min_size=1, max_size=6).map(lambda text: f"x{text.replace('/', 'y/x')}"), unique=True)


@given(NAMES, st.sets(st.sampled_from(["x", "xa", "xb", "xab"])))
def test_outputs_differ_from_each_other_and_from_earlier_ones(names, taken):
    try:
        outputs = output_names(names, taken)
    except DataError:
        assert set(names) & taken
        return
    assert len(set(outputs)) == len(names)
    assert not set(outputs) & taken
    assert all(name.startswith(output) for name, output in zip(names, outputs, strict=True))


def encoded(kind, **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return np.asarray(image), buffer.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_formats_are_told_by_content(kind, options, tmp_path):
    pixels, data = encoded(kind, **options)
    (tmp_path / "photo.jpg").write_bytes(data)
    np.testing.assert_array_equal(codec.read_photograph(tmp_path / "photo.jpg", apply_exif=False), pixels)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_photograph_is_turned_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, data = encoded(kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded("PNG", exif=exif)[1]))))
    np.testing.assert_array_equal(codec.read_photograph(data, apply_exif=True), upright)
    if kind == "PNG":
        np.testing.assert_array_equal(codec.read_photograph(data, apply_exif=False), pixels)


def test_photographs_that_cannot_be_used_say_why():
    with pytest.raises(DataError, match="not a JPEG, PNG, WebP, BMP or TIFF file"):
        codec.read_photograph(b"GIF89a" + bytes(20), False)
    with pytest.raises(DataError, match="not a JPEG, PNG, WebP, BMP or TIFF file"):
        codec.read_photograph(string.ascii_letters.encode(), False)
    with pytest.raises(DataError, match="7x5 are more than 34 pixels"):
        codec.read_photograph(encoded("PNG")[1], False, max_pixels=34)
    text_offsets = encoded("TIFF")[1]
    place = text_offsets.index(struct.pack("<H", 273))  # StripOffsets; its type becomes text
    text_offsets = text_offsets[: place + 2] + struct.pack("<H", 2) + text_offsets[place + 4 :]
    with pytest.raises(DataError, match="bytes: "):
        codec.read_photograph(text_offsets, False)
    data = encoded("JPEG")[1]
    with pytest.raises(DataError, match="truncated"):
        codec.read_photograph(data[: len(data) - 20], False)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match="32 bits"):
        codec.read_photograph(buffer.getvalue(), False)
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 260_000, np.int32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match="32 bits"):
        codec.read_photograph(buffer.getvalue(), False)
