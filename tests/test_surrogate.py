import math

import pytest
import torch

from rlflow.loss import clip_fraction, clipped_surrogate, ratio
from rlflow.surrogate import MOMENTS, Surrogate
from tests.fakes import FakePolicy, block, part

EXACT = 1e-6
CLIP = {"clip_low": 0.2, "clip_high": 0.4}


def term(surrogate, log_ratio, advantage, *, mask=None, clip=CLIP, sampler=None, **answers):
    """The term at old log-probs of 0, its metrics and the log-probs that it may be differentiated by."""
    log_prob = torch.tensor(log_ratio).requires_grad_()
    goal = {"advantage": torch.tensor(advantage), MOMENTS: torch.zeros(log_prob.shape)}
    extra = {} if sampler is None else {"sampler_log_prob": torch.tensor(sampler)}
    mini = part(goal, mask=mask, old_log_prob=torch.zeros(log_prob.shape), **extra)
    policy = FakePolicy(**{name: torch.tensor(value) for name, value in answers.items()})
    loss, metrics = surrogate.term(policy, mini, log_prob, **clip)
    return loss, metrics, log_prob


def test_the_default_is_the_clipped_ratio_of_each_step_bit_for_bit():
    random = torch.Generator().manual_seed(0)
    log_prob, old = (torch.randn(5, 3, 2, generator=random) for _ in range(2))
    mask, advantage = torch.rand(5, 3, generator=random) > 0.3, torch.randn(5, 3, generator=random)
    mini = part({"advantage": advantage}, mask=mask, old_log_prob=old)
    loss, metrics = Surrogate().term(FakePolicy(), mini, log_prob, **CLIP)
    rho = ratio(log_prob, old)
    assert torch.equal(loss, mini.mean(clipped_surrogate(rho, advantage, **CLIP)))
    assert metrics.keys() == {"clip_fraction", "ratio"}
    assert torch.equal(metrics["clip_fraction"], mini.mean(clip_fraction(rho, **CLIP)))
    assert torch.equal(metrics["ratio"], mini.mean(rho))
    assert Surrogate().requires == {"log_prob"}
    assert Surrogate().anchors(FakePolicy(), mini) == {}


@pytest.mark.parametrize(
    ("surrogate", "expected", "gradient"),
    [
        # Rows of 1 and 3 decisions at ratio 1: losses -1; 2, 2, 2.
        # Sum 5 over 4 decisions; each decision's gradient is its loss / 4.
        (Surrogate(), 1.25, [[-0.25, 0, 0], [0.5, 0.5, 0.5]]),
        # Row means -1 and 2, mean .5: -1/2; 2/3/2
        (Surrogate(aggregation="sequence"), 0.5, [[-0.5, 0, 0], [1 / 3, 1 / 3, 1 / 3]]),
        # 5 / (2 rows * 4)
        (Surrogate(aggregation="constant", horizon=4), 0.625, [[-0.125, 0, 0], [0.25, 0.25, 0.25]]),
    ],
)
def test_aggregations_by_hand(surrogate, expected, gradient):
    mask = torch.tensor([[True, False, False], [True, True, True]])
    loss, metrics, log_prob = term(surrogate, [[[0.0]] * 3] * 2, [[1.0] * 3, [-2.0] * 3], mask=mask)
    assert loss.item() == pytest.approx(expected, abs=EXACT)
    loss.backward()
    assert torch.allclose(log_prob.grad[..., 0], torch.tensor(gradient), atol=EXACT)
    # Metrics stay means over decisions, whatever the loss is.
    assert metrics["ratio"].item() == pytest.approx(1.0, abs=EXACT)


def test_aggregation_averages_refinement_steps_and_leaves_empty_rows_out():
    mask = torch.tensor([[True, True], [False, False]])
    x = [[[1.0, 3.0], [5.0, 7.0]], [[9.0, 9.0], [9.0, 9.0]]]
    mini = part({"advantage": torch.zeros(2, 2)}, mask=mask)
    # Steps: 2, 6. Their mean 4 over two rows of the batch; their sum 8 over 2 rows * 4.
    assert Surrogate(aggregation="sequence").aggregate(mini, torch.tensor(x)).item() == pytest.approx(2.0, abs=EXACT)
    constant = Surrogate(aggregation="constant", horizon=4)
    assert constant.aggregate(mini, torch.tensor(x)).item() == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("kind", ["sequence", "sequence_token"])
def test_the_ratio_of_a_sequence_by_hand(kind):
    loss, metrics, log_prob = term(Surrogate(ratio=kind), [[[0.1], [0.3]], [[0.9], [0.1]]], [[1.0, 1.0], [1.0, 1.0]])
    # e^.2 = 1.221403 and e^.5 = 1.648721, which is clipped to 1.4: -(1.221403 + 1.4)/2
    assert loss.item() == pytest.approx(-1.310701, abs=EXACT)
    assert metrics["clip_fraction"].item() == pytest.approx(0.5, abs=EXACT)
    loss.backward()
    # One advantage per row: both ratios have the same gradient, -1.221403 over 4 decisions; none where clipped.
    assert torch.allclose(log_prob.grad[..., 0], torch.tensor([[-0.305351] * 2, [0.0] * 2]), atol=EXACT)


def test_the_sequences_ratio_shares_the_advantage_and_the_tokens_ratio_does_not():
    gradients = []
    for kind in ("sequence", "sequence_token"):
        loss, _, log_prob = term(Surrogate(ratio=kind), [[[0.0], [0.0]]], [[1.0, 0.0]])
        loss.backward()
        gradients.append(log_prob.grad[0, :, 0].tolist())
    # -A/2 at the first decision alone, or shared by both.
    assert gradients == [[-0.25, -0.25], [-0.5, 0.0]]


def test_ratio_norm_by_hand():
    answers = {"divergence": [[[0.1, 0.0]]], "step_std": [[[0.5, 2.0]]]}
    loss, metrics, _ = term(Surrogate(ratio_norm=True), [[[-0.3, 0.1]]], [[1.0]], **answers)
    # (-.3 + .1)*.5 = -.1 and .1*2 = .2: e^-.1 = .904837, e^.2 = 1.221403
    assert loss.item() == pytest.approx(-(0.904837 + 1.221403) / 2, abs=EXACT)
    assert metrics["divergence"].item() == pytest.approx(0.05, abs=EXACT)
    assert Surrogate(ratio_norm=True).requires == {"log_prob", "divergence", "steps"}


def test_steps_are_weighed_by_the_inverse_of_their_length():
    surrogate = Surrogate(step_weight="inverse_dt")
    loss, metrics, log_prob = term(surrogate, [[[0.0, 0.0]]], [[1.0]], step_length=[[[0.5, 0.1]]])
    # -1/.5 = -2 and -1/.1 = -10
    assert loss.item() == pytest.approx(-6.0, abs=EXACT)
    loss.backward()
    assert torch.allclose(log_prob.grad, torch.tensor([[[-1.0, -5.0]]]), atol=EXACT)
    assert metrics["ratio"].item() == pytest.approx(1.0, abs=EXACT)
    assert surrogate.requires == {"log_prob", "steps"}


def test_the_divergence_region_drops_what_is_far_and_leaves():
    surrogate = Surrogate(trust_region="divergence", divergence_limit=0.1)
    up, down = math.log(1.5), math.log(0.5)
    log_ratio, advantage = [[[up]], [[down]], [[up]], [[down]], [[up]]], [[1.0], [1.0], [-1.0], [-1.0], [1.0]]
    far = [[[0.1]], [[0.2]], [[0.2]], [[0.2]], [[0.05]]]
    loss, metrics, log_prob = term(surrogate, log_ratio, advantage, divergence=far)
    # Dropped: up with A > 0, down with A < 0. Kept, though beyond any clip: -.5, 1.5, and the near -1.5.
    assert loss.item() == pytest.approx((-0.5 + 1.5 - 1.5) / 5, abs=EXACT)
    assert metrics["clip_fraction"].item() == pytest.approx(0.4, abs=EXACT)
    assert metrics["divergence"].item() == pytest.approx(0.15, abs=EXACT)
    loss.backward()
    assert torch.allclose(log_prob.grad.flatten(), torch.tensor([0.0, -0.1, 0.3, 0.0, -0.3]), atol=EXACT)
    assert surrogate.requires == {"log_prob", "divergence"}


def test_without_a_trust_region_the_ratio_is_free():
    loss, metrics, _ = term(Surrogate(trust_region="none"), [[[math.log(3.0)]]], [[1.0]])
    assert loss.item() == pytest.approx(-3.0, abs=EXACT)
    # ... and the metric says how much a clip would have held.
    assert metrics["clip_fraction"].item() == 1.0


def test_the_dual_clip_reaches_the_term():
    loss, metrics, log_prob = term(Surrogate(dual_clip=3.0), [[[math.log(5.0)]], [[math.log(2.0)]]], [[-1.0], [-1.0]])
    # 5 -> 3, and 2
    assert loss.item() == pytest.approx(2.5, abs=EXACT)
    assert metrics["dual_clip_fraction"].item() == pytest.approx(0.5, abs=EXACT)
    loss.backward()
    assert torch.allclose(log_prob.grad.flatten(), torch.tensor([0.0, 1.0]), atol=EXACT)


def test_the_samplers_weight_multiplies_each_token():
    surrogate = Surrogate(sampler_weight_cap=2.0)
    sampler = [[[-math.log(1.5)], [-math.log(8.0)]]]
    loss, metrics, _ = term(surrogate, [[[0.0], [0.0]]], [[1.0, -1.0]], sampler=sampler)
    # 1.5 * -1 and 2 * 1, since 8 is capped
    assert loss.item() == pytest.approx(0.25, abs=EXACT)
    assert metrics["sampler_weight"].item() == pytest.approx(1.75, abs=EXACT)


def test_a_rollout_without_the_samplers_log_probs_is_refused():
    with pytest.raises(ValueError, match=r"expected rollout\.sampler_log_prob .* found none"):
        Surrogate(sampler_weight_cap=2.0).anchors(FakePolicy(), block([[0.0]]))
    given = block([[0.0]], sampler_log_prob=torch.zeros(1, 1, 1))
    assert Surrogate(sampler_weight_cap=2.0).anchors(FakePolicy(), given) == {}


@pytest.mark.parametrize("options", [{"ratio_norm": True}, {"trust_region": "divergence"}])
def test_the_old_moments_are_a_target(options):
    policy = FakePolicy(moments=torch.full((1, 1, 1, 2), 3.0))
    assert Surrogate(**options).anchors(policy, block([[0.0]]))[MOMENTS].tolist() == [[[[3.0, 3.0]]]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dual_clip": 0.5}, r"surrogate.dual_clip: expected 0 \(off\) or above 1, found 0.5; use 3"),
        ({"sampler_weight_cap": 0.5}, "surrogate.sampler_weight_cap: .* found 0.5; use 2"),
        ({"divergence_limit": 0.0}, "surrogate.divergence_limit: expected > 0, found 0.0"),
        ({"aggregation": "constant"}, "surrogate.horizon: .* found 0 for constant"),
        ({"horizon": 8}, "surrogate.horizon: .* found 8 for token"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Surrogate(**options)
