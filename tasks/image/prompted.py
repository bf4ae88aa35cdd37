"""Prompted: a pretrained text-to-image pipeline of diffusers, trained on any mix of rewards from a list of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import ScheduledFlowConfig
from rlflow.policies.heads import ContextHead, mlp, partition_mlp
from rlflow.policy import Policy
from rlflow.random import Noise, RowNoise, derived_seed
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task
from tasks.image.catalogue import Catalogue, open_catalogue
from tasks.image.diversity import pixel_diversity, thumbnails
from tasks.image.judging import Judge
from tasks.image.pipelines.denoiser import AdaptedDenoiser
from tasks.image.pipelines.embeddings import PromptEmbeddings
from tasks.image.pipelines.settings import JudgeSettings, ModelSettings, TrainedSettings
from tasks.image.rewards import RewardMix, open_rewards

_MAX_SEED = 2**31
OWN_METRICS = {"score", "diversity", "clip_diversity"}


@dataclass(kw_only=True)
class Prompted(Task):
    """Rewarded text-to-image at any scale; sizes and settings of real models are presets (docs/image.md).

    Attributes:
        groups_per_rollout: Prompts per iteration.
        group_size: Images per prompt. Fewer than about 16 with independent noise: advantages are mostly luck.
        group_noise: `independent`, each image of a group from its own noise; `shared`, all from one where the sampler
            is stochastic. Either way the noise is that of (iteration, prompt, number of the image), so that it does
            not depend on batches or ranks.
        height: Pixels.
        width: Pixels.
        guidance: Of training, see the adapter; 1 is none where guidance is classifier-free. With it both branches
            carry gradient, and a step costs twice as much.
        rows_per_pass: Rows of every forward pass, in sampling and training alike, so that a replay has the bits of
            its rollout. Too few: slow; too many: out of memory. `update.micro_batch` should be a multiple of it.
        prompts: What `tasks.image.prompt_sets.read_prompts` reads: `geneval`, `ocr`, a .txt or .jsonl file, a dataset.
        num_prompts: Prompts of a generated set.
        overlong: Prompts over `model.max_tokens`, or over what the encoders read: `refuse` the run, or `truncate` them
            as the pipeline does; their number is logged as `rollout/overlong_prompts`.
        rewards: What `tasks.image.rewards.open_rewards` opens: weight by name, or settings by name.
        normalise: `sum` of weighted rewards, or `per_reward`, each normalised in its group first.
        reference: What the policy's distance is measured from: the `initial` model, or the `behaviour` policy.
        anchor_base: Score of the untrained model, which only you can measure: `rlflow eval ALGORITHM TASK`.
        anchor_reference: Score that counts as 1 on the board.
        model: The pretrained pipeline.
        trained: LoRA or full training.
        judge: The frozen evaluation.
        flow: Sampler and likelihood.
    """

    version: ClassVar[str] = "1"
    policies: ClassVar[dict[str, str]] = {"flow": "flow"}

    name: str = "image/prompted"
    groups_per_rollout: int = 8
    group_size: int = 8
    group_noise: Literal["shared", "independent"] = "independent"
    height: int = 512
    width: int = 512
    guidance: float = 1.0
    rows_per_pass: int = 8
    prompts: str = ""
    num_prompts: int = 1000
    overlong: Literal["refuse", "truncate"] = "refuse"
    rewards: dict[str, Any] = field(default_factory=dict)
    normalise: Literal["sum", "per_reward"] = "sum"
    reference: Literal["initial", "behaviour"] = "initial"
    anchor_base: float = 0.0
    anchor_reference: float = 1.0
    model: ModelSettings = field(default_factory=ModelSettings)
    trained: TrainedSettings = field(default_factory=TrainedSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    flow: ScheduledFlowConfig = field(default_factory=ScheduledFlowConfig)

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        rows = self.groups_per_rollout * self.group_size
        if self.rows_per_pass < 1 or rows % self.rows_per_pass:
            raise ValueError(
                f"task.rows_per_pass: expected a divisor of groups_per_rollout * group_size = {rows}, found "
                f"{self.rows_per_pass}; the last pass of every step would be filled up with rows for nothing"
            )
        if self.model.cached_prompts < self.groups_per_rollout:
            raise ValueError(
                f"task.model.cached_prompts: expected at least groups_per_rollout = {self.groups_per_rollout}, found "
                f"{self.model.cached_prompts}; prompts would be encoded again at every step"
            )
        if self.trained.lora_rank == 0 and self.model.dtype != "float32":
            raise ValueError(
                f"task.model.dtype: training in full needs float32 weights, found {self.model.dtype}, in which small "
                "updates are lost; set task.model.dtype=float32 trainer.precision=bf16-mixed, or a lora_rank"
            )
        if self.normalise == "per_reward" and self.group_size < 2:
            raise ValueError(
                f"task.group_size: normalise=per_reward compares the images of a prompt, expected at least 2, found "
                f"{self.group_size}"
            )
        if self.anchor_base == self.anchor_reference:
            raise ValueError(f"task.anchor_reference: expected another score than anchor_base = {self.anchor_base}")
        if taken := sorted(OWN_METRICS & set(self.rewards)):
            raise ValueError(
                f"task.rewards: {taken} are names of the evaluation's own metrics; give the reward another label and "
                "say what it is with `reward:`"
            )

    @property
    def policy_kind(self) -> str:
        """Always a flow policy."""
        return "flow"

    @property
    def guards(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the rewards do not see of this configuration: diversity, and the guard prompts."""
        marked = [name for name, entry in self.rewards.items() if isinstance(entry, Mapping) and entry.get("guard")]
        diversity = ("diversity",) if self.judge.images_per_prompt > 1 else ()
        return (*diversity, *(f"guard_{name}" for name in marked))

    def content(self) -> Mapping[str, str]:
        """The pipeline, and prompts that are files here."""
        judge = self.judge
        named = {"model.path": self.model.path, "prompts": self.prompts, "judge.prompts": judge.prompts,
                 "judge.guard_prompts": judge.guard_prompts}  # fmt: skip
        return {name: at for name, at in named.items() if at and Path(at).exists()}

    @property
    def anchors(self) -> Anchors:
        """As configured: they belong to the model, the rewards and the evaluation prompts."""
        return Anchors(base=self.anchor_base, reference=self.anchor_reference)

    def starts(self) -> Sequence[int]:
        """Numbers of the training prompts."""
        return range(len(self._catalogue.training))

    def evaluation_starts(self) -> Sequence[int]:
        """Numbers of the evaluation prompts, after the training prompts."""
        return self._catalogue.frozen_numbers

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The pretrained transformer, with heads on the pooled prompt embedding."""
        from tasks.image.pipelines.loading import build_denoiser

        kept = self._embeddings
        denoiser = build_denoiser(
            self.model.path,
            kept,
            dtype=self.model.dtype,
            lora_rank=self.trained.lora_rank,
            lora_alpha=self.trained.lora_alpha,
            lora_targets=self.trained.lora_targets,
            gradient_checkpointing=self.trained.gradient_checkpointing,
            rows_per_pass=self.rows_per_pass,
            guidance=self.guidance,
        )
        adapter = kept.adapter
        width = adapter.pooled_width
        critic = ContextHead(_pooled, mlp([width, 128, 1])) if "value" in requires else None
        partition = ContextHead(_pooled, partition_mlp(width)) if "partition" in requires else None
        return FlowPolicy(
            denoiser, adapter.shape, self.flow, requires=requires, critic=critic, partition=partition,
            reference=self.reference, grid=adapter.grid if self.flow.grid == "diffusers" else None,
        )  # fmt: skip

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """One image's latents per row on the training grid."""
        flow, device = cast(FlowPolicy, policy), noise.device
        numbers = starts.cpu().repeat_interleave(self.group_size)
        iteration = noise.integer(_MAX_SEED)
        shared = self.group_noise == "shared" and flow.is_stochastic
        images = [(number, row % self.group_size) for row, number in enumerate(numbers.tolist())]
        seeds = [derived_seed(iteration, number, 0 if shared else place) for number, place in images]
        drawn = RowNoise(
            generator=noise.generator, device=device, seeds=[derived_seed(iteration, "steps", *i) for i in images]
        )
        pooled = self._embeddings.pooled(numbers, device)
        context = {"prompt": numbers.to(device), "pooled": pooled}
        action = flow.sample(context, drawn, initial=self._embeddings.adapter.initial(seeds).to(device))
        flags = torch.ones(len(numbers), 1, dtype=torch.bool, device=device)
        groups = torch.arange(len(starts), device=device)
        return Rollout(
            context=context,
            action={name: record.unsqueeze(1) for name, record in action.items()},
            mask=flags,
            group=groups.repeat_interleave(self.group_size),
            reward=torch.zeros(len(numbers), 1, device=device),
            terminated=flags.clone(),
            boundary=flags.clone(),
            metrics={"overlong_prompts": float(len(self._embeddings.overlong))},
        )

    def score(self, rollout: Rollout) -> Rollout:
        """The mix of rewards on the decoded images; NaN where latents are not finite, so that the loop stops there."""
        latents = rollout.action["sample"][:, 0]
        if not bool(torch.isfinite(latents).all()):
            return rollout.replace(reward=torch.full_like(rollout.reward, torch.nan))
        images = self._embeddings.adapter.decode(latents, self.rows_per_pass)
        asked = [self._catalogue.prompts[i] for i in rollout.context["prompt"].tolist()]
        scores = self._mix(images, asked, group=rollout.group)
        return rollout.replace(
            reward=scores.reward[:, None].to(rollout.device),
            reward_terms={name: term.to(rollout.device) for name, term in scores.terms.items()},
            metrics={**rollout.metrics, **self._diversity(images)},
        )

    @torch.no_grad()
    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Every reward, also the held-out ones, on the frozen prompts from the same noise at every checkpoint."""
        return self._judge.evaluate(cast(FlowPolicy, policy), noise.device)

    def save(self, policy: Policy, folder: Path) -> None:
        """Write what was trained for diffusers: a LoRA, or a transformer in its folder (docs/image.md)."""
        from tasks.image.pipelines.loading import save_trained

        save_trained(policy.actor, folder)

    def close(self) -> None:
        """Close the rewards and what compares images."""
        for opened in ("_judge", "_mix"):
            if opened in vars(self):
                getattr(self, opened).close()

    def _diversity(self, images: Tensor) -> dict[str, float]:
        if self.group_size < 2:
            return {}
        return {"diversity": pixel_diversity(thumbnails(images), self.group_size).mean().item()}

    @contextmanager
    def _untrained(self, flow: FlowPolicy) -> Iterator[FlowPolicy]:
        """The policy with its LoRA off, or a second one of the pretrained weights, dropped after the block."""
        if isinstance(flow.actor, AdaptedDenoiser):
            with flow.actor.disable_adapter():
                yield flow
            return
        with torch.random.fork_rng(devices=[]):
            fresh = cast(FlowPolicy, self.build_policy(frozenset()))
        yield fresh.to(next(flow.parameters()).device).eval()

    @cached_property
    def _judge(self) -> Judge:
        adapter, model, catalogue = self._embeddings.adapter, self.model, self._catalogue
        described = {
            "model": model.path, "pipeline": adapter.pipeline_class, "dtype": model.dtype, "height": self.height,
            "width": self.width, "negative_prompt": model.negative_prompt, "prompts_sha256": catalogue.frozen.digest,
            "rewards": self.rewards,
        }  # fmt: skip
        return Judge(
            adapter=adapter, mix=self._mix, catalogue=catalogue, settings=self.judge,
            rows_per_pass=self.rows_per_pass, described=described, untrained=self._untrained,
        )  # fmt: skip

    @cached_property
    def _catalogue(self) -> Catalogue:
        guarded = any(part.guard for part in self._mix.parts)
        found = open_catalogue(self.prompts, self.num_prompts, self.judge, guarded=guarded)
        if self.groups_per_rollout > len(found.training):
            raise ValueError(
                f"task.groups_per_rollout: expected at most one group per training prompt, found "
                f"{self.groups_per_rollout} for {len(found.training)} prompts; two groups of a prompt would start "
                "from the same noise"
            )
        return found

    @cached_property
    def _mix(self) -> RewardMix:
        return open_rewards(self.rewards, self.normalise)

    @cached_property
    def _embeddings(self) -> PromptEmbeddings:
        from tasks.image.pipelines.loading import open_adapter

        model = self.model
        adapter = open_adapter(
            model.path, model.dtype, height=self.height, width=self.width, max_tokens=model.max_tokens,
            offload=model.offload,
        )  # fmt: skip
        texts = [prompt.text for prompt in self._catalogue.prompts]
        kept = PromptEmbeddings(adapter, texts, model.negative_prompt, model.cached_prompts)
        if self.overlong == "refuse":
            kept.refuse_overlong()
        return kept


def _pooled(context: dict[str, Tensor]) -> Tensor:
    return context["pooled"]
