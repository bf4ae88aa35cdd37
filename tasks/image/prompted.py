"""Prompted: a pretrained text-to-image pipeline of diffusers, trained on any mix of rewards from a list of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from rlflow.random import Noise, derived_seed, generator
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task
from tasks.image.pipelines.denoiser import Denoiser
from tasks.image.pipelines.embeddings import PromptEmbeddings
from tasks.image.pipelines.settings import JudgeSettings, ModelSettings, TrainedSettings
from tasks.image.prompt_sets import PromptSet, read_prompts
from tasks.image.rewards import Prompt, RewardMix, open_rewards
from tasks.image.sheet import Sheet

_MAX_SEED = 2**31


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
        overlong: Prompts over `model.max_tokens`: `refuse` the run, or `truncate` them as the pipeline does; their
            number is logged as `rollout/overlong_prompts`.
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
        if self.anchor_base == self.anchor_reference:
            raise ValueError(f"task.anchor_reference: expected another score than anchor_base = {self.anchor_base}")

    @property
    def policy_kind(self) -> str:
        """Always a flow policy."""
        return "flow"

    def content(self) -> Mapping[str, str]:
        """The pipeline, and prompts that are files here."""
        named = {"model.path": self.model.path, "prompts": self.prompts, "judge.prompts": self.judge.prompts}
        return {name: at for name, at in named.items() if at and Path(at).exists()}

    @property
    def anchors(self) -> Anchors:
        """As configured: they belong to the model, the rewards and the evaluation prompts."""
        return Anchors(base=self.anchor_base, reference=self.anchor_reference)

    def starts(self) -> Sequence[int]:
        """Numbers of the training prompts."""
        return range(len(self._training))

    def evaluation_starts(self) -> Sequence[int]:
        """Numbers of the evaluation prompts, after the training prompts."""
        return range(len(self._training), len(self._training) + len(self._frozen))

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
        seeds = [
            derived_seed(iteration, number, 0 if shared else row % self.group_size)
            for row, number in enumerate(numbers.tolist())
        ]
        pooled = self._embeddings.pooled(numbers, device)
        context = {"prompt": numbers.to(device), "pooled": pooled}
        action = flow.sample(context, noise, initial=self._embeddings.adapter.initial(seeds).to(device))
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
        asked = [self._catalogue[i] for i in rollout.context["prompt"].tolist()]
        scores = self._mix(images, asked, group=rollout.group)
        return rollout.replace(
            reward=scores.reward[:, None].to(rollout.device),
            reward_terms={name: term.to(rollout.device) for name, term in scores.terms.items()},
        )

    @torch.no_grad()
    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Every reward, also the held-out ones, on the frozen prompts from the same noise at every checkpoint."""
        flow, judge = cast(FlowPolicy, policy), self.judge
        numbers = torch.tensor(self.evaluation_starts()).repeat_interleave(judge.images_per_prompt)
        seeds = [derived_seed(judge.seed, "evaluation", row) for row in range(len(numbers))]
        # For a stochastic sampler, which would else draw other noise in every evaluation.
        fixed = Noise(generator=generator(judge.seed, "evaluation"), device=noise.device)
        adapter, terms, shown = self._embeddings.adapter, list[dict[str, Tensor]](), list[Tensor]()
        with cast(Denoiser, flow.actor).guided(judge.guidance):
            for begin in range(0, len(numbers), self.rows_per_pass):
                rows = slice(begin, begin + self.rows_per_pass)
                start = adapter.initial(seeds[rows]).to(noise.device)
                context = {"prompt": numbers[rows].to(noise.device)}
                latents = flow.sample(context, fixed, train=False, initial=start)["sample"]
                images = adapter.decode(latents, self.rows_per_pass)
                terms.append(self._mix.evaluate(images, [self._catalogue[i] for i in numbers[rows].tolist()]))
                shown += images[: max(judge.sheet_images - len(shown), 0)].cpu()
        return self._evaluation(numbers, {name: torch.cat([t[name] for t in terms]) for name in terms[0]}, shown)

    def save(self, policy: Policy, folder: Path) -> None:
        """Write what was trained for diffusers: a LoRA, or a transformer in its folder (docs/image.md)."""
        from tasks.image.pipelines.loading import save_trained

        save_trained(policy.actor, folder)

    def close(self) -> None:
        """Close the rewards."""
        if "_mix" in vars(self):
            self._mix.close()

    def _evaluation(self, numbers: Tensor, terms: dict[str, Tensor], shown: list[Tensor]) -> Evaluation:
        score = self._mix.weighted(terms)
        texts = [self._catalogue[i].text for i in numbers.tolist()]
        items = [
            {"item": row, "prompt": text, "score": score[row].item()} | {n: t[row].item() for n, t in terms.items()}
            for row, text in enumerate(texts)
        ]
        labels = [f"{value:.3f}" for value in score[: len(shown)].tolist()]
        sheet = Sheet(images=torch.stack(shown), captions=texts[: len(shown)], labels=labels)
        metrics = {"score": score.mean().item()} | {name: term.mean().item() for name, term in terms.items()}
        return Evaluation(metrics=metrics, items=items, files={"images.png": sheet})

    @cached_property
    def _training(self) -> PromptSet:
        if not self.prompts:
            raise ValueError("task.prompts: expected geneval, ocr, a .txt or .jsonl file or a dataset, found nothing")
        return read_prompts(self.prompts, split="train", count=self.num_prompts)

    @cached_property
    def _frozen(self) -> PromptSet:
        source, limit = self.judge.prompts or self.prompts, self.judge.num_prompts
        frozen = read_prompts(source, split="test", limit=limit, count=limit)
        trained = {prompt.text for prompt in self._training.prompts}
        both = [prompt.text for prompt in frozen.prompts if prompt.text in trained]
        if both:
            raise ValueError(
                f"task.judge.prompts: {len(both)} of {len(frozen)} evaluation prompts in {source} are trained on, the "
                f"first is {both[0]!r}; name other prompts"
            )
        return frozen

    @cached_property
    def _catalogue(self) -> tuple[Prompt, ...]:
        return (*self._training.prompts, *self._frozen.prompts)

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
        texts = [prompt.text for prompt in self._catalogue]
        kept = PromptEmbeddings(adapter, texts, model.negative_prompt, model.cached_prompts)
        if kept.overlong and self.overlong == "refuse":
            raise ValueError(
                f"task.prompts: {len(kept.overlong)} of {len(texts)} prompts have more than model.max_tokens = "
                f"{adapter.max_tokens} tokens, the first is {kept.overlong[0][:60]!r}; raise it, shorten them, or set "
                "task.overlong=truncate"
            )
        return kept


def _pooled(context: dict[str, Tensor]) -> Tensor:
    return context["pooled"]
