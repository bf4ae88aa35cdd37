import pytest
import torch

from rlflow.advantage import (
    episode_return,
    gae,
    group_advantage,
    group_moments,
    next_values,
    returns_to_go,
    rollout_advantage,
    whiten,
    zero_std_fraction,
)
from tests.fakes import block

EXACT = 1e-6
ROUNDED = 1e-4


def assert_rows(found, expected, tolerance=EXACT):
    assert torch.allclose(found, torch.tensor(expected), atol=tolerance, rtol=0), found


def flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_gae_without_boundaries_inside():
    reward, value = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 1.0, 2.0]])
    following = torch.tensor([[1.0, 2.0, 9.0]])
    end = flags([0, 0, 1])
    # gamma .5, lambda .5, the end terminates, so 9 is ignored.
    # delta_2 = 3 - 2 = 1; delta_1 = 2 + .5*2 - 1 = 2; delta_0 = 1 + .5*1 - .5 = 1
    # A_2 = 1; A_1 = 2 + .25*1 = 2.25; A_0 = 1 + .25*2.25 = 1.5625
    assert_rows(gae(reward, value, following, end, end, gamma=0.5, lam=0.5), [[1.5625, 2.25, 1.0]])


def test_gae_bootstraps_a_time_limit_but_not_a_termination():
    reward, value, following = torch.ones(2, 1), torch.zeros(2, 1), torch.full((2, 1), 4.0)
    terminated, boundary = flags([1], [0]), flags([1], [1])
    # Terminated: 1. Time limit: 1 + .5*4 = 3.
    assert_rows(gae(reward, value, following, terminated, boundary, gamma=0.5, lam=0.9), [[1.0], [3.0]])


def test_gae_trace_does_not_cross_a_boundary():
    reward, zero = torch.tensor([[1.0, 100.0]]), torch.zeros(1, 2)
    # The time limit after decision 0 keeps the 100 of the next episode out: 1, not 1 + 100.
    assert_rows(gae(reward, zero, zero, flags([0, 0]), flags([1, 1]), gamma=1.0, lam=1.0), [[1.0, 100.0]])


def test_returns_to_go_stop_at_boundaries_and_bootstrap_nothing():
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    # gamma .5: G_2 = 4; decision 1 ends its episode: G_1 = 2; G_0 = 1 + .5*2 = 2
    assert_rows(returns_to_go(reward, flags([0, 1, 1]), gamma=0.5), [[2.0, 2.0, 4.0]])


def test_next_values_take_the_true_next_observation_at_open_boundaries():
    rollout = block(
        [[0, 0], [0, 0]],
        context={"v": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
        boundary_context={"v": torch.tensor([[7.0], [8.0]])},
        terminated=flags([0, 0], [0, 1]),
        boundary=flags([1, 1], [0, 1]),
        decisions_independent=True,
    )
    found = next_values(lambda r: r.context["v"], rollout, rollout.context["v"])
    # Row 0: both decisions are time limits, whose true next values are 7 and 8. Row 1: V(s_1) = 4, then terminated.
    assert_rows(found[0], [7.0, 8.0])
    assert found[1, 0] == 4.0


def test_next_values_are_zero_at_open_boundaries_without_next_context():
    rollout = block([[0, 0]], terminated=flags([0, 0]), boundary=flags([0, 1]))
    assert_rows(next_values(lambda r: r.reward, rollout, torch.tensor([[1.0, 5.0]])), [[5.0, 0.0]])


def test_group_moments_ignore_masked_members():
    x, group = torch.tensor([[1.0], [3.0], [100.0], [6.0]]), torch.tensor([0, 0, 0, 5])
    mean, std = group_moments(x, group, flags([1], [1], [0], [1]))
    # Group 0 without its masked member: mean (1+3)/2 = 2, population std 1. Group 5: mean 6, std 0.
    assert_rows(mean[[0, 1, 3]], [[2.0], [2.0], [6.0]])
    assert_rows(std[[0, 1, 3]], [[1.0], [1.0], [0.0]])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # Group 0: rewards 1, 3, mean 2, std 1: -1/1.0001. Group 1: 5, 5: nothing. Group 2: 0, 6, std 3: -3/3.0001.
        ("group", [-0.99990, 0.99990, 0.0, 0.0, -0.99997, 0.99997]),
        # Centred -1 1 0 0 -3 3: population std sqrt(20/6) = 1.825742; -1/1.825842 = -.547692; -3/... = -1.643077
        ("batch", [-0.547692, 0.547692, 0.0, 0.0, -1.643077, 1.643077]),
        ("none", [-1.0, 1.0, 0.0, 0.0, -3.0, 3.0]),
    ],
)
def test_group_advantage_scales(scale, expected):
    x = torch.tensor([1.0, 3.0, 5.0, 5.0, 0.0, 6.0])[:, None]
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    found = group_advantage(x, group, torch.ones(6, 1, dtype=torch.bool), scale=scale)
    assert_rows(found[:, 0], expected, ROUNDED / 10)


def test_group_advantage_is_clipped():
    x, mask = torch.tensor([[-20.0], [20.0]]), flags([1], [1])
    group = torch.zeros(2, dtype=torch.int64)
    # Centred -20, 20, limited to +-5; 0 switches the limit off.
    assert_rows(group_advantage(x, group, mask, scale="none"), [[-5.0], [5.0]])
    assert_rows(group_advantage(x, group, mask, scale="none", clip=0.0), [[-20.0], [20.0]])


def test_rollouts_are_compared_whole():
    returns = torch.tensor([[1.0, 1.0], [5.0, 5.0], [7.0, 7.0]])
    mask = flags([1, 0], [1, 1], [0, 0])
    found = rollout_advantage(returns, torch.zeros(3, dtype=torch.int64), mask, scale="none")
    # Mean of 1 and 5, since the third rollout has nothing to train; the tail of the second is compared all the same.
    assert_rows(found, [[-2.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    with_std = rollout_advantage(returns, torch.zeros(3, dtype=torch.int64), mask, scale="batch")
    # The std over rollouts is 2, not that of three decisions.
    assert_rows(with_std, [[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], ROUNDED)


def test_group_advantage_refuses_an_unknown_scale():
    x, mask = torch.zeros(2, 1), flags([1], [1])
    with pytest.raises(ValueError, match="expected group, batch or none, found 'std'"):
        group_advantage(x, torch.zeros(2, dtype=torch.int64), mask, scale="std")


def test_whiten_uses_population_variance_of_unmasked_decisions():
    x = torch.tensor([[1.0, 3.0], [99.0, 5.0]])
    # Unmasked 1, 3, 5: mean 3, population variance 8/3, std 1.632993; (1-3)/1.632993 = -1.224745; masked 0.
    assert_rows(whiten(x, flags([1, 1], [0, 1])), [[-1.224745, 0.0], [0.0, 1.224745]])


def test_episode_return_sums_trainable_rewards():
    # 1 + 2, the masked 50 left out, given to every decision of the row.
    assert_rows(episode_return(torch.tensor([[1.0, 2.0, 50.0]]), flags([1, 1, 0])), [[3.0, 3.0, 3.0]])


def test_zero_std_fraction_counts_decisions_without_signal():
    x, group = torch.tensor([[1.0], [1.0], [0.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    # Group 0 is silent: 2 of 4 decisions; with one of them masked 1 of 3.
    assert zero_std_fraction(x, group, flags([1], [1], [1], [1])) == pytest.approx(0.5)
    assert zero_std_fraction(x, group, flags([1], [0], [1], [1])) == pytest.approx(1 / 3)
