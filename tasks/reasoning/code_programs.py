"""Whole programs: any causal LM, any data set of problems with tests, judged in a sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from rlflow.policies.causal_lm import LMConfig
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.task import Anchors, Evaluation
from tasks.reasoning.code_problems import CodeData, Loaded, load_problems, program_of
from tasks.reasoning.code_schemas import CodeProblem
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.maths import DataCard
from tasks.reasoning.sandbox import STATUSES, Sandbox
from tasks.reasoning.sandbox_isolation import require_isolation
from tasks.reasoning.verdict import Completion, Verdict

INSTRUCTION = "Solve the problem in Python. Write the whole program in one block that begins with ```python."


@dataclass(kw_only=True)
class Programs(LanguageTask[CodeProblem]):
    """Problems with tests from local files or the hub; `base` and both data sets have to be given.

    Attributes:
        base: Folder or hub id of a causal LM with its tokenizer.
        data: Training rows, `SCHEMA:LOCATION` with a file, folder or hub id; tasks/reasoning/code_schemas.py has the
            schemas.
        split: Split of training rows on the hub, or begin of the names of the files in a folder.
        evaluation: Evaluation sets, each as `data`.
        evaluation_split: The same of evaluation rows.
        columns: `FIELD=COLUMN` where the training data name a column otherwise, such as `[tests=hidden_tests]`.
        prompting: `chat`, the tokenizer's chat template; `plain`, the bare prompt, which suits problems that are the
            start of a program.
        system: System message of `chat`; empty means none.
        instruction: Text in front of the question of `chat`. Without a demand for a block, prose may be run as code.
        max_prompt_tokens: Longest prompt; longer ones are left out and counted. Too high: one makes every batch wide.
        sandbox: Limits and number of programs that run together; `allow_unsafe` where there is no isolation.
        evaluation_prompts: Prompts of each evaluation set, at most, from its start. Few: a noisy score.
        evaluation_rows: Completions sampled together in an evaluation. Too high: out of memory.
        base_score: Measured score of the base on these sets, the zero of the board's scale.
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("failure_unfinished", "failure_timeout", "failure_invalid_test")
    failures: ClassVar[tuple[str, ...]] = ("unfinished", *(status for status in STATUSES if status != "passed"))

    name: str = "reasoning/programs"
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=1024))
    evaluation_prompts: int = 500
    evaluation_samples: int = 8
    data: str = ""
    split: str = "train"
    evaluation: tuple[str, ...] = ()
    evaluation_split: str = "test"
    columns: tuple[str, ...] = ()
    prompting: Literal["chat", "plain"] = "chat"
    system: str = ""
    instruction: str = INSTRUCTION
    max_prompt_tokens: int = 1024
    sandbox: Sandbox = field(default_factory=Sandbox)
    evaluation_rows: int = 64
    base_score: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot run, without opening model or data."""
        super().__post_init__()
        if not (self.base and self.data and self.evaluation):
            raise ValueError(
                f"task.base, task.data and task.evaluation: {self.name} ships neither model nor data; give "
                "task.base=FOLDER or ORGANISATION/MODEL, task.data=SCHEMA:LOCATION, task.evaluation=[SCHEMA:LOCATION]"
            )
        for location in (self.data, *self.evaluation):
            self._source(location, self.split)

    def content(self) -> Mapping[str, str]:
        """The base, and data that are files here."""
        named = {"data": self.data} | {f"evaluation.{i}": at for i, at in enumerate(self.evaluation)}
        places = {name: at.partition(":")[2] for name, at in named.items()}
        return {**super().content(), **{name: at for name, at in places.items() if at and Path(at).exists()}}

    @property
    def anchors(self) -> Anchors:
        """`base_score`, and 1 for always right."""
        return Anchors(base=self.base_score, reference=1.0)

    @property
    def rows_per_pass(self) -> int:
        """`evaluation_rows`."""
        return self.evaluation_rows

    def starts(self) -> Sequence[int]:
        """Training problems that are left."""
        return range(len(self._problems[0]))

    def training_problem(self, start: int) -> CodeProblem:
        """A training problem."""
        return self._problems[0][start]

    def evaluation_problems(self) -> Sequence[CodeProblem]:
        """The first `evaluation_prompts` of each set, one set after the other."""
        return self._problems[1]

    def frozen_problems(self) -> Sequence[CodeProblem]:
        """All of `evaluation_problems`, whose sets are cut one by one."""
        return self.evaluation_problems()

    def encode(self, problems: Sequence[CodeProblem]) -> tuple[Tensor, Tensor]:
        """Prompts as a conversation, or plain."""
        return self.checkpoint.encode(self._texts(problems), special=self.prompting == "plain")

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The base with the heads that `requires` names; raises before any sampling where nothing can be judged."""
        require_isolation(self.sandbox.allow_unsafe)
        return super().build_policy(requires)

    def verify(self, problems: Sequence[CodeProblem], completions: Sequence[Completion]) -> list[Verdict]:
        """`unfinished` where a completion was cut, `no_code` where it holds no program, else the sandbox's status."""
        failures: list[str | None] = ["unfinished" if not c.finished else "no_code" for c in completions]
        jobs, places = [], []
        for place, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
            program = program_of(problem, completion.text) if completion.finished else None
            if program is not None:
                jobs.append((program, problem.tests))
                places.append(place)
        for place, verdict in zip(places, self.sandbox.verdicts(jobs), strict=True):
            failures[place] = None if verdict.passed else verdict.status
        return [Verdict(failure) for failure in failures]

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """As every language task; data.json has the digest and how many rows are in use."""
        result = super().evaluate(policy, noise)
        training, evaluation, counts = self._problems
        text = "\n".join(repr((p.source, p.id, p.prompt, p.tests)) for p in (*training, *evaluation))
        result.files = {**result.files, "data.json": DataCard(hashlib.sha256(text.encode()).hexdigest(), counts)}
        return result

    def _source(self, location: str, split: str) -> CodeData:
        schema, _, source = location.partition(":")
        if not source:
            raise ValueError(f"task.data and task.evaluation: expected SCHEMA:LOCATION, found {location!r}")
        renamed = [text.partition("=") for text in self.columns] if location == self.data else []
        columns = {name: column for name, _, column in renamed}
        return CodeData(schema=schema, source=source, split=split, columns=columns)

    @cached_property
    def _problems(self) -> tuple[list[CodeProblem], list[CodeProblem], dict[str, int]]:
        """Problems of training and of evaluation, and counts of rows and of what was left out."""
        read: list[Loaded] = [load_problems(self._source(self.data, self.split))]
        read += [load_problems(self._source(location, self.evaluation_split)) for location in self.evaluation]
        seen = {problem.prompt for loaded in read[1:] for problem in loaded.problems}
        clean = [problem for problem in read[0].problems if problem.prompt not in seen]
        counts = {"training_rows": len(read[0].problems), "training_in_evaluation": len(read[0].problems) - len(clean)}
        counts["bad_rows"] = sum(len(loaded.bad_rows) for loaded in read)
        training = self._fitting(clean)
        evaluation: list[CodeProblem] = []
        for loaded in read[1:]:
            evaluation += self._fitting(loaded.problems[: self.evaluation_prompts])
        counts |= {"training": len(training), "evaluation": len(evaluation)}
        if not training or not evaluation:
            raise ValueError(f"code data: expected training and evaluation prompts, found none left of {counts}")
        return training, evaluation, counts

    def _fitting(self, problems: Sequence[CodeProblem]) -> list[CodeProblem]:
        if not problems:
            return []
        rows = self.checkpoint.token_ids(self._texts(problems), special=self.prompting == "plain")
        return [p for p, row in zip(problems, rows, strict=True) if len(row) <= self.max_prompt_tokens]

    def _texts(self, problems: Sequence[CodeProblem]) -> list[str]:
        if self.prompting == "plain":
            return [problem.prompt for problem in problems]
        if not self.checkpoint.has_chat_template:
            raise ValueError(
                f"task.prompting: expected a chat template in the tokenizer of {self.base}, found none; "
                "use an instruction-tuned model, or task.prompting=plain"
            )
        return [self.checkpoint.chat(f"{self.instruction}\n\n{problem.prompt}", self.system) for problem in problems]
