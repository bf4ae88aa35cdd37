"""Dynamic sampling: groups whose members all return the same make room for groups of further rollouts.

After DAPO (arXiv 2503.14476, section 3.2). Whether such groups teach nothing is the algorithm's to say
(`Algorithm.drops_silent_groups`); that every rollout costs is the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlflow import distributed
from rlflow.advantage import SILENT, episode_return, group_moments
from rlflow.rollout import LIKELIHOODS, Rollout


def refilled(first: Rollout, further: Callable[[int], Rollout], *, limit: int) -> tuple[Rollout, int]:
    """As many rows as `first` has, from groups that teach, collected until there are enough or `limit` is reached.

    Ranks collect together, each for its own rows, until the last one has enough. Where the limit comes first, silent
    groups of the earliest rollouts fill the rest. Reward terms and metrics are those of all rollouts: the kept ones
    alone would tell of a policy that never fails or succeeds throughout.

    Args:
        first: Scored rollout.
        further: The n-th scored rollout after it, n from 1.
        limit: Most calls of `further`.

    Returns:
        The rollout without its extras, and the number of rollouts that were collected.
    """
    rounds = [first]
    while len(rounds) <= limit and distributed.all_max(_missing(rounds), first.device):
        rounds.append(further(len(rounds)))
    teaching = torch.cat([teaching_rows(r) for r in rounds])
    order = torch.argsort((~teaching).int(), stable=True)[: first.num_rollouts].sort().values
    kept = join(rounds, order)
    collected = sum(r.num_rollouts for r in rounds)
    names = first.metrics.keys()
    kept.metrics = {name: sum(r.metrics[name] for r in rounds) / len(rounds) for name in names} | {
        "collected": float(len(rounds)),
        "discarded_fraction": 1.0 - first.num_rollouts / collected,
        "silent_fraction": 1.0 - float(teaching.float().mean()),
    }
    kept.reward_terms = {name: torch.cat([r.reward_terms[name] for r in rounds]) for name in first.reward_terms}
    return kept, len(rounds)


def teaching_rows(rollout: Rollout) -> Tensor:
    """`[B]` bool, True in groups whose returns differ."""
    returns = episode_return(rollout.reward, rollout.mask)[:, :1]
    _, std = group_moments(returns, rollout.group, rollout.mask.any(dim=1, keepdim=True))
    return std[:, 0] > SILENT


def join(rollouts: Sequence[Rollout], rows: Tensor) -> Rollout:
    """The given rows, in ascending order, of scored rollouts laid one behind the other.

    Decisions are padded at their end and masked there. Contexts that are no decision's own are padded at the front of
    their second axis, where a prompt is padded.

    Args:
        rollouts: Of one task, without `old_log_prob`.
        rows: `[n]` int64, ascending.
    """
    width = max(r.mask.shape[1] for r in rollouts)
    independent = rollouts[0].decisions_independent

    def decisions(leaves: Sequence[Tensor]) -> Tensor:
        return torch.cat([_padded(x, width, front=False) for x in leaves])[rows]

    def contexts(leaves: Sequence[Tensor]) -> Tensor:
        longest = max((x.shape[1] for x in leaves if x.ndim > 1), default=0)
        return torch.cat([_padded(x, longest, front=True) if x.ndim > 1 else x for x in leaves])[rows]

    fields: dict[str, Any] = {
        name: decisions([getattr(r, name) for r in rollouts]) for name in ("mask", "reward", "terminated", "boundary")
    }
    context = decisions if independent else contexts
    likelihoods = {name: [getattr(r, name) for r in rollouts] for name in LIKELIHOODS}
    fields |= {name: decisions(found) for name, found in likelihoods.items() if all(x is not None for x in found)}
    return Rollout(
        **fields,
        context={name: context([r.context[name] for r in rollouts]) for name in rollouts[0].context},
        action={name: decisions([r.action[name] for r in rollouts]) for name in rollouts[0].action},
        group=torch.cat([r.group for r in rollouts])[rows],
        boundary_context=_boundary_contexts(rollouts, rows),
        decisions_independent=independent,
    )


def _missing(rounds: Sequence[Rollout]) -> int:
    """Whether this rank has fewer rows of teaching groups than a rollout has."""
    return int(sum(int(teaching_rows(r).sum()) for r in rounds) < rounds[0].num_rollouts)


def _boundary_contexts(rollouts: Sequence[Rollout], rows: Tensor) -> dict[str, Tensor] | None:
    """Contexts behind the open boundaries of the given rows, in the row-major order that they are kept in."""
    kept = [r.boundary_context for r in rollouts if r.boundary_context]
    if not kept:
        return None
    before, owners = 0, []
    for r in rollouts:
        if r.boundary_context:
            owners.append(before + (r.boundary & ~r.terminated).nonzero()[:, 0])
        before += r.num_rollouts
    wanted = torch.isin(torch.cat(owners), rows)
    return {name: torch.cat([part[name] for part in kept])[wanted] for name in kept[0]}


def _padded(x: Tensor, width: int, *, front: bool) -> Tensor:
    """`x [B, w, ...]` with zeros up to `width` along its second axis."""
    gap = width - x.shape[1]
    sides = [0, 0] * (x.ndim - 2) + ([gap, 0] if front else [0, gap])
    return pad(x, sides) if gap else x
