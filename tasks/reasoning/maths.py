"""Mathematics in words: any causal LM, any data set of questions with a final answer, judged by math-verify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from rlflow.policies.causal_lm import LMConfig
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, SampleWriter
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.maths_data import (
    MathsProblem,
    Schema,
    digest,
    listed_golds,
    load_problems,
    schema_of,
    without_duplicates,
)
from tasks.reasoning.maths_verify import STATUSES, AnswerPool
from tasks.reasoning.verdict import Completion, Verdict

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass(kw_only=True)
class Maths(LanguageTask[MathsProblem]):
    """Questions with a final answer from local files or the hub; `base` has to be given.

    Attributes:
        base: Folder or hub id of a causal LM with its tokenizer.
        schema: Named schema of the training rows (`tasks/reasoning/maths_data.py`).
        data: File, folder or hub id of the training rows; empty means the hub id of the schema.
        evaluation: Evaluation sets, each `SCHEMA` (from the hub) or `SCHEMA:LOCATION`; `SCHEMA_LABEL` tells two sets of
            one schema apart. The name is the source in the tables.
        prompt_column: Column of the question where it is not the schema's, in all sets of the training schema.
        answer_column: The same of the reference answer.
        gold: How the answer is taken out where it is not the schema's way: `plain`, `hashes`, `boxed`, `list`.
        digest: Begin of the SHA-256 that the data must have; empty accepts any. It is in data.json of an evaluation.
        prompting: `chat`, the tokenizer's chat template, an error where it has none; `plain`, question and instruction
            as they are.
        system: System message of `chat`; empty means none.
        instruction: Text after the question. Without a demand for a box, set `boxed` to false.
        boxed: Whether only a boxed answer counts. False: the last number or formula of a text counts too.
        max_prompt_tokens: Longest prompt. Too high: one long question makes every batch wide.
        long_prompts: `drop` leaves longer prompts out and counts them; `error` names them.
        evaluation_prompts: Prompts of each evaluation set, at most, from its start. Few: a noisy score.
        evaluation_rows: Completions sampled together in an evaluation. Too high: out of memory.
        verify_workers: Processes that judge answers. Too few: a batch waits behind hanging answers.
        verify_timeout_s: CPU seconds of one answer. Too low: hard answers time out; too high: hanging ones cost more.
        base_score: Measured score of the base on these sets, the zero of the board's scale.
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("distinct_strings", "failure_unfinished", "failure_timeout")
    failures: ClassVar[tuple[str, ...]] = ("unfinished", *(status for status in STATUSES if status != "correct"))
    has_answers: ClassVar[bool] = True

    name: str = "reasoning/maths"
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=1024))
    evaluation_prompts: int = 500
    evaluation_samples: int = 8
    schema: str = "gsm8k"
    data: str = ""
    evaluation: tuple[str, ...] = ()
    prompt_column: str = ""
    answer_column: str = ""
    gold: str = ""
    digest: str = ""
    prompting: Literal["chat", "plain"] = "chat"
    system: str = ""
    instruction: str = INSTRUCTION
    boxed: bool = True
    max_prompt_tokens: int = 512
    long_prompts: Literal["drop", "error"] = "drop"
    evaluation_rows: int = 64
    verify_workers: int = 2
    verify_timeout_s: float = 5.0
    base_score: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot run, without opening model or data."""
        super().__post_init__()
        if not self.base:
            raise ValueError(
                f"task.base: expected a folder or a hub id of a causal LM, found nothing, and {self.name} ships none; "
                "give task.base=FOLDER or task.base=ORGANISATION/MODEL"
            )
        for name in (self.schema, *self._evaluation_sets):
            self._schema(name)
        if not self.evaluation:
            raise ValueError("task.evaluation: expected at least one set, found none; give [SCHEMA:FILE] or [SCHEMA]")
        if min(self.max_prompt_tokens, self.evaluation_rows) < 1:
            raise ValueError(
                "task.max_prompt_tokens and task.evaluation_rows: expected at least 1, found "
                f"{self.max_prompt_tokens} and {self.evaluation_rows}"
            )
        self._pool = AnswerPool(num_workers=self.verify_workers, timeout_s=self.verify_timeout_s)

    def content(self) -> Mapping[str, str]:
        """The base, and data that are files here."""
        named = {"data": self.data} | {f"evaluation.{name}": at for name, at in self._evaluation_sets.items()}
        return {**super().content(), **{name: at for name, at in named.items() if at and Path(at).exists()}}

    @property
    def anchors(self) -> Anchors:
        """`base_score`, and 1 for always right."""
        return Anchors(base=self.base_score, reference=1.0)

    @property
    def rows_per_pass(self) -> int:
        """`evaluation_rows`."""
        return self.evaluation_rows

    def starts(self) -> Sequence[int]:
        """Rows of the training set that are left."""
        return range(len(self._problems.training))

    def training_problem(self, start: int) -> MathsProblem:
        """A training row."""
        return self._problems.training[start]

    def evaluation_problems(self) -> Sequence[MathsProblem]:
        """The first `evaluation_prompts` of each set, one set after the other."""
        return self._problems.evaluation

    def frozen_problems(self) -> Sequence[MathsProblem]:
        """All of `evaluation_problems`, whose sets are cut one by one."""
        return self.evaluation_problems()

    def encode(self, problems: Sequence[MathsProblem]) -> tuple[Tensor, Tensor]:
        """Prompts as a conversation, or plain."""
        return self.checkpoint.encode(self._texts(problems), special=self.prompting == "plain")

    def verify(self, problems: Sequence[MathsProblem], completions: Sequence[Completion]) -> list[Verdict]:
        """`unfinished` where a completion was cut, else math-verify's status."""
        checks = self._pool.check(
            [p.gold for p in problems], [c.text if c.finished else "" for c in completions], boxed=self.boxed
        )
        return [
            Verdict(None if check.status == "correct" else check.status, answer=check.answer)
            if completion.finished
            else Verdict("unfinished")
            for check, completion in zip(checks, completions, strict=True)
        ]

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """As every language task; `dropped_prompts` counts the training rows left out for their length."""
        rollout = super().rollout(policy, starts, noise)
        rollout.metrics["dropped_prompts"] = float(self._problems.counts["training_long"])
        return rollout

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """As every language task; data.json has digests and counts of the rows."""
        result = super().evaluate(policy, noise)
        result.metrics["dropped_prompts"] = float(self._problems.counts["evaluation_long"])
        result.files = {**result.files, "data.json": DataCard(self._problems.digest, self._problems.counts)}
        return result

    def close(self) -> None:
        """End the engine and the processes that judge answers."""
        super().close()
        self._pool.close()

    @property
    def _evaluation_sets(self) -> dict[str, str]:
        """Location by name."""
        parts = (given.partition(":") for given in self.evaluation)
        return {name: location for name, _, location in parts}

    def _schema(self, name: str) -> Schema:
        if name != self.schema:
            return schema_of(name)
        return schema_of(name, prompt=self.prompt_column, answer=self.answer_column, gold=self.gold)

    @cached_property
    def _problems(self) -> Problems:
        training = load_problems(self.data, self._schema(self.schema), self.schema, training=True)
        unique = without_duplicates(training)
        evaluation = []
        for name, location in sorted(self._evaluation_sets.items()):
            evaluation += without_duplicates(load_problems(location, self._schema(name), name, training=False))
        seen = {problem.prompt for problem in evaluation}
        clean = [problem for problem in unique if problem.prompt not in seen]
        counts = {"training_rows": len(training), "training_duplicates": len(training) - len(unique)}
        counts |= {"training_in_evaluation": len(unique) - len(clean), "evaluation_rows": len(evaluation)}
        found = digest([*clean, *evaluation])
        if not found.startswith(self.digest):
            raise ValueError(
                f"task.digest: expected data of SHA-256 {self.digest}, found {found}; the files have changed, "
                "or task.digest belongs to others"
            )
        for part in (clean, evaluation):
            if unreadable := self._pool.unreadable([problem.gold for problem in part]):
                raise ValueError(listed_golds(part, unreadable))
        kept, cut = self._fitting(clean), self._fitting(evaluation)
        counts |= {"training_long": len(clean) - len(kept), "evaluation_long": len(evaluation) - len(cut)}
        if not kept or not cut:
            raise ValueError(f"maths data: expected training and evaluation prompts, found none left of {counts}")
        return Problems(tuple(kept), tuple(_first(cut, self.evaluation_prompts)), counts, found)

    def _fitting(self, problems: Sequence[MathsProblem]) -> list[MathsProblem]:
        if not problems:
            return []
        rows = self.checkpoint.token_ids(self._texts(problems), special=self.prompting == "plain")
        long = [i for i, row in enumerate(rows) if len(row) > self.max_prompt_tokens]
        left_out = set(long)
        if long and self.long_prompts == "error":
            shown = [f"{problems[i].source} row {i} with {len(rows[i])} tokens" for i in long[:10]]
            raise ValueError(
                f"task.max_prompt_tokens: expected prompts of at most {self.max_prompt_tokens}, found {len(long)} "
                f"longer ({', '.join(shown)}); raise it, or leave them out with task.long_prompts=drop"
            )
        return [problem for i, problem in enumerate(problems) if i not in left_out]

    def _texts(self, problems: Sequence[MathsProblem]) -> list[str]:
        questions = ["\n\n".join(filter(None, (problem.prompt, self.instruction))) for problem in problems]
        if self.prompting == "plain":
            return [f"{question}\n\n" for question in questions]
        if not self.checkpoint.has_chat_template:
            raise ValueError(
                f"task.prompting: expected a chat template in the tokenizer of {self.base}, found none; "
                "use an instruction-tuned model, or task.prompting=plain"
            )
        return [self.checkpoint.chat(question, self.system) for question in questions]


@dataclass(frozen=True)
class Problems:
    """The rows in use, how many are not, and the digest of all that were read."""

    training: tuple[MathsProblem, ...]
    evaluation: tuple[MathsProblem, ...]
    counts: dict[str, int]
    digest: str


@dataclass(frozen=True)
class DataCard(SampleWriter):
    """Digest and counts of the data as JSON."""

    digest: str
    counts: dict[str, int]

    def __call__(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps({"digest": self.digest, **self.counts}, indent=1), encoding="utf-8")


def _first(problems: Sequence[MathsProblem], limit: int) -> list[MathsProblem]:
    taken: dict[str, int] = {}
    kept = []
    for problem in problems:
        taken[problem.source] = taken.get(problem.source, 0) + 1
        if taken[problem.source] <= limit:
            kept.append(problem)
    return kept
