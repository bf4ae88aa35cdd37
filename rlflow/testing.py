"""Public conformance checks: what every algorithm and every task must satisfy, for built-ins and plugins alike.

import pytest
from rlflow.testing import algorithm_checks, task_checks

@pytest.mark.parametrize("check", algorithm_checks(), ids=lambda c: c.__name__)
def test_my_algorithm(check):
    check(MyAlgorithm())
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rlflow.algorithm import Algorithm
from rlflow.policy import PROTOCOLS, Policy, capabilities
from rlflow.random import Noise, generator
from rlflow.registry import find
from rlflow.rollout import Minibatch, Rollout, assert_shapes, flatten_targets, minibatch
from rlflow.task import Task
from rlflow.toy import KINDS, ToyTask

EXACT = 0.0
CLOSE = 2e-5

AlgorithmCheck = Callable[[Algorithm], None]
TaskCheck = Callable[[Task], None]


class ConformanceError(AssertionError):
    """A plugin breaks the contract; says which rule, on which policy, and by how much."""


def algorithm_checks() -> list[AlgorithmCheck]:
    """Checks that take an algorithm and run it on every policy kind that it can use."""
    return [
        check_requires_known_capabilities,
        check_ratio_is_one_on_the_first_minibatch,
        check_targets_carry_no_gradient,
        check_gradient_ignores_micro_batches_and_row_order,
        check_gradient_ignores_padding,
        check_masked_decisions_have_no_gradient,
        check_rewarded_decision_becomes_likelier,
    ]


def task_checks() -> list[TaskCheck]:
    """Checks that take a small instance of a task (a few groups, short rollouts)."""
    return [
        check_rollout_shapes_and_groups,
        check_rollout_is_reproducible,
        check_state_round_trip,
        check_score_is_finite_and_named,
        check_evaluation_is_frozen,
    ]


def usable_kinds(algorithm: Algorithm) -> list[str]:
    """Policy kinds that have every capability the algorithm requires."""
    return [k for k in KINDS if algorithm.requires <= capabilities(find("policy", k).load())]


def check_requires_known_capabilities(algorithm: Algorithm) -> None:
    """`requires` names known capabilities and at least one policy kind offers them all."""
    unknown = algorithm.requires - PROTOCOLS.keys()
    _demand(not unknown, f"requires names unknown capabilities {sorted(unknown)}; known: {sorted(PROTOCOLS)}")
    _demand(bool(usable_kinds(algorithm)), f"no policy offers all of {sorted(algorithm.requires)}")


def check_ratio_is_one_on_the_first_minibatch(algorithm: Algorithm) -> None:
    """Before any update the replayed likelihood equals the recorded one exactly; `loss/ratio`, where given, is 1."""
    for kind, policy, part in _cases(algorithm):
        if part.old_log_prob is not None:
            with torch.no_grad():
                error = (policy.log_prob(part) - part.old_log_prob)[part.mask].abs().max()
            _demand(float(error) == EXACT, f"{kind}: |delta log_prob| = {float(error):.3g} on the first minibatch")
        ratio = algorithm.loss(policy, part).metrics.get("ratio")
        _demand(ratio is None or abs(float(ratio) - 1) <= CLOSE, f"{kind}: ratio {ratio} on the first minibatch")


def check_targets_carry_no_gradient(algorithm: Algorithm) -> None:
    """Targets are computed once, without gradient, for every decision."""
    for kind, _, part in _cases(algorithm):
        for name, tensor in part.targets.items():
            _demand(not tensor.requires_grad, f"{kind}: target {name} requires grad")
            _demand(
                tensor.shape[:2] == part.mask.shape, f"{kind}: target {name} is {list(tensor.shape)}, not [B, T, ...]"
            )


def check_gradient_ignores_micro_batches_and_row_order(algorithm: Algorithm) -> None:
    """The loss of the optimiser batch is a mean over all decisions, so splitting or shuffling it changes nothing."""
    for kind, policy, part in _cases(algorithm):
        whole = gradient(algorithm, policy, [part])
        shuffled = part.rows_of(torch.randperm(part.num_rollouts, generator=generator(0, "order")))
        _same(f"{kind}: micro-batches of 3 rows", whole, gradient(algorithm, policy, list(part.split(3))))
        _same(f"{kind}: another row order", whole, gradient(algorithm, policy, [shuffled]))


def check_gradient_ignores_padding(algorithm: Algorithm) -> None:
    """Masked rows at the end of a minibatch change nothing."""
    for kind, policy, part in _cases(algorithm):
        whole = gradient(algorithm, policy, [part])
        index = torch.cat([torch.arange(part.num_rollouts), torch.zeros(2, dtype=torch.int64)])
        padded = part.rows_of(index)
        padded.mask = padded.mask.clone()
        padded.mask[-2:] = False
        _same(f"{kind}: two masked rows", whole, gradient(algorithm, policy, [padded]))


def check_masked_decisions_have_no_gradient(algorithm: Algorithm) -> None:
    """A minibatch without any trainable decision gives no gradient at all."""
    for kind, policy, part in _cases(algorithm):
        silent = part.rows_of(torch.arange(part.num_rollouts))
        silent.mask = torch.zeros_like(part.mask)
        largest = max(float(g.abs().max()) for g in gradient(algorithm, policy, [silent]).values())
        _demand(largest == EXACT, f"{kind}: gradient of size {largest:.3g} where mask is False")


def check_rewarded_decision_becomes_likelier(algorithm: Algorithm) -> None:
    """Forty iterations on the two-armed bandit raise the share of the good arm."""
    for kind in usable_kinds(algorithm):
        before, after = _train_bandit(algorithm, kind)
        _demand(after > before + 0.1, f"{kind}: share of the rewarded arm {before:.2f} -> {after:.2f} in 40 iterations")


def check_rollout_shapes_and_groups(task: Task) -> None:
    """The block has the documented shapes and `group_size` rows per start."""
    _, rollout = _task_rollout(task)
    assert_shapes(rollout)
    counts = torch.unique(rollout.group, return_counts=True)[1]
    _demand(bool((counts == task.group_size).all()), f"group sizes {counts.tolist()}, expected {task.group_size} each")
    total = rollout.num_rollouts * (rollout.mask.shape[1] if rollout.decisions_independent else 1)
    _demand(total == task.rows_per_rollout, f"{total} rows, but rows_per_rollout says {task.rows_per_rollout}")


def check_rollout_is_reproducible(task: Task) -> None:
    """The same seed gives the same block from a fresh copy of the task, whatever torch's global generator does."""
    first, second = (_task_rollout(copy.deepcopy(task), global_seed=seed)[1] for seed in (1, 2))
    for name, tensor in first.action.items():
        _demand(torch.equal(tensor, second.action[name]), f"action.{name} differs between two runs from one seed")


def check_state_round_trip(task: Task) -> None:
    """A rollout after `load_state_dict` equals the one that would have followed."""
    original = copy.deepcopy(task)
    policy, _ = _task_rollout(original)
    state = copy.deepcopy(original.state_dict())
    following = _collect(original, policy, seed=1)
    restored = copy.deepcopy(task)
    restored.load_state_dict(state)
    again = _collect(restored, policy, seed=1)
    _demand(torch.equal(following.reward, again.reward), "rewards after a state round trip differ")
    for name, tensor in following.action.items():
        _demand(torch.equal(tensor, again.action[name]), f"action.{name} after a state round trip differs")


def check_score_is_finite_and_named(task: Task) -> None:
    """Rewards are finite on trainable decisions and their components are logged."""
    _, rollout = _task_rollout(task)
    _demand(bool(torch.isfinite(rollout.reward).all()), "rewards are not finite")
    _demand(bool(rollout.reward_terms), "score() filled no reward_terms")


def check_evaluation_is_frozen(task: Task) -> None:
    """Two evaluations of one policy agree, whatever generator they are given, and name a score."""
    policy, _ = _task_rollout(task)
    with torch.no_grad():
        first, second = (task.evaluate(policy, Noise(generator=generator(seed, "eval"))) for seed in (1, 2))
    _demand("score" in first.metrics, f"evaluate() gives {sorted(first.metrics)}, no 'score'")
    unknown = [name for name in task.guards if name not in first.metrics]
    _demand(not unknown, f"guards {unknown} are not among the metrics of evaluate(): {sorted(first.metrics)}")
    _demand(first.metrics["score"] == second.metrics["score"], "two evaluations of one policy differ")


def gradient(algorithm: Algorithm, policy: Policy, parts: list[Minibatch]) -> dict[str, Tensor]:
    """Gradient of each trainable parameter, accumulated over the parts of one optimiser batch."""
    policy.zero_grad(set_to_none=True)
    for part in parts:
        algorithm.loss(policy, part.replace()).total.backward()  # type: ignore[no-untyped-call]
    named = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()}


def scored_batch(algorithm: Algorithm, task: Task, seed: int = 0) -> tuple[Policy, Minibatch]:
    """A fresh policy, slightly off its reference, and the minibatch of one whole scored rollout."""
    torch.manual_seed(seed)
    policy = task.build_policy(algorithm.requires).eval()
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator(seed, "nudge")))
    return policy, whole_minibatch(algorithm, policy, _collect(task, policy, seed))


@torch.no_grad()
def whole_minibatch(algorithm: Algorithm, policy: Policy, rollout: Rollout) -> Minibatch:
    """All rows of a scored rollout with their targets."""
    targets = algorithm.targets(policy, rollout)
    window = algorithm.row_decisions
    rows, goals = rollout.flatten(window), flatten_targets(targets, rollout, window)
    return minibatch(rows, goals, torch.arange(rows.num_rollouts), float(rows.mask.sum()), float(rows.num_rollouts))


@torch.no_grad()
def _collect(task: Task, policy: Policy, seed: int) -> Rollout:
    ids = task.starts()
    starts = torch.tensor([ids[i] for i in range(task.groups_per_rollout)])
    rollout = task.rollout(policy, starts, Noise(generator=generator(seed, "rollout")))
    policy.record_behaviour(rollout)
    return task.score(rollout)


def _task_rollout(task: Task, global_seed: int = 0) -> tuple[Policy, Rollout]:
    torch.manual_seed(0)
    policy = task.build_policy(frozenset({"log_prob"})).eval()
    torch.manual_seed(global_seed)
    return policy, _collect(task, policy, seed=0)


def _cases(algorithm: Algorithm) -> Iterator[tuple[str, Policy, Minibatch]]:
    for kind in usable_kinds(algorithm):
        horizon = 3 if kind == "causal_lm" else max(algorithm.row_decisions, 1)
        task = ToyTask(kind=kind, horizon=horizon, groups_per_rollout=3, group_size=4)  # type: ignore[arg-type]
        policy, part = scored_batch(algorithm, task)
        yield kind, policy, part


def _train_bandit(algorithm: Algorithm, kind: str) -> tuple[float, float]:
    horizon = 2 if kind == "causal_lm" else max(algorithm.row_decisions, 1)
    task = ToyTask(kind=kind, horizon=horizon, groups_per_rollout=16, group_size=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = task.build_policy(algorithm.requires).eval()
    optimiser = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    before = task.evaluate(policy, Noise(generator=generator(0))).metrics["score"]
    for iteration in range(40):
        rollout = _collect(task, policy, iteration)
        part = whole_minibatch(algorithm, policy, rollout)
        for _ in range(2):
            optimiser.zero_grad()
            algorithm.loss(policy, part.replace()).total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        policy.end_iteration(rollout)
    after = task.evaluate(policy, Noise(generator=generator(0))).metrics["score"]
    return before, after


def _same(what: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    scale = max(float(g.abs().max()) for g in expected.values())
    _demand(math.isfinite(scale) and scale > 0, f"{what}: the gradient is {scale}")
    for name, g in expected.items():
        error = float((g - found[name]).abs().max())
        _demand(error <= CLOSE * max(scale, 1.0), f"{what}: the gradient of {name} changes by {error:.3g}")


def _demand(ok: bool, message: str) -> None:
    if not ok:
        raise ConformanceError(message)
