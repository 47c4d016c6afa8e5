"""Draw the images of the embedded data set, with their true masks: a background, objects on it, and a camera's errors.

The images do not favour any method: some objects stand out from the background, others are camouflaged, thin, occluded
or cut by the frame.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ssdd.data.drawn_objects import CLASSES, CLUTTER, KINDS, TEXTURES, Floats, Look, Part, jitter, jittered_color

SPLITS: tuple[str, ...] = ("train", "val")
IGNORE = 255
ZOOM = 3  # images are drawn this many times larger, and then averaged; masks are sampled at pixel centres
IN_FRAME = 0.82  # the smallest share of an object that must lie inside the picture
CAMOUFLAGED = 0.15  # the share of objects that take the mean colour of a part of the picture


# ------------------------------------------------------------------------------------------------ backgrounds


@dataclass(frozen=True, kw_only=True)
class Scene:
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    cells: tuple[int, int]  # of the coarsest noise, across and down; unequal numbers give ripples or grain
    strokes: tuple[int, int, int]  # number, length in pixels of the enlarged drawing, angle in degrees
    above: str = ""  # the scene beyond a horizon; empty: no horizon
    tiles: int = 0  # the height of a brick in pixels of the enlarged drawing; 0: no bricks


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
    """One background without a horizon: noise between two colours, bricks and strokes; (h * ZOOM, w * ZOOM, 3)."""
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


def _bricks(rng: Generator, pen: ImageDraw.ImageDraw, size: tuple[int, int], height: float, color: Any) -> None:
    """Draw the mortar lines of a brick wall: edges that do not belong to any object."""
    for row, y in enumerate(np.arange(rng.uniform(0, height), size[1] + height, height)):
        pen.line((0, y, size[0], y), color, 3)
        for x in np.arange((row % 2) * height, size[0], height * 2):
            pen.line((x, y - height, x, y), color, 3)


def _background(rng: Generator, name: str, size: tuple[int, int]) -> Floats:
    """A scene. If it can have a horizon, two of five pictures have a wavy horizon with another scene beyond it."""
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
    """The unfinished picture, ZOOM times as large as the result, and the object at each pixel of the result."""

    rgb: Floats  # (h * ZOOM, w * ZOOM, 3)
    grain: Floats  # (h * ZOOM, w * ZOOM), noise in every texture
    owner: NDArray[np.intp]  # (h, w): 0, or 1 + the object's index in `classes`; later objects lie in front
    classes: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # pixels of each object when it was painted

    def accepts(self, cover: NDArray[np.bool_]) -> bool:
        """Whether each object keeps at least 60 % of its pixels if `cover` is painted, so that its label stays true."""
        shown = np.bincount(self.owner[~cover], minlength=len(self.sizes) + 1)[1:]
        return bool(np.all(shown >= 0.6 * np.array(self.sizes)))

    def claim(self, cover: NDArray[np.bool_], label: int) -> None:
        """Assign the pixels of `cover`, bool (h, w), to a new object of class `label`, or to no object if it is 0."""
        self.owner[cover] = len(self.classes) + 1 if label else 0
        if label:
            self.classes.append(label)
            self.sizes.append(int(cover.sum()))

    def paint(self, part: Part, matrix: Floats, offset: Floats, light: Floats) -> None:
        """Fill one part with its texture, which is rotated and scaled with the object, and apply directed light."""
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
        share = TEXTURES[part.texture](part.frequency * u, part.frequency * v, grain)[:, None]
        shading = (1 + light[0] * u + light[1] * v + 0.25 * (grain - 0.5))[:, None]
        self.rgb[y, x] = (part.color + (part.second_color - part.color) * share) * shading

    def shadow(self, cover: NDArray[np.bool_], shift: tuple[int, int], depth: float) -> None:
        """Darken the pixels beside an object; a shadow belongs to no class."""
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
    """The area that the parts cover together, in square local units."""
    union = _raster([(part.outline + 2) * unit for part in parts], (4 * unit, 4 * unit))
    return float(union.sum()) / unit**2


def _pose(rng: Generator, tilt: float) -> Floats:
    """A random reflection, stretch, shear and rotation: a matrix (2, 2) with determinant +-1."""
    angle = np.radians(rng.normal(0, tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(rng.normal(0, 0.1))
    form = np.array([[rng.choice([-1, 1]) * stretch, rng.normal(0, 0.1)], [0, 1 / stretch]])
    return (turn @ form).astype(np.float32)


def _place(rng: Generator, canvas: Canvas, label: int, area: float) -> None:
    """Paint one object (clutter if `label` is 0) of about `area` pixels on the enlarged canvas, if a place is found."""
    kind = KINDS[CLASSES[label - 1]] if label else CLUTTER
    height, width = canvas.grain.shape
    color = jittered_color(rng, *kind.colors)
    if rng.random() < CAMOUFLAGED:
        color = canvas.rgb[int(rng.integers(height)) :: 9, ::9].mean((0, 1))
    parts, pose = kind.draw(rng, Look.draw(rng, color)), _pose(rng, kind.tilt)
    extent = np.ptp(np.concatenate([part.outline @ pose.T for part in parts]), 0)
    local_area = _area(parts)
    scale = min(np.sqrt(area / local_area), 0.95 * width / extent[0], 0.95 * height / extent[1])
    for _ in range(12):
        matrix = (pose * scale).astype(np.float32)
        offset = rng.uniform((0.1 * width, 0.15 * height), (0.9 * width, 0.85 * height)).astype(np.float32)
        outlines = [part.outline @ matrix.T + offset for part in parts]
        cover = _raster(outlines, (width, height))[ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM]
        if cover.sum() * ZOOM**2 > IN_FRAME * local_area * scale**2 and canvas.accepts(cover):
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


def _object_classes(rng: Generator, index: int) -> list[int]:
    """The classes of an image's objects, in the order of painting; the classes take turns as the main class."""
    main = index % len(CLASSES) + 1
    others = rng.permutation([label for label in range(1, len(CLASSES) + 1) if label != main])
    present = [main, *others[: rng.choice(3, p=(0.5, 0.35, 0.15))].tolist()]
    counts = 1 + rng.binomial(2, 0.45 / len(present) + 0.05, len(present))
    return rng.permutation(np.repeat(present, counts)).tolist()


def _expose(rng: Generator, rgb: Floats) -> NDArray[np.uint8]:
    """Add a camera's errors: blur, uneven light, a colour cast and sensor noise; uint8 (h, w, 3)."""
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).reduce(ZOOM)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    y, x = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    slope = rng.normal(0, 0.13, 2)
    light = rng.uniform(0.85, 1.12) + slope[0] * x + slope[1] * y
    lit = np.asarray(picture) * light[..., None] * rng.normal(1, 0.04, 3)
    return np.clip(lit + rng.normal(0, rng.uniform(2, 10), lit.shape), 0, 255).astype(np.uint8)


def _annotate(owner: NDArray[np.intp], classes: list[int]) -> NDArray[np.uint8]:
    """The mask: class indices, and 255 on the pixels just outside each object, so that thin parts keep their class."""
    pad = np.pad(owner, 1, mode="edge")
    beside = np.max([pad[:-2, 1:-1], pad[2:, 1:-1], pad[1:-1, :-2], pad[1:-1, 2:]], 0)
    mask = np.array([0, *classes], np.uint8)[owner]
    mask[beside > owner] = IGNORE
    return mask


# ----------------------------------------------------------------------------------------------------- public


def render(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one image: its pixels, uint8 (h, w, 3), and its mask, uint8 (h, w), with 255 on object borders.

    The image depends only on these arguments; `size` is (width, height).
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    labels = _object_classes(rng, index)
    scenes = KINDS[CLASSES[rng.choice(labels) - 1]].frequent_scenes if rng.random() < 0.5 else tuple(SCENES)
    background = _background(rng, rng.choice(scenes), size)
    grain = _noise(rng, size, (12, 10)).repeat(ZOOM, 0).repeat(ZOOM, 1)
    canvas = Canvas(rgb=background, grain=grain, owner=np.zeros(size[::-1], np.intp))
    pixels = grain.size
    for _ in range(int(rng.integers(1, 6))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.006, 0.05))
    shares = rng.uniform(0.5, 1.5, len(labels))
    for label, share in zip(labels, shares / shares.sum() * rng.uniform(0.1, 0.46), strict=True):
        _place(rng, canvas, label, pixels * share)
    for _ in range(int(rng.integers(0, 3))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.003, 0.02))
    return _expose(rng, canvas.rgb), _annotate(canvas.owner, canvas.classes)
