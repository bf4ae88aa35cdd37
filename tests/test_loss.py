import math

import pytest
import torch

from rlflow.loss import (
    MAX_LOG_RATIO,
    clip_fraction,
    clipped_surrogate,
    dual_clipped,
    k1,
    k2,
    k3,
    leaving,
    ratio,
    recentred_log_ratio,
    sequence_log_ratio,
    truncated_weight,
    value_error,
)

EXACT = 1e-6


def test_ratio_is_exponential_of_the_difference_and_bounded():
    log_prob = torch.tensor([0.0, 1.0, 500.0, -500.0])
    expected = torch.tensor([1.0, math.e, math.exp(MAX_LOG_RATIO), math.exp(-MAX_LOG_RATIO)])
    assert torch.allclose(ratio(log_prob, torch.zeros(4)), expected, rtol=EXACT)


@pytest.mark.parametrize(
    ("rho", "advantage", "expected", "gradient"),
    [
        # low .2, high .4: -min(rho*A, clip(rho)*A), gradient -A where the unclipped side is the smaller.
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.8, 0.0),  # -min(3, 1.4*2)
        (0.5, 2.0, -1.0, -2.0),  # -min(1, 1.6)
        (1.5, -2.0, 3.0, 2.0),  # -min(-3, -2.8)
        (0.5, -2.0, 1.6, 0.0),  # -min(-1, .8*-2)
    ],
)
def test_clipped_surrogate_is_pessimistic(rho, advantage, expected, gradient):
    r = torch.tensor([[[rho]]], requires_grad=True)
    loss = clipped_surrogate(r, torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.4)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=EXACT)
    assert r.grad.item() == pytest.approx(gradient, abs=EXACT)


def test_clipped_surrogate_gives_every_refinement_step_its_decisions_advantage():
    loss = clipped_surrogate(torch.ones(1, 2, 3), torch.tensor([[1.0, -2.0]]), clip_low=0.2, clip_high=0.2)
    assert loss.tolist() == [[[-1.0] * 3, [2.0] * 3]]


def test_clip_fraction_marks_ratios_outside_either_side():
    rho = torch.tensor([0.79, 0.81, 1.29, 1.31])
    assert clip_fraction(rho, clip_low=0.2, clip_high=0.3).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_value_error_with_and_without_clip():
    value, returns, old = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    # .5*(2-0)^2 = 2; .5*(0-1)^2 = .5
    assert value_error(value, returns, old, clip=0.0).tolist() == [[2.0, 0.5]]
    # Clip .5: V may move to 1.5 and .5. max(4, 1.5^2)/2 = 2; max(1, .25)/2 = .5
    assert value_error(value, returns, old, clip=0.5).tolist() == [[2.0, 0.5]]
    # V beyond its return: V = 0 -> R = 0 from old 1: own error 0, kept near .5: .5*.25 = .125
    assert value_error(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), clip=0.5).item() == pytest.approx(0.125)


def test_kl_estimators():
    log_prob, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    # d = .5, -1. k2 = .125, .5. k3 = e^-.5 - 1 + .5 = .106531, e^1 - 1 - 1 = .718282
    assert k1(log_prob, ref).tolist() == [0.5, -1.0]
    assert k2(log_prob, ref).tolist() == [0.125, 0.5]
    assert torch.allclose(k3(log_prob, ref), torch.tensor([0.106531, 0.718282]), atol=EXACT)


def test_kl_estimators_average_to_the_kl_of_two_bernoullis():
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])
    # KL = .7 ln 1.4 + .3 ln .6 = .235530 - .153248 = .082283; k1 and k3 are unbiased
    for estimator in (k1, k3):
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(0.082283, abs=EXACT)
    # k2 is biased: .5*(.7*.336472^2 + .3*.510826^2) = .039625 + .039141 = .078766
    assert (p * k2(p.log(), q.log())).sum().item() == pytest.approx(0.078766, abs=EXACT)


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_sequence_has_the_mean_log_ratio_of_its_unmasked_decisions(straight_through):
    log_ratio = torch.tensor([[[0.2], [0.4], [9.0]], [[-1.0], [0.0], [0.0]]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = sequence_log_ratio(log_ratio, mask, straight_through=straight_through)
    # (.2 + .4)/2 = .3 and -1/1, at every decision
    assert torch.allclose(found, torch.tensor([[[0.3]] * 3, [[-1.0]] * 3]), atol=EXACT)
    found[0, 0].sum().backward()
    # The row's value moves with both of its decisions; straight through, each decision moves with itself alone.
    expected = [[1.0], [0.0], [0.0]] if straight_through else [[0.5], [0.5], [0.0]]
    assert log_ratio.grad[0].tolist() == expected
    assert log_ratio.grad[1].tolist() == [[0.0], [0.0], [0.0]]


def test_a_sequence_counts_its_refinement_steps():
    # (.1 + .2 + .3 + .6)/4 = .3
    found = sequence_log_ratio(
        torch.tensor([[[0.1, 0.2], [0.3, 0.6]]]), torch.ones(1, 2).bool(), straight_through=False
    )
    assert torch.allclose(found, torch.full((1, 2, 2), 0.3), atol=EXACT)


def test_a_recentred_log_ratio_has_its_own_divergence_back_and_the_scale_of_the_noise():
    log_ratio, divergence, std = (
        torch.tensor([[[-0.3, 0.1]]]),
        torch.tensor([[[0.1, 0.2]]]),
        torch.tensor([[[0.5, 2.0]]]),
    )
    # (-.3 + .1)*.5 = -.1, (.1 + .2)*2 = .6
    assert torch.allclose(recentred_log_ratio(log_ratio, divergence, std), torch.tensor([[[-0.1, 0.6]]]), atol=EXACT)


def test_the_dual_clip_bounds_bad_decisions_only():
    surrogate, advantage = torch.tensor([[[10.0, 4.0]], [[-2.0, -7.0]]]), torch.tensor([[-2.0], [1.0]])
    # A = -2, c = 3: at most 6. A > 0: as it was, on either side of -3.
    assert dual_clipped(surrogate, advantage, limit=3.0).tolist() == [[[6.0, 4.0]], [[-2.0, -7.0]]]


def test_leaving_is_the_side_that_the_advantage_pushes_to():
    rho, advantage = torch.tensor([[[1.1, 0.9, 1.0]]] * 3), torch.tensor([[1.0], [-1.0], [0.0]])
    expected = [[[True, False, False]], [[False, True, False]], [[False, False, False]]]
    assert leaving(rho, advantage).tolist() == expected


def test_the_weight_between_trainer_and_sampler_is_capped_and_one_where_masked():
    trainer = torch.tensor([[[-1.0], [-1.0], [-1.0], [-1.0]]], requires_grad=True)
    sampler = torch.tensor([[[-1.5], [-2.0], [-0.5], [float("nan")]]])
    weight = truncated_weight(trainer, sampler, torch.tensor([[True, True, True, False]]), cap=2.0)
    # e^.5 = 1.648721, e^1 = 2.718 -> 2, e^-.5 = .606531
    assert torch.allclose(weight, torch.tensor([[[1.648721], [2.0], [0.606531], [1.0]]]), atol=EXACT)
    assert not weight.requires_grad
