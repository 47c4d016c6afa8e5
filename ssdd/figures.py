"""Panels like the paper's Figs. 7 and 8, from table rows. matplotlib without a display."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from ssdd import maps, voc
from ssdd.tables import Row

Panel = tuple[str, Callable[[Row], np.ndarray | None]]
_MODELS = {
    "baseline_knowledge": "knowledge ($m^{K0}$)",
    "baseline": "baseline (advice)",
    "baseline_refined": "static ($m^{D0}$)",
    "dynamic": "SSDD dynamic",
    "dynamic_crf": "SSDD dynamic + CRF",
}


def refinement(rows: list[Row], classes: tuple[str, ...], show_data: bool = True) -> Figure:
    """Fig. 7: image, knowledge, its difference map, advice, its difference map, refined, its gain on advice, truth.

    Args:
        rows: with `image`, `knowledge`, `d_knowledge`, `advice`, `d_advice`, `refined` and `truth` (or None).
        classes: names for the legend.
        show_data: False leaves image and truth out.
    """
    panels: list[Panel] = [
        ("image", _image),
        ("knowledge $m^K$", _mask("knowledge")),
        ("difference $d^K$", _unit("d_knowledge")),
        ("advice $m^A$", _mask("advice")),
        ("difference $d^A$", _unit("d_advice")),
        ("refined $m^D$", _mask("refined")),
        ("against advice", _gain("refined", "advice")),
        ("truth", _mask("truth")),
    ]
    return _grid(rows, panels, classes, show_data)


def predictions(rows: list[Row], classes: tuple[str, ...], show_data: bool = True) -> Figure:
    """Fig. 8: image, the networks' masks, the last one's gain on the baseline (both without CRF), truth.

    Args:
        rows: with `image`, `truth` (or None), and masks of some of the models that `_MODELS` names.
        classes: names for the legend.
        show_data: False leaves image and truth out.
    """
    models = [name for name in _MODELS if rows and name in rows[0]]
    panels: list[Panel] = [("image", _image), *((_MODELS[name], _mask(name)) for name in models)]
    last = [name for name in models if not name.endswith("_crf")][-1:]
    if "baseline" in models and last != ["baseline"]:
        panels.append(("against baseline", _gain(last[0], "baseline")))
    return _grid(rows, [*panels, ("truth", _mask("truth"))], classes, show_data)


def reliability(mean: np.ndarray, share: np.ndarray, pixels: np.ndarray) -> Figure:
    """How often the masks differ where DD-Net says d, and how many pixels have that d.

    Args:
        mean, share, pixels: (2, bins) for d^K and d^A, see `diagnostics.DifferenceReport.calibration`.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for k, name in enumerate(("$d^K$ (from knowledge)", "$d^A$ (from advice)")):
        left.plot(mean[k], share[k], marker="o", markersize=3, label=name)
        right.plot(mean[k], pixels[k] / pixels[k].sum(), marker="o", markersize=3, label=name)
    left.set(xlabel="d", ylabel="share of pixels that differ", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="d", ylabel="share of all pixels", xlim=(0, 1), ylim=(0, None))
    left.legend(fontsize=8)
    return figure


def _image(row: Row) -> np.ndarray:
    return voc.read_image(row["image"])


def _mask(column: str) -> Callable[[Row], np.ndarray | None]:
    def draw(row: Row) -> np.ndarray | None:
        return None if row[column] is None else voc.voc_palette()[voc.read_mask(row[column])]

    return draw


def _gain(column: str, other: str) -> Callable[[Row], np.ndarray | None]:
    """Green where `column` alone is right, red where `other` alone is, grey where both are wrong in two ways."""

    def draw(row: Row) -> np.ndarray | None:
        if row["truth"] is None:
            return None
        mask, before, truth = (voc.read_mask(row[name]) for name in (column, other, "truth"))
        picture = np.full((*truth.shape, 3), 255, np.uint8)
        picture[mask != before] = (190, 190, 190)
        picture[(mask != before) & (mask == truth)] = (0, 150, 60)
        picture[(mask != before) & (before == truth)] = (210, 40, 40)
        return picture

    return draw


def _unit(column: str) -> Callable[[Row], np.ndarray]:
    return lambda row: maps.unpack_unit(row[column])


def _grid(rows: list[Row], panels: list[Panel], classes: tuple[str, ...], show_data: bool) -> Figure:
    panels = [(title, draw) for title, draw in panels if show_data or title not in ("image", "truth")]
    figure = Figure(figsize=(1.9 * len(panels), 1.6 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), len(panels), squeeze=False)
    shown: set[int] = set()
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        height, width = _image(row).shape[:2]
        for axis, (title, draw) in zip(line, panels, strict=True):
            axis.set(xticks=[], yticks=[])
            picture = draw(row)
            if picture is not None:
                # Difference maps have the network's square shape: stretched to the image's.
                axis.imshow(picture, cmap="inferno", vmin=0, vmax=1, extent=(0, width, height, 0))
            if number == 0:
                axis.set_title(title, fontsize=9)
        line[0].set_ylabel(row["image_id"], fontsize=6)
        for column in ("truth", *(c for c in row if c in ("refined", "dynamic"))):
            if row[column] is not None and (show_data or column != "truth"):
                shown |= set(np.unique(voc.read_mask(row[column])).tolist())
    palette = voc.voc_palette() / 255
    handles = [
        figure.axes[0].scatter([], [], marker="s", s=40, color=palette[c], edgecolor="grey", label=classes[c])
        for c in sorted(shown)
        if c < len(classes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(10, max(1, len(handles))), fontsize=8)
    return figure
