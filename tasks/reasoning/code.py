"""Small programs: a causal LM reads what happens to a list and writes a Python expression; hidden tests pay 1 or 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rlflow.policies.causal_lm import LMConfig
from rlflow.task import Anchors
from tasks.reasoning.code_mini import FAILURES, MAX_COMPLETION_TOKENS, CodeMiniProblem, verify
from tasks.reasoning.code_mini_data import evaluation_problems, training_problem, training_starts
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.verdict import Completion, Verdict

# Measured with `rlflow pretrain reasoning/code`; a new base or a new evaluation set is a new version.
BASE_PASS_AT_1 = 0.4
BASE_FOLDER = Path(__file__).parent / "bases" / "code"


@dataclass(kw_only=True)
class Code(LanguageTask[CodeMiniProblem]):
    """Expressions over a list with hidden tests, from a shipped base that often writes a near miss.

    Attributes:
        lm: Sampling and likelihood. `max_new_tokens` below 48 cuts programs (`unfinished`).
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("distinct_canonical", "failure_unfinished")
    failures: ClassVar[tuple[str, ...]] = FAILURES
    shipped_base: ClassVar[Path | None] = BASE_FOLDER

    name: str = "reasoning/code"
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=MAX_COMPLETION_TOKENS))

    @property
    def anchors(self) -> Anchors:
        """pass@1 of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=BASE_PASS_AT_1, reference=1.0)

    def starts(self) -> Sequence[int]:
        """Every training problem."""
        return training_starts()

    def training_problem(self, start: int) -> CodeMiniProblem:
        """The training problem of an id."""
        return training_problem(start)

    def evaluation_problems(self) -> Sequence[CodeMiniProblem]:
        """150 problems of held-out sequences of steps."""
        return evaluation_problems()

    def verify(self, problems: Sequence[CodeMiniProblem], completions: Sequence[Completion]) -> list[Verdict]:
        """Each program on the hidden lists, in an interpreter of the tiny language."""
        return [verify(problem, c.text, c.finished) for problem, c in zip(problems, completions, strict=True)]

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its score (`rlflow pretrain reasoning/code`)."""
        from tasks.reasoning.code_pretrain import RECIPE

        return RECIPE.pretrain(out, seed)
