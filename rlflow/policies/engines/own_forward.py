"""The policy's own forward with a key-value cache: works wherever the policy trains, without a copy of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlflow.policies.engines.engine import Completions, Engine, LanguageModel
from rlflow.random import Noise

KEPT_SHARE = 0.8
"""Share of a batch that is still being written, below which ended rows are taken out: each time the cache is copied."""


@dataclass(kw_only=True)
class OwnForward(Engine):
    """Batched inverse-CDF sampling: of equal prompts in a row one is read, and rows that have ended leave the batch.

    It reports log-probabilities only where they are asked for: the trainer's replay of the same module differs from
    them by rounding alone.
    """

    takes_sharded: ClassVar[bool] = True

    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """One uniform draw of `noise` per row and token."""
        # Imports transformers, which resolving a configuration need not wait for.
        from rlflow.policies.engines.kv_cache import distinct_rows, roomy_cache

        prompt, sampling = context["prompt"], model.sampling
        n, limit = prompt.shape[0], sampling.max_new_tokens
        draws = noise.uniform((n, limit))
        token = torch.full((n, limit), sampling.pad_id, dtype=torch.int64, device=prompt.device)
        mask = torch.zeros(n, limit, dtype=torch.bool, device=prompt.device)
        said = torch.zeros(n, limit, device=prompt.device) if sampling.with_log_prob else None
        asked, which = distinct_rows(prompt, context["prompt_mask"])
        ids, attention = prompt[asked], context["prompt_mask"][asked].long()
        position, cache = (attention.cumsum(-1) - 1).clamp_min(0), roomy_cache(model.actor)
        rows = torch.arange(n, device=prompt.device)  # of the batch, those still in it
        alive = torch.ones(n, dtype=torch.bool, device=prompt.device)
        for t in range(limit):
            logits = model.actor(
                input_ids=ids, attention_mask=attention, position_ids=position, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            position = position[:, -1:] + 1
            if t == 0:
                cache.reorder_cache(which)
                logits, attention, position = logits[which], attention[which], position[which]
            log_p = model.log_softmax(logits)
            choice = _inverse_cdf(log_p, draws[rows, t])
            token[rows, t], mask[rows, t] = torch.where(alive, choice, sampling.pad_id), alive
            if said is not None:
                said[rows, t] = torch.where(alive, log_p.gather(1, choice.unsqueeze(1)).squeeze(1), 0.0)
            alive = alive & (choice != sampling.eos_id)
            kept = alive.nonzero()[:, 0]
            if len(kept) == 0:
                break
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            if len(kept) < KEPT_SHARE * len(rows):
                cache.reorder_cache(kept)
                rows, alive, attention, position = rows[kept], alive[kept], attention[kept], position[kept]
            ids = token[rows, t].unsqueeze(1)
        return Completions(token=token, mask=mask, log_prob=said)


def _inverse_cdf(log_p: Tensor, draws: Tensor) -> Tensor:
    """Index `[n]` at which the cumulative probability of `log_p [n, V]` passes `draws [n]`; never a token of mass 0."""
    cdf = log_p.exp().double().cumsum(-1)
    reach = draws.double().unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, reach, right=True).squeeze(-1).clamp_max(log_p.shape[-1] - 1)
