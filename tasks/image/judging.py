"""The frozen evaluation of a pipeline: the same pictures but for the weights, scored, compared and counted by kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from rlflow.policies.flow import FlowPolicy
from rlflow.random import RowNoise, derived_seed, generator
from rlflow.task import Evaluation, SampleWriter
from tasks.image.catalogue import Catalogue
from tasks.image.diversity import cosine_diversity, pixel_diversity, thumbnails
from tasks.image.generation import BY_KIND, COMPARED, GENERATION, Generation, sampler_settings
from tasks.image.pipelines.adapter import Adapter
from tasks.image.pipelines.denoiser import Denoiser
from tasks.image.pipelines.settings import JudgeSettings
from tasks.image.rewards import Prompt, RewardMix
from tasks.image.rewards.clip_score import ClipScore
from tasks.image.sheet import Sheet, Table, table_by_kind

Untrained = Callable[[FlowPolicy], AbstractContextManager[FlowPolicy]]
"""The policy as it was before training, inside a block."""


@dataclass(kw_only=True)
class Pictures:
    """Pictures of one frozen set, as far as they are kept.

    Attributes:
        prompts: One for each picture.
        seeds: Of its noise.
        terms: Raw scores `[n]` by reward.
        shown: The first pictures, on the CPU.
        small: Thumbnails, where diversity is measured.
        features: Embeddings, where a model for them is named.
    """

    prompts: list[Prompt]
    seeds: list[int]
    terms: dict[str, Tensor] = field(default_factory=dict)
    shown: list[Tensor] = field(default_factory=list)
    small: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Prompt, kind, seed and scores of each picture."""
        kept = zip(self.prompts, self.seeds, strict=True)
        return [
            {"item": row, "prompt": prompt.text, "kind": kind_of(prompt), "seed": seed}
            | {name: term[row].item() for name, term in self.terms.items()}
            for row, (prompt, seed) in enumerate(kept)
        ]


class Judge:
    """Draws the frozen prompts and, where a reward is a guard, the guard prompts; scores and reports them."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        mix: RewardMix,
        catalogue: Catalogue,
        settings: JudgeSettings,
        rows_per_pass: int,
        described: Mapping[str, Any],
        untrained: Untrained,
    ) -> None:
        """Keep what does not change between two checkpoints.

        Args:
            adapter: Of the pipeline.
            mix: Every reward of the task.
            catalogue: Every prompt by number.
            settings: Of the evaluation.
            rows_per_pass: Pictures drawn together.
            described: What else decides a picture, for the record.
            untrained: Gives the base for the comparison.
        """
        self.adapter, self.mix, self.catalogue, self.settings = adapter, mix, catalogue, settings
        self.frozen, self.guard = catalogue.frozen_numbers, catalogue.guard_numbers
        self.rows_per_pass, self.described, self.untrained = rows_per_pass, dict(described), untrained
        self._base: tuple[list[Tensor], Tensor] | None = None
        self._eyes = ClipScore(model=settings.diversity_model) if settings.diversity_model else None

    def evaluate(self, flow: FlowPolicy, device: torch.device) -> Evaluation:
        """Metrics, rows and sheets of the policy as it is now."""
        made = self._drawn(flow, self.frozen, "evaluation", self.mix.evaluate, device)
        score = self.mix.weighted(made.terms)
        scores = {"score": score} | made.terms
        metrics = {name: values.mean().item() for name, values in scores.items()}
        metrics |= by_kind(made.prompts, scores) | self._diversity(made)
        labels = [f"{value:.3f}" for value in score[: len(made.shown)].tolist()]
        captions = [prompt.text for prompt in made.prompts[: len(made.shown)]]
        files: dict[str, SampleWriter] = {
            "images.png": Sheet(images=torch.stack(made.shown), captions=captions, labels=labels),
            GENERATION: Generation(settings=self._generation(flow)),
        }
        if self.settings.compare:
            files[COMPARED] = self._compared(flow, made, captions, labels, device)
        if self.guard:
            more, sheets = self._guarded(flow, device)
            metrics |= more
            files |= sheets
        items = [row | {"score": value} for row, value in zip(made.rows(), score.tolist(), strict=True)]
        return Evaluation(metrics=metrics, items=items, files=files | {BY_KIND: table_by_kind(items)})

    def close(self) -> None:
        """Drop the model that embeds pictures."""
        if self._eyes is not None:
            self._eyes.close()

    def _drawn(
        self,
        flow: FlowPolicy,
        numbers: range,
        name: str,
        scored: Callable[[Tensor, Sequence[Prompt]], dict[str, Tensor]],
        device: torch.device,
    ) -> Pictures:
        """All pictures of the prompts `numbers`, with noise that the seed and `name` fix."""
        made = Pictures(prompts=[], seeds=[])
        terms: list[dict[str, Tensor]] = []
        limit = self.settings.sheet_images
        for prompts, seeds, images in self._passes(flow, numbers, name, device):
            terms.append(scored(images, prompts))
            made.prompts += prompts
            made.seeds += seeds
            made.shown += images[: max(limit - len(made.shown), 0)].cpu()
            if self.settings.images_per_prompt > 1:
                made.small.append(thumbnails(images))
                made.features += [self._eyes.image_features(images)] if self._eyes is not None else []
        made.terms = {name: torch.cat([part[name] for part in terms]) for name in terms[0]}
        return made

    def _passes(
        self, flow: FlowPolicy, numbers: range, name: str, device: torch.device, limit: int | None = None
    ) -> Iterator[tuple[list[Prompt], list[int], Tensor]]:
        """Prompts, seeds and pictures `[n, 3, h, w]` of each pass, whole passes until `limit` pictures."""
        settings = self.settings
        rows = torch.tensor(numbers).repeat_interleave(settings.images_per_prompt)
        seeds = [derived_seed(settings.seed, name, row) for row in range(len(rows))]
        shared = generator(settings.seed, name)
        for begin in range(0, min(len(rows), limit or len(rows)), self.rows_per_pass):
            part = slice(begin, begin + self.rows_per_pass)
            start = self.adapter.initial(seeds[part]).to(device)
            # For a stochastic sampler, which would else draw other noise in every evaluation, or by the pass.
            steps = [derived_seed(seed, "steps") for seed in seeds[part]]
            fixed = RowNoise(generator=shared, device=device, seeds=steps)
            with cast(Denoiser, flow.actor).guided(settings.guidance):
                context = {"prompt": rows[part].to(device)}
                latents = flow.sample(context, fixed, train=False, initial=start)["sample"]
            images = self.adapter.decode(latents, self.rows_per_pass)
            yield [self.catalogue.prompts[number] for number in rows[part].tolist()], seeds[part], images

    def _compared(
        self, flow: FlowPolicy, made: Pictures, captions: list[str], labels: list[str], device: torch.device
    ) -> Sheet:
        """The shown pictures, each right of what the untrained policy makes of the same noise."""
        count = len(made.shown)
        if self._base is None:
            with self.untrained(flow) as base:
                parts = list(self._passes(base, self.frozen, "evaluation", device, limit=count))
            images = torch.cat([part[2] for part in parts])[:count]
            self._base = list(images.cpu()), self.mix.weighted(self.mix.evaluate(images, made.prompts[:count]))
        before, scores = self._base
        both = [f"{old:.3f} -> {new}" for old, new in zip(scores.tolist(), labels, strict=True)]
        return Sheet(images=torch.stack(made.shown), captions=captions, labels=both, before=torch.stack(before))

    def _guarded(self, flow: FlowPolicy, device: torch.device) -> tuple[dict[str, float], dict[str, SampleWriter]]:
        """Scores of the guard prompts, and their files."""
        made = self._drawn(flow, self.guard, "guard", self.mix.guard, device)
        scores = {f"guard_{name}": values for name, values in made.terms.items()}
        metrics = {name: values.mean().item() for name, values in scores.items()} | by_kind(made.prompts, scores)
        first = next(iter(made.terms.values()))[: len(made.shown)]
        sheet = Sheet(
            images=torch.stack(made.shown),
            captions=[prompt.text for prompt in made.prompts[: len(made.shown)]],
            labels=[f"{value:.3f}" for value in first.tolist()],
        )
        return metrics, {"guard.png": sheet, "guard.csv": Table(rows=made.rows())}

    def _diversity(self, made: Pictures) -> dict[str, float]:
        size = self.settings.images_per_prompt
        found: dict[str, float] = {}
        if made.small:
            found["diversity"] = pixel_diversity(torch.cat(made.small), size).mean().item()
        if made.features:
            found["clip_diversity"] = cosine_diversity(torch.cat(made.features), size).mean().item()
        return found

    def _generation(self, flow: FlowPolicy) -> dict[str, Any]:
        import diffusers

        settings = self.settings
        return {
            **self.described,
            **sampler_settings(flow.config, flow.times(flow.config.eval_steps)),
            "diffusers": diffusers.__version__,
            "guidance": settings.guidance,
            "noise_seed": settings.seed,
            "images_per_prompt": settings.images_per_prompt,
            "num_prompts": len(self.frozen),
            "num_guard_prompts": len(self.guard),
            "rows_per_pass": self.rows_per_pass,
        }


def kind_of(prompt: Prompt) -> str:
    """The `tag` of a prompt's metadata, as a part of a metric's name; empty where there is none."""
    return re.sub(r"[^a-z0-9]+", "_", str(prompt.meta.get("tag", "")).lower()).strip("_")


def by_kind(prompts: Sequence[Prompt], scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each score over the prompts of each kind, `NAME_KIND`; nothing where all are of one kind."""
    kinds = [kind_of(prompt) for prompt in prompts]
    found: dict[str, float] = {}
    for kind in dict.fromkeys(kinds) if len(set(kinds)) > 1 else ():
        rows = torch.tensor([row for row, own in enumerate(kinds) if own == kind])
        found |= {f"{name}_{kind or 'other'}": values[rows].mean().item() for name, values in scores.items()}
    return found
