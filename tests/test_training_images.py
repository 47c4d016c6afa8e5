"""What is measured of the dynamic stage on training images, against the training step itself."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from small import NETWORK

from ssdd import losses
from ssdd.data import codec, transforms
from ssdd.nets import checkpoints
from ssdd.nets.networks import DynamicNet
from ssdd.objectives.crf import InlineCRF
from ssdd.objectives.dynamic import DynamicTask
from ssdd.presets import mini
from ssdd.stages.training_images import DecisionStage, _first
from ssdd.storage.tables import cut, write_table

CLASSES, SIDE = 4, 64
CONFIG = replace(mini(), network=NETWORK, evaluate=replace(mini().evaluate, size=SIDE))


def rows():
    rng = np.random.default_rng(0)
    for name, present in (("a", [1, 3]), ("b", [2])):
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((80, 60)).save(png, "PNG")
        refined = rng.choice([0, *present], (3, 4)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
        yield {"image_id": name, "image": png.getvalue(), "presence": present, "refined": codec.encode_mask(refined)}


def test_the_modules_masks_are_those_of_a_training_step(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = DynamicNet(NETWORK, CLASSES).eval()
    for layer in (net.ddnet1.predict, net.ddnet2.predict):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.normal_(net.main.conv2.weight, std=0.5)
    torch.save(net.state_dict(), tmp_path / checkpoints.MODEL)
    bias = replace(CONFIG.dynamic.bias1, bias=0.0)
    chosen = replace(CONFIG, dynamic=replace(CONFIG.dynamic, bias1=bias, bias2=replace(bias, bias=0.05)))
    found = DecisionStage(chosen, CLASSES, tmp_path)(list(rows()))

    size = NETWORK.mask_size(SIDE)
    pictures = [codec.read_image(row["image"]) for row in rows()]
    batch = {
        "image": torch.from_numpy(np.stack([transforms.square(p, SIDE) for p in pictures])),
        "plain": torch.from_numpy(np.stack([transforms.square(p, size) for p in pictures])),
        "presence": torch.from_numpy(np.stack([codec.presence_vector(row["presence"], CLASSES) for row in rows()])),
        "refined": transforms.square_masks([codec.read_mask(row["refined"]) for row in rows()], size).byte(),
    }
    learned = []
    original = losses.segmentation_loss
    monkeypatch.setattr(losses, "segmentation_loss", lambda out, mask: learned.append(mask) or original(out, mask))
    task = DynamicTask(
        network=NETWORK, dynamic=chosen.dynamic, classes=CLASSES, start=None, crf=InlineCRF(chosen.dynamic.crf)
    )
    with torch.no_grad():
        task.losses(net, batch).finish()
    refined2, seed, refined1 = learned  # eq. 11's m^D2, eq. 14's m^D0 and m^D1

    def masks(name):
        return torch.from_numpy(np.stack([codec.read_mask(row[name]) for row in found])).long()

    assert [row["image_id"] for row in found] == ["a", "b"]
    torch.testing.assert_close(masks("dynamic2_knowledge"), seed)
    torch.testing.assert_close(masks("dynamic1_refined"), refined1)
    torch.testing.assert_close(masks("dynamic2_advice"), refined1)
    torch.testing.assert_close(masks("dynamic2_refined"), refined2)
    for module in ("dynamic1", "dynamic2"):
        knowledge, advice, refined = (masks(f"{module}_{name}") for name in ("knowledge", "advice", "refined"))
        assert (knowledge != advice).any()
        assert ((refined == knowledge) | (refined == advice)).all()


def test_whole_parts_with_at_least_so_many_true_masks(tmp_path):
    schema = pa.schema([("image_id", pa.string()), ("truth", pa.binary())])
    rows = [{"image_id": name, "truth": None if name in "bc" else b"mask"} for name in "abcdefg"]
    table = write_table(tmp_path, cut(list("abcdefg"), 2), schema, rows)
    found = [_first(table, wanted) for wanted in (0, 1, 2, 3, 5, 100)]
    assert [(first.rows, masks) for first, masks in found] == [(0, 0), (2, 1), (4, 2), (6, 4), (7, 5), (7, 5)]
    sparse = [row | {"truth": None if row["image_id"] in "abcde" else b"mask"} for row in rows]
    (tmp_path / "sparse").mkdir()
    first, masks = _first(write_table(tmp_path / "sparse", cut(list("abcdefg"), 2), schema, sparse), 1)
    assert (first.rows, masks) == (4, 0)
