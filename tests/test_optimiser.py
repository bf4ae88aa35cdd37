from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from rlflow.optimiser import FusedAdamW, clip_gradients, make_optimiser, set_rates
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


def trained(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], silent: int) -> None:
    draw = torch.Generator().manual_seed(1)
    for number in range(6):
        optimiser.zero_grad()
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        if number == silent:
            parameters[1].grad = None
        optimiser.step()


def mixed_parameters() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = [((5, 3), torch.float32), ((7,), torch.float32), ((4,), torch.float64)]
    return [nn.Parameter(torch.randn(shape, generator=draw, dtype=kind)) for shape, kind in shapes]


@pytest.mark.parametrize("silent", [-1, 0, 3])
def test_steps_are_those_of_torch_to_the_bit(silent: int) -> None:
    ours, theirs = mixed_parameters(), mixed_parameters()
    settings = {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    rates = [0.1, 0.01]
    trained(FusedAdamW(roles(ours, rates), **settings), ours, silent)
    trained(torch.optim.AdamW(roles(theirs, rates), fused=True, **settings), theirs, silent)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def roles(parameters: list[nn.Parameter], rates: list[float]) -> list[dict[str, Any]]:
    return [{"params": parameters[:2], "lr": rates[0]}, {"params": parameters[2:], "lr": rates[1]}]


def test_moments_that_are_loaded_are_the_ones_that_move() -> None:
    ours, theirs = mixed_parameters(), mixed_parameters()
    settings = {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    first, second = (FusedAdamW(roles(p, [0.1, 0.1]), **settings) for p in (ours, theirs))
    trained(first, ours, -1)
    trained(second, theirs, 3)
    second.load_state_dict(deepcopy(first.state_dict()))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    trained(first, ours, -1)
    trained(second, theirs, -1)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("limit", [0.5, 1e6, math.inf])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_clipped_as_torch_does_to_the_bit(limit: float, count: int) -> None:
    ours, theirs = mixed_parameters()[:count], mixed_parameters()[:count]
    for parameter in ours + theirs:
        parameter.grad = 3 * parameter.detach()
    found, expected = clip_gradients(ours, limit), nn.utils.clip_grad_norm_(theirs, limit)
    assert torch.equal(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
