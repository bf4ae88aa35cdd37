import pytest
import torch

from algorithms.reinforce_pp import ReinforcePP
from tests.fakes import FakePolicy, block, part

EXACT = 1e-6
ROUNDED = 1e-5


def test_policy_term_by_hand():
    mini = part({"advantage": torch.tensor([[1.0], [-2.0]])}, old_log_prob=torch.zeros(2, 1, 2))
    fake = FakePolicy(log_prob=torch.tensor([[[1.5, 0.5]], [[1.0, 0.5]]]).log())
    loss = ReinforcePP().loss(fake, mini)
    # Row 0, A = 1: -1.2 and -.5, mean -.85. Row 1, A = -2: 2 and 1.6, mean 1.8. Mean .475; the KL is in the reward.
    assert loss.total.item() == pytest.approx(0.475, abs=EXACT)
    assert set(loss.terms) == {"policy"}
    assert loss.metrics["clip_fraction"].item() == pytest.approx(0.75, abs=EXACT)
    higher = ReinforcePP(clip_high=0.4).loss(fake, mini)
    # -1.4 for -1.2: row 0 has mean -.95, the mean over both is .425.
    assert higher.total.item() == pytest.approx(0.425, abs=EXACT)


def test_baseline_variant_has_k2_in_the_loss():
    targets = {"advantage": torch.tensor([[1.0], [-2.0]]), "ref_log_prob": torch.tensor([[[-1.0]], [[0.5]]])}
    fake = FakePolicy(log_prob=torch.zeros(2, 1, 1))
    loss = ReinforcePP(variant="baseline", beta=0.1).loss(fake, part(targets, old_log_prob=torch.zeros(2, 1, 1)))
    # Policy (-1 + 2)/2 = .5. k2: .5*1 and .5*.25, mean .3125, times .1.
    assert loss.terms["kl"].item() == pytest.approx(0.03125, abs=EXACT)
    assert loss.total.item() == pytest.approx(0.53125, abs=EXACT)


def targets_of(algorithm, reward, old, ref, **changes):
    rollout = block(reward, old_log_prob=torch.tensor(old), **changes)
    return algorithm.targets(FakePolicy(ref_log_prob=torch.tensor(ref)), rollout)


def test_targets_are_whitened_returns_of_reward_minus_kl():
    targets = targets_of(
        ReinforcePP(beta=0.1, gamma=0.5),
        [[0.0, 1.0], [0.0, 0.0]],
        old=[[[-1.0], [-1.0]], [[-1.0], [-1.0]]],
        ref=[[[-2.0], [-1.0]], [[-1.0], [1.0]]],
    )
    # k1 = 1, 0; 0, -2. Rewards -.1, 1; 0, .2. Returns: -.1 + .5 = .4, 1; .1, .2. Mean .425,
    # squares .16 + 1 + .01 + .04 = 1.21, variance .3025 - .180625 = .121875, std .349106
    expected = (torch.tensor([[0.4, 1.0], [0.1, 0.2]]) - 0.425) / 0.349106
    assert torch.allclose(targets.tensors["advantage"], expected, atol=ROUNDED)
    assert float(targets.metrics["return_mean"]) == pytest.approx(0.425, abs=EXACT)
    assert float(targets.metrics["ref_k1"]) == pytest.approx(-0.25, abs=EXACT)


def test_targets_clamp_reward_and_k1():
    targets = targets_of(ReinforcePP(beta=0.1), [[50.0], [0.0]], old=[[[0.0]], [[0.0]]], ref=[[[0.0]], [[-99.0]]])
    # 50 -> 10; k1 = 99 -> 10: returns 10 and -1, whitened +-1, mean 4.5.
    assert float(targets.metrics["return_mean"]) == pytest.approx(4.5, abs=EXACT)
    assert torch.allclose(targets.tensors["advantage"], torch.tensor([[1.0], [-1.0]]), atol=ROUNDED)


def test_masked_decisions_count_nowhere():
    mask = torch.tensor([[True, False], [True, True]])
    targets = targets_of(
        ReinforcePP(beta=0.5),
        [[1.0, 0.0], [0.0, 2.0]],
        old=[[[0.0], [0.0]], [[0.0], [0.0]]],
        ref=[[[0.0], [-7.0]], [[0.0], [0.0]]],
        mask=mask,
    )  # fmt: skip
    # Neither the masked decision's KL of 3.5 nor its return: 1, -; 2, 2. Whitening alone would hide the KL.
    assert float(targets.metrics["return_mean"]) == pytest.approx(5 / 3, abs=EXACT)
    # Mean 5/3, variance (1 + 4 + 4)/3 - 25/9 = 2/9, std .471405
    expected = (torch.tensor([[1.0, 5 / 3], [2.0, 2.0]]) - 5 / 3) / 0.471405
    assert torch.allclose(targets.tensors["advantage"], expected, atol=ROUNDED)


def test_baseline_variant_subtracts_the_groups_mean_and_keeps_the_reference():
    targets = targets_of(
        ReinforcePP(variant="baseline", beta=0.1), [[1.0], [3.0], [5.0], [5.0]],
        old=[[[0.0]]] * 4, ref=[[[-1.0]]] * 4, group=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    # -1, 1, 0, 0: mean 0, std sqrt(.5) = .707107; no KL in the reward, all k1 = 1 would not show after whitening
    assert torch.allclose(targets.tensors["advantage"][:, 0], torch.tensor([-1.414214, 1.414214, 0, 0]), atol=ROUNDED)
    assert targets.tensors["ref_log_prob"].tolist() == [[[-1.0]]] * 4
    assert "ref_k1" not in targets.metrics


def test_baseline_of_texts_is_the_mean_of_whole_rollouts():
    mask = torch.tensor([[True, False], [True, True]])
    targets = targets_of(
        ReinforcePP(variant="baseline"), [[1.0, 0.0], [0.0, 3.0]],
        old=[[[0.0], [0.0]]] * 2, ref=[[[0.0], [0.0]]] * 2, group=torch.tensor([0, 0]), mask=mask,
    )  # fmt: skip
    # Mean return 2: -1, -; 1, 1 before whitening. Mean 1/3, variance 1 - 1/9 = 8/9, std .942809.
    expected = torch.tensor([[-1.414214, 0.0], [0.707107, 0.707107]])
    assert torch.allclose(targets.tensors["advantage"], expected, atol=ROUNDED)


def test_only_the_baseline_variant_needs_groups():
    assert not ReinforcePP().needs_groups
    assert ReinforcePP(variant="baseline").needs_groups


@pytest.mark.parametrize("setting", [{"beta": -0.1}, {"gamma": 0.0}, {"gamma": 1.5}])
def test_ranges_are_checked(setting):
    with pytest.raises(ValueError, match="expected beta >= 0 and 0 < gamma <= 1, found"):
        ReinforcePP(**setting)
