import math

import pytest
import torch

from algorithms.fpo import Fpo
from tests.fakes import FakePolicy, block, part

EXACT = 1e-6
ROUNDED = 1e-4


def loss_of(algorithm, elbo, advantage, **changes):
    targets = {
        "old_elbo": torch.full((2, 1, 2), -1.0),
        "advantage": torch.tensor(advantage),
        "returns": torch.tensor([[2.0], [1.0]]),
        "old_value": torch.tensor([[0.0], [3.0]]),
    }
    bound = (torch.tensor(elbo) - 1.0).requires_grad_()
    fake = FakePolicy(elbo=bound, value=torch.tensor([[1.0], [3.0]]), kl=torch.tensor([[[0.2, 0.4]], [[0.6, 0.8]]]))
    return algorithm.loss(fake, part(targets, **changes)), bound


def test_average_ratio_means_over_probes_before_the_exponential():
    loss, bound = loss_of(Fpo(), [[[0.1, -0.06]], [[0.3, 0.1]]], [[-1.0], [1.0]])
    # Row 0: exp(.02) = 1.020201, A = -1: 1.020201. Row 1: exp(.2) = 1.221 clipped to 1.05: -1.05. Mean -.0148995
    assert loss.terms["policy"].item() == pytest.approx(-0.0148995, abs=EXACT)
    assert loss.metrics["clip_fraction"].item() == pytest.approx(0.5, abs=EXACT)
    loss.terms["policy"].backward()
    # Row 0: 1.020201 / 2 rows / 2 probes; row 1 is clipped.
    expected = torch.tensor([[[0.25505, 0.25505]], [[0.0, 0.0]]])
    assert torch.allclose(bound.grad, expected, atol=EXACT)


def test_per_sample_ratio_gives_each_probe_its_own_clamped_ratio():
    loss, _ = loss_of(Fpo(ratio="per_sample"), [[[0.1, -0.06]], [[5.0, 0.1]]], [[-1.0], [-1.0]])
    # Row 0: 1.105171 and .95 (clipped .9418): 1.0275855. Row 1: exp(3) = 20.085537 and 1.105171: 10.595354.
    assert loss.terms["policy"].item() == pytest.approx((1.0275855 + 10.595354) / 2, abs=10 * EXACT)


def test_the_gradient_passes_the_probe_clamp_only_straight_through():
    for through, expected in ((False, 0.0), (True, 20.085537 / 4)):
        algorithm = Fpo(ratio="per_sample", straight_through=through)
        loss, bound = loss_of(algorithm, [[[0.0, 0.0]], [[5.0, 0.0]]], [[-1.0], [-1.0]])
        # Row 1, probe 0: ratio exp(3) = 20.085537 either way; its gradient over 2 rows and 2 probes.
        assert loss.terms["policy"].item() == pytest.approx((3 + 20.085537) / 4, abs=EXACT)
        loss.terms["policy"].backward()
        assert bound.grad[1, 0, 0].item() == pytest.approx(expected, abs=EXACT)


def test_the_asymmetric_trust_region_clips_rises_and_pulls_falls_back():
    algorithm = Fpo(trust_region="asymmetric", clip=0.1)
    log = math.log
    loss, bound = loss_of(algorithm, [[[log(1.3)] * 2], [[log(0.8)] * 2]], [[2.0], [-1.0]])
    # Row 0: A = 2 clipped at 1.1: -2.2. Row 1: 1/(2*.1) * .2^2 + .8 = 1.0. Mean -.6.
    assert loss.terms["policy"].item() == pytest.approx(-0.6, abs=EXACT)
    loss.terms["policy"].backward()
    # Row 1: d/drho = (rho - 1)/.1 + 1 = -1: the ratio is raised again; times rho .8, over 2 rows and 2 probes.
    assert torch.allclose(bound.grad, torch.tensor([[[0.0, 0.0]], [[-0.2, -0.2]]]), atol=EXACT)


def test_value_term_by_hand():
    loss, _ = loss_of(Fpo(value_weight=0.5), [[[0.0, 0.0]], [[0.0, 0.0]]], [[1.0], [1.0]])
    # Policy -1. Value: .5*1 and .5*4, mean 1.25, times .5.
    assert loss.terms["value"].item() == pytest.approx(0.625, abs=EXACT)
    assert loss.total.item() == pytest.approx(-0.375, abs=EXACT)
    clipped, _ = loss_of(Fpo(value_weight=1.0, value_clip=0.5), [[[0.0, 0.0]], [[0.0, 0.0]]], [[1.0], [1.0]])
    # Row 0: V may move from 0 to .5: max(1, 2.25)/2 = 1.125; row 1: 2
    assert clipped.terms["value"].item() == pytest.approx(1.5625, abs=EXACT)


def test_kl_term_and_negative_weight_by_hand():
    algorithm = Fpo(baseline="group", beta=0.1, negative_weight=0.25)
    loss, _ = loss_of(algorithm, [[[0.0, 0.0]], [[0.0, 0.0]]], [[-2.0], [1.0]])
    # Policy: (.25*2 - 1)/2 = -.25. KL: mean .5, times .1. No value term.
    assert loss.terms["policy"].item() == pytest.approx(-0.25, abs=EXACT)
    assert loss.terms["kl"].item() == pytest.approx(0.05, abs=EXACT)
    assert loss.total.item() == pytest.approx(-0.2, abs=EXACT)
    assert "value" not in loss.terms


def test_targets_keep_the_old_bounds_and_use_gae():
    rollout = block([[1.0, 2.0], [0.0, 0.0]])
    value = torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    old = torch.arange(8.0).view(2, 2, 2)
    targets = Fpo(gamma=0.5, lam=0.5).targets(FakePolicy(elbo=old, value=value), rollout).tensors
    # delta_1 = 2 - 1 = 1; delta_0 = 1 + .5 - .5 = 1, A_0 = 1.25; row 1: 0. Whitened: mean .5625,
    # squares 1.5625 + 1 = 2.5625, variance .640625 - .316406 = .324219, std .569402
    assert torch.equal(targets["old_elbo"], old)
    assert torch.allclose(targets["returns"], torch.tensor([[1.75, 2.0], [0.0, 0.0]]), atol=EXACT)
    assert targets["old_value"].tolist() == value.tolist()
    expected = (torch.tensor([[1.25, 1.0], [0.0, 0.0]]) - 0.5625) / 0.569402
    assert torch.allclose(targets["advantage"], expected, atol=ROUNDED)


def test_group_baseline_needs_no_critic():
    algorithm = Fpo(baseline="group")
    assert algorithm.requires == {"elbo"}
    assert algorithm.needs_groups
    targets = algorithm.targets(FakePolicy(elbo=torch.zeros(2, 1, 2)), block([[1.0], [3.0]])).tensors
    # Mean 2, std 1: +-1/1.0001
    assert torch.allclose(targets["advantage"], torch.tensor([[-0.9999], [0.9999]]), atol=EXACT)


def test_the_group_compares_whole_rollouts():
    mask = torch.tensor([[True, False], [True, True]])
    rollout = block([[1.0, 0.0], [0.0, 3.0]], mask=mask)
    targets = Fpo(baseline="group").targets(FakePolicy(elbo=torch.zeros(2, 2, 1)), rollout).tensors
    # Returns 1 and 3, mean 2, std 1: the second decision of the longer rollout is not alone.
    expected = torch.tensor([[-0.9999, 0.0], [0.9999, 0.9999]])
    assert torch.allclose(targets["advantage"], expected, atol=EXACT)


def test_it_asks_only_for_what_its_settings_need():
    assert Fpo().requires == {"elbo", "value"}
    assert Fpo(beta=0.1).requires == {"elbo", "value", "reference"}


def test_a_tight_bound_is_footnoted():
    policy = FakePolicy()
    assert Fpo().note(policy) is None
    policy.__class__ = type("Tight", (FakePolicy,), {"elbo_is_tight": True})
    assert "PPO-like" in Fpo().note(policy)
