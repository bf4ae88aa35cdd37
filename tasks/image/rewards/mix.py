"""Several rewards as one: weights, what is held out of training, and every component kept for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.image.rewards.registry import make_reward
from tasks.image.rewards.reward import Prompt, Reward, check_images, checked

Normalise = Literal["sum", "per_reward"]
# Added to a group's standard deviation; a group whose members earn the same then has a normalised reward of 0.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reward of a mix.

    Attributes:
        name: Label in the log.
        reward: What scores.
        weight: Factor in the sum; 0 for a held-out part.
        held_out: True where the part is computed in evaluation only, to show what the training rewards do not see.
        guard: True where the part also scores the guard prompts of an evaluation.
    """

    name: str
    reward: Reward
    weight: float
    held_out: bool
    guard: bool = False


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A scored batch, on the CPU.

    Attributes:
        reward: `[n]`, what the policy is trained on.
        terms: Raw score of each training part by name, `[n]`, for `Rollout.reward_terms`.
    """

    reward: Tensor
    terms: dict[str, Tensor]


class RewardMix:
    """The rewards of a task; CPU and network parts run on threads beside the models."""

    def __init__(self, parts: Sequence[Part], normalise: Normalise = "sum") -> None:
        """Keep the parts; nothing is opened yet."""
        if normalise not in ("sum", "per_reward"):
            raise ValueError(f"normalise: expected sum or per_reward, found {normalise!r}")
        if not any(part.weight != 0 for part in parts):
            raise ValueError("rewards: expected at least one with a weight other than 0 that is not held out")
        self.parts = tuple(parts)
        self.normalise = normalise
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], *, group: Tensor | None = None) -> Scores:
        """Reward of training images.

        Args:
            images: `[n, 3, H, W]` float32 in [0, 1], on any device.
            prompts: One for each image.
            group: `[n]` int64, equal where images share their prompt; needed by `per_reward`.

        Returns:
            `sum`: the weighted sum of the raw scores. `per_reward`: the weighted sum of
            `(r - mean_g) / (std_g + 1e-6)` of each reward in its group (the first step of GDPO, arXiv 2601.05242), so
            that a reward with a wide range does not drown the others; whitening the sum is the algorithm's.

        Raises:
            RewardError: A reward failed; names it and the prompt.
            ValueError: `per_reward` without groups of at least 2.
        """
        terms = self._scores([part for part in self.parts if not part.held_out], images, prompts)
        weights = {part.name: part.weight for part in self.parts}
        if self.normalise == "per_reward":
            if group is None:
                raise ValueError("normalise=per_reward: expected the group of each image, found None")
            used = {name: normalised(values, group.cpu()) for name, values in terms.items()}
        else:
            used = terms
        reward = torch.stack([weights[name] * values for name, values in used.items()]).sum(0)
        return Scores(reward=reward, terms=terms)

    def evaluate(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Raw scores `[n]` of every part by name, the held-out ones included."""
        return self._scores(self.parts, images, prompts)

    def guard(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Raw scores `[n]` of the parts that are guards by name: those that can judge a prompt of any kind."""
        return self._scores([part for part in self.parts if part.guard], images, prompts)

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum `[n]` of raw training scores, whatever `normalise` says: the score of an evaluation."""
        return torch.stack([p.weight * terms[p.name] for p in self.parts if not p.held_out]).sum(0)

    def close(self) -> None:
        """Close every reward and the threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        for part in self.parts:
            part.reward.close()

    def _scores(self, parts: Sequence[Part], images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        check_images(images, prompts)
        pending: dict[str, Future[Tensor]] = {}
        if len(parts) > 1:
            for part in parts:
                if part.reward.concurrent:
                    pending[part.name] = self._pool().submit(checked, part.name, part.reward, images, prompts)
        try:
            here = {p.name: checked(p.name, p.reward, images, prompts) for p in parts if p.name not in pending}
        except BaseException:
            # The run is over: threads that have not begun must not score its images.
            for future in pending.values():
                future.cancel()
            raise
        return {p.name: pending[p.name].result() if p.name in pending else here[p.name] for p in parts}

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self.parts), thread_name_prefix="reward")
        return self._threads


def normalised(values: Tensor, group: Tensor) -> Tensor:
    """`(r - mean_g) / (std_g + 1e-6)` with the biased standard deviation of each group; `[n]`.

    Raises:
        ValueError: A group has a single member, which no difference can be measured in.
    """
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    if int(sizes.min()) < 2:
        raise ValueError("normalise=per_reward: expected groups of at least 2 images; raise task.group_size or use sum")
    zero = torch.zeros(len(sizes))
    mean = zero.index_add(0, index, values) / sizes
    centred = values - mean[index]
    std = (zero.index_add(0, index, centred.square()) / sizes).sqrt()
    scaled: Tensor = centred / (std[index] + _EPSILON)
    return scaled


def open_rewards(spec: Mapping[str, Mapping[str, Any] | float], normalise: Normalise = "sum") -> RewardMix:
    """Build a mix from a task's configuration; no weight is read and no library imported before the first call.

    Args:
        spec: Reward by label: its weight, or a mapping with `weight` (1), `held_out` (False), `guard` (False),
            `reward` (the registered name or `module:Class`; the label where it is missing) and the reward's own
            settings, e.g. `{"ocr": 1.0, "aesthetic": {"weight": 0.1, "head": "/weights/head.pth"}, "clip_score":
            {"held_out": True, "guard": True}}`.
        normalise: See `RewardMix.__call__`.

    Raises:
        UnknownNameError: Unknown reward; names the nearest.
        ValueError: Unknown setting, or nothing to train on.
    """
    return RewardMix([_part(label, entry) for label, entry in spec.items()], normalise)


def _part(label: str, entry: Mapping[str, Any] | float) -> Part:
    settings: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    held_out, guard = bool(settings.pop("held_out", False)), bool(settings.pop("guard", False))
    weight = float(settings.pop("weight", 0.0 if held_out else 1.0))
    if held_out and weight != 0:
        raise ValueError(f"reward {label!r}: expected no weight where held_out is set, found {weight}")
    name = str(settings.pop("reward", label))
    return Part(name=label, reward=make_reward(name, settings), weight=weight, held_out=held_out, guard=guard)
