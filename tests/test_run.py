"""One seed from start to end on a real store: outcomes, checkpoints, and a resume that changes nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from rlflow.checkpoint import CheckpointError
from rlflow.journal import Journal
from rlflow.launch import Progress, SeedPlan
from rlflow.leaderboard import read_states
from rlflow.rollout import Rollout
from rlflow.run import BuildError, Points, main, train
from rlflow.store import Store, ensure_experiment, history, open_store, search_runs
from rlflow.toy import ToyTask
from rlflow.tracker import MemoryTracker
from tests.toys import EXPERIMENT, toy_plan

pytest_plugins = ("tests.mlflow_fixtures",)

SCORE = "eval/score"


def ignore(_: Progress) -> None:
    return None


def seed_run(store: Store) -> Any:
    (run,) = search_runs(store, ensure_experiment(store, EXPERIMENT), {"kind": "seed"})
    return run


def curve(store: Store, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in history(store, seed_run(store).info.run_id, name)]


def failing_score(after: int, error: Callable[[Rollout], Rollout]) -> Callable[[ToyTask, Rollout], Rollout]:
    """A reward that goes wrong in the `after`th iteration (16 pulls each; evaluations have as many)."""
    calls = 0
    original = ToyTask.score

    def score(task: ToyTask, rollout: Rollout) -> Rollout:
        nonlocal calls
        calls += 1
        return error(rollout) if calls == after else original(task, rollout)

    return score


def test_a_finished_seed_is_recorded_with_its_curve_and_checkpoint(store: Store, tmp_path: Path) -> None:
    seen: list[Progress] = []
    end = train(toy_plan(store, tmp_path / "seed"), seen.append)
    assert (end.outcome, end.samples, end.detail) == ("finished", 96, "")
    run = seed_run(store)
    assert run.data.tags["rlflow.outcome"] == "finished"
    assert run.info.status == "FINISHED"
    assert [step for step, _ in curve(store, SCORE)] == [0, 32, 64, 96]
    assert [step for step, _ in curve(store, "update/grad_norm_actor")] == [16, 32, 48, 64, 80, 96]
    assert (tmp_path / "seed" / "last.ckpt").exists()
    artifacts = {file.path for file in store.client.list_artifacts(run.info.run_id, "checkpoints")}
    assert artifacts == {"checkpoints/last.ckpt"}
    assert [p.score for p in seen if p.score is not None][-1] == end.score == curve(store, SCORE)[-1][1]


def test_cost_is_recorded_once_an_evaluation_and_includes_it(store: Store, tmp_path: Path) -> None:
    train(toy_plan(store, tmp_path / "seed"), ignore)
    assert [step for step, _ in curve(store, "cost/eval_s")] == [0, 32, 64, 96]
    # The time of every point in between, for charts over it.
    assert [step for step, _ in curve(store, "cost/wall_s")] == [0, 16, 32, 48, 64, 80, 96]
    values = [value for _, value in curve(store, "cost/eval_s")]
    # Cumulative, with the evaluation of the step itself.
    assert values == sorted(values)
    assert 0 < values[0] < values[1]


def test_a_signal_ends_the_run_after_its_iteration_and_the_resume_equals_a_run_without(
    store: Store, tmp_path: Path
) -> None:
    whole = Path(tmp_path / "whole")
    train(toy_plan(store, whole, "trainer.num_threads=1"), ignore)
    expected = {name: curve(store, name) for name in (SCORE, "loss/policy_loss", "update/grad_norm_actor")}
    store.client.delete_run(seed_run(store).info.run_id)

    def interrupt(progress: Progress) -> None:
        if progress.score is not None and progress.samples == 32 and progress.outcome is None:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    end = train(toy_plan(store, tmp_path / "cut"), interrupt)
    assert (end.outcome, end.samples) == ("interrupted", 32)
    assert signal.getsignal(signal.SIGINT) is before
    assert seed_run(store).data.tags["rlflow.outcome"] == "interrupted"

    end = train(toy_plan(store, tmp_path / "cut", resume=True), ignore)
    assert (end.outcome, end.samples) == ("finished", 96)
    assert seed_run(store).data.tags["rlflow.attempt"] == "2"
    assert {name: curve(store, name) for name in expected} == expected


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_of_another_configuration_is_neither_continued_nor_written_over(
    store: Store, tmp_path: Path, resume: bool
) -> None:
    train(toy_plan(store, tmp_path / "seed"), ignore)
    before = (tmp_path / "seed" / "last.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match=r"update\.lr: planned 0\.01, recorded 0\.0003\nchoose another folder"):
        train(toy_plan(store, tmp_path / "seed", "update.lr=1e-2", resume=resume), ignore)
    with pytest.raises(CheckpointError, match=r"trainer\.seed: planned 1, recorded 0"):
        train(toy_plan(store, tmp_path / "seed", "trainer.seed=1", resume=resume), ignore)
    assert (tmp_path / "seed" / "last.ckpt").read_bytes() == before
    assert len(search_runs(store, ensure_experiment(store, EXPERIMENT), {"kind": "seed"})) == 1


def test_a_checkpoint_of_another_version_of_the_task_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_plan(store, tmp_path / "seed"), ignore)
    monkeypatch.setattr(ToyTask, "version", "2")
    with pytest.raises(CheckpointError, match=r"task: planned version 2, recorded 1\nchoose another folder"):
        train(toy_plan(store, tmp_path / "seed"), ignore)


def test_a_reward_that_is_not_a_number_is_divergence_with_stage_and_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Calls: 1 evaluation at 0; 2, 3 iterations; 4 evaluation at 32; 5 the third iteration, after 32 samples.
    def spoil(rollout: Rollout) -> Rollout:
        return rollout.replace(reward=torch.full_like(rollout.reward, float("nan")))

    monkeypatch.setattr(ToyTask, "score", failing_score(5, spoil))
    end = train(toy_plan(store, tmp_path / "seed"), ignore)
    assert (end.outcome, end.detail) == ("diverged", "reward: the reward is not finite after 32 samples")
    tags = seed_run(store).data.tags
    assert (tags["rlflow.outcome"], tags["rlflow.detail"]) == ("diverged", end.detail)


def test_an_exception_is_a_failure_that_keeps_its_traceback(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(rollout: Rollout) -> Rollout:
        raise OSError("the simulator is gone")

    monkeypatch.setattr(ToyTask, "score", failing_score(5, explode))
    end = train(toy_plan(store, tmp_path / "seed"), ignore)
    assert (end.outcome, end.detail) == ("failed", "OSError: the simulator is gone")
    run = seed_run(store)
    assert (run.data.tags["rlflow.outcome"], run.info.status) == ("failed", "FAILED")
    kept = store.client.download_artifacts(run.info.run_id, "traceback.txt", str(tmp_path))
    assert "in explode" in Path(kept).read_text()

    monkeypatch.undo()
    assert train(toy_plan(store, tmp_path / "seed", resume=True), ignore).outcome == "finished"
    assert [step for step, _ in curve(store, SCORE)] == [0, 32, 64, 96]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["checkpoint", "record"])
def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(
    place: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = toy_plan(store, tmp_path / "seed"), tmp_path / "seed"
    calls = 0
    save = Trainer.save_checkpoint

    def fill_up(trainer: Trainer, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            if place == "record":
                # Nothing can be written from here on, not even how the run ended.
                monkeypatch.setattr(Journal, "send", full)
            full()
        save(trainer, path)

    monkeypatch.setattr(Trainer, "save_checkpoint", fill_up)
    end = train(plan, ignore)
    advice = f"no space left to write {folder} or the tracking store: free some and give the same command again"
    assert (end.outcome, end.detail) == ("failed", advice)
    assert "Traceback" not in capsys.readouterr().err
    assert not (folder / "traceback.txt").exists()
    tags = seed_run(store).data.tags
    assert tags["rlflow.outcome"] == ("failed" if place == "checkpoint" else "running")

    monkeypatch.undo()
    # Its process is gone.
    store.client.set_tag(seed_run(store).info.run_id, "rlflow.heartbeat", "0")
    assert train(replace(plan, resume=True), ignore).outcome == "finished"
    alone = tmp_path / "alone"
    undisturbed = train(toy_plan(open_store(results=alone), alone / "seed"), ignore)
    assert undisturbed.outcome == "finished"
    assert curve(store, SCORE) == curve(open_store(results=alone), SCORE)


def test_a_task_that_cannot_be_set_up_leaves_nothing_in_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    def refuse(task: ToyTask, requires: frozenset[str]) -> None:
        raise FileNotFoundError("expected a model at /nowhere, found none")

    monkeypatch.setattr(ToyTask, "build_policy", refuse)
    monkeypatch.setattr(ToyTask, "close", lambda task: closed.append(True))
    with pytest.raises(BuildError, match="cannot set up toy for ppo: expected a model at /nowhere"):
        train(toy_plan(store, tmp_path / "seed"), ignore)
    assert store.client.get_experiment_by_name(EXPERIMENT) is None
    assert closed == [True]


def test_only_the_first_rank_records(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train(toy_plan(store, tmp_path / "seed"), ignore).outcome == "finished"
    assert store.client.get_experiment_by_name(EXPERIMENT) is None


def test_the_process_leaves_its_outcome_in_its_folder(store: Store, tmp_path: Path) -> None:
    plan = toy_plan(store, tmp_path / "seed")
    read = SeedPlan.read(plan.write())
    # JSON has no tuples; nothing else may change on the way to the process.
    assert read == replace(plan, resolved=json.loads(json.dumps(plan.resolved)))
    assert main([str(tmp_path / "seed" / "plan.json")]) == 0
    assert Progress.read(plan.folder).outcome == "finished"
    # The seed has its result, so that the second process is refused.
    assert main([str(tmp_path / "seed" / "plan.json")]) == 1
    kept = json.loads((plan.folder / "progress.json").read_text())
    assert kept["outcome"] == "failed"
    assert "a result is never replaced" in kept["detail"]
    assert [state.state for state in read_states(store, EXPERIMENT).values()] == ["finished"]


def test_points_of_one_step_are_sent_together_and_the_later_value_stands() -> None:
    tracker = MemoryTracker()
    points = Points(tracker, ignore)
    points.log({"cost/wall_s": 1.0, "loss/policy": 0.5}, 16)
    points.log({"cost/wall_s": 2.0, "eval/score": 0.25}, 16)
    assert tracker.points == {}
    points.log({"cost/wall_s": 3.0}, 32)
    points.flush()
    assert tracker.points == {
        "cost/wall_s": [(16, 2.0), (32, 3.0)],
        "loss/policy": [(16, 0.5)],
        "eval/score": [(16, 0.25)],
    }
    assert points.score == 0.25


def test_progress_is_reported_with_every_score_and_else_twice_a_second() -> None:
    seen: list[Progress] = []
    points = Points(MemoryTracker(), seen.append)
    begin = time.monotonic()
    for step in range(1, 50):
        points.log({"loss/policy": 0.0}, step)
    assert time.monotonic() - begin < 0.5
    assert [p.samples for p in seen] == [1]
    points.log({"eval/score": 0.75}, 50)
    assert seen[-1] == Progress(samples=50, score=0.75, evaluations=1)
