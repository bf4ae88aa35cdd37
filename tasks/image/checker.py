"""Does an image show what its prompt says? A strict verdict with the kind of failure, and a soft partial score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.image.detector import MIN_IOU, Findings, find
from tasks.image.prompts import COLOURS, NUM_OBJECT_TYPES, RELATIONS, SHAPES, tables

MAX_DIRT_PX = 6
MIN_OFFSET_PX = 4.0
FAILURES = (
    "none", "invalid", "dirt", "malformed", "missing", "extra", "binding", "colour", "shape", "objects", "position"
)  # fmt: skip

# An object with the right colour or the right shape only is worth .2 of a right one, so swapped bindings earn .4.
_PARTIAL_CREDIT = 0.2
_RELATION_SHARE = 0.3
_IOU_FLOOR = 0.5
_DIRT_RANGE_PX = 30


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Judgement of B images.

    Attributes:
        strict: [B] bool, everything the prompt demands and nothing else.
        soft: [B] float32 in [0, 1]; exactly 1 where strict holds and below 1 elsewhere.
        failure: [B] int64 index into `FAILURES`, the first in that order that applies.
        findings: the detections that the verdict rests on.
    """

    strict: Tensor
    soft: Tensor
    failure: Tensor
    findings: Findings


def judge(images: Tensor, prompts: Tensor) -> Verdict:
    """Judge images against their prompts.

    Args:
        images: [B, 3, 16, 16] in [-1, 1], on any device.
        prompts: [B] int64 indices into the catalogue.

    Returns:
        The verdict, on the CPU.

    Raises:
        ValueError: batch sizes differ.
    """
    if len(images) != len(prompts):
        raise ValueError(f"one prompt per image: found {len(images)} images and {len(prompts)} prompts")
    prompts = prompts.cpu()
    table = tables()
    required = table.required[prompts].numpy()
    findings = find(images)
    types = findings.colour * len(SHAPES) + findings.shape
    found = _count(findings, types, findings.recognised.astype(np.float32))
    num_found = np.bincount(findings.image, minlength=len(images))
    offset = _offset(findings, types, table.relation[prompts].numpy(), table.ends[prompts].numpy())
    failure = _first_failure(findings, found, num_found, required, offset)
    soft = _soft(findings, types, num_found, required, offset)
    return Verdict(
        strict=torch.from_numpy(failure == 0),
        soft=torch.from_numpy(soft),
        failure=torch.from_numpy(failure),
        findings=findings,
    )


def _count(findings: Findings, types: NDArray[np.int64], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of the weights of the components of each object type; [B, NUM_OBJECT_TYPES]."""
    counts = np.zeros((len(findings.dirt), NUM_OBJECT_TYPES), dtype=np.float32)
    np.add.at(counts, (findings.image, types), weight)
    return counts


def _by_colour(counts: NDArray[Any]) -> NDArray[Any]:
    summed: NDArray[Any] = counts.reshape(-1, len(COLOURS), len(SHAPES)).sum(2)
    return summed


def _by_shape(counts: NDArray[Any]) -> NDArray[Any]:
    summed: NDArray[Any] = counts.reshape(-1, len(COLOURS), len(SHAPES)).sum(1)
    return summed


def _offset(
    findings: Findings, types: NDArray[np.int64], relation: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float32]:
    """How far the second object lies beyond the first along the relation, in pixels; [B].

    NaN where an end is not there; infinite where the prompt has no relation.
    """
    seen = findings.recognised
    total = np.zeros((len(relation), NUM_OBJECT_TYPES, 2), dtype=np.float32)
    count = np.zeros((len(relation), NUM_OBJECT_TYPES, 1), dtype=np.float32)
    np.add.at(total, (findings.image[seen], types[seen]), findings.centre[seen])
    np.add.at(count, (findings.image[seen], types[seen]), 1)
    with np.errstate(invalid="ignore"):
        centre = total / count
    rows = np.arange(len(relation))
    step = centre[rows, ends[:, 1]] - centre[rows, ends[:, 0]]  # [B, 2] (y, x)
    along = np.where(relation == RELATIONS.index("left of"), step[:, 1], step[:, 0])
    return np.where(relation == 0, np.inf, along).astype(np.float32)


def _first_failure(
    findings: Findings,
    found: NDArray[np.float32],
    num_found: NDArray[np.int64],
    required: NDArray[np.int64],
    offset: NDArray[np.float32],
) -> NDArray[np.int64]:
    malformed = num_found > found.sum(1)
    need = required.sum(1)
    colours_ok = (_by_colour(found) == _by_colour(required)).all(1)
    shapes_ok = (_by_shape(found) == _by_shape(required)).all(1)
    wrong = (found != required).any(1)
    conditions = {
        "invalid": findings.invalid,
        "dirt": findings.dirt > MAX_DIRT_PX,
        "malformed": malformed,
        "missing": num_found < need,
        "extra": num_found > need,
        "binding": wrong & colours_ok & shapes_ok,
        "colour": wrong & shapes_ok,
        "shape": wrong & colours_ok,
        "objects": wrong,
        "position": ~(offset >= MIN_OFFSET_PX),
    }
    codes = [FAILURES.index(name) for name in conditions]
    return np.select(list(conditions.values()), codes, default=0).astype(np.int64)


def _soft(
    findings: Findings,
    types: NDArray[np.int64],
    num_found: NDArray[np.int64],
    required: NDArray[np.int64],
    offset: NDArray[np.float32],
) -> NDArray[np.float32]:
    clearness = np.clip((findings.iou - _IOU_FLOOR) / (MIN_IOU - _IOU_FLOOR), 0, 1)
    found = _count(findings, types, clearness)
    exact = np.minimum(found, required).sum(1)
    by_colour = np.minimum(_by_colour(found), _by_colour(required)).sum(1) - exact
    by_shape = np.minimum(_by_shape(found), _by_shape(required)).sum(1) - exact
    credit = exact + _PARTIAL_CREDIT * (by_colour + by_shape)
    need = required.sum(1)
    # An object too many costs what a missing one costs; dividing by the larger number made extra objects the cheaper
    # error, and Flow-GRPO traded missing objects for extra ones without any gain in the strict score.
    objects = np.maximum(credit - np.maximum(num_found - need, 0), 0) / need
    relation = np.nan_to_num(np.clip((offset + MIN_OFFSET_PX) / (2 * MIN_OFFSET_PX), 0, 1), nan=0.0)
    clean = 1 - np.clip((findings.dirt - MAX_DIRT_PX) / _DIRT_RANGE_PX, 0, 1)
    score = objects * (1 - _RELATION_SHARE + _RELATION_SHARE * relation) * clean
    return np.where(findings.invalid, 0, score).astype(np.float32)
