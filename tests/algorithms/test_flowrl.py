import math

import pytest
import torch

from algorithms.flowrl import FlowRL
from rlflow.rollout import minibatch
from tests.fakes import FakePolicy, block, part

EXACT = 1e-5
ROUNDED = 1e-3

LOG_Z = [[0.5], [0.1]]
LOG_PROB = [[[-1.0], [-2.0]], [[-3.0], [-9.0]]]
OLD = [[[-1.2], [-2.0]], [[-3.5], [-9.0]]]
REFERENCE = [[[-1.5], [-2.1]], [[-2.0], [-7.0]]]
"""Row 0 has two decisions, row 1 one; mean log-ratios to the old policy .1 and .5."""


def loss_of(algorithm, *, old=OLD, mask=((True, True), (True, False)), **changes):
    log_prob = torch.tensor(LOG_PROB).requires_grad_()
    targets = {"log_reward": torch.tensor([[1.0, 7.0], [-1.0, 7.0]]), "ref_log_prob": torch.tensor(REFERENCE)}
    mini = part(targets, mask=torch.tensor(mask), old_log_prob=torch.tensor(old), **changes)
    log_z = torch.tensor(LOG_Z).requires_grad_()
    return algorithm.loss(FakePolicy(log_prob=log_prob, log_partition=log_z), mini), log_prob, log_z


def test_balance_by_hand():
    loss, log_prob, log_z = loss_of(FlowRL(beta=2.0))
    # Row 0: .5 + (.5 + .1)/2 - 2*1 = -1.2; weight e^.1 = 1.105171: 1.591446.
    # Row 1: .1 - 1/1 + 2*1 = 1.1; weight e^.5 clipped to 1.2: 1.452. Mean 1.521723.
    assert loss.total.item() == pytest.approx(1.521723, abs=EXACT)
    assert loss.metrics["weight"].item() == pytest.approx(1.152585, abs=EXACT)
    assert loss.metrics["log_z"].item() == pytest.approx(0.3, abs=EXACT)
    assert loss.metrics["ref_log_ratio"].item() == pytest.approx(-0.35, abs=EXACT)
    loss.total.backward()
    # d/d log Z: 2 w residual / 2 rows = -1.326205, 1.32. d/d log_prob: that over |y|; the weight has no gradient.
    assert torch.allclose(log_z.grad, torch.tensor([[-1.326205], [1.32]]), atol=EXACT)
    expected = torch.tensor([[[-0.663103], [-0.663103]], [[1.32], [0.0]]])
    assert torch.allclose(log_prob.grad, expected, atol=EXACT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Row 1 unclipped: e^.5 = 1.648721 * 1.21 = 1.994953; (1.591446 + 1.994953)/2
        ({"variant": "release"}, 1.793199),
        ({"variant": "cap10"}, 1.793199),
        # Upper limit 1.28: 1.28*1.21 = 1.5488; (1.591446 + 1.5488)/2
        ({"variant": "cispo"}, 1.570123),
        # Weight 1: (1.2^2 + 1.1^2)/2 = (1.44 + 1.21)/2
        ({"variant": "none"}, 1.325),
        # Row 0 sums .2: e^.2 = 1.221403 clipped to 1.2: 1.2*1.44 = 1.728; (1.728 + 1.452)/2
        ({"weight_exponent": "sum"}, 1.59),
        # Row 0: .5 + .6 - 2 = -.9: 1.105171*.81 = .895188; (.895188 + 1.452)/2
        ({"length_normalised": False}, 1.173594),
    ],
)
def test_variants_by_hand(settings, expected):
    loss, _, _ = loss_of(FlowRL(beta=2.0, **settings))
    assert loss.total.item() == pytest.approx(expected, abs=EXACT)


def test_cap10_caps_at_ten():
    far = [[[-1.2], [-2.0]], [[-6.0], [-9.0]]]
    # Row 1: e^3 = 20.09 -> 10: 12.1; row 0 1.591446
    loss, _, _ = loss_of(FlowRL(beta=2.0, variant="cap10"), old=far)
    assert loss.total.item() == pytest.approx(6.845723, abs=EXACT)
    # Unclipped: 20.085537*1.21 = 24.303500
    free, _, _ = loss_of(FlowRL(beta=2.0, variant="release"), old=far)
    assert free.total.item() == pytest.approx(12.947473, abs=EXACT)


def test_cispo_stops_the_gradient_of_tokens_outside_its_range():
    loss, log_prob, log_z = loss_of(FlowRL(beta=2.0, variant="cispo"))
    loss.total.backward()
    # Row 0: ratios e^.2 = 1.22 and 1 are inside. Row 1: e^.5 = 1.65 is not, but log Z still learns.
    assert log_prob.grad[0].abs().min() > 0
    assert log_prob.grad[1].abs().max() == 0
    assert log_z.grad[1].abs().item() > 0


def test_a_window_ends_at_its_first_boundary():
    ends = torch.tensor([[True, True], [False, True]])
    loss, log_prob, _ = loss_of(FlowRL(beta=2.0), mask=((True, True), (True, True)), boundary=ends, terminated=ends)
    # Row 0: only decision 0 counts: .5 + .5/1 - 2 = -1; weight e^.2 -> 1.2: 1.2.
    # Row 1: both: .1 + (-1 - 2)/2 + 2 = .6; log-ratio .5/2: e^.25 -> 1.2: .432. Mean .816.
    assert loss.total.item() == pytest.approx(0.816, abs=EXACT)
    loss.total.backward()
    assert float(log_prob.grad[0, 1]) == 0.0


def test_targets_normalise_the_return_within_the_group():
    rollout = block([[1.0], [3.0]], old_log_prob=torch.zeros(2, 1, 1))
    targets = FlowRL().targets(FakePolicy(ref_log_prob=torch.ones(2, 1, 1)), rollout).tensors
    # Mean 2, std 1: +-1/1.0001
    assert torch.allclose(targets["log_reward"], torch.tensor([[-0.9999], [0.9999]]), atol=EXACT)
    assert targets["ref_log_prob"].tolist() == [[[1.0]], [[1.0]]]


def test_groups_without_variance_still_pull_to_the_reference():
    rollout = block([[1.0], [1.0]], old_log_prob=torch.zeros(2, 1, 1))
    log_prob, log_z = torch.tensor([[[0.3]], [[0.1]]]).requires_grad_(), torch.zeros(2, 1, requires_grad=True)
    fake = FakePolicy(ref_log_prob=torch.zeros(2, 1, 1), log_prob=log_prob, log_partition=log_z)
    goal = FlowRL().targets(fake, rollout).tensors
    FlowRL().loss(fake, minibatch(rollout, goal, torch.arange(2), 2.0, 2.0)).total.backward()
    # Residuals .3, .1 with weights clipped to 1.2, 1.105171: 2 w residual / 2 rows
    assert torch.allclose(log_prob.grad.flatten(), torch.tensor([0.36, 0.1105171]), atol=EXACT)
    assert torch.allclose(log_z.grad.flatten(), torch.tensor([0.36, 0.1105171]), atol=EXACT)


def test_independent_decisions_take_the_lambda_return_with_the_soft_value():
    rollout = block(
        [[1.0, 2.0]],
        context={"z": torch.tensor([[1.0, 2.0]])},
        boundary_context={"z": torch.tensor([[8.0]])},
        terminated=torch.zeros(1, 2, dtype=torch.bool),
        boundary=torch.tensor([[False, True]]),
        decisions_independent=True,
    )
    fake = FakePolicy(log_partition=lambda r: r.context["z"], ref_log_prob=torch.zeros(1, 2, 1))
    targets = FlowRL(beta=2.0, gamma=0.5, lam=0.5).targets(fake, rollout)
    # Soft values .5, 1 and 4 behind the time limit. delta_1 = 2 + 2 - 1 = 3, delta_0 = 1 + .5 - .5 = 1,
    # A_0 = 1 + .25*3 = 1.75. Returns A + V: 2.25, 4.
    assert torch.allclose(targets.tensors["log_reward"], torch.tensor([[2.25, 4.0]]), atol=EXACT)
    assert float(targets.metrics["soft_value_mean"]) == pytest.approx(0.75, abs=EXACT)


def test_a_row_is_one_window_and_beta_is_positive():
    assert FlowRL(window=4).row_decisions == 4
    assert FlowRL().needs_groups
    with pytest.raises(ValueError, match="beta: expected > 0, found 0"):
        FlowRL(beta=0.0)


def test_a_tabular_softmax_converges_to_the_tilted_reference():
    algorithm = FlowRL(beta=1.5)
    reward, ref = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([0.1, 0.4, 0.3, 0.2])
    logits = torch.zeros(4, requires_grad=True)
    log_z = torch.zeros((), requires_grad=True)
    fake = FakePolicy(
        log_prob=lambda r: logits.log_softmax(0)[r.action["arm"]].unsqueeze(-1),
        ref_log_prob=lambda r: ref.log()[r.action["arm"]].unsqueeze(-1),
        log_partition=lambda r: log_z.expand(r.num_rollouts, 1),
    )
    optimiser = torch.optim.Adam([logits, log_z], lr=0.05)
    for _ in range(600):
        # One rollout of each arm, |y| = 1, on policy: the weight is 1.
        rollout = block(reward[:, None].tolist(), action={"arm": torch.arange(4)[:, None]})
        rollout.old_log_prob = fake.log_prob(rollout).detach()
        goal = algorithm.targets(fake, rollout).tensors
        optimiser.zero_grad()
        algorithm.loss(fake, minibatch(rollout, goal, torch.arange(4), 4.0, 4.0)).total.backward()
        optimiser.step()
    # Group: mean 2, variance (4 + 1 + 0 + 9)/4 = 3.5, std 1.870829 + 1e-4.
    tilted = ref.log() + 1.5 * (reward - 2.0) / (math.sqrt(3.5) + 1e-4)
    assert torch.allclose(logits.softmax(0), tilted.softmax(0), atol=ROUNDED)
    assert log_z.item() == pytest.approx(tilted.logsumexp(0).item(), abs=ROUNDED)
