"""The tracker contract, in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlflow.tracker import MemoryTracker, StepGuard, Tracker


def test_memory_tracker_keeps_points_at_samples_and_omits_what_is_not_finite() -> None:
    tracker: Tracker = MemoryTracker()
    tracker.log({"eval/score": 0.5, "loss/policy": float("nan")}, 0)
    tracker.log({"eval/score": 0.75, "loss/policy": float("inf"), "cost/wall_s": 2.0}, 160)
    assert isinstance(tracker, MemoryTracker)
    assert tracker.points == {"eval/score": [(0, 0.5), (160, 0.75)], "cost/wall_s": [(160, 2.0)]}


@pytest.mark.parametrize("name", ["score", "evaluation/score", "eval/"])
def test_metric_names_outside_the_legend_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a metric name stage/name"):
        MemoryTracker().log({name: 1.0}, 0)


def test_a_metric_logged_twice_at_a_step_is_refused() -> None:
    tracker = MemoryTracker()
    tracker.log({"cost/wall_s": 1.0}, 160)
    with pytest.raises(ValueError, match="steps of 'cost/wall_s' to increase, found 160 after 160"):
        tracker.log({"cost/wall_s": 1.5}, 160)


def test_step_guard_drops_what_a_former_attempt_recorded_metric_by_metric() -> None:
    # The former attempt was killed between the training metrics and the evaluation of step 320.
    guard = StepGuard({"loss/policy": 320, "eval/score": 160})
    assert guard.accept({"loss/policy": 1.0, "eval/score": 0.5}, 160) == {}
    assert guard.accept({"loss/policy": 1.0, "eval/score": 0.5}, 320) == {"eval/score": 0.5}
    assert guard.accept({"loss/policy": 1.0, "eval/score": 0.5}, 480) == {"loss/policy": 1.0, "eval/score": 0.5}


def test_memory_tracker_keeps_files_and_the_first_outcome(tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"png")
    tracker = MemoryTracker(tmp_path / "kept")
    tracker.artifact(tmp_path / "grid.png", "samples")
    tracker.finish("diverged", "loss at 320")
    tracker.finish("finished")
    assert tracker.artifacts == ["samples/grid.png"]
    assert (tmp_path / "kept/samples/grid.png").read_bytes() == b"png"
    assert (tracker.outcome, tracker.detail) == ("diverged", "loss at 320")


def test_memory_tracker_refuses_a_missing_file_and_unknown_outcomes(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        tracker.artifact(tmp_path / "none.png")
    with pytest.raises(ValueError, match="expected an outcome of"):
        tracker.finish("done")  # type: ignore[arg-type]
