"""What a picture contains: detectors that are asked for objects by name, and what is done with their boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object.

    Attributes:
        label: The query that found it.
        score: Confidence in [0, 1].
        box: Left, top, right, bottom in pixels of the picture.
    """

    label: str
    score: float
    box: Box


class Detector(ABC):
    """Finds objects by their names."""

    @abstractmethod
    def __call__(self, images: Tensor, queries: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Detections in each image, of any confidence; equal queries of neighbours are asked together.

        Args:
            images: `[n, 3, H, W]` float32 in [0, 1], on any device.
            queries: Names of the objects to look for in each image.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop the model."""


def same_queries(queries: Sequence[Sequence[str]], batch: int) -> Iterator[tuple[list[int], tuple[str, ...]]]:
    """Rows that ask for the same names, at most `batch` at once, and the names."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, names in enumerate(queries):
        rows.setdefault(tuple(names), []).append(row)
    for names, members in rows.items():
        for i in range(0, len(members), batch):
            yield members[i : i + batch], names


def from_centre(boxes: Tensor) -> Tensor:
    """Boxes `[..., 4]` of centre and size to left, top, right, bottom."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def detections(scores: Tensor, boxes: Tensor, names: Sequence[str], floor: float) -> list[Detection]:
    """The most likely name of each box `[q, 4]` by scores `[q, names]`, above `floor`."""
    best, label = scores.float().max(dim=1)
    kept = (best > floor).nonzero()[:, 0].tolist()
    return [
        Detection(label=names[int(label[i])], score=float(best[i]), box=_four(boxes[i].float().tolist())) for i in kept
    ]


def distinct(found: Sequence[Detection], *, threshold: float, max_overlap: float, limit: int) -> list[Detection]:
    """Objects of one name above `threshold`, most confident first, without those that overlap a better one.

    Args:
        found: Detections of one name.
        threshold: Least confidence.
        max_overlap: Intersection over union from which two boxes are one object; 1 keeps all.
        limit: Most objects.
    """
    kept: list[Detection] = []
    for candidate in sorted(found, key=lambda d: -d.score):
        if candidate.score <= threshold or len(kept) == limit:
            break
        if max_overlap >= 1 or all(overlap(candidate.box, other.box) < max_overlap for other in kept):
            kept.append(candidate)
    return kept


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - both
    return both / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _four(values: list[float]) -> Box:
    left, top, right, bottom = values
    return left, top, right, bottom
