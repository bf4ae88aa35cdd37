import pytest
import torch

from algorithms.flow_grpo import FlowGrpo
from tests.fakes import FakePolicy, block, part

EXACT = 1e-6
ROUNDED = 1e-4


def loss_of(algorithm, rho, advantage, kl=None):
    log_prob = torch.tensor(rho).log().requires_grad_()
    mini = part({"advantage": torch.tensor(advantage)}, old_log_prob=torch.zeros(log_prob.shape))
    answers = {"log_prob": log_prob} | ({} if kl is None else {"kl": torch.tensor(kl)})
    return algorithm.loss(FakePolicy(**answers), mini), log_prob


def test_policy_term_by_hand():
    algorithm = FlowGrpo(clip_low=0.2, clip_high=0.4)
    loss, log_prob = loss_of(algorithm, [[[1.5, 0.5]], [[1.0, 0.5]]], [[1.0], [-2.0]])
    # Row 0, A = 1: -1.4 (clipped) and -.5, mean -.95. Row 1, A = -2: 2 and 1.6 (clipped), mean 1.8. Mean .425.
    assert loss.total.item() == pytest.approx(0.425, abs=EXACT)
    assert set(loss.terms) == {"policy"}
    # Outside the range: 1.5, .5 and .5 of four.
    assert loss.metrics["clip_fraction"].item() == pytest.approx(0.75, abs=EXACT)
    assert loss.metrics["ratio"].item() == pytest.approx((1.5 + 0.5 + 1.0 + 0.5) / 4, abs=EXACT)
    loss.total.backward()
    # d(-rho A)/d log_prob = -rho A, over 2 rows and 2 steps: 0, -.125; 1*2/4 = .5, 0 (clipped)
    assert torch.allclose(log_prob.grad, torch.tensor([[[0.0, -0.125]], [[0.5, 0.0]]]), atol=EXACT)


def test_kl_term_by_hand():
    ones = [[[1.0, 1.0]], [[1.0, 1.0]]]
    loss, _ = loss_of(FlowGrpo(beta=0.1), ones, [[1.0], [-3.0]], kl=[[[0.2, 0.4]], [[0.6, 0.8]]])
    # Policy: (-1 + 3)/2 = 1. KL: mean .5, times .1.
    assert loss.terms["policy"].item() == pytest.approx(1.0, abs=EXACT)
    assert loss.terms["kl"].item() == pytest.approx(0.05, abs=EXACT)
    assert loss.total.item() == pytest.approx(1.05, abs=EXACT)


def test_targets_give_every_decision_its_episodes_group_advantage():
    rollout = block([[1, 2], [0, 1], [4, 0], [4, 0]], group=torch.tensor([0, 0, 1, 1]))
    targets = FlowGrpo().targets(FakePolicy(), rollout)
    # Returns 3, 1 (mean 2, std 1): +-1/1.0001 on both decisions. Group 1: 4, 4, nothing to learn.
    expected = torch.tensor([[0.9999, 0.9999], [-0.9999, -0.9999], [0, 0], [0, 0]])
    assert torch.allclose(targets.tensors["advantage"], expected, atol=ROUNDED)
    assert float(targets.metrics["zero_std_fraction"]) == pytest.approx(0.5)
    assert float(targets.metrics["abs_mean"]) == pytest.approx(0.49995, abs=EXACT)


def test_targets_to_go_compare_decisions_at_the_same_time():
    rollout = block([[1, 2], [0, 2]], group=torch.tensor([0, 0]))
    targets = FlowGrpo(credit="to_go", gamma=0.5, scale="none").targets(FakePolicy(), rollout)
    # Returns to go: 1 + .5*2 = 2 and 2; 0 + 1 = 1 and 2. Column 0: +-.5; column 1: equal.
    assert torch.allclose(targets.tensors["advantage"], torch.tensor([[0.5, 0.0], [-0.5, 0.0]]), atol=EXACT)


def test_the_tail_of_the_longest_rollout_is_compared_with_whole_rollouts():
    mask = torch.tensor([[True, False], [True, True]])
    targets = FlowGrpo(scale="none").targets(FakePolicy(), block([[3.0, 0.0], [0.0, 1.0]], mask=mask))
    # Returns 3 and 1, mean 2, also where one of the two has a second decision alone.
    assert targets.tensors["advantage"].tolist() == [[1.0, 0.0], [-1.0, -1.0]]
    assert float(targets.metrics["zero_std_fraction"]) == 0.0


def test_targets_obey_scale_and_clip():
    rollout = block([[0.0], [8.0]], group=torch.tensor([0, 0]))
    advantage = FlowGrpo(scale="none", advantage_clip=3.0).targets(FakePolicy(), rollout).tensors["advantage"]
    assert advantage.tolist() == [[-3.0], [3.0]]
    batch = FlowGrpo(scale="batch").targets(FakePolicy(), rollout).tensors["advantage"]
    # Centred +-4, std over the batch 4: 4/4.0001
    assert batch[1].item() == pytest.approx(0.999975, abs=EXACT)


def test_it_needs_groups_and_is_grpo_without_refinement_steps():
    policy = FakePolicy()
    assert FlowGrpo().needs_groups
    assert FlowGrpo().note(policy) is None
    policy.__class__ = type("Tight", (FakePolicy,), {"elbo_is_tight": True})
    assert FlowGrpo().note(policy).startswith("GRPO")
