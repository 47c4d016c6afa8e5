"""Check that the values of masks mean the classes that the project expects.

A PNG does not name its classes. Three signs show another meaning: all masks of a list have only 0 and 255; the
image-level labels disagree with the masks; or a mask's palette shows a value in VOC's colour of another class.
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
    """The values in one mask, and the labels of its image."""

    name: str
    """The file's name, for messages."""
    values: frozenset[int]
    """The values that occur, 0 and 255 included."""
    labels: frozenset[int] | None
    """The foreground classes in the image-level labels; None without such labels."""
    other_colours: tuple[tuple[int, int], ...] = ()
    """Pairs (value, index): the mask's palette gives the value the colour that VOC's palette gives this other index."""

    @property
    def foreground(self) -> frozenset[int]:
        """The values without background and 255."""
        return self.values - {0, IGNORE}

    @property
    def is_labelled(self) -> bool:
        """Whether any pixel has a label."""
        return self.values != {IGNORE}


def other_colours(values: frozenset[int], palette: np.ndarray | None, num_classes: int) -> tuple[tuple[int, int], ...]:
    """The values of a mask that have VOC's colour of another index, for `MaskUse.other_colours`.

    A pair is left out if the mask's palette gives the value and the index the same colour. For example, a palette with
    few colours may have black for all other values, and black is also the colour of index 0.

    Args:
        values: the values that occur in the mask.
        palette: uint8 (N, 3); None for a greyscale mask.
        num_classes: the number of classes, background included.
    """
    if palette is None:
        return ()
    voc = voc_palette()
    indices = {tuple(voc[index].tolist()): index for index in (IGNORE, *range(num_classes))}
    pairs = []
    for value in sorted(value for value in values if value < len(palette)):
        other = indices.get(tuple(palette[value].tolist()), value)
        same_colour = other < len(palette) and (palette[other] == palette[value]).all()
        if other != value and not same_colour:
            pairs.append((value, other))
    return tuple(pairs)


def check(
    uses: Sequence[MaskUse], classes: tuple[str, ...], has_voc_classes: bool, may_lack_classes: bool = False
) -> tuple[list[Problem], list[str]]:
    """Check the values of all masks in a list. Returns problems and warnings.

    Args:
        uses: one for every mask that could be read.
        classes: class names, background first.
        has_voc_classes: whether the classes are VOC's; if not, colours only count in masks that disagree with labels.
        may_lack_classes: whether a mask may lack classes of its image without contradicting the labels (PSA's seeds
            lack some).
    """
    all_values = frozenset().union(*(use.values for use in uses))
    if IGNORE in all_values and all_values <= {0, IGNORE}:
        what = "the mask holds" if len(uses) == 1 else f"all {len(uses)} masks hold"
        example = f" (class 1 is {classes[1]!r})"
        return [("masks of 0 and 255", f"{uses[0].name}: {what} only the values 0 and 255{example}")], []

    compared = [(use, use.labels) for use in uses if use.labels is not None and use.is_labelled]
    if may_lack_classes:  # a mask without foreground cannot contradict the labels
        compared = [(use, labels) for use, labels in compared if use.foreground]

    def agrees(values: frozenset[int], labels: frozenset[int]) -> bool:
        return bool(values) and values <= labels if may_lack_classes else values == labels

    disagreeing = [(use, labels) for use, labels in compared if not agrees(use.foreground, labels)]
    problems: list[Problem] = []
    for use in uses if has_voc_classes else [use for use, _ in disagreeing]:
        if use.other_colours:
            pairs = ", ".join(
                f"{value} ({_name(value, classes)}) has VOC's colour of {other} ({_name(other, classes)})"
                for value, other in use.other_colours
            )
            problems.append(("masks with another class's colour", f"{use.name}: value {pairs}"))
    if not disagreeing:
        return problems, []
    details = [
        f"{use.name} (mask: {_names(use.foreground, classes)}; labels: {_names(labels, classes)})"
        for use, labels in disagreeing
    ]
    agreeing = len(compared) - len(disagreeing)
    if agreeing < len(compared) / 2:
        # Renumberings that keep 0 as the background are tried first. The others exchange background and object, which
        # does more harm if the proposal is wrong.
        for may_move_background in (False, True):
            new = best_renumbering([use for use, _ in compared], len(classes), may_move_background)
            explained = sum(
                agrees(frozenset(new.get(value, 0) for value in use.values) - {0}, labels) for use, labels in compared
            )
            if explained >= 0.9 * len(compared):
                pairs = ", ".join(f"{old} -> {index} ({_name(index, classes)})" for old, index in sorted(new.items()))
                detail = (
                    f"{agreeing} of {len(compared)} masks agree with the image-level labels, but {explained} would "
                    f"agree with their values changed like this: {pairs}; the first that does not agree: {details[0]}"
                )
                return [*problems, ("masks with another numbering", detail)], []
    shown = "; ".join(details[:_SHOWN]) + (f"; and {len(details) - _SHOWN} more" if len(details) > _SHOWN else "")
    count = f"{len(disagreeing)} of {len(compared)} masks hold other classes than the image-level labels"
    if len(compared) >= 3 and len(disagreeing) > len(compared) / 2:
        problems.append(("masks that contradict the labels", f"{count}: {shown}"))
        return problems, []
    return problems, [f"{count}: {shown}"]


def best_renumbering(uses: Sequence[MaskUse], num_classes: int, may_move_background: bool = False) -> dict[int, int]:
    """The renumbering of the masks' values that fits the labels best: the class of each value, 0 for the background.

    No two values get the same foreground class. The renumbering minimises the number of classes that are only in a mask
    or only in its labels, summed over the images. If several are equally good, values change as little as possible.

    Args:
        uses: masks whose images have labels.
        num_classes: the number of classes, background included.
        may_move_background: whether 0 may become a foreground class. If it does, and no other value is left for the
            background, 255 becomes the background.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    all_values = sorted(frozenset().union(*(use.values for use in uses)))
    values = [value for value in all_values if value != IGNORE and (value or may_move_background)]
    if not values:
        return dict.fromkeys(all_values, 0)
    in_mask = np.array([[value in use.values for use in uses] for value in values], float)  # (values, images)
    in_labels = np.array(
        [[use.labels is not None and index in use.labels for use in uses] for index in range(1, num_classes)], float
    )
    # V: images whose mask has the value; C: images whose labels have the class. If the value means the class,
    # |V xor C| images disagree about the class, else |C| do: the gain is 2 |V and C| - |V|.
    gain = (2 * in_mask @ in_labels.T - in_mask.sum(1, keepdims=True)).reshape(len(values), num_classes - 1)
    # Of equally good renumberings, the one with the smallest sum of squared distances is chosen. With squares, it also
    # keeps the order of the values.
    distance = (np.array(values)[:, None] - np.arange(1, num_classes)[None]) ** 2
    rows, columns = linear_sum_assignment(np.maximum(gain, 0) - 1e-8 * distance, maximize=True)
    chosen = {values[r]: int(c) + 1 for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0}
    background = IGNORE in all_values and 0 not in [chosen.get(value, 0) for value in all_values if value != IGNORE]
    return {value: chosen.get(value, 0) for value in all_values if value != IGNORE or background}


def _name(index: int, classes: tuple[str, ...]) -> str:
    if index == IGNORE:
        return "no label"
    return classes[index] if index < len(classes) else "no class"


def _names(indices: frozenset[int] | None, classes: tuple[str, ...]) -> str:
    return ", ".join(f"{_name(index, classes)} ({index})" for index in sorted(indices or ())) or "none"
