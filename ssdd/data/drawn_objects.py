"""The objects of the embedded data set: seven classes and clutter, as outlines with colours and textures.

Each class is told by one part (a beak, wheels, a spotted cap...); the rest of it wears colours and textures that other
classes, clutter and backgrounds wear too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

CLASSES: tuple[str, ...] = ("bird", "boat", "car", "cup", "fish", "flower", "mushroom")
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


def jitter(rng: Generator, color: Any, spread: float = 16) -> Floats:
    return np.clip(np.asarray(color) + rng.normal(0, spread, 3), 8, 247).astype(np.float32)


def hue_of(rng: Generator, *names: str) -> Floats:
    """One of the pool's colours, by default any."""
    return jitter(rng, POOL[rng.choice(names or tuple(POOL))])


@dataclass(frozen=True, kw_only=True)
class Part:
    outline: Floats  # (n, 2), local
    color: Floats
    second: Floats
    texture: str = "plain"
    pitch: float = 1.0  # periods of the texture per local unit


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one object wears: its skin (two colours, a texture) and an accent for small parts."""

    body: Floats
    second: Floats
    accent: Floats
    texture: str
    pitch: float

    @classmethod
    def draw(cls, rng: Generator, body: Floats) -> "Look":
        second = jitter(rng, body * rng.uniform(0.6, 0.85) if rng.random() < 0.7 else hue_of(rng), 10)
        return cls(body=body, second=second, accent=hue_of(rng), texture=rng.choice(SKINS), pitch=rng.uniform(2, 5))

    def skin(self, outline: Floats) -> Part:
        return Part(outline=outline, color=self.body, second=self.second, texture=self.texture, pitch=self.pitch)

    def shade(self, outline: Floats) -> Part:
        return _flat(outline, self.body * 0.72)


def _flat(outline: Floats, color: Any) -> Part:
    color = np.asarray(color, np.float32)
    return Part(outline=outline, color=color, second=color * 0.88)


def _eye(x: float, y: float, r: float) -> list[Part]:
    return [_flat(_ellipse(x, y, r, r), LIGHT), _flat(_ellipse(x + r / 4, y, r * 0.55, r * 0.6), DARK)]


# ---------------------------------------------------------------------------------------------------- classes
# Each returns the parts from back to front; proportions are the instance's own.


def _bird(rng: Generator, look: Look) -> list[Part]:
    """Told by the beaked head."""
    plump, lift, r = rng.uniform(0.3, 0.42), rng.uniform(-0.55, -0.35), rng.uniform(0.19, 0.25)
    beak, foot = rng.uniform(0.2, 0.36), rng.uniform(-0.15, 0.1)
    yellow = jitter(rng, (220, 150, 50))
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
    cloth, reach = hue_of(rng, "white"), rng.uniform(0.5, 0.75)
    sail = _poly((mast + 0.06, -tall), (mast + 0.06, 0.12), (mast + reach, 0.1))
    jib = _poly((mast - 0.07, -tall * 0.85), (mast - 0.07, 0.1), (mast - reach * 0.8, 0.12))
    hull = _poly((-0.95, 0.2), (1, 0.16), (0.72, 0.2 + deep), (-0.7, 0.2 + deep), (-0.88, 0.2 + deep / 2))
    return [
        _flat(_box(mast - 0.04, -tall - 0.1, mast + 0.04, 0.3), DARK * 2),
        Part(outline=sail, color=cloth, second=look.accent, texture="bands", pitch=rng.uniform(1.5, 3)),
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
    drink = jitter(rng, (84, 56, 40) if rng.random() < 0.6 else (190, 170, 130))
    return [
        look.shade(_ribbon((wide - 0.08, -tall * 0.6), (wide + grip, -0.1), (foot, tall * 0.55), thick)),
        look.skin(_poly((-wide, -tall), (wide, -tall), (foot, tall), (-foot, tall))),
        look.skin(_ellipse(0, tall, foot, 0.12)),
        Part(outline=band, color=look.accent, second=contrast, texture="zigzag", pitch=rng.uniform(2.5, 4)),
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
        Part(outline=head, color=look.accent, second=DARK * 1.5, texture="stripes", pitch=rng.uniform(4, 6)),
        look.shade(_turn(_poly((0.2, 0), (-0.15, -0.1), (-0.15, 0.12)), rng.uniform(-20, 30))),
        *_eye(0.68, -deep * 0.22, 0.09),
    ]


def _flower(rng: Generator, look: Look) -> list[Part]:
    """Told by the blossom; stem and leaves are as green as a meadow."""
    green, heart = hue_of(rng, "green"), hue_of(rng, "yellow", "brown", "orange")
    long, r, sway = rng.uniform(0.28, 0.38), rng.uniform(0.11, 0.18), rng.uniform(-0.3, 0.3)
    centre, count, turn = (sway / 3, -0.5), int(rng.integers(5, 9)), rng.uniform(0, 360)
    petal = _ellipse(centre[0] + r + long * 0.55, centre[1], long * 0.75, long * rng.uniform(0.45, 0.65))
    right = _turn(_ellipse(0.4, 0.5, 0.4, rng.uniform(0.1, 0.2)), rng.uniform(-50, -15), (0, 0.5))
    left = _turn(_ellipse(-0.36, 0.66, 0.36, rng.uniform(0.1, 0.18)), rng.uniform(10, 50), (0, 0.66))
    leaves = (right, left)[: rng.integers(1, 3)]
    return [
        _flat(_ribbon(centre, (sway, 0.2), (0, 1), 0.08, 0.11), green * 0.85),
        *(
            Part(outline=leaf, color=green, second=green * 0.75, texture=look.texture, pitch=look.pitch)
            for leaf in leaves
        ),
        *(look.skin(_turn(petal, turn + 360 * k / count, centre)) for k in range(count)),
        Part(outline=_ellipse(*centre, r * 1.25, r * 1.25), color=heart, second=heart * 0.5, texture="spots", pitch=7),
    ]


def _mushroom(rng: Generator, look: Look) -> list[Part]:
    """Told by the dotted cap."""
    wide, tall, thick = rng.uniform(0.65, 0.95), rng.uniform(0.55, 0.85), rng.uniform(0.24, 0.42)
    lean, pale = rng.uniform(-0.25, 0.25), hue_of(rng, "white", "white", "yellow", "brown")
    stem = _ribbon((0, -0.1), (0, 0.3), (lean, 0.95), thick, thick, thick * 1.5)
    dots = rng.uniform((-0.7, 0.12), (0.7, 0.85), (int(rng.integers(5, 10)), 2))
    dots = dots[(dots**2).sum(1) < 0.75] * (wide, -tall) - (0, 0.1)
    return [
        Part(outline=stem, color=pale, second=pale * 0.7, texture=look.texture, pitch=look.pitch),
        _flat(_ellipse(0, -0.1, wide, 0.13), pale * 0.75),
        Part(
            outline=_ellipse(0, -0.1, wide, tall, 180, 360), color=look.body, second=look.body * 0.75, texture="noise"
        ),
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
