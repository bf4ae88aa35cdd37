"""`rlflow check` and `rlflow new`: what they print, and the exit code that scripts read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from algorithms.flowrl import FlowRL
from algorithms.reinforce_pp import ReinforcePP
from rlflow import examination, registry
from rlflow.cli import app
from rlflow.conformance import demand, examine
from rlflow.examination import SMALL, examine_plugin
from rlflow.testing import check_rewarded_decision_becomes_likelier
from rlflow.toy import ToyTask


@dataclass(frozen=True, kw_only=True)
class Averaged(ReinforcePP):
    """Reduces with a mean over the rows at hand: splitting the batch changes its gradient."""

    def loss(self, policy, minibatch):
        sound = super().loss(policy, minibatch)
        scale = minibatch.global_rows / minibatch.num_rollouts
        return type(sound)(terms={name: scale * term for name, term in sound.terms.items()})


@dataclass(kw_only=True)
class Demanding(ToyTask):
    """Needs eight groups, and cannot be scored."""

    groups_per_rollout: int = 8
    faces: int = 6

    def __post_init__(self):
        if self.groups_per_rollout < 8:
            raise ValueError(f"expected at least 8 groups, found {self.groups_per_rollout}")

    def score(self, rollout):
        raise KeyError("verdict")


@dataclass(kw_only=True)
class Unbuilt(ToyTask):
    """Its defaults do not fit together."""

    def __post_init__(self):
        raise ValueError("expected six faces, found none")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugins above beside the built-in ones; `both` is an algorithm and a task."""
    real = registry.entry_points
    added = {
        "rlflow.algorithms": {"averaged": Averaged, "both": Averaged},
        "rlflow.tasks": {"demanding": Demanding, "both": Demanding, "unbuilt": Unbuilt},
    }

    def offered(group: str) -> list[EntryPoint]:
        mine = {name: f"{__name__}:{plugin.__name__}" for name, plugin in added.get(group, {}).items()}
        return [*real(group=group), *(EntryPoint(name=n, value=v, group=group) for n, v in mine.items())]

    monkeypatch.setattr(registry, "entry_points", offered)
    quick = [c for c in examination.algorithm_checks() if c is not check_rewarded_decision_becomes_likelier]
    monkeypatch.setattr(examination, "algorithm_checks", lambda: quick)
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def rows(output: str) -> dict[str, str]:
    """The rest of each row by the name of its check."""
    found = {}
    for line in output.splitlines():
        for verdict in ("pass", "fail", "not checked"):
            if line.startswith(verdict + " "):
                name, _, rest = line.removeprefix(verdict).strip().partition(" ")
                found[name] = f"{verdict} {rest.strip()}".strip()
    return found


@pytest.mark.usefixtures("plugins")
def test_a_broken_algorithm_fails_with_reason_and_fix() -> None:
    code, output = run("check", "averaged")
    found = rows(output)
    assert code == 1
    assert found["is_built"] == found["constructor_is_the_configuration"] == "pass"
    broken = found["gradient_ignores_micro_batches_and_row_order"]
    assert broken.startswith("fail gaussian: micro-batches of 3 rows: the gradient of actor.")
    assert "reduce with minibatch.mean or minibatch.mean_rows" in broken
    assert found["gradient_ignores_padding"].startswith("fail gaussian: two masked rows")
    assert output.splitlines()[-1] == "algorithm averaged: 6 pass, 2 fail, 0 not checked"


def test_a_sound_task_passes_and_what_could_not_be_seen_is_not_called_a_pass() -> None:
    code, output = run("check", "toy", "kind=flow")
    found = rows(output)
    assert code == 0
    assert found.pop("starts_are_disjoint_from_evaluation").startswith("not checked evaluation_starts() is None")
    assert set(found.values()) == {"pass"}
    assert output.splitlines()[-1] == f"task toy: {len(found)} pass, 0 fail, 1 not checked"


@pytest.mark.usefixtures("plugins")
def test_what_a_plugin_raises_is_a_finding_with_its_place() -> None:
    code, output = run("check", "demanding")
    found = rows(output)
    assert code == 1
    assert found["sizes_divide"] == "pass"
    line = Path(__file__).read_text().splitlines().index('        raise KeyError("verdict")') + 1
    assert found["state_round_trip"].startswith("fail KeyError: 'verdict'")
    assert f"see {__file__}:{line}; the rule: A rollout after `load_state_dict` equals" in found["state_round_trip"]


@pytest.mark.usefixtures("plugins")
def test_a_task_that_cannot_be_built_is_one_failed_row() -> None:
    code, output = run("check", "unbuilt")
    found = rows(output)
    assert (code, list(found)) == (1, ["is_built"])
    assert found["is_built"].startswith("fail ConfigError: expected six faces, found none")
    assert output.splitlines()[-1] == "task unbuilt: 0 pass, 1 fail, 0 not checked"


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pppo"], "no algorithm or task is called 'pppo'; did you mean ppo"),
        (["toi"], "no algorithm or task is called 'toi'; did you mean toy"),
        (["ppo", "--kind", "task"], "unknown task 'ppo'"),
        (["both"], "'both' is an algorithm and a task; say which with --kind algorithm or --kind task"),
        (["toy", "task.horizn=2"], "unknown key 'task.horizn'; did you mean task.horizon"),
        (["ppo", "algorithm.clip=wide"], "algorithm.clip"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments: list[str], words: str) -> None:
    code, output = run("check", *arguments)
    assert (code, "Traceback" in output) == (2, False)
    assert words in output[output.index("error:") :]


@pytest.mark.usefixtures("plugins")
def test_a_shared_name_is_checked_as_the_kind_that_is_named() -> None:
    assert run("check", "both", "--kind", "algorithm")[1].splitlines()[-1].startswith("algorithm both: ")
    assert run("check", "both", "--kind", "task")[1].splitlines()[-1].startswith("task both: ")


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "overrides", "sizes"),
    [
        ("toy", [], (SMALL["groups_per_rollout"], SMALL["group_size"])),
        ("toy", ["task.group_size=8"], (SMALL["groups_per_rollout"], 8)),
        ("toy", ["groups_per_rollout=2"], (2, SMALL["group_size"])),
        ("demanding", ["task.faces=4"], (8, 4)),
    ],
)
def test_a_task_is_checked_small_where_it_allows(
    name: str, overrides: list[str], sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_sizes(task: ToyTask) -> None:
        demand((task.groups_per_rollout, task.group_size) == sizes, f"{task}", "")

    monkeypatch.setattr(examination, "task_checks", lambda: [check_sizes])
    assert [(f.check, f.verdict, f.reason) for f in examine_plugin("task", name, overrides)] == [
        ("check_is_built", "pass", ""),
        ("check_sizes", "pass", ""),
    ]


def test_an_algorithm_is_checked_with_the_settings_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_window(algorithm: FlowRL) -> None:
        demand(algorithm.row_decisions == 3, f"{algorithm}", "")

    monkeypatch.setattr(examination, "algorithm_checks", lambda: [check_window])
    assert [f.verdict for f in examine_plugin("algorithm", "flowrl")] == ["pass", "fail"]
    assert [f.verdict for f in examine_plugin("algorithm", "flowrl", ["algorithm.window=3"])] == ["pass", "pass"]


def test_checks_go_on_after_a_failure() -> None:
    def check_one(x: int) -> None:
        demand(x > 1, f"{x} is too small", "take 2")

    def check_two(x: int) -> str:
        return "no means"

    found = [(f.verdict, f.reason, f.fix) for f in examine(1, [check_one, check_two, check_one])]
    assert found == [("fail", "1 is too small", "take 2"), ("not checked", "no means", ""), found[0]]


def test_new_prints_its_files_and_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run("new", "task", "games/throw")
    assert (code, output.splitlines()[-1]) == (
        0,
        "next: pip install --editable rlflow-games-throw, then rlflow check games/throw",
    )
    assert all(Path(line).is_file() for line in output.splitlines()[:-1])
    code, output = run("new", "task", "games/throw")
    assert (code, "error: expected a folder that does not exist, found rlflow-games-throw" in output) == (2, True)
    code, output = run("new", "algorithm", "ppo", "--folder", "mine")
    assert (code, "is taken by algorithms.ppo:Ppo" in output, Path("mine").exists()) == (2, True, False)
