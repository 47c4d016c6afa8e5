"""Class maps as PSA, IRN and CLIP-ES write them: what is read, what is refused and never run, and the masks of them."""

import contextlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import ROOT

from ssdd import presets
from ssdd.checks import validate
from ssdd.config import ConfigError
from ssdd.data import class_maps, plain_pickle
from ssdd.data.class_maps import ClassMaps
from ssdd.data.codec import encode_mask
from ssdd.data.problems import DataError
from ssdd.data.records import ReadOptions, find_masks
from ssdd.data.voc import open_folder
from ssdd.fields import replaced
from ssdd.stages.knowledge import mask_of

RNG = np.random.default_rng(0)


def irn(keys=(1, 3), size=(6, 9)):
    """What IRN's make_cam saves: the keys are a view of a wider tensor, `cam` has a quarter of the size."""
    labels = torch.zeros(20)
    labels[list(keys)] = 1
    high_res = torch.rand(len(keys), *size)
    cam = torch.rand(20, *(-(-side // 4) for side in size))[torch.nonzero(labels)[:, 0]]
    return {"keys": torch.nonzero(labels)[:, 0], "cam": cam, "high_res": high_res.numpy()}


def psa(keys=(1, 3), size=(6, 9)):
    """What PSA's infer_cls saves as --out_cam."""
    return {key: RNG.random(size, np.float32) for key in keys}


def crf(keys=(1, 3), size=(6, 9)):
    """What it saves as --out_la_crf: the background first, classes one higher, which sum to 1."""
    scores = RNG.random((1 + len(keys), *size), np.float32)
    return dict(zip((0, *(1 + key for key in keys)), scores / scores.sum(0), strict=True))


def saved(content, protocol=None, core="core"):
    """The bytes of a file that `np.save` writes, or wrote: with protocol 2 up to numpy 1.16, and 3 up to 1.26."""
    stream, array = io.BytesIO(), np.empty((), object)
    array[()] = content
    np.save(stream, array)
    if protocol is None:
        return stream.getvalue()
    header = stream.getvalue()[:128]
    text = pickle.dumps(array, protocol)
    return header + text.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", f"numpy.{core}".encode())


def same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], np.asarray(value))


@pytest.mark.parametrize("protocol", [(None,), (2, "core"), (3, "core"), (3, "_core")])
@pytest.mark.parametrize("content", [irn, psa, crf, dict], ids=lambda make: make.__name__)
def test_files_of_old_and_new_versions(tmp_path, content, protocol):
    expected = content()
    path = tmp_path / "a.npy"
    path.write_bytes(saved(expected, *protocol))
    same(plain_pickle.read(path), expected)


@pytest.mark.parametrize("protocol", [0, 2, 3])
def test_an_empty_array_in_every_protocol(tmp_path, protocol):
    (tmp_path / "a.npy").write_bytes(saved({0: np.zeros((0, 3))}, protocol))
    assert plain_pickle.read(tmp_path / "a.npy")[0].shape == (0, 3)


def test_keys_that_are_numbers_of_numpy_and_a_file_of_python_2(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(saved({np.int64(3): np.ones((2, 3)), np.int32(4): np.zeros((2, 3), np.float16)}))
    assert class_maps.read(path).classes == (4, 5)
    # Python 2 wrote bytes as text: in protocol 2, with the lengths in one byte.
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    kind = b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'%s'\nNNNI-1\nI-1\nI0\ntb"
    values = np.array([[0, 0.5]], "<f4").tobytes()
    text = b"U%c%s" % (len(values), values)
    inner = array + b"(I1\n(I1\nI2\nt" + kind % (b"f4", b"<") + b"I00\n" + text + b"tb"
    outer = array + b"(I1\n(t" + kind % (b"O8", b"|") + b"I00\n(lp1\n(dp2\nI7\n" + inner + b"satb."
    path.write_bytes(saved({})[:128] + b"\x80\x02" + outer)
    np.testing.assert_array_equal(plain_pickle.read(path)[7], [[0, 0.5]])


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    kind=st.sampled_from(["?", "u1", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4"]),
    order=st.permutations(range(3)),
    step=st.integers(1, 2),
)
def test_arrays_and_tensors_of_any_layout(tmp_path_factory, shape, kind, order, step):
    values = np.asarray(RNG.random(shape) * 100).astype(kind)
    view = values.transpose([axis for axis in order if axis < values.ndim])[..., ::step] if shape else values
    content = {"array": view, "list": [1, 2.5, None, "x", {"y": (True, b"z")}]}
    if kind != ">f4":
        tensor = torch.from_numpy(values.copy())
        view_of_tensor = tensor.permute([axis for axis in order if axis < tensor.ndim])
        content["tensor"] = view_of_tensor[..., ::step] if shape else view_of_tensor
    path = tmp_path_factory.getbasetemp() / "layout.npy"
    path.write_bytes(saved(content))
    found = plain_pickle.read(path)
    np.testing.assert_array_equal(found["array"], view)
    assert found["list"] == [1, 2.5, None, "x", {"y": [True, b"z"]}]
    if "tensor" in content:
        np.testing.assert_array_equal(found["tensor"], content["tensor"].numpy())
        assert found["tensor"].dtype == values.dtype


# --------------------------------------------------------------------------------------------- what is refused


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Inner:
    """A torch storage whose bytes do so."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(self.call),)


def attacks(marker):
    import os

    touch = f"touch '{marker}'"
    yield f"{os.system.__module__}.system", Call(os.system, touch)
    yield "builtins.eval", Call(eval, f"open({str(marker)!r}, 'w')")
    yield "builtins.getattr", Call(getattr, "x", "upper")
    yield "subprocess.Popen", {1: [Call(subprocess.Popen, touch, -1, None, None, None, None, None, True, True)]}
    yield f"{os.system.__module__}.system", {"keys": Inner(Call(os.system, touch))}
    yield "torch._utils._rebuild_parameter", {1: torch.nn.Parameter(torch.zeros(2, 2))}
    yield "numpy.load", Call(np.load, str(marker))
    yield "numpy.type 'U3'", {1: np.array(["abc"])}
    yield "type 'V8'", {1: np.zeros(1, [("a", "f8")])}
    yield "shape (2,)", {1: np.array([{}, {}])}


@pytest.mark.parametrize("number", range(10))
def test_anything_else_is_refused_by_name_and_never_run(tmp_path, number):
    marker = tmp_path / "marker"
    name, content = list(attacks(marker))[number]
    path = tmp_path / "2007_000032.npy"
    path.write_bytes(saved(content))
    with pytest.raises(DataError) as error:
        plain_pickle.read(path)
    assert error.value.problems[0][0] == "refused pickle"
    assert str(path) in str(error.value)
    assert name.replace("numpy.type", "numpy's type") in str(error.value)
    assert not marker.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["2007_000032.npy"]


def test_a_pickle_cannot_change_what_it_is_handed(tmp_path):
    """Opcodes that set the state of a function, of a type or of a text, then call it."""
    path = tmp_path / "a.npy"
    header = saved({})[:128]
    for name in (b"_codecs\nencode", b"numpy\ndtype", b"collections\nOrderedDict", b"numpy\nndarray"):
        for state in (b"}(V__wrapped__\nI1\nu", b"N}(V__call__\nI1\nu\x86", b"(c_codecs\nencode\n)}Nt"):
            path.write_bytes(header + b"\x80\x02c" + name + b"\n" + state + b"b(V\xe9\ntR.")
            with pytest.raises(DataError):
                plain_pickle.read(path)
    same(plain_pickle.read(_written(path, psa())), psa_of(path))


def _written(path, content):
    path.write_bytes(saved(content))
    return path


def psa_of(path):
    return np.load(path, allow_pickle=True).item()


@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_are_an_error_of_the_data(tmp_path_factory, data):
    content = bytearray(saved(data.draw(st.sampled_from([irn, psa]))(size=(2, 3))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content))) or None]))
    with contextlib.suppress(DataError):
        class_maps.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        saved(psa())[:200],
        saved({})[:128] + b"\x80\x04N\x94r\xff\xff\xff\x7f.",
        saved({1: torch.zeros(2, 3)}).replace(b"K\x02K\x03\x86", b"K\x02K\x7f\x86"),
        saved({1: torch.ones(1, 1).expand(99, 99)}),
    ],
    ids=["empty", "text", "cut", "memo", "beyond", "expanded"],
)
def test_broken_files(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy") as error:
        plain_pickle.read(path)
    assert error.value.problems[0][0] == "unreadable maps"


def test_tensors_are_read_without_torch(tmp_path):
    path = _written(tmp_path / "a.npy", irn())
    code = "import sys; sys.modules['torch'] = None\nfrom pathlib import Path\nfrom ssdd.data import class_maps\n"
    code += f"print(class_maps.read(Path({str(path)!r})).classes)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(2, 4)\n", done.stderr


# --------------------------------------------------------------------------------------------- what the maps mean


def test_classes_count_from_1(tmp_path):
    path = tmp_path / "a.npy"
    for make, classes, background in ((irn, (2, 4), False), (psa, (2, 4), False), (crf, (0, 2, 4), True)):
        content = make()
        scores = class_maps.read(_written(path, content))
        assert (scores.classes, scores.has_background) == (classes, background)
        planes = content["high_res"] if "keys" in content else np.stack(list(content.values()))
        np.testing.assert_array_equal(scores.values, planes)
    clip_es = {"keys": np.array([0, 5]), "attn_highres": RNG.random((2, 3, 4)).astype(np.float16)}
    assert class_maps.read(_written(path, clip_es)).classes == (1, 6)
    low = irn()
    del low["high_res"]
    assert class_maps.read(_written(path, low)).values.shape == (2, 2, 3)
    for empty in ({}, {"keys": np.zeros(0, int), "high_res": np.zeros((0, 4, 5))}):
        assert class_maps.read(_written(path, empty)).classes == ()


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([ONES], "holds no dictionary"),
        ({"cat": ONES}, "the keys ['cat'] must be integers, the class numbers"),
        ({1.5: ONES}, "the keys [1.5]"),
        ({True: ONES}, "the keys [True]"),
        ({"keys": np.array([1])}, "no entry with maps (high_res, attn_highres, cam)"),
        ({"keys": np.array([[1, 2]]), "cam": ONES[None]}, "the keys [array([1, 2])]"),
        ({"keys": "x", "cam": ONES[None]}, "the keys ['x']"),
        ({"keys": np.array([1, 2]), "cam": ONES[None]}, "the number of maps is 1, but the number of classes is 2"),
        ({"keys": np.array([1, 1]), "cam": np.stack([ONES, ONES])}, "the class numbers [1, 1] must be distinct"),
        ({-1: ONES}, "the class numbers [-1] must be distinct and not negative"),
        ({1: ONES, 2: np.ones((3, 2))}, "the maps have different shapes: (2, 3), (3, 2)"),
        ({1: ONES[None]}, "a map has the shape (1, 2, 3), but must be an array of numbers"),
        ({1: np.zeros((0, 3))}, "a map has the shape (0, 3)"),
        ({1: 0.5}, "a map has the type float"),
        ({"keys": np.array([1]), "high_res": None}, "a map has the type NoneType"),
        ({1: np.array([[0.5, np.nan]])}, "a score that is not a finite number"),
        ({1: np.array([[0.5, np.inf]])}, "a score that is not a finite number"),
        ({1: 3 * ONES}, "the scores range from 3 to 3, but must lie in 0..1"),
        ({1: -ONES}, "the scores range from -1 to -1, but must lie in 0..1"),
    ],
)
def test_maps_that_cannot_be_used(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        class_maps.read(_written(tmp_path / "a.npy", content))
    assert error.value.problems[0][0] == "bad maps"
    assert message in str(error.value)


def test_an_array_is_no_dictionary(tmp_path):
    np.save(tmp_path / "a.npy", ONES)
    with pytest.raises(DataError, match=r"a\.npy: holds no dictionary; save a dictionary \{class: map\}"):
        plain_pickle.read(tmp_path / "a.npy")


def test_masks_by_hand():
    scores = ClassMaps((2, 5), np.array([[[0.0, 0.1, 0.5, 0.9]], [[0.0, 0.3, 0.2, 0.1]]], np.float32))
    # (1 - 0.3)^1 = 0.7 and (1 - 0.5)^1 = 0.5, which the background wins; (1 - 0.3)^4 = 0.24, (1 - 0.5)^4 = 0.06.
    assert mask_of(scores, 1, (1, 4)).tolist() == [[0, 0, 0, 2]]
    assert mask_of(scores, 4, (1, 4)).tolist() == [[0, 5, 2, 2]]
    assert mask_of(scores, 0.4, (1, 4)).tolist() == [[0, 0, 2, 2]]
    assert mask_of(scores, 0.15, (1, 4)).tolist() == [[0, 5, 2, 2]]
    after_crf = ClassMaps((0, 3), np.array([[[0.6, 0.4]], [[0.4, 0.6]]], np.float32))
    assert mask_of(after_crf, 0.9, (1, 2)).tolist() == [[0, 3]]
    none = mask_of(ClassMaps((), np.zeros((0, 0, 0), np.float32)), 16, (2, 3))
    assert none.dtype == np.uint8
    assert none.tolist() == [[0, 0, 0]] * 2
    wide = mask_of(ClassMaps((1,), np.array([[[0.0, 1.0]]], np.float32)), 0.5, (2, 8))
    assert wide.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([1.0, 2.0, 4.0, 16.0, 0.05, 0.15, 0.25]))
def test_masks_are_what_the_methods_themselves_make_of_their_maps(tmp_path_factory, seed, background):
    rng = np.random.default_rng(seed)
    keys, planes = np.array([2, 7, 11]), rng.random((3, 4, 5), np.float32) ** 2
    path = _written(tmp_path_factory.getbasetemp() / "m.npy", {"keys": torch.from_numpy(keys), "high_res": planes})
    behind = np.full((1, 4, 5), background) if background < 1 else (1 - planes.max(0, keepdims=True)) ** background
    expected = np.array([0, 3, 8, 12])[np.concatenate([behind, planes]).argmax(0)]
    np.testing.assert_array_equal(mask_of(class_maps.read(path), background, (4, 5)), expected)
    same_maps = _written(path, dict(zip(keys.tolist(), planes, strict=True)))
    np.testing.assert_array_equal(mask_of(class_maps.read(same_maps), background, (4, 5)), expected)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 32), st.booleans())
def test_maps_at_any_stride_fit_their_image(width, height, stride, up):
    sides = [-(-side // stride) if up else max(1, side // stride) for side in (width, height)]
    assert class_maps.fits((sides[0], sides[1]), (width, height))


def test_other_shapes_do_not_fit():
    assert not class_maps.fits((375, 500), (500, 375))
    assert not class_maps.fits((24, 32), (500, 375))
    assert not class_maps.fits((28, 28), (500, 375))
    assert not class_maps.fits((512, 512), (500, 375))


def test_the_background_must_be_positive():
    with pytest.raises(ConfigError, match="--maps-background: must be positive"):
        validate(replaced(presets.mini(), {"maps_background": 0.0}))


# --------------------------------------------------------------------------------------------- folders of maps


WIDTH, HEIGHT = 9, 6


@pytest.fixture
def folder(tmp_path):
    """Four images with the classes 1 and 2, in turn."""
    root = tmp_path / "data"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    for name in "abcd":
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "maps").mkdir()
    return root


LABELS = [[1], [2], [1], [2]]


def look(folder, **options):
    maps = folder.parent / "maps"
    return find_masks(open_folder(folder), list("abcd"), maps, presence=LABELS, options=ReadOptions(**options))


def fill(folder, make=psa, classes=LABELS, size=(HEIGHT, WIDTH)):
    for name, labels in zip("abcd", classes, strict=True):
        _written(folder.parent / "maps" / f"{name}.npy", make([label - 1 for label in labels], size))


@pytest.mark.parametrize("make", [psa, irn, crf])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (2, 3), (12, 18)])
def test_a_folder_of_maps(folder, make, size):
    fill(folder, make, size=size)
    (found,), warnings = look(folder)
    assert [(mask.path.name, mask.size, mask.maps) for mask in found] == [
        (f"{name}.npy", (WIDTH, HEIGHT), "all" if make is crf else "classes") for name in "abcd"
    ]
    assert warnings == []


def test_what_is_wrong_is_listed_together(folder):
    fill(folder)
    maps = folder.parent / "maps"
    (maps / "a.npy").unlink()
    _written(maps / "b.npy", psa([1], (WIDTH, HEIGHT)))
    _written(maps / "c.npy", {0: np.full((HEIGHT, WIDTH), np.nan)})
    _written(maps / "d.npy", {1: Call(print, "ran")})
    with pytest.raises(DataError) as error:
        look(folder)
    assert [kind for kind, _ in error.value.problems] == ["missing mask", "bad maps", "bad maps", "refused pickle"]
    text = str(error.value)
    for part in (
        f"{maps}/a.png (or .npy)",
        f"{maps}/b.npy: size 6x9, but the image has 9x6",
        f"{maps}/c.npy: a map has a score that is not a finite number",
        f"{maps}/d.npy: refers to builtins.print",
    ):
        assert part in text


def test_masks_and_maps_do_not_mix(folder):
    fill(folder)
    maps = folder.parent / "maps"
    (maps / "x.png").write_bytes(b"a picture of another image does not matter")
    look(folder)
    (maps / "a.npy").unlink()
    (maps / "a.png").write_bytes(encode_mask(np.ones((HEIGHT, WIDTH), np.uint8)))
    with pytest.raises(DataError, match=r"maps: 3 of 4 files are maps, for example b\.npy") as error:
        look(folder)
    assert [kind for kind, _ in error.value.problems] == ["masks and maps"]
    fill(folder)
    with pytest.raises(DataError, match=r"ambiguous mask"):
        look(folder)


def test_classes_of_maps_are_compared_with_the_labels(folder):
    fill(folder, classes=[[1], [2], [1], [1]])
    _, (warning,) = look(folder)
    assert "d.npy (mask: cat (1); labels: dog (2))" in warning
    fill(folder, classes=[[2], [3], [2], [3]])  # as if the classes counted from 1
    with pytest.raises(DataError, match=r"2 -> 1 \(cat\), 3 -> 2 \(dog\).* a map with key k counts as value k \+ 1"):
        look(folder)
    fill(folder, classes=[[1], [9], [1], [2]])
    with pytest.raises(DataError, match=r"b\.npy: class 9 outside 0\.\.3"):
        look(folder)
    fill(folder, classes=[[1, 2], [1, 2], [1, 2], [1, 2]])  # all classes for every image
    with pytest.raises(DataError, match="masks that contradict the labels"):
        look(folder)


def test_maps_of_the_turned_photograph(folder):
    fill(folder, size=(WIDTH, HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "abcd":
        path = folder / "JPEGImages" / f"{name}.jpg"
        Image.open(path).save(path, exif=exif)
    with pytest.raises(DataError, match="size 6x9 of the photograph after its EXIF rotation"):
        look(folder)
    (found,), _ = look(folder, apply_exif=True)
    assert {mask.size for mask in found} == {(HEIGHT, WIDTH)}
