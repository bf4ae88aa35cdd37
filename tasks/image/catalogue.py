"""Every prompt of a task in one numbering: those that are trained on, those that judge, those that guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tasks.image.pipelines.settings import JudgeSettings
from tasks.image.prompt_sets import PromptSet, read_prompts
from tasks.image.rewards import Prompt


@dataclass(frozen=True)
class Catalogue:
    """Training prompts, after them the frozen ones of the evaluation, after those the guard prompts.

    Attributes:
        training: What rollouts are made of.
        frozen: What the score is of.
        guard: What rewards marked `guard` look at besides; empty where there is none.
    """

    training: PromptSet
    frozen: PromptSet
    guard: tuple[Prompt, ...]

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """All, by number."""
        return (*self.training.prompts, *self.frozen.prompts, *self.guard)

    @property
    def frozen_numbers(self) -> range:
        """Numbers of the evaluation prompts."""
        return range(len(self.training), len(self.training) + len(self.frozen))

    @property
    def guard_numbers(self) -> range:
        """Numbers of the guard prompts."""
        return range(self.frozen_numbers.stop, self.frozen_numbers.stop + len(self.guard))


def open_catalogue(source: str, count: int, judge: JudgeSettings, *, guarded: bool) -> Catalogue:
    """Read the prompts of a task.

    Args:
        source: Of the training prompts, see `read_prompts`.
        count: Of a generated set.
        judge: Names the other two sets.
        guarded: Whether guard prompts are asked for.

    Raises:
        ValueError: No source, or an evaluation prompt that is trained on.
        FileNotFoundError: A file that is not there.
    """
    if not source:
        raise ValueError("task.prompts: expected geneval, ocr, a .txt or .jsonl file or a dataset, found nothing")
    training = read_prompts(source, split="train", count=count)
    limit = judge.num_prompts
    frozen = read_prompts(judge.prompts or source, split="test", limit=limit, count=limit)
    _refuse_trained("prompts", frozen.prompts, training)
    if not guarded:
        return Catalogue(training, frozen, ())
    limit = judge.num_guard_prompts
    guard = read_prompts(judge.guard_prompts, split="test", limit=limit, count=limit).prompts
    _refuse_trained("guard_prompts", guard, training)
    return Catalogue(training, frozen, guard)


def _refuse_trained(setting: str, prompts: Sequence[Prompt], training: PromptSet) -> None:
    trained = {prompt.text for prompt in training.prompts}
    both = [prompt.text for prompt in prompts if prompt.text in trained]
    if both:
        raise ValueError(
            f"task.judge.{setting}: {len(both)} of {len(prompts)} evaluation prompts are trained on, the first is "
            f"{both[0]!r}; name other prompts"
        )
