"""What is asked, what was written and what a verifier says of it: the values that all tasks of verified texts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Problem(Protocol):
    """One question."""

    @property
    def prompt(self) -> str:
        """The text that the policy continues."""
        ...


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One text of the policy.

    Attributes:
        text: Before the end of sequence, special symbols visible.
        finished: Whether the policy ended the sequence by itself.
        num_tokens: Length with the end of sequence.
    """

    text: str
    finished: bool
    num_tokens: int


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of a completion: the first failure, or None where it is correct.

    Attributes:
        failure: Name of what went wrong, one of the task's `failures`.
        canonical: The solution, equal for solutions that differ only in how they are written; None where wrong, or
            where the text is its own form.
        answer: The final answer, right or wrong, equal for answers that count as one vote; None where none was found.
    """

    failure: str | None
    canonical: str | None = None
    answer: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the completion solves the problem."""
        return self.failure is None


Judged = tuple[Completion, Verdict]
