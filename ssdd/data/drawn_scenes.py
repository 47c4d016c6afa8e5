"""The pictures of the embedded data set: backgrounds, objects painted on them, a camera, and the true mask.

Nothing is chosen to flatter a method: some objects stand out from what is behind them, some are camouflaged, thin,
occluded or cut by the frame.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ssdd.data.drawn_objects import CLASSES, CLUTTER, KINDS, TEXTURES, Floats, Look, Part, hue_of, jitter

SPLITS: tuple[str, ...] = ("train", "val")
IGNORE = 255
ZOOM = 3  # drawn this many times larger, then averaged down: smooth edges, and a mask read at pixel centres
IN_FRAME = 0.82  # the least share of an object inside the picture
CAMOUFLAGED = 0.15  # the share of objects that take their colour from what they are painted on


# ------------------------------------------------------------------------------------------------ backgrounds


@dataclass(frozen=True, kw_only=True)
class Scene:
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    cells: tuple[int, int]  # of the coarsest noise, across and down: unequal ones give ripples or grain
    strokes: tuple[int, int, int]  # how many, how long, and at what angle in degrees
    above: str = ""  # the scene past the horizon, where one can be
    tiles: int = 0  # the height of a course of bricks


SCENES: dict[str, Scene] = {
    "meadow": Scene(low=(62, 96, 42), high=(150, 168, 84), cells=(5, 4), strokes=(260, 22, 80), above="sky"),
    "water": Scene(low=(46, 88, 128), high=(128, 168, 190), cells=(2, 14), strokes=(70, 40, 0), above="sky"),
    "sky": Scene(low=(110, 152, 200), high=(222, 226, 228), cells=(3, 3), strokes=(0, 0, 0)),
    "street": Scene(low=(92, 92, 94), high=(150, 146, 140), cells=(4, 6), strokes=(50, 70, 5), above="wall"),
    "table": Scene(low=(112, 76, 48), high=(184, 140, 94), cells=(2, 16), strokes=(60, 90, 2), above="wall"),
    "forest": Scene(low=(40, 46, 28), high=(128, 104, 62), cells=(9, 3), strokes=(140, 34, 95), above="sky"),
    "wall": Scene(low=(140, 98, 80), high=(206, 186, 164), cells=(6, 5), strokes=(20, 12, 45), tiles=42),
}


def _noise(rng: Generator, size: tuple[int, int], cells: tuple[int, int], octaves: int = 4) -> Floats:
    """Multi-octave value noise, (h, w) in [0, 1] with mean 0.5."""
    total = np.zeros(size[::-1], np.float32)
    for octave in range(octaves):
        grid = rng.random((cells[1] * 2**octave + 1, cells[0] * 2**octave + 1), np.float32)
        total += np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)) * 0.55**octave
    return np.clip(0.5 + (total - total.mean()) / (4.5 * total.std()), 0, 1)


def _scene(rng: Generator, name: str, size: tuple[int, int]) -> Floats:
    """One background without a horizon: noise between two colours, then strokes; (h * ZOOM, w * ZOOM, 3)."""
    scene = SCENES[name]
    low, high = jitter(rng, scene.low), jitter(rng, scene.high)
    share = 0.5 + rng.uniform(0.6, 1.3) * (_noise(rng, size, scene.cells) - 0.5)
    rgb = low + (high - low) * share[..., None]
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).resize((size[0] * ZOOM, size[1] * ZOOM))
    pen, (count, length, angle) = ImageDraw.Draw(picture), scene.strokes
    if scene.tiles:
        _bricks(rng, pen, picture.size, scene.tiles * rng.uniform(0.7, 1.3), tuple((low * 0.85).astype(int)))
    for _ in range(int(count * rng.uniform(0.3, 1.2))):
        x, y = rng.uniform(0, picture.size)
        reach, turn = length * rng.uniform(0.4, 1.6), np.radians(rng.normal(angle, 14))
        color = low + (high - low) * rng.uniform(-0.25, 1.25)
        ends = (x, y, x + reach * np.cos(turn), y - reach * np.sin(turn))
        pen.line(ends, tuple(np.clip(color, 0, 255).astype(int)), int(rng.integers(1, 6)))
    return np.array(picture, np.float32)


def _bricks(rng: Generator, pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, color: Any) -> None:
    """Mortar lines in a running bond: edges that mean nothing."""
    for row, y in enumerate(np.arange(rng.uniform(0, pitch), size[1] + pitch, pitch)):
        pen.line((0, y, size[0], y), color, 3)
        for x in np.arange((row % 2) * pitch, size[0], pitch * 2):
            pen.line((x, y - pitch, x, y), color, 3)


def _background(rng: Generator, name: str, size: tuple[int, int]) -> Floats:
    """A scene, in two of five pictures up to a wavy horizon with another scene behind it."""
    ground = _scene(rng, name, size)
    if not SCENES[name].above or rng.random() > 0.4:
        return ground
    height, width = ground.shape[:2]
    wave = rng.uniform(0.02, 0.08) * np.sin(np.linspace(0, rng.uniform(3, 9), width) + rng.uniform(0, 6))
    horizon = height * (rng.uniform(0.15, 0.55) + wave)
    far = np.arange(height)[:, None] < horizon
    return np.where(far[..., None], _scene(rng, SCENES[name].above, size), ground)


# ------------------------------------------------------------------------------------------------ the painter


@dataclass(kw_only=True)
class Canvas:
    """The picture in progress, drawn large; who owns which pixel is kept at the size of the result."""

    rgb: Floats  # (h * ZOOM, w * ZOOM, 3)
    grain: Floats  # (h * ZOOM, w * ZOOM), a texture for everything painted
    owner: NDArray[np.intp]  # (h, w): 0, or 1 + the index into `classes`; later ones lie in front
    classes: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # pixels that each object owned when it was painted

    def accepts(self, cover: NDArray[np.bool_]) -> bool:
        """Whether every object painted before keeps at least 60 % of its pixels, so that labels stay true."""
        shown = np.bincount(self.owner[~cover], minlength=len(self.sizes) + 1)[1:]
        return bool(np.all(shown >= 0.6 * np.array(self.sizes)))

    def claim(self, cover: NDArray[np.bool_], label: int) -> None:
        """Give pixels, bool (h, w), to a new object of class `label`, or for 0 to nobody."""
        self.owner[cover] = len(self.classes) + 1 if label else 0
        if label:
            self.classes.append(label)
            self.sizes.append(int(cover.sum()))

    def paint(self, part: Part, matrix: Floats, offset: Floats, light: Floats) -> None:
        """Fill one part with its texture, which turns and scales with the object, under a directed light."""
        outline = part.outline @ matrix.T + offset
        left, top = np.maximum(np.floor(outline.min(0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(outline.max(0)) + 1, self.grain.shape[::-1]).astype(int)
        if left >= right or top >= bottom:
            return
        corner = np.array([left, top], np.float32)
        y, x = np.nonzero(_raster([outline - corner], (right - left, bottom - top)))
        y, x = y + top, x + left
        u, v = np.linalg.inv(matrix) @ (np.stack([x, y]).astype(np.float32) - offset[:, None])
        grain = self.grain[y, x]
        share = TEXTURES[part.texture](part.pitch * u, part.pitch * v, grain)[:, None]
        shading = (1 + light[0] * u + light[1] * v + 0.25 * (grain - 0.5))[:, None]
        self.rgb[y, x] = (part.color + (part.second - part.color) * share) * shading

    def shadow(self, cover: NDArray[np.bool_], shift: tuple[int, int], depth: float) -> None:
        """Darken what lies beside an object; a shadow belongs to no class."""
        cast = Image.fromarray(cover.astype(np.uint8) * 255).rotate(0, translate=shift)
        soft = np.asarray(cast.filter(ImageFilter.BoxBlur(1.5)).resize(self.grain.shape[::-1]), np.float32)
        self.rgb *= 1 - depth / 255 * soft[..., None]


def _raster(outlines: list[Floats], size: tuple[int, int]) -> NDArray[np.bool_]:
    picture = Image.new("1", (int(size[0]), int(size[1])))
    pen = ImageDraw.Draw(picture)
    for outline in outlines:
        pen.polygon(outline.ravel().tolist(), fill=1)
    return np.asarray(picture)


def _area(parts: list[Part], unit: int = 24) -> float:
    """The area of a union of parts in square local units."""
    union = _raster([(part.outline + 2) * unit for part in parts], (4 * unit, 4 * unit))
    return float(union.sum()) / unit**2


def _pose(rng: Generator, tilt: float) -> Floats:
    """A random mirror, stretch, shear and rotation, (2, 2), of determinant +-1."""
    angle = np.radians(rng.normal(0, tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(rng.normal(0, 0.1))
    form = np.array([[rng.choice([-1, 1]) * stretch, rng.normal(0, 0.1)], [0, 1 / stretch]])
    return (turn @ form).astype(np.float32)


def _place(rng: Generator, canvas: Canvas, label: int, area: float) -> None:
    """Paint one object (for 0, clutter) of about `area` drawn pixels where it hides no other too much."""
    kind = KINDS[CLASSES[label - 1]] if label else CLUTTER
    height, width = canvas.grain.shape
    hue = hue_of(rng, *kind.colors)
    if rng.random() < CAMOUFLAGED:
        hue = canvas.rgb[int(rng.integers(height)) :: 9, ::9].mean((0, 1))
    parts, pose = kind.draw(rng, Look.draw(rng, hue)), _pose(rng, kind.tilt)
    extent = np.ptp(np.concatenate([part.outline @ pose.T for part in parts]), 0)
    unit = _area(parts)
    scale = min(np.sqrt(area / unit), 0.95 * width / extent[0], 0.95 * height / extent[1])
    for _ in range(12):
        matrix = (pose * scale).astype(np.float32)
        offset = rng.uniform((0.1 * width, 0.15 * height), (0.9 * width, 0.85 * height)).astype(np.float32)
        outlines = [part.outline @ matrix.T + offset for part in parts]
        cover = _raster(outlines, (width, height))[ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM]
        if cover.sum() * ZOOM**2 > IN_FRAME * unit * scale**2 and canvas.accepts(cover):
            break
        scale *= 0.94
    else:
        return
    if rng.random() < 0.35:
        canvas.shadow(cover, (int(rng.integers(-5, 6)), int(rng.integers(1, 6))), rng.uniform(0.2, 0.45))
    light = rng.uniform((-0.15, -0.3), (0.15, 0.1)).astype(np.float32)
    for part in parts:
        canvas.paint(part, matrix, offset, light)
    canvas.claim(cover, label)


def _cast(rng: Generator, index: int) -> list[int]:
    """The labels of an image's objects in paint order; the classes take turns as the main one."""
    main = index % len(CLASSES) + 1
    others = rng.permutation([label for label in range(1, len(CLASSES) + 1) if label != main])
    present = [main, *others[: rng.choice(3, p=(0.5, 0.35, 0.15))].tolist()]
    counts = 1 + rng.binomial(2, 0.45 / len(present) + 0.05, len(present))
    return rng.permutation(np.repeat(present, counts)).tolist()


def _expose(rng: Generator, rgb: Floats) -> NDArray[np.uint8]:
    """The camera: uneven light and a colour cast, blur, sensor noise; uint8 (h, w, 3)."""
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).reduce(ZOOM)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    y, x = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    slope = rng.normal(0, 0.13, 2)
    light = rng.uniform(0.85, 1.12) + slope[0] * x + slope[1] * y
    lit = np.asarray(picture) * light[..., None] * rng.normal(1, 0.04, 3)
    return np.clip(lit + rng.normal(0, rng.uniform(2, 10), lit.shape), 0, 255).astype(np.uint8)


def _annotate(owner: NDArray[np.intp], classes: list[int]) -> NDArray[np.uint8]:
    """Class indices, and a border of 255 on the pixels just outside each object, so that thin parts stay."""
    pad = np.pad(owner, 1, mode="edge")
    beside = np.max([pad[:-2, 1:-1], pad[2:, 1:-1], pad[1:-1, :-2], pad[1:-1, 2:]], 0)
    mask = np.array([0, *classes], np.uint8)[owner]
    mask[beside > owner] = IGNORE
    return mask


# ----------------------------------------------------------------------------------------------------- public


def render(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one image: its pixels, uint8 (h, w, 3), and its mask, uint8 (h, w), with 255 on object borders.

    The image depends on these arguments alone; `size` is (width, height).
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    labels = _cast(rng, index)
    homes = KINDS[CLASSES[rng.choice(labels) - 1]].homes if rng.random() < 0.5 else tuple(SCENES)
    backdrop = _background(rng, rng.choice(homes), size)
    grain = _noise(rng, size, (12, 10)).repeat(ZOOM, 0).repeat(ZOOM, 1)
    canvas = Canvas(rgb=backdrop, grain=grain, owner=np.zeros(size[::-1], np.intp))
    pixels = grain.size
    for _ in range(int(rng.integers(1, 6))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.006, 0.05))
    shares = rng.uniform(0.5, 1.5, len(labels))
    for label, share in zip(labels, shares / shares.sum() * rng.uniform(0.1, 0.46), strict=True):
        _place(rng, canvas, label, pixels * share)
    for _ in range(int(rng.integers(0, 3))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.003, 0.02))
    return _expose(rng, canvas.rgb), _annotate(canvas.owner, canvas.classes)
