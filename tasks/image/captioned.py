"""What the embedded image tasks share: a pretrained caption network, groups of one noise, a frozen evaluation set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import FlowConfig
from rlflow.policies.heads import ContextHead, mlp, partition_mlp
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, SampleWriter, Task
from tasks.image.frozen import Captions, FrozenSet
from tasks.image.generation import BY_KIND, COMPARED, GENERATION, Generation, sampler_settings
from tasks.image.networks import load_network
from tasks.image.sheet import table_by_kind


def small_flow() -> FlowConfig:
    """The sampler that the embedded tasks start from."""
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


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Judged training images, on the CPU.

    Attributes:
        strict: [B] bool.
        soft: [B] float32 in [0, 1].
        quality: [B] float32 in [0, 1].
        layout_diversity: of each group, None where a group is a single image.
    """

    strict: Tensor
    soft: Tensor
    quality: Tensor
    layout_diversity: Tensor | None


@dataclass(kw_only=True)
class CaptionedImages(Task):
    """A flow model draws small pictures from a caption; subclasses say what is drawn and how it is judged.

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

    guards: ClassVar[tuple[str, ...]] = ("quality", "layout_diversity")
    policies: ClassVar[dict[str, str]] = {"flow": "flow"}

    groups_per_rollout: int = 16
    group_size: int = 10
    group_noise: Literal["shared", "independent"] = "shared"
    strict_weight: float = 0.5
    soft_weight: float = 0.5
    reference: Literal["initial", "behaviour"] = "initial"
    trained_layers: Literal["caption", "all"] = "caption"
    base: str = ""
    evaluation_groups: int = 128
    flow: FlowConfig = field(default_factory=small_flow)

    def __post_init__(self) -> None:
        """Refuse sizes that the frozen set cannot serve and rewards that pay for nothing."""
        available = len(self.captions().evaluation)
        if not 1 <= self.evaluation_groups <= available:
            raise ValueError(f"task.evaluation_groups: expected 1-{available}, found {self.evaluation_groups}")
        weights = (self.strict_weight, self.soft_weight)
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"task.strict_weight, task.soft_weight: expected >= 0 and not both 0, found {weights}")

    @staticmethod
    @abstractmethod
    def captions() -> Captions:
        """Prompts, sizes and the base."""

    @abstractmethod
    def grade(self, images: Tensor, prompts: Tensor) -> Graded:
        """Judge training images `[B, C, H, W]` in [-1, 1] of prompts `[B]`, in whole groups."""

    @abstractmethod
    def report(self, images: Tensor, prompts: Tensor) -> Evaluation:
        """Judge evaluation images on the CPU, in whole groups, with `score` and the guards."""

    @abstractmethod
    def caption(self, prompt: int) -> str:
        """What a prompt says."""

    @abstractmethod
    def verdicts(self, images: Tensor, prompts: Tensor) -> list[str]:
        """Kind of failure of each image on the CPU, `none` where it is right."""

    def content(self) -> Mapping[str, str]:
        """An own base."""
        return {"base": self.base}

    @property
    def policy_kind(self) -> str:
        """Always a flow policy."""
        return "flow"

    @property
    def anchors(self) -> Anchors:
        """Strict accuracy of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=self.captions().base_score, reference=1.0)

    def evaluation_starts(self) -> Sequence[int]:
        """The held-out prompts that `evaluate` draws."""
        return [int(row) for row in self.captions().evaluation[: self.evaluation_groups]]

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The base network with heads on the caption's words; the base's weights do not depend on the seed."""
        captions = self.captions()
        words = CaptionWords(captions.num_words)
        width = captions.tokens.shape[1] * captions.num_words
        critic = ContextHead(words, mlp([width, 128, 1])) if "value" in requires else None
        partition = ContextHead(words, partition_mlp(width)) if "partition" in requires else None
        network = load_network(Path(self.base) if self.base else captions.base, self.name)
        if self.trained_layers == "caption":
            network.freeze_drawing()
        return FlowPolicy(
            network,
            captions.image_shape,
            self.flow,
            requires=requires,
            critic=critic,
            partition=partition,
            reference=self.reference,
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """One image per row on the training grid."""
        captions = self.captions()
        rows = starts.repeat_interleave(self.group_size)
        flow = cast(FlowPolicy, policy)
        initial = None
        if self.group_noise == "shared" and flow.is_stochastic:
            initial = noise.normal((len(starts), *captions.image_shape)).repeat_interleave(self.group_size, dim=0)
        context = {"tokens": captions.tokens[rows.cpu()].to(noise.device)}
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
        graded = self.grade(images, rollout.extras["prompts"])
        device = rollout.device
        terms = {"strict": graded.strict.float().to(device), "soft": graded.soft.to(device)}
        reward = self.strict_weight * terms["strict"] + self.soft_weight * terms["soft"]
        finite = torch.isfinite(images).flatten(1).all(1)
        metrics = {
            "quality": graded.quality.mean().item(),
            "within_group_variance": _within_group_variance(reward, self.group_size),
        }
        if graded.layout_diversity is not None:
            metrics["layout_diversity"] = graded.layout_diversity.mean().item()
        return rollout.replace(
            reward=torch.where(finite, reward, torch.nan)[:, None],
            reward_terms=terms,
            metrics={**rollout.metrics, **metrics},
        )

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Judge the held-out prompts on the evaluation grid, from fixed noise."""
        flow, frozen = cast(FlowPolicy, policy), self._frozen
        prompts = frozen.prompts[: self.evaluation_groups * frozen.captions.evaluation_group_size]
        images = frozen.drawn(flow, torch.arange(len(prompts)), noise.device)
        result = self.report(images, prompts)
        files: dict[str, SampleWriter] = {
            COMPARED: frozen.compared(images, self.caption, self.verdicts, self._base, noise.device),
            GENERATION: Generation(settings=self._generation(flow)),
            BY_KIND: table_by_kind(result.items),
        }
        return replace(result, files={**result.files, **files})

    def _base(self) -> FlowPolicy:
        with torch.random.fork_rng(devices=[]):
            return cast(FlowPolicy, self.build_policy(frozenset())).eval()

    @cached_property
    def _frozen(self) -> FrozenSet:
        return FrozenSet(self.captions())

    def _generation(self, flow: FlowPolicy) -> dict[str, Any]:
        captions = self.captions()
        return {
            **sampler_settings(flow.config, flow.times(flow.config.eval_steps)),
            "noise_seed": captions.noise_seed,
            "num_prompts": self.evaluation_groups,
            "images_per_prompt": captions.evaluation_group_size,
            "image_shape": list(captions.image_shape),
            "task": self.name,
            "revision": self.revision,
        }


class CaptionWords:
    """One-hot words of the caption for the heads, `[n, caption_length * words]`; no weights, so it cannot drift."""

    def __init__(self, num_words: int) -> None:
        """Fix the number of words."""
        self.num_words = num_words

    def __call__(self, context: Mapping[str, Tensor]) -> Tensor:
        """Read `tokens [n, caption_length]`."""
        return F.one_hot(context["tokens"], self.num_words).flatten(1).float()


def _within_group_variance(reward: Tensor, group_size: int) -> float:
    """Share of the reward's variance that lies within groups: what the group's own randomness explains."""
    total = reward.var(unbiased=False)
    within = reward.view(-1, group_size).var(dim=1, unbiased=False).mean()
    return (within / total.clamp(min=1e-12)).item()
