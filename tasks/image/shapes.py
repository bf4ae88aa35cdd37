"""Shapes: a flow model draws coloured objects from a caption; image analysis pays for what is really there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import FlowConfig
from rlflow.policies.heads import ContextHead, mlp, partition_mlp
from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task
from tasks.image.checker import judge
from tasks.image.guard import layout_diversity, quality
from tasks.image.networks import load_network
from tasks.image.prompts import (
    CAPTION_LENGTH,
    EVAL_GROUP_SIZE,
    EVAL_NOISE_SEED,
    KIND_WEIGHTS,
    VOCABULARY,
    catalogue,
    evaluation_prompts,
    tables,
)
from tasks.image.renderer import IMAGE_SIZE
from tasks.image.report import evaluation

BASE_FOLDER = Path(__file__).parent / "bases" / "shapes"
# Measured with `rlflow pretrain image/shapes`; a new base, checker or evaluation set is a new version.
BASE_STRICT = 0.3906
IMAGE_SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)
# Rows of one evaluation forward; larger batches are no faster on a CPU.
EVALUATION_ROWS = 256
STARTS_PER_PASS = 1000


def _shapes_flow() -> FlowConfig:
    # Two stochastic steps near s = .8, where objects are decided: with three from the start the gradients of two
    # rollouts have half the cosine, and with fewer than 8 steps the sampler's own misses are what is unlearned.
    return FlowConfig(
        train_steps=8,
        eval_steps=20,
        sde="cps",
        noise_level=0.5,
        window=2,
        window_start=1,
        reduction="sqrt_d",
        num_probes=2,
        probe_loss="x0",
        kl="velocity",
    )


@dataclass(kw_only=True)
class Shapes(Task):
    """Compositional text-to-image in the spirit of GenEval, from a shipped base that trusts its caption too little.

    Attributes:
        groups_per_rollout: Prompts per iteration.
        group_size: Images per prompt.
        group_noise: `shared`, the images of a group start from one noise where the sampler is stochastic, so that
            their rewards differ by the steps that are trained; `independent`, each from its own. Independent noise
            with groups this small drowns the credit of the steps. A deterministic sampler always starts
            independently: a group would otherwise be one image, many times.
        strict_weight: Weight of the strict verdict in the reward.
        soft_weight: Weight of the partial score. At 0 most groups of hard prompts teach nothing.
        reference: What the policy's distance is measured from: the `initial` base, or the `behaviour` policy of
            the iteration.
        trained_layers: `caption`, what reads the caption or the time (embeddings, FiLM, attention), as LoRA on the
            attention of a large model would be; `all`, the convolutions as well.
        base: Folder of a pretrained network; empty means the shipped base.
        evaluation_groups: Prompts of the frozen set to use, from its start (8 images each). Fewer than 64: a
            standard error above two points.
        flow: Sampler and likelihood.
    """

    version: ClassVar[str] = "2"
    guards: ClassVar[tuple[str, ...]] = ("quality", "layout_diversity")
    content_fields: ClassVar[tuple[str, ...]] = ("base",)
    policies: ClassVar[dict[str, str]] = {"flow": "flow"}

    name: str = "image/shapes"
    groups_per_rollout: int = 16
    group_size: int = 10
    group_noise: Literal["shared", "independent"] = "shared"
    strict_weight: float = 0.5
    soft_weight: float = 0.5
    reference: Literal["initial", "behaviour"] = "initial"
    trained_layers: Literal["caption", "all"] = "caption"
    base: str = ""
    evaluation_groups: int = 128
    flow: FlowConfig = field(default_factory=_shapes_flow)

    def __post_init__(self) -> None:
        """Refuse sizes that the frozen set cannot serve and rewards that pay for nothing."""
        available = len(evaluation_prompts())
        if not 1 <= self.evaluation_groups <= available:
            raise ValueError(f"task.evaluation_groups: expected 1-{available}, found {self.evaluation_groups}")
        weights = (self.strict_weight, self.soft_weight)
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"task.strict_weight, task.soft_weight: expected >= 0 and not both 0, found {weights}")

    @property
    def policy_kind(self) -> str:
        """Always a flow policy."""
        return "flow"

    @property
    def anchors(self) -> Anchors:
        """Strict accuracy of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=BASE_STRICT, reference=1.0)

    def starts(self) -> Sequence[int]:
        """Prompts that are not held out, each kind with its share of `STARTS_PER_PASS`."""
        return training_starts()

    def evaluation_starts(self) -> Sequence[int]:
        """The held-out prompts that `evaluate` draws."""
        return [int(row) for row in evaluation_prompts()[: self.evaluation_groups]]

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The base network with heads on the caption's words; the base's weights do not depend on the seed."""
        width = CAPTION_LENGTH * len(VOCABULARY)
        critic = ContextHead(caption_words, mlp([width, 128, 1])) if "value" in requires else None
        partition = ContextHead(caption_words, partition_mlp(width)) if "partition" in requires else None
        network = load_network(Path(self.base) if self.base else BASE_FOLDER)
        if self.trained_layers == "caption":
            network.freeze_drawing()
        return FlowPolicy(
            network,
            IMAGE_SHAPE,
            self.flow,
            requires=requires,
            critic=critic,
            partition=partition,
            reference=self.reference,
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """One image per row on the training grid."""
        rows = starts.repeat_interleave(self.group_size)
        flow = cast(FlowPolicy, policy)
        initial = None
        if self.group_noise == "shared" and flow.is_stochastic:
            initial = noise.normal((len(starts), *IMAGE_SHAPE)).repeat_interleave(self.group_size, dim=0)
        context = {"tokens": tables().tokens[rows.cpu()].to(noise.device)}
        action = flow.sample(context, noise, initial=initial)
        flags = torch.ones(len(rows), 1, dtype=torch.bool, device=noise.device)
        groups = torch.arange(len(starts), device=noise.device)
        return Rollout(
            context=context,
            action={name: record.unsqueeze(1) for name, record in action.items()},
            mask=flags,
            group=groups.repeat_interleave(self.group_size),
            reward=torch.zeros(len(rows), 1, device=noise.device),
            terminated=flags.clone(),
            boundary=flags.clone(),
            extras={"prompts": rows},
        )

    def score(self, rollout: Rollout) -> Rollout:
        """Weighted strict and soft verdict; NaN for an image that is not finite, so that the loop stops there."""
        images = rollout.action["sample"][:, 0]
        verdict = judge(images, rollout.extras["prompts"])
        device = rollout.device
        terms = {"strict": verdict.strict.float().to(device), "soft": verdict.soft.to(device)}
        reward = self.strict_weight * terms["strict"] + self.soft_weight * terms["soft"]
        finite = torch.isfinite(images).flatten(1).all(1)
        metrics = {
            "quality": quality(images, verdict.findings).mean().item(),
            "within_group_variance": _within_group_variance(reward, self.group_size),
        }
        if self.group_size > 1:
            metrics["layout_diversity"] = layout_diversity(verdict.findings, self.group_size).mean().item()
        return rollout.replace(
            reward=torch.where(finite, reward, torch.nan)[:, None],
            reward_terms=terms,
            metrics={**rollout.metrics, **metrics},
        )

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Judge the held-out prompts on the evaluation grid, from fixed noise."""
        prompts = evaluation_prompts()[: self.evaluation_groups].repeat_interleave(EVAL_GROUP_SIZE)
        start = torch.randn(
            (len(evaluation_prompts()) * EVAL_GROUP_SIZE, *IMAGE_SHAPE),
            generator=torch.Generator().manual_seed(EVAL_NOISE_SEED),
        )[: len(prompts)]
        sample = cast(FlowPolicy, policy).sample
        # For a stochastic sampler, which would else draw other noise in every evaluation.
        fixed = Noise(generator=generator(EVAL_NOISE_SEED, "image", "evaluation"), device=noise.device)
        images = []
        for rows, initial in zip(
            torch.split(prompts, EVALUATION_ROWS), torch.split(start, EVALUATION_ROWS), strict=True
        ):
            context = {"tokens": tables().tokens[rows].to(noise.device)}
            images.append(sample(context, fixed, train=False, initial=initial.to(noise.device))["sample"].cpu())
        return evaluation(torch.cat(images), prompts)

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its scores (`rlflow pretrain image/shapes`)."""
        from tasks.image.pretrain import pretrain_shapes

        return pretrain_shapes(out, seed)


def caption_words(context: dict[str, Tensor]) -> Tensor:
    """One-hot words of the caption for the heads, `[n, CAPTION_LENGTH * words]`; no weights, so it cannot drift."""
    return F.one_hot(context["tokens"], len(VOCABULARY)).flatten(1).float()


@cache
def training_starts() -> tuple[int, ...]:
    """Training prompts, each kind `KIND_WEIGHTS` of `STARTS_PER_PASS` entries, its members as often as each other."""
    starts: list[int] = []
    for kind, weight in KIND_WEIGHTS.items():
        members = [row for row, p in enumerate(catalogue()) if p.kind == kind and not p.held_out]
        starts.extend(members[i % len(members)] for i in range(round(weight * STARTS_PER_PASS)))
    return tuple(starts)


def _within_group_variance(reward: Tensor, group_size: int) -> float:
    """Share of the reward's variance that lies within groups: what the group's own randomness explains."""
    total = reward.var(unbiased=False)
    within = reward.view(-1, group_size).var(dim=1, unbiased=False).mean()
    return (within / total.clamp(min=1e-12)).item()
