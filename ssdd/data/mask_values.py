"""Whether the values of masks mean the classes that the project takes them for.

Nothing in a PNG says so. What contradicts it: no value but 0 and 255, image-level labels, colours of VOC's palette.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssdd.data.class_names import IGNORE
from ssdd.data.codec import voc_palette
from ssdd.data.problems import Problem

_SHOWN = 10


@dataclass(frozen=True)
class MaskUse:
    """What one mask holds, and the labels of its image."""

    name: str
    """The file."""
    values: frozenset[int]
    """That occur, 0 and 255 included."""
    labels: frozenset[int] | None
    """The image's foreground classes by its image-level labels; None where there are none."""
    other_colours: tuple[tuple[int, int], ...] = ()
    """Pairs of a value that occurs and the index whose colour in VOC's palette the mask's palette gives it."""

    @property
    def foreground(self) -> frozenset[int]:
        """The values without background and 255."""
        return self.values - {0, IGNORE}

    @property
    def is_labelled(self) -> bool:
        """Whether any pixel has a label."""
        return self.values != {IGNORE}


def other_colours(values: frozenset[int], palette: np.ndarray | None, num_classes: int) -> tuple[tuple[int, int], ...]:
    """For `MaskUse`, which of a mask's values have VOC's colour of another index.

    An index does not count where the palette gives it that colour, too: some palettes are filled up with black.

    Args:
        values: that occur in the mask.
        palette: uint8 (N, 3); None for a greyscale mask.
        num_classes: background included.
    """
    if palette is None:
        return ()
    voc = voc_palette()
    indices = {tuple(voc[index].tolist()): index for index in (IGNORE, *range(num_classes))}
    pairs = []
    for value in sorted(value for value in values if value < len(palette)):
        other = indices.get(tuple(palette[value].tolist()), value)
        own = other < len(palette) and (palette[other] == palette[value]).all()
        if other != value and not own:
            pairs.append((value, other))
    return tuple(pairs)


def check(
    uses: Sequence[MaskUse], classes: tuple[str, ...], has_voc_classes: bool, may_lack_classes: bool = False
) -> tuple[list[Problem], list[str]]:
    """What contradicts the meaning of the masks' values in a list, and what is worth a warning.

    Args:
        uses: of every mask that could be read.
        classes: names, background first.
        has_voc_classes: whether they are VOC's, so that VOC's colours mean them.
        may_lack_classes: whether a mask without some of its image's classes agrees with the labels (seeds miss some).
    """
    every = frozenset().union(*(use.values for use in uses))
    if IGNORE in every and every <= {0, IGNORE}:
        what = "the mask holds" if len(uses) == 1 else f"all {len(uses)} masks hold"
        example = f" (1 is {classes[1]!r})"
        return [("masks of 0 and 255", f"{uses[0].name}: {what} no value but 0 and 255{example}")], []

    compared = [(use, use.labels) for use in uses if use.labels is not None and use.is_labelled]
    if may_lack_classes:  # an empty mask says nothing
        compared = [(use, labels) for use, labels in compared if use.foreground]

    def agrees(found: frozenset[int], labels: frozenset[int]) -> bool:
        return bool(found) and found <= labels if may_lack_classes else found == labels

    against = [(use, labels) for use, labels in compared if not agrees(use.foreground, labels)]
    problems: list[Problem] = []
    for use in uses if has_voc_classes else [use for use, _ in against]:
        if use.other_colours:
            pairs = ", ".join(
                f"{value} ({_name(value, classes)}) has VOC's colour of {other} ({_name(other, classes)})"
                for value, other in use.other_colours
            )
            problems.append(("masks with another class's colour", f"{use.name}: value {pairs}"))
    if not against:
        return problems, []
    where = [
        f"{use.name} (mask: {_names(use.foreground, classes)}; labels: {_names(labels, classes)})"
        for use, labels in against
    ]
    right = len(compared) - len(against)
    if right < len(compared) / 2:
        # 0 stays the background if that explains enough: a mask that is inverted by mistake would be worse than none.
        for may_move_background in (False, True):
            new = best_renumbering([use for use, _ in compared], len(classes), may_move_background)
            explained = sum(
                agrees(frozenset(new.get(value, 0) for value in use.values) - {0}, labels) for use, labels in compared
            )
            if explained >= 0.9 * len(compared):
                pairs = ", ".join(f"{old} -> {index} ({_name(index, classes)})" for old, index in sorted(new.items()))
                detail = (
                    f"{right} of {len(compared)} masks agree with the image-level labels, but {explained} would with "
                    f"their values changed like this: {pairs}; the first that does not: {where[0]}"
                )
                return [*problems, ("masks with another numbering", detail)], []
    told = "; ".join(where[:_SHOWN]) + (f"; and {len(where) - _SHOWN} more" if len(where) > _SHOWN else "")
    count = f"{len(against)} of {len(compared)} masks hold other classes than the image-level labels"
    if len(compared) >= 3 and len(against) > len(compared) / 2:
        problems.append(("masks that contradict the labels", f"{count}: {told}"))
        return problems, []
    return problems, [f"{count}: {told}"]


def best_renumbering(uses: Sequence[MaskUse], num_classes: int, may_move_background: bool = False) -> dict[int, int]:
    """The classes that the values would mean by the labels: each value's class, or 0 for the background.

    No two values get the same class. The sum over images of classes that mask and labels do not share is the least
    that such an assignment reaches; among equal ones, values stay what they are or near to it.

    Args:
        uses: masks whose images have labels.
        num_classes: background included.
        may_move_background: whether 0 may be a class. If it is one, and no other value is left for the background,
            255 is.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    every = sorted(frozenset().union(*(use.values for use in uses)))
    values = [value for value in every if value != IGNORE and (value or may_move_background)]
    if not values:
        return dict.fromkeys(every, 0)
    in_mask = np.array([[value in use.values for use in uses] for value in values], float)  # (values, images)
    in_labels = np.array(
        [[use.labels is not None and index in use.labels for use in uses] for index in range(1, num_classes)], float
    )
    # With a value read as a class, |V xor C| images disagree about it, without |C|: a gain of 2 |V and C| - |V|.
    gain = (2 * in_mask @ in_labels.T - in_mask.sum(1, keepdims=True)).reshape(len(values), num_classes - 1)
    distance = (np.array(values)[:, None] - np.arange(1, num_classes)[None]) ** 2  # squared: order is kept, too
    rows, columns = linear_sum_assignment(np.maximum(gain, 0) - 1e-8 * distance, maximize=True)
    chosen = {values[r]: int(c) + 1 for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0}
    background = IGNORE in every and 0 not in [chosen.get(value, 0) for value in every if value != IGNORE]
    return {value: chosen.get(value, 0) for value in every if value != IGNORE or background}


def _name(index: int, classes: tuple[str, ...]) -> str:
    if index == IGNORE:
        return "no label"
    return classes[index] if index < len(classes) else "no class"


def _names(indices: frozenset[int] | None, classes: tuple[str, ...]) -> str:
    return ", ".join(f"{_name(index, classes)} ({index})" for index in sorted(indices or ())) or "none"
