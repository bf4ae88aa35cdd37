"""Causal language model policy: a decision is a token, K = 1, ragged rows end at the first EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlflow.policies.heads import mlp, partition_mlp
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sampling and likelihood of a causal LM policy.

    Attributes:
        max_new_tokens: T, longest completion. Too low: solutions are cut (`unfinished`).
        temperature: Divides the logits in sampling AND in the likelihood; another one off-policies every ratio.
        critic_hidden: Width of the value head.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    critic_hidden: int = 128


class CausalLMPolicy(Policy):
    """A transformers causal LM with optional value and log Z heads on its (detached) hidden states.

    Context: `prompt [B, C]` int64, left-padded, and `prompt_mask [B, C]` bool. Action: `token [B, T]` int64.
    """

    elbo_is_tight: ClassVar[bool] = True

    def __init__(
        self,
        actor: nn.Module,
        config: LMConfig,
        *,
        requires: frozenset[str],
        eos_id: int,
        pad_id: int,
        banned_ids: Sequence[int] = (),
        reference: str = "initial",
    ) -> None:
        """Wrap a `PreTrainedModel` with an LM head (a peft model works too: its adapter is switched off for reference).

        Args:
            actor: The language model.
            config: Sampling and likelihood.
            requires: Capabilities that the algorithm asks for.
            eos_id: Token that ends a completion.
            pad_id: Token after the end; masked everywhere.
            banned_ids: Tokens (PAD, BOS) that neither sampler nor likelihood may give mass to.
            reference: See `Policy`.
        """
        super().__init__(requires, reference)
        self.actor = actor
        self.config = config
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.register_buffer("banned", torch.tensor(sorted(set(banned_ids)), dtype=torch.int64), persistent=False)
        width = int(actor.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.critic = mlp([width, config.critic_hidden, 1]) if "value" in requires else None
        self.partition = partition_mlp(width) if "partition" in requires else None
        self.freeze_reference()

    @property
    def trunk(self) -> nn.Module:
        """The transformer below the LM head, which sampling and replay share."""
        return _trunk(self.actor)

    @torch.no_grad()
    def sample(self, context: dict[str, Tensor], noise: Noise, *, train: bool = True) -> dict[str, Tensor]:
        """Complete each prompt by inverse-CDF sampling at `config.temperature`.

        Args:
            context: `prompt [n, C]`, `prompt_mask [n, C]`.
            noise: Uniform draws, one per row and token.
            train: Unused: evaluation samples from the same distribution.

        Returns:
            `token [n, T]` (PAD after the end) and `mask [n, T]` bool, True up to and including EOS.
        """
        prompt, attention = context["prompt"], context["prompt_mask"].long()
        n, limit = prompt.shape[0], self.config.max_new_tokens
        draws = noise.uniform((n, limit))
        token = torch.full((n, limit), self.pad_id, dtype=torch.int64, device=prompt.device)
        mask = torch.zeros(n, limit, dtype=torch.bool, device=prompt.device)
        alive = torch.ones(n, dtype=torch.bool, device=prompt.device)
        ids, position, cache = prompt, (attention.cumsum(-1) - 1).clamp_min(0), None
        for t in range(limit):
            out = self.actor(
                input_ids=ids, attention_mask=attention, position_ids=position, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            choice = _inverse_cdf(self._log_softmax(out.logits[:, -1]), draws[:, t])
            token[:, t] = torch.where(alive, choice, self.pad_id)
            mask[:, t] = alive
            alive = alive & (choice != self.eos_id)
            if not bool(alive.any()):
                break
            ids, position = token[:, t : t + 1], position[:, -1:] + 1
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        return {"token": token, "mask": mask}

    def log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` log-softmax of each token; 0 where masked."""
        return rollout.memo(self, "log_prob", lambda: self._log_prob(self.actor, rollout))

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` under the reference model."""
        with self.referenced_actor() as actor:
            logits = self._logits(actor, self._hidden(actor, rollout)[:, -rollout.mask.shape[1] - 1 : -1])
            return self._gather(logits, rollout)

    def elbo(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]`: the log-likelihood, since the bound is tight."""
        return self.log_prob(rollout)

    def kl(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` exact KL(policy, reference) of each token's distribution."""
        states = self._states(rollout)
        log_p = self._log_softmax(self._logits(self.actor, states))
        with self.referenced_actor() as actor:
            hidden = self._hidden(actor, rollout)[:, -rollout.mask.shape[1] - 1 : -1]
            log_q = self._log_softmax(self._logits(actor, hidden))
        return _expectation(log_p, log_p - log_q).unsqueeze(-1)

    def entropy(self, rollout: Rollout) -> Tensor:
        """`[B, T]` entropy of each token's distribution."""
        log_p = self._log_softmax(self._logits(self.actor, self._states(rollout)))
        return -_expectation(log_p, log_p)

    def value(self, rollout: Rollout) -> Tensor:
        """`[B, T]` critic on the hidden state before each token; no gradient reaches the trunk."""
        assert self.critic is not None, "built without 'value'"
        answer: Tensor = self.critic(self._states(rollout).detach())
        return answer.squeeze(-1)

    def log_partition(self, rollout: Rollout) -> Tensor:
        """`[B, 1]` log Z on the mean prompt hidden state; no gradient reaches the trunk."""
        assert self.partition is not None, "built without 'partition'"
        hidden = rollout.memo(self, "hidden", lambda: self._hidden(self.actor, rollout)).detach()
        prompt_mask = rollout.context["prompt_mask"].unsqueeze(-1).to(hidden.dtype)
        prompt = hidden[:, : prompt_mask.shape[1]]
        mean = (prompt * prompt_mask).sum(1) / prompt_mask.sum(1)
        answer: Tensor = self.partition(mean.float())
        return answer

    def _states(self, rollout: Rollout) -> Tensor:
        """`[B, T, hidden]` state from which each token was drawn."""
        hidden = rollout.memo(self, "hidden", lambda: self._hidden(self.actor, rollout))
        return hidden[:, -rollout.mask.shape[1] - 1 : -1]

    def _hidden(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        """`[B, C+T, hidden]` of prompt and completion; masked tokens are attended by nobody that counts."""
        prompt, prompt_mask = rollout.context["prompt"], rollout.context["prompt_mask"]
        ids = torch.cat([prompt, rollout.action["token"]], dim=1)
        attention = torch.cat([prompt_mask, rollout.mask], dim=1).long()
        position = (attention.cumsum(-1) - 1).clamp_min(0)
        hidden: Tensor = _trunk(actor)(
            input_ids=ids, attention_mask=attention, position_ids=position, use_cache=False
        ).last_hidden_state
        return hidden

    def _logits(self, actor: nn.Module, states: Tensor) -> Tensor:
        logits: Tensor = actor.get_output_embeddings()(states)  # type: ignore[operator]
        return logits

    def _log_softmax(self, logits: Tensor) -> Tensor:
        logits = logits.float() / self.config.temperature
        return logits.index_fill(-1, self.banned, float("-inf")).log_softmax(-1)  # type: ignore[arg-type]

    def _gather(self, logits: Tensor, rollout: Rollout) -> Tensor:
        token = torch.where(rollout.mask, rollout.action["token"], self.eos_id)
        chosen = self._log_softmax(logits).gather(-1, token.unsqueeze(-1))
        return torch.where(rollout.mask.unsqueeze(-1), chosen, 0.0)

    def _log_prob(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        return self._gather(self._logits(actor, self._states(rollout)), rollout)


def _trunk(actor: Any) -> nn.Module:
    """The transformer below the LM head, also under a peft wrapper."""
    trunk: nn.Module = getattr(actor, "get_base_model", lambda: actor)().model
    return trunk


def _expectation(log_p: Tensor, x: Tensor) -> Tensor:
    """Sum of p*x over the last axis, with 0 * inf of banned tokens counted as 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * torch.where(p > 0, x, 0.0), 0.0).sum(-1)


def _inverse_cdf(log_p: Tensor, draws: Tensor) -> Tensor:
    """Index `[n]` at which the cumulative probability of `log_p [n, V]` passes `draws [n]`; never a token of mass 0."""
    cdf = log_p.exp().double().cumsum(-1)
    reach = draws.double().unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, reach, right=True).squeeze(-1).clamp_max(log_p.shape[-1] - 1)
