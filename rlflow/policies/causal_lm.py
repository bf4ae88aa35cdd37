"""Causal language model policy: a decision is a token, K = 1, ragged rows end at the first EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rlflow.policies.engines.difference import engine_difference
from rlflow.policies.engines.engine import Engine, Sampling
from rlflow.policies.engines.own_forward import OwnForward
from rlflow.policies.heads import mlp, partition_mlp
from rlflow.policies.lm_trunk import TrunkCritic, hidden_states, trunk_of
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
        critic: `head`, on the actor's detached states; `separate`, on a trunk of its own that starts as the actor's
            and is trained by the value loss: better values for twice the weights and another forward and backward.
        behaviour: Old likelihoods: `replay`, a forward of the trainer, so that the first ratio is 1; or `engine`, what
            the sampler said, which saves that forward. Ratios then hold the distance between engine and trainer: by
            rounding for `transformers`, more for bfloat16 kernels.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    critic_hidden: int = 128
    critic: Literal["head", "separate"] = "head"
    behaviour: Literal["replay", "engine"] = "replay"


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
        engine: Engine | None = None,
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
            engine: What completes prompts; None means the actor's own forward.
        """
        super().__init__(requires, reference)
        self.engine = engine or OwnForward()
        self.actor = actor
        self.config = config
        self.eos_id = eos_id
        self.pad_id = pad_id
        self._banned_ids = tuple(sorted(set(banned_ids)))
        self.register_buffer("banned", torch.tensor(self._banned_ids, dtype=torch.int64), persistent=False)
        width = int(actor.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.critic: nn.Module | None = mlp([width, config.critic_hidden, 1]) if "value" in requires else None
        self.partition = partition_mlp(width) if "partition" in requires else None
        if self.critic is not None and config.critic == "separate":
            self.critic = TrunkCritic(actor, self.critic)
        self.freeze_reference()

    @property
    def trunk(self) -> nn.Module:
        """The transformer below the LM head, which sampling and replay share."""
        return trunk_of(self.actor)

    def sharded_parts(self) -> Sequence[nn.Module]:
        """The layers of every transformer in here; see `rlflow.sharding`."""
        if not self.engine.takes_sharded:
            raise ValueError(
                "trainer.strategy=fsdp: expected task.engine=transformers, or vllm with task.vllm.server, found "
                f"{type(self.engine).__name__}, which needs whole weights; or train a LoRA in one process"
            )
        actors = [actor for actor in (self.actor, self.reference_actor) if actor is not None]
        trunks = [trunk_of(actor) for actor in actors]
        trunks += [self.critic.trunk] if isinstance(self.critic, TrunkCritic) else []
        return [layer for trunk in trunks for layer in trunk.layers]  # type: ignore[union-attr]

    @property
    def sampling(self) -> Sampling:
        """How the engine draws tokens."""
        return Sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
            banned_ids=self._banned_ids,
            with_log_prob=self.config.behaviour == "engine",
        )

    @torch.no_grad()
    def sample(self, context: dict[str, Tensor], noise: Noise, *, train: bool = True) -> dict[str, Tensor]:
        """Complete each prompt by the engine at `config.temperature`.

        Args:
            context: `prompt [n, C]`, `prompt_mask [n, C]`.
            noise: What the engine draws from.
            train: Unused: evaluation samples from the same distribution.

        Returns:
            `token [n, T]` (PAD after the end) and `mask [n, T]` bool, True up to and including EOS; of an engine with
            a forward of its own also its `sampler_log_prob [n, T]`.
        """
        made = self.engine.complete(self, context, noise)
        action = {"token": made.token, "mask": made.mask}
        return action if made.log_prob is None else action | {"sampler_log_prob": made.log_prob}

    def record_behaviour(self, rollout: Rollout) -> None:
        """As every policy; logs what the engine tells of itself and how far its likelihoods are from the trainer's.

        Where the engine's likelihoods are the old ones, `update/first_ratio_error` is what tells that distance.
        """
        by_engine = self.config.behaviour == "engine"
        if by_engine and "log_prob" in self.requires:
            rollout.old_log_prob = rollout.sampler_log_prob
        super().record_behaviour(rollout)
        rollout.metrics |= self.engine.metrics
        if rollout.sampler_log_prob is not None and not by_engine:
            found = engine_difference(self.log_prob(rollout), rollout.sampler_log_prob, rollout.mask)
            rollout.metrics |= found

    @torch.no_grad()
    def completion_log_prob(self, context: dict[str, Tensor], token: Tensor, mask: Tensor) -> Tensor:
        """`[n, T]` of the actor's forward on given completions; 0 where masked."""
        states = hidden_states(trunk_of(self.actor), context, token, mask)[:, -mask.shape[1] - 1 : -1]
        return self._gather(self._logits(self.actor, states), token, mask).squeeze(-1)

    def log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` log-softmax of each token; 0 where masked."""
        return rollout.memo(self, "log_prob", lambda: self._log_prob(self.actor, rollout))

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` under the reference model."""
        with self.referenced_actor() as actor:
            logits = self._logits(actor, self._hidden(actor, rollout)[:, -rollout.mask.shape[1] - 1 : -1])
            return self._gather(logits, rollout.action["token"], rollout.mask)

    def elbo(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]`: the log-likelihood, since the bound is tight."""
        return self.log_prob(rollout)

    def kl(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` exact KL(policy, reference) of each token's distribution."""
        states = self._states(rollout)
        log_p = self.log_softmax(self._logits(self.actor, states))
        with self.referenced_actor() as actor:
            hidden = self._hidden(actor, rollout)[:, -rollout.mask.shape[1] - 1 : -1]
            log_q = self.log_softmax(self._logits(actor, hidden))
        return _expectation(log_p, log_p - log_q).unsqueeze(-1)

    def entropy(self, rollout: Rollout) -> Tensor:
        """`[B, T]` entropy of each token's distribution."""
        log_p = self.log_softmax(self._logits(self.actor, self._states(rollout)))
        return -_expectation(log_p, log_p)

    def value(self, rollout: Rollout) -> Tensor:
        """`[B, T]` critic on the hidden state before each token; no gradient reaches the actor's trunk."""
        assert self.critic is not None, "built without 'value'"
        if self.config.critic == "separate":
            values: Tensor = self.critic(rollout)
            return values
        answer: Tensor = self.critic(self._states(rollout).detach().float())
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
        """`[B, C+T, hidden]` of prompt and completion."""
        return hidden_states(trunk_of(actor), rollout.context, rollout.action["token"], rollout.mask)

    def _logits(self, actor: nn.Module, states: Tensor) -> Tensor:
        logits: Tensor = actor.get_output_embeddings()(states)  # type: ignore[operator]
        return logits

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Float32 log-probabilities of `logits [..., V]` at the temperature, without the banned tokens."""
        logits = logits.float() / self.config.temperature
        return logits.index_fill(-1, self.banned, float("-inf")).log_softmax(-1)  # type: ignore[arg-type]

    def _gather(self, logits: Tensor, token: Tensor, mask: Tensor) -> Tensor:
        token = torch.where(mask, token, self.eos_id)
        chosen = self.log_softmax(logits).gather(-1, token.unsqueeze(-1))
        return torch.where(mask.unsqueeze(-1), chosen, 0.0)

    def _log_prob(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        return self._gather(self._logits(actor, self._states(rollout)), rollout.action["token"], rollout.mask)


def _expectation(log_p: Tensor, x: Tensor) -> Tensor:
    """Sum of p*x over the last axis, with 0 * inf of banned tokens counted as 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * torch.where(p > 0, x, 0.0), 0.0).sum(-1)
