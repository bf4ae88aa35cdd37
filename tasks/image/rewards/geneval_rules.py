"""GenEval's verdict (arXiv 2310.11513) on detected objects: counts, colours, positions; and a soft score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.image.rewards.detection import Detection

# Share of the distance between two centres that has to lie along an axis: within 60 degrees of it.
_ALONG = 0.5
_STILL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Judgement of one picture.

    Attributes:
        strict: Every clause holds, as GenEval reports.
        soft: Mean over the clauses of how far each holds, in [0, 1]; 1 exactly where `strict`.
        reasons: What does not hold.
    """

    strict: bool
    soft: float
    reasons: tuple[str, ...]


def verdict(
    objects: Mapping[str, Sequence[Detection]],
    meta: Mapping[str, Any],
    colours: Callable[[Sequence[Detection], str], Sequence[str]],
    position_threshold: float = 0.1,
) -> Verdict:
    """Judge a picture.

    An `include` clause demands `count` objects; of the most confident `count`, each must have the `color` and stand
    in the `position` to every object that satisfied the earlier clause it names. An `exclude` clause forbids `count`
    objects or more. Its part of the soft score is the mean of: the share of `count` that is there, the share with
    the right colour, the share of pairs in the right position; for `exclude`, what is left of `count` after the
    surplus.

    Args:
        objects: Detections by name, most confident first.
        meta: GenEval's `include` and `exclude`.
        colours: Colours of some objects of a name.
        position_threshold: Share of the two sizes by which centres may differ and still count as level.
    """
    shares: list[float] = []
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in meta.get("include", ()):
        name, count = str(clause["class"]), int(clause["count"])
        found = objects.get(name, ())[:count]
        parts = [len(found) / count]
        if len(found) < count:
            reasons.append(f"expected {count} {name}, found {len(found)}")
        if "color" in clause:
            parts.append(_coloured(clause, found, colours(found, name), reasons))
        if "position" in clause:
            parts.append(_placed(clause, found, groups, position_threshold, reasons))
        holds = all(part == 1 for part in parts)
        groups.append(found if holds else None)
        shares.append(float(np.mean(parts)))
    for clause in meta.get("exclude", ()):
        name, count = str(clause["class"]), int(clause["count"])
        surplus = len(objects.get(name, ())) - count + 1
        if surplus > 0:
            reasons.append(f"expected fewer than {count} {name}, found {surplus + count - 1}")
        shares.append(max(0.0, 1 - max(surplus, 0) / count))
    return Verdict(strict=not reasons, soft=float(np.mean(shares)), reasons=tuple(reasons))


def relations(first: Detection, second: Detection, threshold: float = 0.1) -> set[str]:
    """Where the first object stands from the second: any of left of, right of, above, below."""
    boxes = np.array([first.box, second.box]).reshape(2, 2, 2)  # [object, corner, (x, y)]
    centre_first, centre_second = boxes.mean(axis=1)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    offset = centre_first - centre_second
    clear = np.sign(offset) * np.maximum(np.abs(offset) - threshold * sizes, 0)
    if bool((np.abs(clear) < _STILL).all()):
        return set()
    x, y = clear / np.linalg.norm(offset)
    names = {"left of": x < -_ALONG, "right of": x > _ALONG, "above": y < -_ALONG, "below": y > _ALONG}
    return {name for name, holds in names.items() if holds}


def _coloured(
    clause: Mapping[str, Any], found: Sequence[Detection], colours: Sequence[str], reasons: list[str]
) -> float:
    right = sum(colour == clause["color"] for colour in colours)
    if len(found) == clause["count"] and right < len(found):
        reasons.append(f"expected {clause['color']} {clause['class']}, found {', '.join(colours)}")
    return right / int(clause["count"])


def _placed(
    clause: Mapping[str, Any],
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    threshold: float,
    reasons: list[str],
) -> float:
    wanted, place = clause["position"]
    targets = groups[int(place)]
    if not targets or not found:
        reasons.append(f"nothing for {clause['class']} to be {wanted}")
        return 0.0
    pairs = [wanted in relations(item, target, threshold) for item in found for target in targets]
    if not all(pairs):
        reasons.append(f"expected {clause['class']} {wanted} its target in {len(pairs)} pairs, found {sum(pairs)}")
    return sum(pairs) / len(pairs)
