import pytest
import torch

from algorithms.ppo import Ppo
from tests.fakes import FakePolicy, block, part

EXACT = 1e-6
ROUNDED = 1e-5


def minibatch():
    return part(
        {
            "advantage": torch.tensor([[1.0], [-2.0]]),
            "returns": torch.tensor([[2.0], [1.0]]),
            "old_value": torch.tensor([[1.0], [2.9]]),
        },
        old_log_prob=torch.zeros(2, 1, 2),
    )


def policy():
    return FakePolicy(
        log_prob=torch.tensor([[[1.5, 0.5]], [[1.0, 0.5]]]).log(),
        value=torch.tensor([[1.0], [3.0]]),
        entropy=torch.tensor([[0.2], [0.6]]),
    )


def test_policy_and_value_terms_by_hand():
    loss = Ppo(clip=0.2, value_weight=0.5).loss(policy(), minibatch())
    # Row 0, A = 1: -1.2 and -.5, mean -.85. Row 1, A = -2: 2 and 1.6, mean 1.8. Mean .475.
    assert loss.terms["policy"].item() == pytest.approx(0.475, abs=EXACT)
    # .5*(1-2)^2 = .5, .5*(3-1)^2 = 2: mean 1.25, times .5
    assert loss.terms["value"].item() == pytest.approx(0.625, abs=EXACT)
    assert loss.total.item() == pytest.approx(1.1, abs=EXACT)
    assert loss.metrics["clip_fraction"].item() == pytest.approx(0.75, abs=EXACT)


def test_the_upper_clip_may_differ():
    loss = Ppo(clip=0.2, clip_high=0.4).loss(policy(), minibatch())
    # As above, but -1.4 for -1.2: row 0 has mean -.95, the mean over both is .425.
    assert loss.terms["policy"].item() == pytest.approx(0.425, abs=EXACT)


def test_entropy_term_by_hand():
    loss = Ppo(entropy_weight=0.1).loss(policy(), minibatch())
    # Mean entropy .4, rewarded: -.04
    assert loss.terms["entropy"].item() == pytest.approx(-0.04, abs=EXACT)
    assert loss.total.item() == pytest.approx(1.06, abs=EXACT)


def test_value_clip_reaches_the_value_term():
    mini = minibatch()
    mini.targets["old_value"] = torch.tensor([[0.0], [3.0]])
    loss = Ppo(value_clip=0.5, value_weight=1.0).loss(policy(), mini)
    # Row 0: V may move from 0 to .5 only: max(1, 1.5^2)/2 = 1.125. Row 1: 2. Mean 1.5625.
    assert loss.terms["value"].item() == pytest.approx(1.5625, abs=EXACT)


def test_targets_bootstrap_the_time_limit_with_the_true_next_observation():
    open_end = torch.tensor([[False, True]])
    rollout = block(
        [[1, 2]],
        context={"v": torch.tensor([[0.5, 1.0]])},
        boundary_context={"v": torch.tensor([[4.0]])},
        terminated=torch.zeros(1, 2, dtype=torch.bool),
        boundary=open_end,
        decisions_independent=True,
    )
    algorithm = Ppo(gamma=0.5, lam=0.5, whiten_advantage=False)
    targets = algorithm.targets(FakePolicy(value=lambda r: r.context["v"]), rollout).tensors
    # delta_1 = 2 + .5*4 - 1 = 3; delta_0 = 1 + .5*1 - .5 = 1; A_0 = 1 + .25*3 = 1.75
    assert torch.allclose(targets["advantage"], torch.tensor([[1.75, 3.0]]), atol=EXACT)
    assert torch.allclose(targets["returns"], torch.tensor([[2.25, 4.0]]), atol=EXACT)
    assert targets["old_value"].tolist() == [[0.5, 1.0]]
    raw = algorithm.targets(FakePolicy(value=lambda r: r.context["v"]), rollout).metrics["raw_std"]
    # Population std of 1.75 and 3
    assert float(raw) == pytest.approx(0.625, abs=EXACT)
    whitened = Ppo(gamma=0.5, lam=0.5).targets(FakePolicy(value=lambda r: r.context["v"]), rollout).tensors
    # Mean 2.375, deviation +-.625: +-1. Returns stay in units of reward.
    assert torch.allclose(whitened["advantage"], torch.tensor([[-1.0, 1.0]]), atol=ROUNDED)
    assert torch.allclose(whitened["returns"], targets["returns"], atol=EXACT)


def test_targets_subtract_the_kl_from_the_reward():
    rollout = block([[1.0], [1.0]], old_log_prob=torch.tensor([[[-1.0, -1.0]], [[-2.0, -1.0]]]))
    fake = FakePolicy(value=torch.zeros(2, 1), ref_log_prob=torch.tensor([[[-1.5, -2.0]], [[-1.0, -1.0]]]))
    targets = Ppo(kl_weight=0.1, whiten_advantage=False).targets(fake, rollout).tensors
    # k1 summed over K: .5 + 1 = 1.5 and -1: rewards 1 - .15 and 1 + .1
    assert torch.allclose(targets["advantage"], torch.tensor([[0.85], [1.1]]), atol=EXACT)


def test_the_kl_moves_to_the_loss_by_name():
    fake = policy()
    fake.answers["kl"] = torch.tensor([[[0.1, 0.3]], [[0.5, 0.7]]])
    loss = Ppo(clip=0.2, kl_weight=0.5, kl_in="loss").loss(fake, minibatch())
    # Mean over K: .2 and .6; mean .4, times .5
    assert loss.terms["kl"].item() == pytest.approx(0.2, abs=EXACT)
    assert loss.total.item() == pytest.approx(1.3, abs=EXACT)
    assert "kl" not in Ppo(clip=0.2, kl_weight=0.5).loss(fake, minibatch()).terms
    # ... and then the reward keeps its value: advantages of V = 0 are the rewards.
    rollout = block([[1.0], [1.0]], old_log_prob=torch.full((2, 1, 1), -1.0))
    fake = FakePolicy(value=torch.zeros(2, 1), ref_log_prob=torch.full((2, 1, 1), -2.0))
    targets = Ppo(kl_weight=0.1, kl_in="loss", whiten_advantage=False).targets(fake, rollout).tensors
    assert targets["advantage"].tolist() == [[1.0], [1.0]]


def test_it_asks_only_for_what_its_weights_need():
    assert Ppo().requires == {"log_prob", "value"}
    assert Ppo(entropy_weight=0.1).requires == {"log_prob", "value", "entropy"}
    assert Ppo(kl_weight=0.1).requires == {"log_prob", "value", "reference"}
