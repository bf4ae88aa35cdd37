"""The package of a new plugin: names, refusals, nothing half-written, and sources that the linter accepts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlflow import scaffold
from rlflow.scaffold import ScaffoldError, plan, suggestion, write

RULES = "E,F,W,I,B,SIM,PERF,UP,RUF,N,PT"


def test_names_follow_from_the_registered_name() -> None:
    algorithm, task = plan("algorithm", "my_algo"), plan("task", "games/ball_throw")
    assert (algorithm.distribution, algorithm.package, algorithm.module, algorithm.class_name) == (
        "rlflow-my-algo", "rlflow_my_algo", "my_algo", "MyAlgo",
    )  # fmt: skip
    assert (task.distribution, task.package, task.module, task.class_name) == (
        "rlflow-games-ball-throw", "rlflow_games_ball_throw", "games_ball_throw", "GamesBallThrow",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("algorithm", "loss", "LossAlgorithm"),
        ("algorithm", "none", "NoneAlgorithm"),
        ("task", "rollout", "RolloutTask"),
    ],
)
def test_a_class_does_not_take_a_word_of_the_contract(kind: str, name: str, class_name: str) -> None:
    assert plan(kind, name).class_name == class_name


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("algorithm", "MyAlgo", "my_algo"),
        ("algorithm", "my-algo", "my_algo"),
        ("algorithm", "3d", "my_3d"),
        ("algorithm", "lambda", "my_lambda"),
        ("algorithm", "family/algo", "family_algo"),
        ("algorithm", "my__algo", "my_algo"),
        ("algorithm", "../escape", "escape"),
        ("algorithm", "", "my_algo"),
        ("task", "", "family/my_task"),
        ("task", "my/Task 1", "my/task_1"),
        ("task", "a/b/c", "a/b_c"),
        ("task", "my/", "my"),
    ],
)
def test_what_is_no_name_is_refused_with_one_that_is(kind: str, name: str, nearest: str) -> None:
    with pytest.raises(ScaffoldError, match=r"expected .*lower-case letters") as refused:
        plan(kind, name)
    assert f"{nearest!r} would be one" in str(refused.value)
    assert suggestion(kind, name) == nearest
    assert plan(kind, nearest).name == nearest


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("algorithm", "ppo", "algorithm 'ppo' is taken by algorithms.ppo:Ppo of package rlflow; choose another"),
        ("task", "toy", "task 'toy' is taken by rlflow.toy:ToyTask"),
        ("task", "control/throw", r"the family 'control' serves every control/NAME"),
    ],
)
def test_a_name_that_is_taken_is_refused(kind: str, name: str, words: str) -> None:
    with pytest.raises(ScaffoldError, match=words):
        plan(kind, name)


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for name in ("mine", "dangling"):
        with pytest.raises(ScaffoldError, match=f"expected a folder that does not exist, found .*{name}; .*--folder"):
            write(plan("algorithm", "my_algo"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "mine"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScaffoldError, match="expected a folder that can be written at"):
        write(plan("algorithm", "my_algo"), tmp_path / "file" / "mine")


def test_nothing_is_left_of_a_package_that_cannot_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = scaffold._templates

    def broken(kind: str) -> object:
        yield from kept(kind)[:2]
        raise OSError(28, "No space left on device")

    names = plan("task", "my/task")
    values = names.values
    monkeypatch.setattr(scaffold.Plan, "values", values)
    monkeypatch.setattr(scaffold, "_templates", broken)
    with pytest.raises(ScaffoldError, match="No space left on device"):
        write(names, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "files"),
    [
        ("algorithm", "my_algo", {"rlflow_my_algo/my_algo.py", "tests/test_my_algo.py"}),
        ("task", "my/task", {"rlflow_my_task/my_task.py", "rlflow_my_task/presets/task.yaml", "tests/test_my_task.py"}),
    ],
)
def test_the_package_is_whole_and_clean(kind: str, name: str, files: set[str], tmp_path: Path) -> None:
    names, folder = plan(kind, name), tmp_path / "deep" / "mine"
    written = {str(path.relative_to(folder)): path.read_text() for path in write(names, folder)}
    assert written.keys() == files | {"README.md", "pyproject.toml", f"{names.package}/__init__.py"}
    assert [name for name, text in written.items() if "${" in text or not text.strip()] == []
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    project = tomllib.loads(written["pyproject.toml"])
    points = {name: f"{names.package}.{names.module}:{names.class_name}"}
    assert project["project"]["entry-points"] == {f"rlflow.{kind}s": points}
    ruff = [sys.executable, "-m", "ruff"]
    for command in ([*ruff, "check", "--isolated", "--line-length=120", f"--select={RULES}", "."],
                    [*ruff, "format", "--isolated", "--line-length=120", "--diff", "--exclude=*.md", "."]):  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_sources_pass_a_strict_type_checker(tmp_path: Path) -> None:
    packages = {"rlflow_my_algo": plan("algorithm", "my_algo"), "rlflow_games_ball": plan("task", "games/ball")}
    for package, names in packages.items():
        write(names, tmp_path / names.distribution)
        assert (tmp_path / names.distribution / package).is_dir()
    folders = [str(tmp_path / names.distribution / package) for package, names in packages.items()]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path / 'cache'}",
        *folders,
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert found.returncode == 0, found.stdout
    assert "no issues found in 4 source files" in found.stdout
