"""Pictures like the paper's Figs. 6 to 8, plots of trainings and sweeps, and data sheets. No display is needed."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssdd.data import codec
from ssdd.storage import maps
from ssdd.storage.tables import Row


@contextlib.contextmanager
def _any_backend() -> Iterator[None]:
    """Import matplotlib without MPLBACKEND, in which a notebook can name a backend that is not installed here."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


with _any_backend():
    import matplotlib
    from matplotlib.figure import Figure

with contextlib.suppress(KeyError, ValueError):  # set it for other code in this process that uses pyplot
    matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]

Panel = tuple[str, Callable[[Row], np.ndarray | None]]
_MASKS = {
    "knowledge": "knowledge $m^{K0}$",
    "advice": "advice $m^{A0}$",
    "refined": "refined $m^{D0}$",
}
_MODELS = {
    "baseline_knowledge": "trained on $m^{K0}$",
    "baseline": "baseline",
    "gentle_baseline": "trained on gentle CRF",
    "baseline_refined": "trained on $m^{D0}$",
    "dynamic": "SSDD dynamic",
    "dynamic_crf": "SSDD dynamic + CRF",
}


def refinement(rows: list[Row], classes: tuple[str, ...], show_data: bool = True) -> Figure:
    """Fig. 7: image, knowledge and advice with their difference maps, refined mask, its gain over advice, true mask.

    Args:
        rows: rows with `image`, `knowledge`, `d_knowledge`, `advice`, `d_advice`, `refined` and `truth` (or None).
        classes: names for the legend.
        show_data: False leaves the image and the true mask out.
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
    """Fig. 8: image, the networks' masks, the gain of the last network (without CRF) over the baseline, true mask.

    Args:
        rows: rows with `image`, `truth` (or None), and the masks of any models in `_MODELS`. The masks `knowledge`,
            `advice` and `refined` are shown before them, if the rows have them.
        classes: names for the legend.
        show_data: False leaves the image and the true mask out.
    """
    titles = _MASKS | _MODELS
    columns = [name for name in titles if rows and name in rows[0]]
    panels: list[Panel] = [("image", _image), *((titles[name], _mask(name)) for name in columns)]
    last = [name for name in columns if name in _MODELS and not name.endswith("_crf")][-1:]
    if "baseline" in columns and last != ["baseline"]:
        panels.append(("against baseline", _gain(last[0], "baseline")))
    return _grid(rows, [*panels, ("truth", _mask("truth"))], classes, show_data)


def reliability(mean: np.ndarray, share: np.ndarray, pixels: np.ndarray) -> Figure:
    """How often the masks differ where DD-Net's probability is d, and the share of pixels that have this d.

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


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], points: int = 400) -> Figure:
    """Values over a training's epochs.

    Args:
        lines: each line's epochs and values, by its name in the legend.
        points: the most points that a line has. A longer line is drawn as means over equal pieces.
    """
    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    axis = figure.subplots()
    for name, line in lines.items():
        pieces = [np.array_split(np.asarray(values, float), min(points, len(values))) for values in line]
        xs, ys = ([piece.mean() for piece in values] for values in pieces)
        axis.plot(xs, ys, label=name, linewidth=1.4, marker="o" if len(xs) < 30 else "", markersize=3)
    axis.set(xlabel="epoch")
    axis.grid(color="#e3e6ea", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def trials(results: list[tuple[dict[str, Any], dict[str, float]]], names: dict[str, str]) -> Figure:
    """Metrics of a sweep's trials over each field that the sweep varies. A line joins the best trials at each value.

    Args:
        results: point and metrics of each trial.
        names: the metrics to draw, and their names in the legend.
    """
    fields = list(results[0][0])
    figure = Figure(figsize=(4.2 * len(fields), 3.2), layout="constrained")
    for axis, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        values = sorted({point[field] for point, _ in results}, key=lambda v: (isinstance(v, str), v))
        for metric, name in names.items():
            points = [(values.index(p[field]), m[metric]) for p, m in results if metric in m]
            best = {x: max(y for other, y in points if other == x) for x, _ in points}
            (line,) = axis.plot(sorted(best), [best[x] for x in sorted(best)], marker="o", label=name)
            axis.scatter([x for x, _ in points], [y for _, y in points], s=12, color=line.get_color(), alpha=0.5)
        step = -(-len(values) // 8)
        labels = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
        axis.set(xlabel=field, ylabel="mean IoU (%)", xticks=range(0, len(values), step), xticklabels=labels[::step])
        axis.legend(fontsize=8)
    return figure


def heat_map(values: dict[tuple[float, float], float], axes: tuple[str, str], title: str) -> Figure:
    """A value over two parameters, with a star at the greatest value.

    Args:
        values: the value at each pair of parameters. If the pairs form no grid of at least 2 by 2, they are drawn as
            dots.
        axes: names of the parameters.
        title: name of the value.
    """
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    axis = figure.subplots()
    xs, ys = (sorted({point[k] for point in values}) for k in (0, 1))
    if min(len(xs), len(ys)) > 1 and len(xs) * len(ys) == len(values):
        drawn: Any = axis.pcolormesh(xs, ys, [[values[x, y] for x in xs] for y in ys], shading="nearest")
    else:
        drawn = axis.scatter([x for x, _ in values], [y for _, y in values], c=list(values.values()), s=24)
    best = max(values, key=values.__getitem__)
    axis.plot(*best, marker="*", markersize=14, color="white", markeredgecolor="black")
    axis.set(xlabel=axes[0], ylabel=axes[1], title=f"best: {values[best]:.1f} at {best[0]:.3g}, {best[1]:.3g}")
    figure.colorbar(drawn, label=title)
    return figure


def data_sheet(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray | None, Sequence[str]]], classes: tuple[str, ...]
) -> Figure:
    """Photographs with masks and class names over them, four in a row, to check that masks and classes fit the images.

    Args:
        samples: for each image its id, the photograph (uint8 (H, W, 3)), the mask (uint8 (H, W)) or None, and the
            names of its image-level labels.
        classes: names, background first.
    """
    lines = -(-len(samples) // 4)
    figure = Figure(figsize=(13, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, 4, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (image_id, image, mask, labels) in zip(axes, samples, strict=False):
        axis.imshow(image if mask is None else overlay(image, mask))
        axis.set_title(f"{image_id}: {', '.join(labels) or 'no labels'}", fontsize=8, parse_math=False)
        for value in [] if mask is None else np.unique(mask[(mask > 0) & (mask < len(classes))]):
            y, x = _middle(mask == value)
            box = dict(facecolor="white", alpha=0.75, edgecolor=tuple(codec.voc_palette()[value] / 255), pad=2)
            text = f"{value} {classes[value]}"
            axis.text(x, y, text, fontsize=8, ha="center", va="center", bbox=box, parse_math=False)
    return figure


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A photograph with its mask over it: uint8 (H, W, 3). Background pixels do not change; 255 is tinted white.

    Args:
        image: uint8 (H, W, 3).
        mask: class indices, uint8 (H, W).
    """
    colours = codec.voc_palette()[mask].astype(np.float32)
    colours[mask == 255] = 255
    mixed = 0.45 * image.astype(np.float32) + 0.55 * colours
    return np.where((mask == 0)[..., None], image, mixed).astype(np.uint8)


def named_overlay(image: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """`overlay` with each foreground class's name written on its pixels: uint8 (H, W, 3).

    Args:
        image: uint8 (H, W, 3).
        mask: class indices, uint8 (H, W).
        classes: names, background first.
    """
    picture = Image.fromarray(overlay(image, mask))
    size = max(10, min(picture.size) // 20)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
    draw = ImageDraw.Draw(picture)
    for value in np.unique(mask):
        if 0 < value < len(classes):
            y, x = _middle(mask == value)
            left, top, right, bottom = draw.textbbox((0, 0), classes[value], font, anchor="mm", stroke_width=1)
            # Move the name into the picture, if it fits there.
            x = min(max(x, -int(left)), max(picture.width - int(right), -int(left)))
            y = min(max(y, -int(top)), max(picture.height - int(bottom), -int(top)))
            draw.text((x, y), classes[value], "white", font, anchor="mm", stroke_width=1, stroke_fill="black")
    return np.array(picture)


def _middle(region: np.ndarray) -> tuple[int, int]:
    """The pixel (y, x) of a region that is nearest to the region's centre."""
    ys, xs = np.nonzero(region)
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return int(ys[nearest]), int(xs[nearest])


def _image(row: Row) -> np.ndarray:
    return codec.read_image(row["image"])


def _mask(column: str) -> Callable[[Row], np.ndarray | None]:
    def draw(row: Row) -> np.ndarray | None:
        return None if row[column] is None else codec.voc_palette()[codec.read_mask(row[column])]

    return draw


def _gain(column: str, other: str) -> Callable[[Row], np.ndarray | None]:
    """Green where only `column` is correct, red where only `other` is, grey where both are wrong and differ."""

    def draw(row: Row) -> np.ndarray | None:
        if row["truth"] is None:
            return None
        mask, before, truth = (codec.read_mask(row[name]) for name in (column, other, "truth"))
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
                # Difference maps are square; `extent` stretches them to the image's shape.
                axis.imshow(picture, cmap="inferno", vmin=0, vmax=1, extent=(0, width, height, 0))
            if number == 0:
                axis.set_title(title, fontsize=9)
        line[0].set_ylabel(row["image_id"], fontsize=6, parse_math=False)
        for column in ("truth", *(c for c in row if c in ("refined", "dynamic"))):
            if row[column] is not None and (show_data or column != "truth"):
                shown |= set(np.unique(codec.read_mask(row[column])).tolist())
    palette = codec.voc_palette() / 255
    named = [c for c in sorted(shown) if c < len(classes)]
    handles = [
        figure.axes[0].scatter([], [], marker="s", s=40, color=palette[c], edgecolor="grey", label=_label(classes[c]))
        for c in named
    ]
    columns = min(10, max(1, len(handles)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a `$` in a name does not begin a formula
    return figure


def _label(name: str) -> str:
    """The name as a legend's label. matplotlib leaves out a label that begins with `_`, so a space is put before it."""
    return f" {name}" if name.startswith("_") else name
