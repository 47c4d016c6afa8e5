"""Folders on a disk and in a bucket of a real S3 server do the same."""

import contextlib
import errno
import io
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ssdd import cli
from ssdd.cli import script_flags
from ssdd.config import ConfigError
from ssdd.data import codec, records, synthetic, voc
from ssdd.data.problems import DataError
from ssdd.fields import changed, from_dict, to_dict
from ssdd.nets import checkpoints
from ssdd.presets import changes, mini
from ssdd.storage import artifacts, paths
from ssdd.storage.artifacts import Store, whole, write_text
from ssdd.storage.paths import ABSENT, FilesIn, RemoteError, RemotePath, to_path
from ssdd.storage.tables import DamagedTableError, Table, cut, open_table, read_joined, write_table


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    return request.getfixturevalue("remote") / request.node.name if request.param == "bucket" else tmp_path


@pytest.fixture
def filled(root):
    """a, b/c.txt and b/d/e.txt."""
    for name, text in (("a", "1"), ("b/c.txt", "22"), ("b/d/e.txt", "\u03b1")):
        write_text(root / name, text)
    return root


def test_files_are_what_was_written(filled):
    assert (filled / "b" / "d" / "e.txt").read_text() == "\u03b1"
    assert (filled / "b/c.txt").read_bytes() == b"22"
    with (filled / "a").open("rb") as stream:
        assert (stream.read(1), stream.seek(0), stream.read()) == (b"1", 0, b"1")
    write_text(filled / "a", "new")
    assert (filled / "a").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        (filled / "none").read_bytes()


def test_what_is_there(filled):
    b = filled / "b"
    assert (b.exists(), b.is_dir(), b.is_file()) == (True, True, False)
    assert ((b / "c.txt").exists(), (b / "c.txt").is_dir(), (b / "c.txt").is_file()) == (True, False, True)
    assert ((b / "c").exists(), (b / "c").is_dir(), (b / "c").is_file()) == (False, False, False)
    assert sorted(path.name for path in b.iterdir()) == paths.names_in(b) == ["c.txt", "d"]
    assert sorted(paths.relative(path, filled) for path in filled.glob("*/*")) == ["b/c.txt", "b/d"]
    assert [path.name for path in filled.glob("b/*.txt")] == ["c.txt"]
    assert list((filled / "none").glob("*")) == []
    files = FilesIn(b)
    assert "c.txt" in files.names()
    assert files.stat("c.txt") == paths.stat(b / "c.txt")
    assert files.stat("c.txt").st_size == 2
    assert files.stat("d") == paths.stat(b / "d") == ABSENT, "a folder is no file"
    assert files.stat("none") == FilesIn(filled / "none").stat("x") == paths.stat(b / "none") == ABSENT


def test_parts_of_a_path(root):
    path = root / "b" / "c.tar.gz"
    assert (path.name, path.stem, path.suffix, path.parent) == ("c.tar.gz", "c.tar", ".gz", root / "b")
    assert to_path(str(path)) == path
    assert paths.relative(path, root) == "b/c.tar.gz"


def test_copies_and_removal(filled, tmp_path):
    paths.copy(filled / "b", filled / "f")
    assert (filled / "f" / "d" / "e.txt").read_text() == "\u03b1"
    paths.remove(filled / "b")
    paths.remove(filled / "b")
    assert not (filled / "b").exists()
    assert (filled / "f" / "c.txt").is_file()
    with paths.on_disk(filled / "a") as file:
        assert isinstance(file, Path)
        assert file.name == "a"
        assert file.read_text() == "1"
    paths.make_writable(filled / "new")
    assert list((filled / "new").iterdir()) == []


def half_written(path):
    with whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError("stop")


def test_nothing_appears_of_what_was_not_finished(root):
    with pytest.raises(RuntimeError, match="stop"):
        half_written(root / "x" / "file.txt")
    assert not (root / "x" / "file.txt").exists()
    with whole(root / "folder") as aside:
        aside.mkdir()
        (aside / "file").write_text("1")
    assert paths.names_in(root / "folder") == ["file"]


def test_artifacts_are_made_once_and_whole(root, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "content").write_text("x")

    def broken(folder):
        make(folder)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Store(root).build("thing", {}, broken)
    assert not Store(root).identify("thing", {}).path.exists()
    with monkeypatch.context() as patch:  # between the first file and the last
        patch.setattr(paths, "copy", interrupted(paths.copy))
        patch.setattr(artifacts.os, "rename", interrupted(lambda *both: None))
        with pytest.raises(KeyboardInterrupt):
            Store(root).build("thing", {}, make)
    assert not artifacts.is_whole(Store(root).identify("thing", {}))
    artifact = Store(root).build("thing", {}, make)
    assert Store(root).build("thing", {}, broken) == artifact
    assert len(made) == 3
    assert sorted(path.name for path in artifact.path.iterdir()) == ["content", "recipe.json"]
    assert paths.names_in(root / "artifacts") == [artifact.path.name]


def interrupted(function):
    def call(*args):
        function(*args)
        raise KeyboardInterrupt

    return call


def test_tables(root):
    schema = pa.schema([("image_id", pa.string()), ("value", pa.int64()), ("other", pa.int64())])
    ids = ["b", "a", "c"]
    rows = [{"image_id": i, "value": ord(i), "other": 0} for i in sorted(ids)]
    (root / "t").mkdir()
    write_table(root / "t", cut(ids, 2), schema, rows)
    table = open_table(root / "t")
    assert table.columns() == ["image_id", "value", "other"]
    assert [row["value"] for row in table] == [98, 97, 99]
    assert read_joined([table], 1, ["value"]) == [{"image_id": "c", "value": 99}]


@pytest.fixture
def data(root, tmp_path):
    """A small data set on the disk, and its copy where the test looks for it."""
    folder = synthetic.generate(tmp_path / "drawn", train=4, val=2)
    paths.copy(folder, root / "data")
    return folder, root / "data"


def test_a_data_set_is_read_alike(data):
    drawn, folder = data
    examined = records.examine(voc.open_folder(folder), "train")
    expected = records.examine(voc.open_folder(drawn), "train").records
    assert examined.problems == examined.misread == examined.warnings == []
    for record, own in zip(examined.records, expected, strict=True):
        assert (record.image_id, record.presence) == (own.image_id, own.presence)
        assert record.image_path.read_bytes() == own.image_path.read_bytes()
        assert record.mask_path is not None
        np.testing.assert_array_equal(codec.read_mask(record.mask_path), codec.read_mask(own.mask_path))
    ids = [record.image_id for record in examined.records]
    masks = drawn.parent / "masks"
    shutil.copytree(drawn / "SegmentationClass", masks)
    for path in masks.iterdir():
        mask = codec.read_mask(path)
        path.write_bytes(codec.encode_mask(np.where(mask == 255, 0, mask).astype(np.uint8)))
    paths.copy(masks, folder.parent / "masks")
    (others,), _ = records.find_masks(voc.open_folder(folder), ids, folder.parent / "masks")
    found = [mask.path for mask in others]
    assert [path.name for path in found] == [f"{image_id}.png" for image_id in ids]
    assert voc.stats(found) != voc.stats(found[1:])


def test_a_changed_file_changes_the_fingerprint(data):
    _, folder = data
    before = [voc.fingerprint(voc.open_folder(folder), split) for split in ("train", "val")]
    path = folder / "SegmentationClass" / "train_0002.png"
    path.write_bytes(path.read_bytes() + b"\0")
    after = [voc.fingerprint(voc.open_folder(folder), split) for split in ("train", "val")]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_broken_files_are_named_where_they_are(data):
    _, folder = data
    path = folder / "JPEGImages" / "train_0001.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    (folder / "SegmentationClass" / "train_0003.png").write_bytes(codec.encode_mask(np.full((3, 3), 200, np.uint8)))
    with pytest.raises(DataError) as error:
        records.examine(voc.open_folder(folder), "train").check(False)
    assert f"{folder}/JPEGImages/train_0001.jpg: image file is truncated" in str(error.value)
    assert f"{folder}/SegmentationClass/train_0003.png: size 3x3" in str(error.value)


def test_a_folder_that_is_not_there(root):
    with pytest.raises(DataError, match="no such folder"):
        voc.open_folder(root / "nowhere")


def test_a_bucket_that_is_not_there(bucket):
    where = to_path("s3://no-such-bucket/x")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x: no such folder"):
        voc.open_folder(where)
    with pytest.raises(RemoteError, match="s3://no-such-bucket/x"):
        paths.make_writable(where)


def test_what_does_not_arrive_is_an_error(bucket, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    where = to_path("s3://no-such-bucket/x")
    schema, rows = pa.schema([("image_id", pa.string())]), [{"image_id": "a"}]
    sends = [lambda: write_text(where, "x"), lambda: where.write_text("x")]
    sends += [
        lambda: paths.copy(tmp_path / "folder", where),
        lambda: Store(where).build("thing", {}, lambda folder: None),
        lambda: write_table(where, cut(["a"], 1), schema, rows),
        lambda: checkpoints.save({"x": torch.zeros(3)}, where / "model.pt"),
    ]
    for send in sends:
        with pytest.raises(RemoteError, match="s3://no-such-bucket/x"):
            send()


def test_an_object_that_cannot_be_replaced_stays(remote, monkeypatch):
    write_text(remote / "file", "as it was")

    def refused(path, mode):
        raise RemoteError(f"{path}: QuotaExceeded")

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "open", refused)
        with pytest.raises(RemoteError, match="QuotaExceeded"):
            write_text(remote / "file", "new")
    assert (remote / "file").read_text() == "as it was"


def test_an_endpoint_that_is_none(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[")
    with pytest.raises(RemoteError, match=r"s3://other/x: .*check the bucket"):
        to_path("s3://other/x").exists()


def test_a_damaged_table_is_named(root):
    (root / "t").mkdir()
    table = write_table(
        root / "t", cut(["an-image"], 1), pa.schema([("image_id", pa.string())]), [{"image_id": "an-image"}]
    )
    part = root / "t" / "part-00000.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:-10])
    for read in (table.columns, lambda: table.read(0), lambda: read_joined([table], 0, [])):
        with pytest.raises(DamagedTableError, match=f"{re.escape(str(part))}: .*; delete its folder"):
            read()
    where = data.index(b"an-image")  # nothing but the checksum shows it
    part.write_bytes(data[:where] + b"x" + data[where + 1 :])
    with pytest.raises(DamagedTableError, match=f"{re.escape(str(part))}: .*CRC"):
        table.read(0)
    part.unlink()
    with pytest.raises(DamagedTableError, match=re.escape(str(part))):
        table.read(0)
    (root / "t" / "ids.json").write_text("[")
    with pytest.raises(DamagedTableError, match=r"ids\.json: .*delete its folder"):
        open_table(root / "t")


def test_after_an_error_what_was_ahead_is_not_waited_for():
    begun = []

    def work(item):
        begun.append(item)
        if item == 0:
            raise RuntimeError("stop")
        time.sleep(0.2)

    with pytest.raises(RuntimeError, match="stop"):
        list(paths.threaded(work, range(64), Path()))
    assert len(begun) < 32


def test_threads_keep_the_order():
    assert list(paths.threaded(lambda item: 2 * item, range(300), Path())) == list(range(0, 600, 2))


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(bucket, monkeypatch):
    class Gone:
        def __getattr__(self, name):
            def call(*args, **options):
                raise OSError("AWS Error NETWORK_CONNECTION")

            return call

    monkeypatch.setattr(paths, "_file_system", lambda scheme, name: Gone())
    path = to_path("s3://bucket/x")
    questions = [path.is_dir, path.read_bytes, path.unlink, path.remove, lambda: paths.stat(path), path.read_text]
    questions += [lambda: paths.names_in(path), lambda: FilesIn(path), lambda: list(path.glob("*"))]
    questions += [lambda: Table(path, (("a",),)).read(0), lambda: checkpoints.read(path)]
    questions += [lambda: codec.read_image(path), lambda: path.write_text("x"), lambda: voc.open_folder(path)]
    for question in questions:
        with pytest.raises(RemoteError, match=r"s3://bucket/x.*: AWS Error NETWORK_CONNECTION; check the bucket"):
            question()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://bucket/x", "ftp:// is not supported; use s3://"),
        ("s3://key:secret@bucket/x", "set them in the environment"),
        ("s3://key:sec/secret@bucket/x", "set them in the environment"),
        ("s3://my bucket/x", "write s3://BUCKET/KEY"),
        ("s3://bucket/x?endpoint_override=evil", "set them in the environment"),
        ("s3://", "write s3://BUCKET/KEY"),
        ("s3://bucket//x", "write s3://BUCKET/KEY"),
        ("s3://bucket/../x", "write s3://BUCKET/KEY"),
    ],
)
def test_urls_that_are_refused(url, message, capsys, monkeypatch):
    with pytest.raises(ValueError, match=message) as error:
        to_path(url)
    assert "secret" not in str(error.value)
    with pytest.raises(SystemExit):
        cli.parse(["--data", url])
    shown = capsys.readouterr().err
    assert message in " ".join(shown.replace("\u2502", " ").split())
    for read in (lambda: cli.parse(["--config", url]), lambda: script_flags(output=dict(type=paths.path_flag))):
        monkeypatch.setattr(sys, "argv", ["job", "--output", url])
        with pytest.raises(SystemExit):
            read()
        shown += capsys.readouterr().err
    with pytest.raises(ConfigError, match=message) as error:
        changed(mini(), {"data": url, "seed": 1})
    assert "secret" not in shown + str(error.value)


def test_a_configuration_with_urls():
    chosen = cli.parse(
        ["--data", "s3://bucket/voc/", "--workspace", "gs://bucket/w", "--knowledge", "k", "--advice", "a"]
    )
    assert chosen.data == RemotePath("s3", "bucket/voc")
    assert chosen.workspace == RemotePath("gs", "bucket/w")
    assert chosen.knowledge == Path("k")
    assert from_dict(to_dict(chosen)) == chosen
    assert changed(mini(), changes(chosen)).data == chosen.data
    assert changes(chosen)["data"] == "s3://bucket/voc"
    assert paths.disk_beside(Path("w")) == Path("w")
    assert paths.disk_beside(chosen.workspace) != paths.disk_beside(RemotePath("gs", "other/w"))


@pytest.mark.parametrize("size", [0, 100, paths.PIECE, 3 * paths.PIECE + 5])
def test_a_large_object_is_read_and_copied_in_pieces(remote, tmp_path, size, monkeypatch):
    data = np.random.default_rng(0).bytes(size)
    (remote / "x").write_bytes(data)
    asked = []
    original = RemotePath.open_ranges

    @contextlib.contextmanager
    def counting(path):
        with original(path) as ranges:
            yield Counting(ranges, asked)

    monkeypatch.setattr(RemotePath, "open_ranges", counting)
    with (remote / "x").open() as stream:
        assert stream.read(10) == data[:10]
        stream.seek(-5, 2) if size > 5 else None
        assert stream.read() == data[-5:] if size > 5 else True
    asked.clear()
    paths.copy(remote / "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert max(asked) <= paths.PIECE
    assert len([n for n in asked if n]) == -(-size // paths.PIECE)


class Counting(io.RawIOBase):
    """A stream that notes how many bytes each of its reads gives."""

    def __init__(self, stream, asked):
        self.stream, self.asked = stream, asked

    def size(self):
        return self.stream.size()

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *where):
        return self.stream.seek(*where)

    def tell(self):
        return self.stream.tell()

    def read(self, size=-1):
        data = self.stream.read() if size < 0 else self.stream.read(size)
        self.asked.append(len(data))
        return data

    def readinto(self, buffer):
        count = self.stream.readinto(buffer)
        self.asked.append(count)
        return count


def test_a_file_that_is_copied_to_itself_stays(tmp_path):
    (tmp_path / "x").write_text("as it was")
    paths.copy(tmp_path / "x", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "as it was"


class Failing(Counting):
    """A stream whose third read fails."""

    def readinto(self, buffer):
        if len(self.asked) == 2:
            raise OSError("AWS Error NETWORK_CONNECTION")  # without a number, as pyarrow's
        return super().readinto(buffer)


def test_a_store_that_fails_in_the_middle_of_a_large_object_is_named(remote, tmp_path, monkeypatch):
    checkpoints.save({f"w{k}": torch.zeros(2**20) for k in range(8)}, remote / "model.pt")
    original = RemotePath.open_ranges

    @contextlib.contextmanager
    def failing(path):
        with original(path) as ranges, path._asking():
            yield Failing(ranges, [])

    monkeypatch.setattr(RemotePath, "open_ranges", failing)
    with pytest.raises(RemoteError, match=r"s3://.*/model\.pt: AWS Error NETWORK_CONNECTION"):
        checkpoints.read(remote / "model.pt")
    (tmp_path / "there").write_text("as it was")
    with pytest.raises(RemoteError, match="NETWORK_CONNECTION"):
        paths.copy(remote / "model.pt", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_full_disk_is_not_the_buckets_fault(remote, tmp_path, monkeypatch):
    (remote / "x").write_bytes(b"data")

    def full(source, target, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left") as error:
        paths.copy(remote / "x", tmp_path / "x")
    assert error.value.errno == errno.ENOSPC
    (tmp_path / "y").write_bytes(b"data")
    with pytest.raises(OSError, match="No space left"):
        paths.copy(tmp_path / "y", remote / "y")
    assert not (remote / "y").exists(), "half of it"
