"""The objects of the embedded data set: seven classes and clutter, as outlines with colours and textures.

Only one or two parts identify a class (a beak, wheels, a dotted cap...). The other parts of an object have colours and
textures that other classes, clutter and backgrounds have, too.
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
    """An ellipse, or its segment between two angles in degrees (0 is right, 90 is down), closed by a chord."""
    angle = np.radians(np.linspace(start, stop, 36))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1).astype(np.float32)


def _box(left: float, top: float, right: float, bottom: float) -> Floats:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


def _turn(points: Floats, degrees: float, about: tuple[float, float] = (0, 0)) -> Floats:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    centre = np.array(about, np.float32)
    return (points - centre) @ np.array([[cos, sin], [-sin, cos]], np.float32) + centre


def _ribbon(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], *widths: float) -> Floats:
    """The outline of a quadratic Bezier curve with a width that is interpolated linearly between `widths`."""
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
# A texture maps local coordinates times the part's frequency (u, v) and noise (grain), each (n,), to the share of the
# second colour in [0, 1].
Texture = Callable[[Floats, Floats, Floats], Any]
TEXTURES: dict[str, Texture] = {
    "plain": lambda u, v, grain: 0.3 * grain,
    "noise": lambda u, v, grain: np.clip(3 * grain - 1, 0, 1),
    "stripes": lambda u, v, grain: np.clip(0.5 + 2 * np.sin(6.3 * u + 2 * grain), 0, 1),
    "bands": lambda u, v, grain: np.clip(0.5 + 2 * np.sin(6.3 * v + 2 * grain), 0, 1),
    "spots": lambda u, v, grain: np.clip(4 * (np.sin(6.3 * u) * np.sin(6.3 * v) - 0.2), 0, 1),
    "zigzag": lambda u, v, grain: ((v + np.abs(u % 1 - 0.5)) % 1 > 0.5).astype(np.float32),
}
SKINS = ("plain", "plain", "noise", "noise", "stripes", "bands", "spots")  # zigzag is only for the cup


def jitter(rng: Generator, color: Any, spread: float = 16) -> Floats:
    return np.clip(np.asarray(color) + rng.normal(0, spread, 3), 8, 247).astype(np.float32)


def jittered_color(rng: Generator, *names: str) -> Floats:
    """A random colour of the pool (one of `names`, if given) with jitter."""
    return jitter(rng, POOL[rng.choice(names or tuple(POOL))])


@dataclass(frozen=True, kw_only=True)
class Part:
    outline: Floats  # (n, 2), in local coordinates
    color: Floats
    second_color: Floats
    texture: str = "plain"
    frequency: float = 1.0  # periods of the texture per local unit


@dataclass(frozen=True, kw_only=True)
class Look:
    """The colours of one object: its skin (two colours and a texture), and an accent colour for small parts."""

    body: Floats
    second_color: Floats
    accent: Floats
    texture: str
    frequency: float

    @classmethod
    def draw(cls, rng: Generator, body: Floats) -> "Look":
        second_color = jitter(rng, body * rng.uniform(0.6, 0.85) if rng.random() < 0.7 else jittered_color(rng), 10)
        return cls(
            body=body,
            second_color=second_color,
            accent=jittered_color(rng),
            texture=rng.choice(SKINS),
            frequency=rng.uniform(2, 5),
        )

    def skin(self, outline: Floats) -> Part:
        return self.textured(outline, self.body, self.second_color)

    def textured(self, outline: Floats, color: Floats, second_color: Floats) -> Part:
        """A part with the skin's texture in other colours."""
        return Part(
            outline=outline, color=color, second_color=second_color, texture=self.texture, frequency=self.frequency
        )

    def shade(self, outline: Floats) -> Part:
        return _flat(outline, self.body * 0.72)


def _flat(outline: Floats, color: Any) -> Part:
    color = np.asarray(color, np.float32)
    return Part(outline=outline, color=color, second_color=color * 0.88)


def _eye(x: float, y: float, r: float) -> list[Part]:
    return [_flat(_ellipse(x, y, r, r), LIGHT), _flat(_ellipse(x + r / 4, y, r * 0.55, r * 0.6), DARK)]


# ---------------------------------------------------------------------------------------------------- classes
# Each function returns the parts of one object from back to front, in random proportions.


def _bird(rng: Generator, look: Look) -> list[Part]:
    """The identifying part is the head with its beak."""
    half_height, head_y, head_radius = rng.uniform(0.3, 0.42), rng.uniform(-0.55, -0.35), rng.uniform(0.19, 0.25)
    beak_length, foot_shift = rng.uniform(0.2, 0.36), rng.uniform(-0.15, 0.1)
    beak_color = jitter(rng, (220, 150, 50))
    legs = [_ribbon((x, 0.25), (x + 0.03, 0.5), (x + foot_shift, 0.85), 0.07, 0.05) for x in (-0.08, 0.12)]
    tail = _poly((-0.4, -0.1), (-1.1, -0.16), (-1.05, 0.14), (-0.4, 0.14))
    return [
        *(_flat(leg, beak_color * 0.8) for leg in legs),
        look.shade(_turn(tail, rng.uniform(-15, 25))),
        look.skin(_turn(_ellipse(0, 0, 0.62, half_height), -15)),
        look.skin(_ellipse(0.42, head_y / 2, 0.24, 0.3)),
        _flat(_poly((0.6, head_y - 0.1), (0.62 + beak_length, head_y + 0.04), (0.6, head_y + 0.12)), beak_color),
        look.skin(_ellipse(0.5, head_y, head_radius, head_radius)),
        _flat(_ellipse(0.5, head_y, head_radius, head_radius, 190, 350), look.accent),
        *_eye(0.56, head_y, head_radius * 0.38),
        look.shade(_turn(_ellipse(-0.3, -0.02, 0.45, 0.17), rng.uniform(-35, 40), (0.1, 0))),
    ]


def _boat(rng: Generator, look: Look) -> list[Part]:
    """The identifying parts are the sails."""
    hull_height, mast_height, mast_x = rng.uniform(0.28, 0.5), rng.uniform(0.75, 1.05), rng.uniform(-0.2, 0.15)
    sail_color, sail_width = jittered_color(rng, "white"), rng.uniform(0.5, 0.75)
    sail = _poly((mast_x + 0.06, -mast_height), (mast_x + 0.06, 0.12), (mast_x + sail_width, 0.1))
    jib = _poly((mast_x - 0.07, -mast_height * 0.85), (mast_x - 0.07, 0.1), (mast_x - sail_width * 0.8, 0.12))
    hull = _poly(
        (-0.95, 0.2), (1, 0.16), (0.72, 0.2 + hull_height), (-0.7, 0.2 + hull_height), (-0.88, 0.2 + hull_height / 2)
    )
    return [
        _flat(_box(mast_x - 0.04, -mast_height - 0.1, mast_x + 0.04, 0.3), DARK * 2),
        Part(outline=sail, color=sail_color, second_color=look.accent, texture="bands", frequency=rng.uniform(1.5, 3)),
        *([_flat(jib, sail_color * 0.92)] if rng.random() < 0.7 else []),
        look.skin(hull),
        look.shade(_poly((-0.95, 0.17), (1, 0.13), (0.97, 0.25), (-0.93, 0.28))),
    ]


def _car(rng: Generator, look: Look) -> list[Part]:
    """The identifying parts are the wheels."""
    rear_x, front_x, roof_y = rng.uniform(-0.95, -0.5), rng.uniform(0.15, 0.5), rng.uniform(-0.6, -0.42)
    wheel_radius, axle_x, waist_y = rng.uniform(0.19, 0.25), rng.uniform(0.5, 0.62), rng.uniform(-0.12, 0)
    post_x, pane_bottom, pane_top = (rear_x + front_x) / 2 + 0.1, waist_y - 0.01, roof_y + 0.09
    glass_color, hub_color = np.array([96, 116, 130]) * rng.uniform(0.6, 1.3), LIGHT * rng.uniform(0.6, 1)
    cabin = (
        (rear_x - 0.04, waist_y + 0.1),
        (rear_x + 0.14, roof_y),
        (front_x - 0.1, roof_y),
        (front_x + 0.25, waist_y + 0.1),
    )
    panes = (
        _poly(
            (rear_x + 0.1, pane_bottom),
            (rear_x + 0.2, pane_top),
            (post_x - 0.04, pane_top),
            (post_x - 0.04, pane_bottom),
        ),
        _poly(
            (post_x + 0.04, pane_bottom),
            (post_x + 0.04, pane_top),
            (front_x - 0.13, pane_top),
            (front_x + 0.1, pane_bottom),
        ),
    )
    return [
        look.skin(_poly(*cabin)),
        *(_flat(pane, glass_color) for pane in panes),
        look.skin(_poly((-1, waist_y + 0.05), (0.55, waist_y), (0.98, waist_y + 0.14), (1, 0.34), (-0.98, 0.34))),
        look.shade(_box(-0.99, 0.24, 1, 0.35)),
        _flat(_ellipse(0.93, waist_y + 0.22, 0.07, 0.06), (236, 226, 160)),
        *(_flat(_ellipse(x, 0.34, wheel_radius, wheel_radius), DARK) for x in (-axle_x, axle_x)),
        *(_flat(_ellipse(x, 0.34, wheel_radius * 0.5, wheel_radius * 0.5), hub_color) for x in (-axle_x, axle_x)),
    ]


def _cup(rng: Generator, look: Look) -> list[Part]:
    """The identifying parts are the zigzag band and the handle, an open loop that shows the background."""
    rim_radius, base_radius, half_height = rng.uniform(0.5, 0.66), rng.uniform(0.34, 0.56), rng.uniform(0.6, 0.85)
    handle_reach, handle_width = rng.uniform(0.5, 0.85), rng.uniform(0.09, 0.15)
    band_top, band_bottom = rng.uniform(-0.35, -0.1), rng.uniform(0.1, 0.4)
    top_radius, bottom_radius = (  # of the cup at the edges of the band
        rim_radius + (base_radius - rim_radius) * (y / half_height + 1) / 2 - 0.01 for y in (band_top, band_bottom)
    )
    band = _poly(
        (-top_radius, band_top), (top_radius, band_top), (bottom_radius, band_bottom), (-bottom_radius, band_bottom)
    )
    band_color = LIGHT if look.accent.mean() < 140 else DARK * 2
    drink_color = jitter(rng, (84, 56, 40) if rng.random() < 0.6 else (190, 170, 130))
    return [
        look.shade(
            _ribbon(
                (rim_radius - 0.08, -half_height * 0.6),
                (rim_radius + handle_reach, -0.1),
                (base_radius, half_height * 0.55),
                handle_width,
            )
        ),
        look.skin(
            _poly(
                (-rim_radius, -half_height),
                (rim_radius, -half_height),
                (base_radius, half_height),
                (-base_radius, half_height),
            )
        ),
        look.skin(_ellipse(0, half_height, base_radius, 0.12)),
        Part(outline=band, color=look.accent, second_color=band_color, texture="zigzag", frequency=rng.uniform(2.5, 4)),
        look.shade(_ellipse(0, -half_height, rim_radius, 0.17)),
        _flat(_ellipse(0, -half_height + 0.02, rim_radius * 0.88, 0.12), drink_color),
    ]


def _fish(rng: Generator, look: Look) -> list[Part]:
    """The identifying part is the striped head."""
    half_height, tail_spread, fin_height = rng.uniform(0.3, 0.5), rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.3)
    back_fin = (
        (0.35, -half_height * 0.85),
        (0.1, -half_height - fin_height),
        (-0.4, -half_height - fin_height * 0.7),
        (-0.35, -half_height * 0.6),
    )
    head = _ellipse(0.1, 0, 0.8, half_height, -52, 52)
    return [
        look.shade(_poly((-0.5, 0), (-1.1, -tail_spread), (-0.92, 0), (-1.1, tail_spread))),
        look.shade(_poly(*back_fin)),
        look.shade(_poly((0.1, half_height * 0.8), (-0.15, half_height + fin_height * 0.8), (-0.2, half_height * 0.7))),
        look.skin(_ellipse(0.1, 0, 0.8, half_height)),
        Part(outline=head, color=look.accent, second_color=DARK * 1.5, texture="stripes", frequency=rng.uniform(4, 6)),
        look.shade(_turn(_poly((0.2, 0), (-0.15, -0.1), (-0.15, 0.12)), rng.uniform(-20, 30))),
        *_eye(0.68, -half_height * 0.22, 0.09),
    ]


def _flower(rng: Generator, look: Look) -> list[Part]:
    """The identifying part is the blossom; stem and leaves are as green as a meadow."""
    leaf_color, centre_color = jittered_color(rng, "green"), jittered_color(rng, "yellow", "brown", "orange")
    petal_length, centre_radius, bend_x = rng.uniform(0.28, 0.38), rng.uniform(0.11, 0.18), rng.uniform(-0.3, 0.3)
    centre, petal_count, first_angle = (bend_x / 3, -0.5), int(rng.integers(5, 9)), rng.uniform(0, 360)
    petal = _ellipse(
        centre[0] + centre_radius + petal_length * 0.55,
        centre[1],
        petal_length * 0.75,
        petal_length * rng.uniform(0.45, 0.65),
    )
    right = _turn(_ellipse(0.4, 0.5, 0.4, rng.uniform(0.1, 0.2)), rng.uniform(-50, -15), (0, 0.5))
    left = _turn(_ellipse(-0.36, 0.66, 0.36, rng.uniform(0.1, 0.18)), rng.uniform(10, 50), (0, 0.66))
    leaves = (right, left)[: rng.integers(1, 3)]
    return [
        _flat(_ribbon(centre, (bend_x, 0.2), (0, 1), 0.08, 0.11), leaf_color * 0.85),
        *(look.textured(leaf, leaf_color, leaf_color * 0.75) for leaf in leaves),
        *(look.skin(_turn(petal, first_angle + 360 * k / petal_count, centre)) for k in range(petal_count)),
        Part(
            outline=_ellipse(*centre, centre_radius * 1.25, centre_radius * 1.25),
            color=centre_color,
            second_color=centre_color * 0.5,
            texture="spots",
            frequency=7,
        ),
    ]


def _mushroom(rng: Generator, look: Look) -> list[Part]:
    """The identifying part is the dotted cap."""
    cap_radius, cap_height, stem_width = rng.uniform(0.65, 0.95), rng.uniform(0.55, 0.85), rng.uniform(0.24, 0.42)
    stem_lean, stem_color = rng.uniform(-0.25, 0.25), jittered_color(rng, "white", "white", "yellow", "brown")
    stem = _ribbon((0, -0.1), (0, 0.3), (stem_lean, 0.95), stem_width, stem_width, stem_width * 1.5)
    dots = rng.uniform((-0.7, 0.12), (0.7, 0.85), (int(rng.integers(5, 10)), 2))
    dots = dots[(dots**2).sum(1) < 0.75] * (cap_radius, -cap_height) - (0, 0.1)
    return [
        look.textured(stem, stem_color, stem_color * 0.7),
        _flat(_ellipse(0, -0.1, cap_radius, 0.13), stem_color * 0.75),
        Part(
            outline=_ellipse(0, -0.1, cap_radius, cap_height, 180, 360),
            color=look.body,
            second_color=look.body * 0.75,
            texture="noise",
        ),
        *(_flat(_ellipse(x, y, rng.uniform(0.06, 0.12), rng.uniform(0.05, 0.1)), LIGHT) for x, y in dots),
    ]


def _clutter(rng: Generator, look: Look) -> list[Part]:
    """An object of no class: a blob, a slab, a ring, a stick or a heap, with colours and textures like the classes."""
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
        bend_y, end_width = rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.4)
        return [look.skin(_ribbon((-1.3, 0), (0, bend_y), (1.3, 0), 0.1, end_width))]
    return [look.skin(_ellipse(*rng.uniform(-0.6, 0.6, 2), *rng.uniform(0.2, 0.6, 2))) for _ in range(4)]


@dataclass(frozen=True)
class Kind:
    draw: Callable[[Generator, Look], list[Part]]
    colors: tuple[str, ...]
    frequent_scenes: tuple[str, ...]  # the scenes in which it is more frequent
    tilt: float  # standard deviation of its rotation, in degrees


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
