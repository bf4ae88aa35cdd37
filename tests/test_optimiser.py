from __future__ import annotations

import pytest
import torch

from rlflow.optimiser import make_optimiser, set_rates
from rlflow.settings import Update
from rlflow.toy import ToyTask

ROUNDED = 1e-12


def test_a_fused_step_counts_as_a_change_of_every_parameter() -> None:
    # Otherwise Rollout.memo would hand out the answer of the weights before the step.
    policy = ToyTask(kind="gaussian").build_policy(frozenset({"log_prob", "value"}))
    optimiser = make_optimiser(policy, Update(lr=0.1))
    before = [parameter._version for parameter in policy.parameters()]
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    assert all(parameter._version > old for parameter, old in zip(policy.parameters(), before, strict=True))


def test_every_role_has_its_own_rate() -> None:
    policy = ToyTask(kind="gaussian").build_policy(frozenset({"log_prob", "value"}))
    optimiser = make_optimiser(policy, Update(lr=0.1, critic_lr=0.4, lr_schedule="linear", lr_final_fraction=0.2))
    # Half of the budget is gone: 1 - 1/2 * .8 = .6
    set_rates(optimiser, Update(lr_schedule="linear", lr_final_fraction=0.2), 5, 10)
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates["actor"] == pytest.approx(0.06, abs=ROUNDED)
    assert rates["critic"] == pytest.approx(0.24, abs=ROUNDED)
