"""Public conformance checks: what every algorithm and every task must satisfy, for built-ins and plugins alike.

import pytest
from rlflow.testing import algorithm_checks, task_checks

@pytest.mark.parametrize("check", algorithm_checks(), ids=lambda c: c.__name__)
def test_my_algorithm(check):
    check(MyAlgorithm())

`rlflow check NAME` runs them on a registered plugin. The checks of tasks are in `rlflow.testing_tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields

import torch
from torch import Tensor

from rlflow.algorithm import Algorithm
from rlflow.bucketing import by_length
from rlflow.conformance import ConformanceError, demand, demand_configuration, scored_rollout
from rlflow.policy import PROTOCOLS, Policy, capabilities
from rlflow.random import Noise, generator
from rlflow.registry import find
from rlflow.rollout import Minibatch, Rollout, flatten_targets, minibatch
from rlflow.task import Task
from rlflow.testing_tasks import TaskCheck, task_checks
from rlflow.toy import KINDS, ToyTask

__all__ = ["AlgorithmCheck", "ConformanceError", "TaskCheck", "algorithm_checks", "task_checks"]

EXACT = 0.0
CLOSE = 2e-5

AlgorithmCheck = Callable[[Algorithm], None]


def algorithm_checks() -> list[AlgorithmCheck]:
    """Checks that take an algorithm and run it on every policy kind that it can use."""
    return [
        check_constructor_is_the_configuration,
        check_requires_known_capabilities,
        check_ratio_is_one_on_the_first_minibatch,
        check_targets_carry_no_gradient,
        check_gradient_ignores_micro_batches_and_row_order,
        check_gradient_ignores_padding,
        check_masked_decisions_have_no_gradient,
        check_rewarded_decision_becomes_likelier,
    ]


def usable_kinds(algorithm: Algorithm) -> list[str]:
    """Policy kinds that have every capability the algorithm requires."""
    return [k for k in KINDS if algorithm.requires <= capabilities(find("policy", k).load())]


def check_constructor_is_the_configuration(algorithm: Algorithm) -> None:
    """Settings are the fields of a frozen dataclass, of types that a configuration can hold, all with defaults."""
    demand_configuration(algorithm)
    missing = [f.name for f in fields(algorithm) if f.default is MISSING and f.default_factory is MISSING]
    demand(not missing, f"fields {missing} have no default", "give the vetted setting as the default")


def check_requires_known_capabilities(algorithm: Algorithm) -> None:
    """`requires` names known capabilities and at least one policy kind offers them all."""
    unknown = algorithm.requires - PROTOCOLS.keys()
    demand(not unknown, f"requires names unknown capabilities {sorted(unknown)}", f"choose among {sorted(PROTOCOLS)}")
    demand(
        bool(usable_kinds(algorithm)),
        f"no policy offers all of {sorted(algorithm.requires)}",
        "require less; `rlflow list` shows what each policy answers",
    )


def check_ratio_is_one_on_the_first_minibatch(algorithm: Algorithm) -> None:
    """Before any update the replayed likelihood equals the recorded one exactly; `loss/ratio`, where given, is 1."""
    for kind, policy, part in _cases(algorithm):
        if part.old_log_prob is not None:
            with torch.no_grad():
                error = (policy.log_prob(part) - part.old_log_prob)[part.mask].abs().max()
            demand(
                float(error) == EXACT,
                f"{kind}: |delta log_prob| = {float(error):.3g} on the first minibatch",
                "leave rollout.old_log_prob, context and action as they are in targets()",
            )
        ratio = algorithm.loss(policy, part).metrics.get("ratio")
        demand(
            ratio is None or abs(float(ratio) - 1) <= CLOSE,
            f"{kind}: ratio {ratio} on the first minibatch",
            "compare with minibatch.behaviour_log_prob, and reduce the metric with minibatch.mean or mean_rows",
        )


def check_targets_carry_no_gradient(algorithm: Algorithm) -> None:
    """Targets are finite, lead with `[B, T]` and carry no gradient.

    Raises:
        ValueError: From `Targets`, a gradient; from `flatten_targets`, another shape.
    """
    for kind, _, part in _cases(algorithm):
        for name, tensor in part.targets.items():
            demand(
                bool(torch.isfinite(tensor[part.mask]).all()),
                f"{kind}: target {name} is not finite",
                "guard divisions by a standard deviation that may be 0, as rlflow.advantage does",
            )


def check_gradient_ignores_micro_batches_and_row_order(algorithm: Algorithm) -> None:
    """The loss of the optimiser batch is a mean over all decisions, so splitting or shuffling it changes nothing."""
    for kind, policy, part in _cases(algorithm):
        whole = gradient(algorithm, policy, [part])
        shuffled = part.rows_of(torch.randperm(part.num_rollouts, generator=generator(0, "order")))
        _same(f"{kind}: micro-batches of 3 rows", whole, gradient(algorithm, policy, list(part.split(3))))
        _same(f"{kind}: rows of like length", whole, gradient(algorithm, policy, list(by_length(part, 8))))
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
        demand(
            largest == EXACT,
            f"{kind}: gradient of size {largest:.3g} where mask is False",
            "reduce with minibatch.mean or minibatch.mean_rows, which leave masked decisions out",
        )


def check_rewarded_decision_becomes_likelier(algorithm: Algorithm) -> None:
    """Forty iterations on the two-armed bandit raise the share of the good arm."""
    for kind in usable_kinds(algorithm):
        before, after = _train_bandit(algorithm, kind)
        demand(
            after > before + 0.1,
            f"{kind}: share of the rewarded arm {before:.2f} -> {after:.2f} in 40 iterations",
            "terms are minimised: check the sign of the policy term, and that it is differentiable",
        )


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
    return policy, whole_minibatch(algorithm, policy, scored_rollout(task, policy, seed))


@torch.no_grad()
def whole_minibatch(algorithm: Algorithm, policy: Policy, rollout: Rollout) -> Minibatch:
    """All rows of a scored rollout with their targets."""
    targets = algorithm.targets(policy, rollout)
    window = algorithm.row_decisions
    rows, goals = rollout.flatten(window), flatten_targets(targets, rollout, window)
    return minibatch(rows, goals, torch.arange(rows.num_rollouts), float(rows.mask.sum()), float(rows.num_rollouts))


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
        rollout = scored_rollout(task, policy, iteration)
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
    demand(
        math.isfinite(scale) and scale > 0,
        f"{what}: the gradient is {scale}",
        "a term must depend on the policy through what `requires` names",
    )
    for name, g in expected.items():
        error = float((g - found[name]).abs().max())
        demand(
            error <= CLOSE * max(scale, 1.0),
            f"{what}: the gradient of {name} changes by {error:.3g}",
            "reduce with minibatch.mean or minibatch.mean_rows, never with .mean() or .sum(); treat rows alike",
        )
