from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from rlflow.config import resolve
from rlflow.policies.causal_lm import LMConfig
from rlflow.testing import TaskCheck, task_checks
from tasks.reasoning import sandbox_isolation
from tasks.reasoning.character_model import character_config, character_tokenizer, fresh_model
from tasks.reasoning.code_programs import Programs
from tasks.reasoning.pretrain import write_base
from tasks.reasoning.sandbox_isolation import Isolation, IsolationUnavailable
from tasks.reasoning.verdict import Completion
from tests.sandboxes import sandbox

CHARACTERS = "".join(c for c in string.printable if c not in "\t\r\x0b\x0c")


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "task_id": i,
            "code": f"def add(x): return x + {i}",
            "prompt": f"Add {i}.",
            "test_imports": [],
            "test_list": [f"assert add(1) == {i + 1}", f"assert add(5) == {i + 5}"],
        }
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    write_base(
        fresh_model(character_config(CHARACTERS, 32, 1, 32, 32, max_positions=512), seed=0),
        character_tokenizer(CHARACTERS),
        folder / "base",
    )
    # Problem 5 is in both; a prompt of 300 characters is longer than the limit; one row is broken.
    long = rows(40, 1)[0] | {"prompt": "Add." * 75}
    training = [*rows(0, 6), long, {"task_id": 7}]
    for name, lines in (("train", training), ("test", rows(5, 3))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def small(folder: Path, **changes: Any) -> Programs:
    settings: dict[str, Any] = {
        "base": str(folder / "base"),
        "data": f"mbpp_plus:{folder}",
        "evaluation": (f"mbpp_plus:{folder}",),
        "prompting": "plain",
        "max_prompt_tokens": 200,
        "groups_per_rollout": 2,
        "group_size": 2,
        "evaluation_samples": 2,
        "evaluation_prompts": 2,
        "lm": LMConfig(max_new_tokens=6),
        "sandbox": sandbox(),
    }
    return Programs(**(settings | changes))


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, folder: Path) -> None:
    check(small(folder))


def test_completions_are_judged_by_their_programs(folder: Path) -> None:
    task = small(folder)
    problem = task.training_problem(3)
    texts = [
        "So:\n```python\ndef add(x):\n    return x + 3\n```",
        "def add(x):\n    return x + 3",
        "def add(x):\n    return 4",
        "I do not know.",
        "def add(x):\n    return y",
        "while True: pass",
    ]
    completions = [Completion(text=text, finished=True, num_tokens=9) for text in texts]
    completions.append(Completion(text=texts[0], finished=False, num_tokens=9))
    verdicts = task.verify([problem] * 7, completions)
    assert [v.failure for v in verdicts] == [None, None, "failed", "no_code", "error", "timeout", "unfinished"]


def test_training_rows_of_the_evaluation_are_left_out(folder: Path) -> None:
    task = small(folder)
    assert [problem.id for problem in map(task.training_problem, task.starts())] == ["0", "1", "2", "3", "4"]
    assert [problem.id for problem in task.evaluation_problems()] == ["5", "6"]
    # 7 readable training rows, of which one is in the evaluation and one is too long.
    assert task._problems[2] == {
        "training_rows": 7, "training_in_evaluation": 1, "bad_rows": 1, "training": 5, "evaluation": 2,
    }  # fmt: skip


def test_limits_are_settings(folder: Path) -> None:
    given = [f"base={folder / 'base'}", f"data=mbpp_plus:{folder}", f"evaluation=[mbpp_plus:{folder}]"]
    given += ["sandbox.limits.cpu_s=3", "sandbox.allow_unsafe=true", "columns=[tests=hidden]"]
    task = resolve("reinforce_pp", "reasoning/programs", overrides=[f"task.{text}" for text in given]).task
    assert (task.sandbox.limits.cpu_s, task.sandbox.allow_unsafe) == (3.0, True)
    assert task._source(task.data, "train").columns == {"tests": "hidden"}


def test_without_isolation_nothing_is_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small(folder)
    monkeypatch.setattr(sandbox_isolation, "isolation", lambda: Isolation(kind="none", problems=("no bwrap",)))
    with pytest.raises(IsolationUnavailable, match="no bwrap"):
        task.build_policy(frozenset())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": ""}, "ships neither model nor data"),
        ({"evaluation": ()}, "ships neither model nor data"),
        ({"data": "mbpp_plus"}, "expected SCHEMA:LOCATION, found 'mbpp_plus'"),
        ({"data": "apps:x/y"}, "data.schema: expected one of"),
        ({"columns": ("x=y",)}, "data.columns: expected fields"),
    ],
)
def test_what_cannot_run_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(folder, **changes)


def test_a_chat_needs_a_template(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"task.prompting: expected a chat template"):
        small(folder, prompting="chat").starts()
