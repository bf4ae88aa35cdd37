"""Prompts of `image/shapes`: a finite catalogue of captions, what each one demands, and which are held out.

The catalogue is enumerated, not sampled, so a prompt is an index into it: starts, rewards and evaluation all
speak of the same integer, and the requirement of a batch is one table look-up.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "diamond", "triangle")
NUM_OBJECT_TYPES = len(COLOURS) * len(SHAPES)
KINDS = ("single", "count", "two", "binding", "position")
RELATIONS = ("", "left of", "above")
VOCABULARY = ("<pad>", "a", "two", "three", "and", "left of", "above", *COLOURS, *SHAPES)
CAPTION_LENGTH = 7
KIND_WEIGHTS = {"single": 0.10, "count": 0.20, "two": 0.15, "binding": 0.20, "position": 0.35}

HELD_OUT_SEED = 20_251
HELD_OUT_PAIRS = {"two": 7, "binding": 9}
# One object of each shape, each in its own colour: its single and count captions are held out too.
HELD_OUT_OBJECTS = ((0, 1), (1, 2), (3, 0))
EVAL_GROUPS = {"single": 12, "count": 24, "two": 20, "binding": 24, "position": 48}
EVAL_GROUP_SIZE = 8
EVAL_NOISE_SEED = 7_411


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One caption and what an image must hold to satisfy it.

    Attributes:
        kind: one of `KINDS`; `binding` pairs differ in colour and in shape, `two` pairs share one of them.
        objects: (colour, shape) indices in the order of the caption, one entry for each instance.
        relation: index into `RELATIONS`; the first object stands left of or above the second.
        caption: the English text.
        tokens: `CAPTION_LENGTH` indices into `VOCABULARY`, padded at the end.
        held_out: True when no RL rollout may start from it (pretraining sees every prompt).
    """

    kind: str
    objects: tuple[tuple[int, int], ...]
    relation: int
    caption: str
    tokens: tuple[int, ...]
    held_out: bool


def _noun(colour: int, shape: int, count: int = 1) -> str:
    return f"{COLOURS[colour]} {SHAPES[shape]}" + ("s" if count > 1 else "")


def _tokens(*words: str) -> tuple[int, ...]:
    ids = [VOCABULARY.index(word) for word in words]
    return tuple(ids + [0] * (CAPTION_LENGTH - len(ids)))


def _counted(obj: tuple[int, int], count: int) -> Prompt:
    number = ("a", "two", "three")[count - 1]
    return Prompt(
        kind="single" if count == 1 else "count",
        objects=(obj,) * count,
        relation=0,
        caption=f"{number} {_noun(*obj, count)}",
        tokens=_tokens(number, COLOURS[obj[0]], SHAPES[obj[1]]),
        held_out=obj in HELD_OUT_OBJECTS,
    )


def _paired(first: tuple[int, int], second: tuple[int, int], relation: int, held_out: bool) -> Prompt:
    link = RELATIONS[relation] or "and"
    differ = first[0] != second[0] and first[1] != second[1]
    return Prompt(
        kind="position" if relation else "binding" if differ else "two",
        objects=(first, second),
        relation=relation,
        caption=f"a {_noun(*first)} {link} a {_noun(*second)}",
        tokens=_tokens("a", COLOURS[first[0]], SHAPES[first[1]], link, "a", COLOURS[second[0]], SHAPES[second[1]]),
        held_out=held_out,
    )


def _held_out_pairs(types: list[tuple[int, int]]) -> set[frozenset[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    chosen: set[frozenset[tuple[int, int]]] = set()
    for kind, count in HELD_OUT_PAIRS.items():
        pairs = [
            frozenset((a, b))
            for a, b in itertools.combinations(types, 2)
            if (a[0] != b[0] and a[1] != b[1]) == (kind == "binding")
        ]
        order = torch.randperm(len(pairs), generator=generator).tolist()
        chosen.update(pairs[i] for i in order[:count])
    return chosen


@cache
def catalogue() -> tuple[Prompt, ...]:
    """Every prompt of the task, in a fixed order: 12 single, 24 count, 132 `and`, 264 positional."""
    types = list(itertools.product(range(len(COLOURS)), range(len(SHAPES))))
    held_out = _held_out_pairs(types)
    counted = [_counted(obj, count) for count in (1, 2, 3) for obj in types]
    paired = [
        _paired(a, b, relation, frozenset((a, b)) in held_out)
        for relation in range(len(RELATIONS))
        for a, b in itertools.permutations(types, 2)
    ]
    return tuple(counted + paired)


@dataclass(frozen=True, kw_only=True)
class PromptTables:
    """The catalogue as tensors, one row per prompt (P rows).

    Attributes:
        tokens: [P, CAPTION_LENGTH] int64.
        required: [P, NUM_OBJECT_TYPES] int64, how many of each (colour * len(SHAPES) + shape) must be there.
        relation: [P] int64 index into `RELATIONS`.
        ends: [P, 2] int64 object types that the relation speaks of (equal to the single type where there is one).
        kind: [P] int64 index into `KINDS`.
    """

    tokens: Tensor
    required: Tensor
    relation: Tensor
    ends: Tensor
    kind: Tensor


@cache
def tables() -> PromptTables:
    """Requirement tables of `catalogue()`; callers must not write into them."""
    prompts = catalogue()
    required = torch.zeros(len(prompts), NUM_OBJECT_TYPES, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        for colour, shape in prompt.objects:
            required[row, colour * len(SHAPES) + shape] += 1
    ends = [[c * len(SHAPES) + s for c, s in (p.objects[0], p.objects[-1])] for p in prompts]
    return PromptTables(
        tokens=torch.tensor([p.tokens for p in prompts]),
        required=required,
        relation=torch.tensor([p.relation for p in prompts]),
        ends=torch.tensor(ends),
        kind=torch.tensor([KINDS.index(p.kind) for p in prompts]),
    )


def sample_prompts(count: int, generator: torch.Generator, *, split: str) -> Tensor:
    """Draw prompt indices: the kind by `KIND_WEIGHTS`, then uniformly within the kind.

    Args:
        count: how many indices.
        generator: source of randomness (CPU).
        split: `train` (what RL may start from), `held_out`, or `all` (pretraining).

    Returns:
        [count] int64 indices into `catalogue()`.

    Raises:
        ValueError: unknown split.
    """
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"split must be train, held_out or all, found {split!r}")
    weights = torch.zeros(len(catalogue()))
    members = [p for p in catalogue() if split == "all" or p.held_out == (split == "held_out")]
    per_kind = {kind: sum(p.kind == kind for p in members) for kind in KINDS}
    for row, prompt in enumerate(catalogue()):
        if split == "all" or prompt.held_out == (split == "held_out"):
            weights[row] = KIND_WEIGHTS[prompt.kind] / per_kind[prompt.kind]
    return torch.multinomial(weights, count, replacement=True, generator=generator)


@cache
def evaluation_prompts() -> Tensor:
    """The frozen evaluation set: held-out prompt indices, 128 groups of `EVAL_GROUP_SIZE` images.

    Returns:
        [128] int64; each held-out prompt of a kind comes up equally often, give or take one, and the kinds are
        spread evenly, so that a prefix of the set has the same mix.
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    placed: list[tuple[float, int]] = []
    for kind, groups in EVAL_GROUPS.items():
        members = [row for row, p in enumerate(catalogue()) if p.held_out and p.kind == kind]
        order = torch.randperm(len(members), generator=generator).tolist()
        placed.extend(((i + 0.5) / groups, members[order[i % len(order)]]) for i in range(groups))
    return torch.tensor([row for _, row in sorted(placed)])


def evaluation_digest() -> str:
    """sha256 over the evaluation captions, their token ids, the group size and the noise seed."""
    prompts = [catalogue()[int(row)] for row in evaluation_prompts()]
    content = {
        "captions": [p.caption for p in prompts],
        "tokens": [list(p.tokens) for p in prompts],
        "group_size": EVAL_GROUP_SIZE,
        "noise_seed": EVAL_NOISE_SEED,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
