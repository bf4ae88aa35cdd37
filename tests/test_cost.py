import time

import pytest
import torch

from rlflow.cost import Cost
from tests.fakes import block

ROUNDED = 0.02
CPU = torch.device("cpu")


def test_stages_add_up_and_evaluation_is_not_training_time():
    cost = Cost()
    for stage in ("rollout_s", "update_s", "update_s", "eval_s"):
        with cost.timed(stage):
            time.sleep(0.01)
    metrics = cost.metrics(CPU)
    assert metrics["cost/update_s"] >= 0.02
    assert metrics["cost/wall_s"] == pytest.approx(metrics["cost/rollout_s"] + metrics["cost/update_s"])
    assert metrics["cost/eval_s"] >= 0.01
    assert metrics["cost/gpu_s"] == 0.0
    assert 0.05 < metrics["cost/peak_gb"] < 64


def test_time_is_counted_also_when_the_stage_fails():
    cost = Cost()

    def fail():
        time.sleep(0.01)
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), cost.timed("update_s"):
        fail()
    assert cost.seconds["update_s"] >= 0.01


def test_decisions_count_unmasked_and_env_steps_by_unit():
    cost, rollout = Cost(), block([[0, 0, 0]], mask=torch.tensor([[True, True, False]]))
    cost.count(rollout, "rollouts")
    assert cost.metrics(CPU)["cost/tokens"] == 2.0
    assert cost.metrics(CPU)["cost/env_steps"] == 0.0
    cost.count(rollout, "env_steps")
    assert cost.metrics(CPU)["cost/env_steps"] == 2.0


def test_counting_continues_from_a_checkpoint():
    cost = Cost()
    cost.optimizer_steps = 5
    with cost.timed("update_s"):
        time.sleep(0.01)
    restored = Cost()
    restored.load_state_dict(cost.state_dict())
    assert restored.metrics(CPU)["cost/optimizer_steps"] == 5.0
    assert restored.seconds == cost.seconds
