"""The policy's own forward with a key-value cache: works wherever the policy trains, without a copy of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlflow.policies.engines.engine import Completions, Engine, LanguageModel
from rlflow.random import Noise


@dataclass(kw_only=True)
class OwnForward(Engine):
    """Batched inverse-CDF sampling; all rows take as many steps as the longest one.

    It reports no log-probabilities: the trainer's replay of the same module differs from them by rounding alone.
    """

    takes_sharded: ClassVar[bool] = True

    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """One uniform draw of `noise` per row and token."""
        prompt, attention = context["prompt"], context["prompt_mask"].long()
        sampling = model.sampling
        n, limit = prompt.shape[0], sampling.max_new_tokens
        draws = noise.uniform((n, limit))
        token = torch.full((n, limit), sampling.pad_id, dtype=torch.int64, device=prompt.device)
        mask = torch.zeros(n, limit, dtype=torch.bool, device=prompt.device)
        alive = torch.ones(n, dtype=torch.bool, device=prompt.device)
        ids, position, cache = prompt, (attention.cumsum(-1) - 1).clamp_min(0), None
        for t in range(limit):
            out = model.actor(
                input_ids=ids, attention_mask=attention, position_ids=position, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            choice = _inverse_cdf(model.log_softmax(out.logits[:, -1]), draws[:, t])
            token[:, t] = torch.where(alive, choice, sampling.pad_id)
            mask[:, t] = alive
            alive = alive & (choice != sampling.eos_id)
            if not bool(alive.any()):
                break
            ids, position = token[:, t : t + 1], position[:, -1:] + 1
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        return Completions(token=token, mask=mask)


def _inverse_cdf(log_p: Tensor, draws: Tensor) -> Tensor:
    """Index `[n]` at which the cumulative probability of `log_p [n, V]` passes `draws [n]`; never a token of mass 0."""
    cdf = log_p.exp().double().cumsum(-1)
    reach = draws.double().unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, reach, right=True).squeeze(-1).clamp_max(log_p.shape[-1] - 1)
