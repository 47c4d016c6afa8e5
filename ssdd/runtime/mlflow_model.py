"""A trained network as an MLflow model: encoded photographs in, masks as PNG bytes out.

When MLflow loads the model, it imports this module from the copy of this package in the model's folder. The module
does not need Ray or the other packages that only a training needs.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import ssdd
from ssdd.data import codec, drawn_scenes
from ssdd.nets import exported
from ssdd.nets.exported import Description
from ssdd.nets.networks import SegmentationNet
from ssdd.segmenter import Segmenter
from ssdd.versions import version

NETWORK = "network.safetensors"
REQUIREMENTS = (
    *("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "pydensecrf2"),
    *("numpy", "scipy", "pyarrow", "pillow", "matplotlib", "filelock"),
)
"""Packages that loading and applying a network imports."""


def save(segmenter: Segmenter, folder: Path, scores: dict[str, float]) -> None:
    """Write the model's folder: weights, a copy of this package, requirements, signature and an example.

    Args:
        segmenter: a segmenter whose network is a `SegmentationNet`, not the function of an exported file.
        folder: a folder that does not exist yet.
        scores: the network's scores by name, for the model's metadata.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # hide the messages about its checks
    net = segmenter.net
    assert isinstance(net, SegmentationNet), "the segmenter's network is the function of an exported file"
    photograph, _ = drawn_scenes.render(0, "val", 0, (160, 120))
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "data")
        data.mkdir()
        exported.write_safetensors(net, Description(segmenter.config, segmenter.classes), data / NETWORK)
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(Path(ssdd.__file__).parent)],
            signature=ModelSignature(
                inputs=Schema([ColSpec("binary", "image")]),
                outputs=Schema([ColSpec("binary", "mask")]),
                params=ParamSchema([ParamSpec("crf", "boolean", False)]),
            ),
            input_example=pd.DataFrame({"image": [codec.encode_photograph(photograph)]}),
            pip_requirements=[_pinned(name) for name in REQUIREMENTS],
            metadata={"classes": list(segmenter.classes), "scores": scores},
        )


def _pinned(name: str) -> str:
    """A package with its installed version, if that is known: conda installs some packages under other names."""
    running = version(name)
    return name if running is None else f"{name}=={running.partition('+')[0]}"


def _load_pyfunc(path: str) -> "_Masks":
    """MLflow calls this with the folder of the model's data, and uses the result as the model."""
    return _Masks(ssdd.load(Path(path, NETWORK)))


class _Masks:
    """The model whose `predict` MLflow calls after `mlflow.pyfunc.load_model`."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def predict(self, table: Any, params: dict[str, Any] | None = None) -> Any:
        """The masks of a table of photographs, as palette PNGs.

        Args:
            table: a pandas DataFrame with the bytes of the image files in the column `image`.
            params: `crf` (bool): whether to refine the masks by the CRF of the training's configuration.

        Returns:
            a pandas DataFrame with the column `mask`.
        """
        import pandas as pd

        apply_exif = self.segmenter.config.apply_exif
        photographs = [codec.read_photograph(bytes(data), apply_exif) for data in table["image"]]
        masks = self.segmenter.predict(photographs, crf=bool((params or {}).get("crf")))
        return pd.DataFrame({"mask": [codec.encode_mask(mask) for mask in masks]})
