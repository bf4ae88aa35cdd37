import pytest
import torch

from algorithms.flow_grpo import FlowGrpo
from algorithms.ppo import Ppo
from rlflow.kl_penalty import KlPenalty
from rlflow.surrogate import Surrogate
from tests.fakes import FakePolicy, block, fit, load, part, toy_loop, weights
from tests.test_trainer import StopAt

EXACT = 1e-6


def penalised(kl, **changes):
    """The loss at ratio 1 and d = log pi - log ref of .5 and -1, with an exact KL of .2 and .4."""
    algorithm = FlowGrpo(beta=0.1, kl=kl, **changes)
    policy = FakePolicy(log_prob=torch.zeros(2, 1, 1, requires_grad=True), kl=torch.tensor([[[0.2]], [[0.4]]]))
    goal = {"advantage": torch.tensor([[1.0], [-3.0]]), "ref_log_prob": torch.tensor([[[-0.5]], [[1.0]]])}
    return algorithm.loss(policy, part(goal, old_log_prob=torch.zeros(2, 1, 1))), policy


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # exact: (.2 + .4)/2; k2: (.125 + .5)/2; k3: (e^-.5 - 1 + .5 = .106531, e - 2 = .718282)/2; times .1
        ("auto", 0.03),
        ("exact", 0.03),
        ("k2", 0.03125),
        ("k3", 0.0412406),
    ],
)
def test_the_estimator_in_the_loss_by_hand(estimator, expected):
    loss, _ = penalised(KlPenalty(estimator=estimator))
    assert loss.terms["kl"].item() == pytest.approx(expected, abs=EXACT)
    # Policy: (-1 + 3)/2
    assert loss.total.item() == pytest.approx(1.0 + expected, abs=EXACT)
    assert loss.metrics["ref_kl"].item() == pytest.approx(10 * expected, abs=10 * EXACT)


def test_the_gradient_of_k2_pulls_towards_the_reference():
    loss, policy = penalised(KlPenalty(estimator="k2"))
    loss.terms["kl"].backward()
    # .1 * d / 2 decisions
    assert torch.allclose(policy.answers["log_prob"].grad.flatten(), torch.tensor([0.025, -0.05]), atol=EXACT)


def test_the_penalty_in_the_loss_is_reduced_like_the_policy_term():
    goal = {"advantage": torch.zeros(2, 3), "ref_log_prob": torch.full((2, 3, 1), -1.0)}
    mask = torch.tensor([[True, False, False], [True, True, True]])
    policy = FakePolicy(log_prob=torch.tensor([[[0.0]] * 3, [[1.0]] * 3]))
    mini = part(goal, mask=mask, old_log_prob=policy.answers["log_prob"])
    surrogate = Surrogate(aggregation="sequence")
    loss = FlowGrpo(beta=1.0, kl=KlPenalty(estimator="k2"), surrogate=surrogate).loss(policy, mini)
    # d = 1 and 2: k2 = .5 in a row of one, 2 in a row of three. Row means: 1.25; the metric: (.5 + 6)/4.
    assert loss.terms["kl"].item() == pytest.approx(1.25, abs=EXACT)
    assert loss.metrics["ref_kl"].item() == pytest.approx(1.625, abs=EXACT)


def test_an_estimate_reads_the_reference_once_per_rollout():
    policy = FakePolicy(ref_log_prob=torch.full((2, 1, 1), -2.0))
    rollout = block([[0.0], [1.0]], old_log_prob=torch.zeros(2, 1, 1))
    assert "ref_log_prob" in FlowGrpo(beta=0.1, kl=KlPenalty(estimator="k3")).targets(policy, rollout).tensors
    assert "ref_log_prob" not in FlowGrpo(beta=0.1).targets(policy, rollout).tensors


@pytest.mark.parametrize(
    ("estimator", "penalties"),
    [
        # d = 1.5 and -1 summed over two steps of .5, 1 and -1, 0; k2: .125 + .5, .5 + 0
        ("auto", [1.5, -1.0]),
        ("k2", [0.625, 0.5]),
        ("exact", [3.0, 7.0]),
    ],
)
def test_the_estimator_in_the_reward_by_hand(estimator, penalties):
    rollout = block([[1.0], [1.0]], old_log_prob=torch.tensor([[[-1.0, -1.0]], [[-2.0, -1.0]]]))
    policy = FakePolicy(
        value=torch.zeros(2, 1),
        ref_log_prob=torch.tensor([[[-1.5, -2.0]], [[-1.0, -1.0]]]),
        kl=torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]),
    )
    algorithm = Ppo(kl_weight=0.1, kl=KlPenalty(estimator=estimator), whiten_advantage=False)
    targets = algorithm.targets(policy, rollout)
    expected = torch.tensor([[1 - 0.1 * p] for p in penalties])
    assert torch.allclose(targets.tensors["advantage"], expected, atol=EXACT)
    assert float(targets.metrics["ref_kl"]) == pytest.approx(sum(penalties) / 2, abs=EXACT)


def test_masked_decisions_have_no_penalty():
    # The exact KL of a policy is not 0 behind the end of a text.
    rollout = block([[0.0, 0.0]], mask=torch.tensor([[True, False]]))
    policy = FakePolicy(kl=torch.tensor([[[1.0, 2.0], [5.0, 5.0]]]))
    assert KlPenalty(estimator="exact").in_reward(policy, rollout).tolist() == [[3.0, 0.0]]


def test_groups_are_compared_after_the_penalty_in_the_reward():
    rollout = block([[1.0, 0.0], [1.0, 0.0]], old_log_prob=torch.tensor([[[0.0], [0.0]], [[2.0], [9.0]]]))
    rollout.mask = torch.tensor([[True, True], [True, False]])
    policy = FakePolicy(ref_log_prob=torch.zeros(2, 2, 1))
    algorithm = FlowGrpo(beta=0.5, kl_in="reward", scale="none")
    targets = algorithm.targets(policy, rollout)
    # Returns 1 and 1 - .5*2 = 0; the masked decision's penalty counts nowhere.
    assert targets.tensors["advantage"].tolist() == [[0.5, 0.5], [-0.5, 0.0]]
    mini = part({"advantage": torch.zeros(1, 1)}, old_log_prob=torch.zeros(1, 1, 1))
    assert set(algorithm.loss(FakePolicy(log_prob=torch.zeros(1, 1, 1)), mini).terms) == {"policy"}


@pytest.mark.parametrize(
    ("controller", "found", "expected"),
    [
        ("fixed", 9.0, {}),
        # Target .1: doubled above .15, halved below .0667.
        ("doubling", 0.16, {"kl_weight": 0.4}),
        ("doubling", 0.14, {"kl_weight": 0.2}),
        ("doubling", 0.06, {"kl_weight": 0.1}),
        # Error .1/.1 - 1 = 0; .11: .1; 9: clipped to .2; 0: -1, clipped to -.2. Gain .5.
        ("proportional", 0.1, {"kl_weight": 0.2}),
        ("proportional", 0.11, {"kl_weight": 0.21}),
        ("proportional", 9.0, {"kl_weight": 0.22}),
        ("proportional", 0.0, {"kl_weight": 0.18}),
    ],
)
def test_controllers_by_hand(controller, found, expected):
    kl = KlPenalty(controller=controller, target=0.1, gain=0.5)
    controls = kl.controls(0.2)
    assert kl.adjusted(controls, {"loss/ref_kl": found}) == pytest.approx(expected)
    assert kl.adjusted(controls, {"advantage/ref_kl": found}) == pytest.approx(expected)


def test_the_loss_and_the_reward_take_the_controlled_weight():
    kl = KlPenalty(controller="doubling", target=0.1)
    mini = part({"advantage": torch.zeros(1, 1)}, old_log_prob=torch.zeros(1, 1, 1), controls={"kl_weight": 3.0})
    policy = FakePolicy(log_prob=torch.zeros(1, 1, 1), kl=torch.full((1, 1, 1), 2.0), value=torch.zeros(1, 1))
    assert FlowGrpo(beta=0.1, kl=kl).loss(policy, mini).terms["kl"].item() == pytest.approx(6.0)
    policy.answers["ref_log_prob"] = torch.full((1, 1, 1), -2.0)
    rollout = block([[1.0]], old_log_prob=torch.zeros(1, 1, 1), controls={"kl_weight": 3.0})
    algorithm = Ppo(kl_weight=0.1, kl=kl, whiten_advantage=False)
    # 1 - 3*2
    assert algorithm.targets(policy, rollout).tensors["advantage"].item() == pytest.approx(-5.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FlowGrpo(beta=0.1, kl=KlPenalty(estimator="k1")), "found k1, whose gradient there is zero on average"),
        (lambda: Ppo(kl_weight=0.1, kl_in="loss", kl=KlPenalty(estimator="k1")), r"set kl\.estimator=k2"),
        (lambda: FlowGrpo(beta=0.1, kl=KlPenalty(controller="doubling")), r"found kl\.target=0\.0"),
        (lambda: FlowGrpo(kl=KlPenalty(controller="proportional", target=0.1)), "and the weight 0.0"),
    ],
)
def test_penalties_that_cannot_work_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


ADAPTIVE = ["task.kind=gaussian", "update.lr=0.01", "algorithm.kl.controller=doubling", "algorithm.kl.target=0.01"]


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("ppo", ["algorithm.kl_weight=0.1"]), ("flow_grpo", ["algorithm.beta=0.1"])],
)
def test_an_adaptive_weight_survives_the_checkpoint(algorithm, settings, tmp_path):
    whole = fit(toy_loop(algorithm, tmp_path / "whole", *ADAPTIVE, *settings))
    curve = whole.tracker.curve("update/kl_weight")
    # The weight of each iteration, which moves.
    assert curve[0][1] == 0.1
    assert len({value for _, value in curve}) > 2
    with pytest.raises(RuntimeError, match="power cut"):
        fit(toy_loop(algorithm, tmp_path / "cut", *ADAPTIVE, *settings, tracker=StopAt(32)))
    resumed = toy_loop(algorithm, tmp_path / "cut", *ADAPTIVE, *settings)
    resumed.resume(load(tmp_path / "cut"))
    fit(resumed)
    assert resumed.tracker.curve("update/kl_weight") == curve[3:]
    assert resumed.controls == whole.controls
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
