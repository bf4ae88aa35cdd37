"""Arithmetic: a causal LM reads a sum or a short story and writes steps to an exact integer or fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rlflow.policies.causal_lm import LMConfig
from rlflow.task import Anchors
from tasks.reasoning.arithmetic_problems import (
    FAILURES,
    MAX_COMPLETION_TOKENS,
    ArithmeticProblem,
    evaluation_problems,
    training_problem,
    training_starts,
    verify,
)
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.verdict import Completion, Verdict

# Measured with `rlflow pretrain reasoning/arithmetic`; a new base or a new evaluation set is a new version.
BASE_PASS_AT_1 = 0.39
BASE_FOLDER = Path(__file__).parent / "bases" / "arithmetic"


@dataclass(kw_only=True)
class Arithmetic(LanguageTask[ArithmeticProblem]):
    """Nine forms of problems, from a shipped base that often reads them wrong.

    Attributes:
        lm: Sampling and likelihood. `max_new_tokens` below 48 cuts long fractions (`unfinished`).
        evaluation_prompts: Prompts of the frozen 180, forms in turn. Fewer than 150: a noisy score.
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("distinct_strings", "failure_unfinished")
    failures: ClassVar[tuple[str, ...]] = FAILURES
    shipped_base: ClassVar[Path | None] = BASE_FOLDER
    has_answers: ClassVar[bool] = True

    name: str = "reasoning/arithmetic"
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=MAX_COMPLETION_TOKENS))
    evaluation_prompts: int = 180
    evaluation_samples: int = 16

    def __post_init__(self) -> None:
        """Refuse sizes that the frozen set or the metrics cannot serve."""
        super().__post_init__()
        self.frozen_problems()

    @property
    def anchors(self) -> Anchors:
        """pass@1 of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=BASE_PASS_AT_1, reference=1.0)

    def starts(self) -> Sequence[int]:
        """5,000 turns of the nine forms."""
        return training_starts()

    def training_problem(self, start: int) -> ArithmeticProblem:
        """The training problem of an id."""
        return training_problem(start)

    def evaluation_problems(self) -> Sequence[ArithmeticProblem]:
        """20 held-out problems of each form."""
        return evaluation_problems()

    def verify(self, problems: Sequence[ArithmeticProblem], completions: Sequence[Completion]) -> list[Verdict]:
        """The answer behind the last `#`, compared exactly."""
        return [verify(problem, c.text, c.finished) for problem, c in zip(problems, completions, strict=True)]

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its score (`rlflow pretrain reasoning/arithmetic`)."""
        from tasks.reasoning.arithmetic_pretrain import RECIPE

        return RECIPE.pretrain(out, seed)
