"""Countdown: a causal LM writes arithmetic chains; the verifier pays 1 for a solution and 0 for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rlflow.policies.causal_lm import LMConfig
from rlflow.task import Anchors
from tasks.reasoning.countdown_data import NUM_EVALUATION_PROMPTS, evaluation_puzzles, training_puzzle, training_starts
from tasks.reasoning.countdown_puzzle import FAILURES, MAX_COMPLETION_TOKENS, Puzzle, verify
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.verdict import Completion, Verdict

# Measured with `rlflow pretrain reasoning/countdown`; a new base or a new evaluation set is a new version.
BASE_PASS_AT_1 = 0.31
BASE_FOLDER = Path(__file__).parent / "bases" / "countdown"


@dataclass(kw_only=True)
class Countdown(LanguageTask[Puzzle]):
    """Digit-pool countdown with written gaps, from a shipped base that is right about one time in three.

    Attributes:
        lm: Sampling and likelihood. `max_new_tokens` below 36 cuts legal chains (`unfinished`).
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("distinct_canonical", "failure_unfinished")
    failures: ClassVar[tuple[str, ...]] = FAILURES
    shipped_base: ClassVar[Path | None] = BASE_FOLDER

    name: str = "reasoning/countdown"
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=MAX_COMPLETION_TOKENS))

    def __post_init__(self) -> None:
        """Refuse sizes that the frozen set or the metrics cannot serve."""
        super().__post_init__()
        # Making the set takes a third of a second, which a plan or a finished suite need not spend.
        self.refuse_more_prompts_than(NUM_EVALUATION_PROMPTS)

    @property
    def anchors(self) -> Anchors:
        """pass@1 of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=BASE_PASS_AT_1, reference=1.0)

    def starts(self) -> Sequence[int]:
        """3,750 training puzzles x 24 orders of the digits in the prompt."""
        return training_starts()

    def training_problem(self, start: int) -> Puzzle:
        """The training puzzle of an id."""
        return training_puzzle(start)

    def evaluation_problems(self) -> Sequence[Puzzle]:
        """150 puzzles of held-out pools."""
        return evaluation_puzzles()

    def verify(self, problems: Sequence[Puzzle], completions: Sequence[Completion]) -> list[Verdict]:
        """Each chain, character by character."""
        return [verify(puzzle, c.text, c.finished) for puzzle, c in zip(problems, completions, strict=True)]

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its score (`rlflow pretrain reasoning/countdown`)."""
        from tasks.reasoning.countdown_pretrain import RECIPE

        return RECIPE.pretrain(out, seed)
