"""An embedded data set: small drawn scenes in PASCAL VOC's folder layout.

Image labels in, pixel masks out, as in the real task, but in seconds and without a download.  Each class is
told by one part (a beak, wheels, a spotted cap...); the rest of it wears colours and textures that other
classes, clutter and backgrounds wear too.  Nothing is chosen to flatter a method: some objects stand out from
what is behind them, some are camouflaged, thin, occluded or cut by the frame.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CLASSES: tuple[str, ...] = ("bird", "boat", "car", "cup", "fish", "flower", "mushroom")
SPLITS: tuple[str, ...] = ("train", "val")
IGNORE = 255

FORMAT = 1  # raise it whenever the drawings change, so that an older folder is not taken for a current one
ZOOM = 3  # drawn this many times larger, then averaged down: smooth edges, and a mask read at pixel centres
RECORD = "synthetic.json"
IN_FRAME = 0.82  # the least share of an object inside the picture
CAMOUFLAGED = 0.15  # the share of objects that take their colour from what they are painted on

Floats = NDArray[np.float32]

# ----------------------------------------------------------------------------------------------------- shapes
# Local coordinates: an object spans about [-1, 1] in x and y, y points down.


def _poly(*points: tuple[float, float]) -> Floats:
    return np.array(points, np.float32)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> Floats:
    """An ellipse, or between two angles in degrees (0 right, 90 down) the piece that a chord cuts off."""
    angle = np.radians(np.linspace(start, stop, 36))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1).astype(np.float32)


def _box(left: float, top: float, right: float, bottom: float) -> Floats:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


def _turn(points: Floats, degrees: float, about: tuple[float, float] = (0, 0)) -> Floats:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    centre = np.array(about, np.float32)
    return (points - centre) @ np.array([[cos, sin], [-sin, cos]], np.float32) + centre


def _ribbon(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], *widths: float) -> Floats:
    """A quadratic curve with a width that runs linearly through `widths`, as one outline."""
    t = np.linspace(0, 1, 14)[:, None]
    line = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
    half = np.interp(t, np.linspace(0, 1, len(widths)), widths) / 2
    return np.concatenate([line + across * half, (line - across * half)[::-1]]).astype(np.float32)


# --------------------------------------------------------------------------------------- colours and textures

POOL: dict[str, tuple[int, int, int]] = {
    "red": (182, 62, 52),
    "orange": (208, 132, 64),
    "yellow": (212, 188, 92),
    "green": (98, 132, 68),
    "blue": (78, 118, 164),
    "white": (222, 218, 208),
    "grey": (132, 134, 136),
    "brown": (124, 92, 62),
    "purple": (134, 92, 146),
}
DARK, LIGHT = np.array([34, 32, 34], np.float32), np.array([232, 228, 220], np.float32)

# Texture: local coordinates and the image's grain, each (n,), to the share of the second colour in [0, 1].
Texture = Callable[[Floats, Floats, Floats], Any]
TEXTURES: dict[str, Texture] = {
    "plain": lambda u, v, grain: 0.3 * grain,
    "noise": lambda u, v, grain: np.clip(3 * grain - 1, 0, 1),
    "stripes": lambda u, v, grain: np.clip(0.5 + 2 * np.sin(6.3 * u + 2 * grain), 0, 1),
    "bands": lambda u, v, grain: np.clip(0.5 + 2 * np.sin(6.3 * v + 2 * grain), 0, 1),
    "spots": lambda u, v, grain: np.clip(4 * (np.sin(6.3 * u) * np.sin(6.3 * v) - 0.2), 0, 1),
    "zigzag": lambda u, v, grain: ((v + np.abs(u % 1 - 0.5)) % 1 > 0.5).astype(np.float32),
}
SKINS = ("plain", "plain", "noise", "noise", "stripes", "bands", "spots")  # zigzag is the cup's own


def _jitter(rng: Generator, color: Any, spread: float = 16) -> Floats:
    return np.clip(np.asarray(color) + rng.normal(0, spread, 3), 8, 247).astype(np.float32)


def _hue(rng: Generator, *names: str) -> Floats:
    """One of the pool's colours, by default any."""
    return _jitter(rng, POOL[rng.choice(names or tuple(POOL))])


@dataclass(frozen=True)
class Part:
    outline: Floats  # (n, 2), local
    color: Floats
    second: Floats
    texture: str = "plain"
    pitch: float = 1.0  # periods of the texture per local unit


@dataclass(frozen=True)
class Look:
    """What one object wears: its skin (two colours, a texture) and an accent for small parts."""

    body: Floats
    second: Floats
    accent: Floats
    texture: str
    pitch: float

    @classmethod
    def draw(cls, rng: Generator, body: Floats) -> "Look":
        second = _jitter(rng, body * rng.uniform(0.6, 0.85) if rng.random() < 0.7 else _hue(rng), 10)
        return cls(body, second, _hue(rng), rng.choice(SKINS), rng.uniform(2, 5))

    def skin(self, outline: Floats) -> Part:
        return Part(outline, self.body, self.second, self.texture, self.pitch)

    def shade(self, outline: Floats) -> Part:
        return _flat(outline, self.body * 0.72)


def _flat(outline: Floats, color: Any) -> Part:
    color = np.asarray(color, np.float32)
    return Part(outline, color, color * 0.88)


def _eye(x: float, y: float, r: float) -> list[Part]:
    return [_flat(_ellipse(x, y, r, r), LIGHT), _flat(_ellipse(x + r / 4, y, r * 0.55, r * 0.6), DARK)]


# ---------------------------------------------------------------------------------------------------- classes
# Each returns the parts from back to front; proportions are the instance's own.


def _bird(rng: Generator, look: Look) -> list[Part]:
    """Told by the beaked head."""
    plump, lift, r = rng.uniform(0.3, 0.42), rng.uniform(-0.55, -0.35), rng.uniform(0.19, 0.25)
    beak, foot = rng.uniform(0.2, 0.36), rng.uniform(-0.15, 0.1)
    yellow = _jitter(rng, (220, 150, 50))
    legs = [_ribbon((x, 0.25), (x + 0.03, 0.5), (x + foot, 0.85), 0.07, 0.05) for x in (-0.08, 0.12)]
    tail = _poly((-0.4, -0.1), (-1.1, -0.16), (-1.05, 0.14), (-0.4, 0.14))
    return [
        *(_flat(leg, yellow * 0.8) for leg in legs),
        look.shade(_turn(tail, rng.uniform(-15, 25))),
        look.skin(_turn(_ellipse(0, 0, 0.62, plump), -15)),
        look.skin(_ellipse(0.42, lift / 2, 0.24, 0.3)),
        _flat(_poly((0.6, lift - 0.1), (0.62 + beak, lift + 0.04), (0.6, lift + 0.12)), yellow),
        look.skin(_ellipse(0.5, lift, r, r)),
        _flat(_ellipse(0.5, lift, r, r, 190, 350), look.accent),
        *_eye(0.56, lift, r * 0.38),
        look.shade(_turn(_ellipse(-0.3, -0.02, 0.45, 0.17), rng.uniform(-35, 40), (0.1, 0))),
    ]


def _boat(rng: Generator, look: Look) -> list[Part]:
    """Told by the sails."""
    deep, tall, mast = rng.uniform(0.28, 0.5), rng.uniform(0.75, 1.05), rng.uniform(-0.2, 0.15)
    cloth, reach = _hue(rng, "white"), rng.uniform(0.5, 0.75)
    sail = _poly((mast + 0.06, -tall), (mast + 0.06, 0.12), (mast + reach, 0.1))
    jib = _poly((mast - 0.07, -tall * 0.85), (mast - 0.07, 0.1), (mast - reach * 0.8, 0.12))
    hull = _poly((-0.95, 0.2), (1, 0.16), (0.72, 0.2 + deep), (-0.7, 0.2 + deep), (-0.88, 0.2 + deep / 2))
    return [
        _flat(_box(mast - 0.04, -tall - 0.1, mast + 0.04, 0.3), DARK * 2),
        Part(sail, cloth, look.accent, "bands", rng.uniform(1.5, 3)),
        *([_flat(jib, cloth * 0.92)] if rng.random() < 0.7 else []),
        look.skin(hull),
        look.shade(_poly((-0.95, 0.17), (1, 0.13), (0.97, 0.25), (-0.93, 0.28))),
    ]


def _car(rng: Generator, look: Look) -> list[Part]:
    """Told by the wheels."""
    rear, front, roof = rng.uniform(-0.95, -0.5), rng.uniform(0.15, 0.5), rng.uniform(-0.6, -0.42)
    r, axle, waist = rng.uniform(0.19, 0.25), rng.uniform(0.5, 0.62), rng.uniform(-0.12, 0)
    post, low, high = (rear + front) / 2 + 0.1, waist - 0.01, roof + 0.09
    glass, hub = np.array([96, 116, 130]) * rng.uniform(0.6, 1.3), LIGHT * rng.uniform(0.6, 1)
    cabin = (
        (rear - 0.04, waist + 0.1),
        (rear + 0.14, roof),
        (front - 0.1, roof),
        (front + 0.25, waist + 0.1),
    )
    panes = (
        _poly((rear + 0.1, low), (rear + 0.2, high), (post - 0.04, high), (post - 0.04, low)),
        _poly((post + 0.04, low), (post + 0.04, high), (front - 0.13, high), (front + 0.1, low)),
    )
    return [
        look.skin(_poly(*cabin)),
        *(_flat(pane, glass) for pane in panes),
        look.skin(_poly((-1, waist + 0.05), (0.55, waist), (0.98, waist + 0.14), (1, 0.34), (-0.98, 0.34))),
        look.shade(_box(-0.99, 0.24, 1, 0.35)),
        _flat(_ellipse(0.93, waist + 0.22, 0.07, 0.06), (236, 226, 160)),
        *(_flat(_ellipse(x, 0.34, r, r), DARK) for x in (-axle, axle)),
        *(_flat(_ellipse(x, 0.34, r * 0.5, r * 0.5), hub) for x in (-axle, axle)),
    ]


def _cup(rng: Generator, look: Look) -> list[Part]:
    """Told by the zigzag band and the handle, through which the background shows."""
    wide, foot, tall = rng.uniform(0.5, 0.66), rng.uniform(0.34, 0.56), rng.uniform(0.6, 0.85)
    grip, thick = rng.uniform(0.5, 0.85), rng.uniform(0.09, 0.15)
    top, bottom = rng.uniform(-0.35, -0.1), rng.uniform(0.1, 0.4)
    a, b = (wide + (foot - wide) * (y / tall + 1) / 2 - 0.01 for y in (top, bottom))  # the body's edge there
    band = _poly((-a, top), (a, top), (b, bottom), (-b, bottom))
    contrast = LIGHT if look.accent.mean() < 140 else DARK * 2
    drink = _jitter(rng, (84, 56, 40) if rng.random() < 0.6 else (190, 170, 130))
    return [
        look.shade(_ribbon((wide - 0.08, -tall * 0.6), (wide + grip, -0.1), (foot, tall * 0.55), thick)),
        look.skin(_poly((-wide, -tall), (wide, -tall), (foot, tall), (-foot, tall))),
        look.skin(_ellipse(0, tall, foot, 0.12)),
        Part(band, look.accent, contrast, "zigzag", rng.uniform(2.5, 4)),
        look.shade(_ellipse(0, -tall, wide, 0.17)),
        _flat(_ellipse(0, -tall + 0.02, wide * 0.88, 0.12), drink),
    ]


def _fish(rng: Generator, look: Look) -> list[Part]:
    """Told by the barred head."""
    deep, fork, fin = rng.uniform(0.3, 0.5), rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.3)
    back = ((0.35, -deep * 0.85), (0.1, -deep - fin), (-0.4, -deep - fin * 0.7), (-0.35, -deep * 0.6))
    head = _ellipse(0.1, 0, 0.8, deep, -52, 52)
    return [
        look.shade(_poly((-0.5, 0), (-1.1, -fork), (-0.92, 0), (-1.1, fork))),
        look.shade(_poly(*back)),
        look.shade(_poly((0.1, deep * 0.8), (-0.15, deep + fin * 0.8), (-0.2, deep * 0.7))),
        look.skin(_ellipse(0.1, 0, 0.8, deep)),
        Part(head, look.accent, DARK * 1.5, "stripes", rng.uniform(4, 6)),
        look.shade(_turn(_poly((0.2, 0), (-0.15, -0.1), (-0.15, 0.12)), rng.uniform(-20, 30))),
        *_eye(0.68, -deep * 0.22, 0.09),
    ]


def _flower(rng: Generator, look: Look) -> list[Part]:
    """Told by the blossom; stem and leaves are as green as a meadow."""
    green, heart = _hue(rng, "green"), _hue(rng, "yellow", "brown", "orange")
    long, r, sway = rng.uniform(0.28, 0.38), rng.uniform(0.11, 0.18), rng.uniform(-0.3, 0.3)
    centre, count, turn = (sway / 3, -0.5), int(rng.integers(5, 9)), rng.uniform(0, 360)
    petal = _ellipse(centre[0] + r + long * 0.55, centre[1], long * 0.75, long * rng.uniform(0.45, 0.65))
    right = _turn(_ellipse(0.4, 0.5, 0.4, rng.uniform(0.1, 0.2)), rng.uniform(-50, -15), (0, 0.5))
    left = _turn(_ellipse(-0.36, 0.66, 0.36, rng.uniform(0.1, 0.18)), rng.uniform(10, 50), (0, 0.66))
    leaves = (right, left)[: rng.integers(1, 3)]
    return [
        _flat(_ribbon(centre, (sway, 0.2), (0, 1), 0.08, 0.11), green * 0.85),
        *(Part(leaf, green, green * 0.75, look.texture, look.pitch) for leaf in leaves),
        *(look.skin(_turn(petal, turn + 360 * k / count, centre)) for k in range(count)),
        Part(_ellipse(*centre, r * 1.25, r * 1.25), heart, heart * 0.5, "spots", 7),
    ]


def _mushroom(rng: Generator, look: Look) -> list[Part]:
    """Told by the dotted cap."""
    wide, tall, thick = rng.uniform(0.65, 0.95), rng.uniform(0.55, 0.85), rng.uniform(0.24, 0.42)
    lean, pale = rng.uniform(-0.25, 0.25), _hue(rng, "white", "white", "yellow", "brown")
    stem = _ribbon((0, -0.1), (0, 0.3), (lean, 0.95), thick, thick, thick * 1.5)
    dots = rng.uniform((-0.7, 0.12), (0.7, 0.85), (int(rng.integers(5, 10)), 2))
    dots = dots[(dots**2).sum(1) < 0.75] * (wide, -tall) - (0, 0.1)
    return [
        Part(stem, pale, pale * 0.7, look.texture, look.pitch),
        _flat(_ellipse(0, -0.1, wide, 0.13), pale * 0.75),
        Part(_ellipse(0, -0.1, wide, tall, 180, 360), look.body, look.body * 0.75, "noise"),
        *(_flat(_ellipse(x, y, rng.uniform(0.06, 0.12), rng.uniform(0.05, 0.1)), LIGHT) for x, y in dots),
    ]


def _clutter(rng: Generator, look: Look) -> list[Part]:
    """Something of no class: a blob, a slab, a ring, a stick or a heap, dressed from the same pool."""
    kind = rng.integers(5)
    if kind == 0:
        angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 10))))
        blob = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.5, 1, (angle.size, 1))
        return [look.skin(blob.astype(np.float32))]
    if kind == 1:
        return [look.skin(_poly((-0.9, -0.5), (0.9, -0.6), (0.8, 0.6), (-0.8, 0.5)))]
    if kind == 2:
        return [look.skin(_ellipse(0, 0, 0.8, 0.7)), _flat(_ellipse(0.05, 0, 0.45, 0.4), look.accent)]
    if kind == 3:
        bend, wide = rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.4)
        return [look.skin(_ribbon((-1.3, 0), (0, bend), (1.3, 0), 0.1, wide))]
    return [look.skin(_ellipse(*rng.uniform(-0.6, 0.6, 2), *rng.uniform(0.2, 0.6, 2))) for _ in range(4)]


@dataclass(frozen=True)
class Kind:
    draw: Callable[[Generator, Look], list[Part]]
    colors: tuple[str, ...]
    homes: tuple[str, ...]  # the scenes it is more often met in
    tilt: float  # standard deviation of its rotation, degrees


KINDS: dict[str, Kind] = {
    "bird": Kind(_bird, ("red", "blue", "grey", "brown", "white", "green"), ("sky", "forest"), 15),
    "boat": Kind(_boat, ("red", "blue", "white", "brown", "grey", "green"), ("water",), 8),
    "car": Kind(_car, ("red", "blue", "white", "grey", "yellow", "green", "purple"), ("street",), 8),
    "cup": Kind(_cup, ("red", "blue", "white", "brown", "yellow", "purple"), ("table",), 12),
    "fish": Kind(_fish, ("blue", "orange", "grey", "yellow", "green", "purple"), ("water",), 35),
    "flower": Kind(_flower, ("red", "yellow", "white", "purple", "orange", "blue"), ("meadow",), 20),
    "mushroom": Kind(_mushroom, ("red", "brown", "orange", "grey", "purple"), ("forest", "meadow"), 12),
}
CLUTTER = Kind(_clutter, tuple(POOL), (), 90)

# ------------------------------------------------------------------------------------------------ backgrounds


@dataclass(frozen=True)
class Scene:
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    cells: tuple[int, int]  # of the coarsest noise, across and down: unequal ones give ripples or grain
    strokes: tuple[int, int, int]  # how many, how long, and at what angle in degrees
    above: str = ""  # the scene past the horizon, where one can be
    tiles: int = 0  # the height of a course of bricks


SCENES: dict[str, Scene] = {
    "meadow": Scene((62, 96, 42), (150, 168, 84), (5, 4), (260, 22, 80), "sky"),
    "water": Scene((46, 88, 128), (128, 168, 190), (2, 14), (70, 40, 0), "sky"),
    "sky": Scene((110, 152, 200), (222, 226, 228), (3, 3), (0, 0, 0)),
    "street": Scene((92, 92, 94), (150, 146, 140), (4, 6), (50, 70, 5), "wall"),
    "table": Scene((112, 76, 48), (184, 140, 94), (2, 16), (60, 90, 2), "wall"),
    "forest": Scene((40, 46, 28), (128, 104, 62), (9, 3), (140, 34, 95), "sky"),
    "wall": Scene((140, 98, 80), (206, 186, 164), (6, 5), (20, 12, 45), tiles=42),
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
    low, high = _jitter(rng, scene.low), _jitter(rng, scene.high)
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


@dataclass
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
    hue = _hue(rng, *kind.colors)
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
    canvas = Canvas(backdrop, grain, np.zeros(size[::-1], np.intp))
    pixels = grain.size
    for _ in range(int(rng.integers(1, 6))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.006, 0.05))
    shares = rng.uniform(0.5, 1.5, len(labels))
    for label, share in zip(labels, shares / shares.sum() * rng.uniform(0.1, 0.46), strict=True):
        _place(rng, canvas, label, pixels * share)
    for _ in range(int(rng.integers(0, 3))):
        _place(rng, canvas, 0, pixels * rng.uniform(0.003, 0.02))
    return _expose(rng, canvas.rgb), _annotate(canvas.owner, canvas.classes)


def generate(root: Path, *, train: int = 160, val: int = 60, size: tuple[int, int] = (160, 128), seed: int = 0) -> Path:
    """Draw a VOC-layout folder, deterministic by `seed`, whole or not at all; returns `root`.

    Masks are palette PNGs: 0 background, 1..K `CLASSES`, 255 object borders.  A folder that already holds the
    same drawing is returned as it is; anything else in the way is a `FileExistsError`.
    """
    root = Path(root)
    counts = dict(zip(SPLITS, (train, val), strict=True))
    record = {"format": FORMAT, "classes": list(CLASSES), **counts, "size": list(size), "seed": seed}
    if _holds(root, record):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} holds something else than this drawing: {record}")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as work:
        folder = Path(work, "drawing")
        _write(folder, counts, size, seed)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        try:
            os.rename(folder, root)
        except OSError:
            if not _holds(root, record):  # another process may have finished the same drawing first
                raise
    return root


def _holds(root: Path, record: dict[str, Any]) -> bool:
    path = root / RECORD
    return path.is_file() and json.loads(path.read_text()) == record


def _write(folder: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    images, masks, sets = (folder / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
    for path in (images, masks, sets):
        path.mkdir(parents=True)
    rows = ["image_id,classes"]
    for split, count in counts.items():
        names = [f"{split}_{index:04d}" for index in range(count)]
        for index, name in enumerate(names):
            rgb, mask = render(seed, split, index, size)
            Image.fromarray(rgb).save(images / f"{name}.jpg", quality=92)
            picture = Image.fromarray(mask)
            picture.putpalette(_voc_palette())
            picture.save(masks / f"{name}.png")
            present = ";".join(CLASSES[label - 1] for label in np.unique(mask) if 0 < label < IGNORE)
            rows.append(f"{name},{present}")
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))  # each machine that draws it has the same files, also by their times


def _voc_palette() -> list[int]:
    """VOC's colours, 768 numbers: an index's bits dealt out to red, green and blue from the top bit down."""
    index = np.arange(256)
    channels = [sum(((index >> (3 * bit + shift)) & 1) << (7 - bit) for bit in range(8)) for shift in range(3)]
    return np.stack(channels, 1).ravel().tolist()
