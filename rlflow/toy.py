"""A one-decision bandit on every policy kind: small enough for conformance checks, real enough to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import FlowConfig
from rlflow.policies.gaussian import DiagonalGaussian, GaussianPolicy
from rlflow.policies.heads import ContextHead, mlp
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task

KINDS = ("gaussian", "flow", "causal_lm")
ACTION_DIM = 2
PAD, EOS, GOOD = 0, 1, 2


class ToyVelocity(nn.Module):
    """MLP on the point, the time and the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([ACTION_DIM + 1 + 1, 16, ACTION_DIM])

    def forward(self, x: Tensor, s: Tensor, context: dict[str, Tensor]) -> Tensor:
        """`x [n, A]`, `s [n]`, `observation [n, 1]` to `[n, A]`."""
        v: Tensor = self.net(torch.cat([x, s[:, None], context["observation"]], dim=-1))
        return v


def observation(context: dict[str, Tensor]) -> Tensor:
    """Features that the toy heads read."""
    return context["observation"]


@dataclass(kw_only=True)
class ToyTask(Task):
    """Reward 1 for the good arm: a positive first action dimension, or the token GOOD first.

    Attributes:
        kind: Policy kind.
        horizon: T. For the causal LM the longest completion.
        flow: Sampler of the flow policy.
    """

    version: ClassVar[str] = "1"
    policies: ClassVar[dict[str, str]] = {kind: kind for kind in KINDS}

    name: str = "toy"
    groups_per_rollout: int = 4
    group_size: int = 4
    kind: Literal["gaussian", "flow", "causal_lm"] = "gaussian"
    horizon: int = 1
    flow: FlowConfig = field(default_factory=lambda: FlowConfig(train_steps=4, eval_steps=4, num_probes=4))

    @property
    def policy_kind(self) -> str:
        """The kind that this configuration names."""
        return self.kind

    @property
    def rows_per_rollout(self) -> int:
        """Decisions where they are independent."""
        rows = self.groups_per_rollout * self.group_size
        return rows if self.kind == "causal_lm" else rows * self.horizon

    @property
    def anchors(self) -> Anchors:
        """Half of the arms are good."""
        return Anchors(base=0.5, reference=1.0)

    def starts(self) -> Sequence[int]:
        """Sixteen contexts."""
        return range(16)

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """A network of a few hundred parameters with the heads asked for."""
        if self.kind == "causal_lm":
            config = LMConfig(max_new_tokens=max(self.horizon, 2), critic_hidden=8)
            return CausalLMPolicy(tiny_lm(), config, requires=requires, eos_id=EOS, pad_id=PAD, banned_ids=[PAD])
        critic = mlp([1, 16, 1]) if "value" in requires else None
        partition = mlp([1, 16, 1]) if "partition" in requires else None
        if self.kind == "gaussian":
            actor = DiagonalGaussian(mlp([1, 16, ACTION_DIM], output_gain=0.01), ACTION_DIM)
            return GaussianPolicy(actor, requires=requires, critic=critic, partition=partition)
        return FlowPolicy(
            ToyVelocity(),
            (ACTION_DIM,),
            self.flow,
            requires=requires,
            critic=None if critic is None else ContextHead(observation, critic),
            partition=None if partition is None else ContextHead(observation, partition),
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """One bandit pull per decision; rows of the LM end at EOS."""
        rows = starts.repeat_interleave(self.group_size)
        n, t = rows.shape[0], self.horizon
        if self.kind == "causal_lm":
            prompt = rows[:, None] % 2 + GOOD
            context = {"prompt": prompt, "prompt_mask": torch.ones_like(prompt, dtype=torch.bool)}
            action = policy.sample(context, noise)
            mask = action.pop("mask")
        else:
            context = {"observation": (rows.float() / 16).view(n, 1, 1).expand(n, t, 1).contiguous()}
            steps = [policy.sample({"observation": context["observation"][:, k]}, noise) for k in range(t)]
            action = {k: torch.stack([step[k] for step in steps], dim=1) for k in steps[0]}
            mask = torch.ones(n, t, dtype=torch.bool, device=rows.device)
        last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
        independent = self.kind != "causal_lm"
        return Rollout(
            context=context,
            action=action,
            mask=mask,
            group=rows,
            reward=torch.zeros(mask.shape, device=rows.device),
            terminated=mask.clone() if independent else last,
            boundary=mask.clone() if independent else last,
            decisions_independent=independent,
        )

    def score(self, rollout: Rollout) -> Rollout:
        """1 at the good arm; for the LM on the last token."""
        if self.kind == "causal_lm":
            hit = (rollout.action["token"][:, :1] == GOOD).float()
            reward = torch.where(rollout.terminated, hit, 0.0)
        else:
            name = "action" if self.kind == "gaussian" else "sample"
            reward = (rollout.action[name][..., 0] > 0).float()
        return rollout.replace(reward=reward, reward_terms={"hit": reward.sum(1)})

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Share of good arms over all contexts, from a fixed seed."""
        fixed = Noise(generator=torch.Generator().manual_seed(1), device=noise.device)
        starts = torch.arange(16, device=noise.device)
        pulls = self.score(self.rollout(policy, starts, fixed))
        hits = pulls.reward.sum(1) / pulls.boundary.sum(1).clamp_min(1)
        items: list[dict[str, Any]] = [{"row": i, "hit": float(h)} for i, h in enumerate(hits)]
        return Evaluation(metrics={"score": float(hits.mean())}, items=items)


def tiny_lm() -> nn.Module:
    """A random Qwen2 of two layers and five tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    model: nn.Module = Qwen2ForCausalLM(config).float()
    return model
