"""Makes the shipped bases anew: flow matching on clean renders of every prompt of an embedded task, from a seed.

`rlflow pretrain image/shapes --out FOLDER --seed 0` takes about 6 CPU-minutes and prints the base's score.

Every prompt of the catalogue is trained on; the held-out prompts are held out of RL only. With 66 object pairs
a base that has not seen a pair does not compose it, and RL would then be measured on that and not on its own gain.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.image.checker import judge
from tasks.image.muon import Muon
from tasks.image.networks import ShapesNet, ShapesNetConfig
from tasks.image.prompts import (
    EVAL_GROUP_SIZE,
    EVAL_NOISE_SEED,
    KINDS,
    evaluation_prompts,
    sample_prompts,
    tables,
)
from tasks.image.renderer import IMAGE_SIZE, render

EVAL_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pretraining run; the number of steps is fixed, so a seed gives the same weights.

    Attributes:
        steps: optimiser steps; the shipped base stops where its strict score leaves RL room to rise.
        batch: images per step.
        wrong_caption_steps: last steps, in which some captions belong to another image. A sharp base then trusts
            its caption too little, as web-trained models do, and RL has something to correct other than blur.
        wrong_caption_fraction: share of such captions: .08 left too little to gain, .15 a score of .355, .3 of .198.
        wrong_caption_rate: 0, the wrong captions are learned while both rates fall once, over the whole run. Above 0,
            the rates fall to zero on right captions alone, which sharpens the base as far as it will get, and rise
            again to this share of themselves for the wrong ones. Too high forgets how to draw, too low changes nothing.
        wrong_caption_layers: what learns from the wrong captions: `all`, or `caption`, the layers that read it; the
            convolutions then draw as they did on right captions.
        muon_lr: step size of matrices and kernels.
        adam_lr: step size of everything else (edges, norms, biases, embeddings).
        warmup_steps: linear warm-up of both rates.
        decay_fraction: last share of the steps over which both rates fall linearly to zero.
        ema_decay: of the weights that are saved.
        s_mean: mean of the logit of s; above 0 puts the weight on the noisy half, where layout and binding are decided.
        log_every: steps between printed scores; 0 prints only the last.
    """

    steps: int = 1100
    batch: int = 128
    wrong_caption_steps: int = 200
    wrong_caption_fraction: float = 0.12
    wrong_caption_rate: float = 0.0
    wrong_caption_layers: Literal["all", "caption"] = "all"
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup_steps: int = 50
    decay_fraction: float = 0.25
    ema_decay: float = 0.98
    s_mean: float = 0.7
    log_every: int = 250


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a base is trained to draw.

    Attributes:
        network: sizes of the network.
        sample: number and generator to prompt indices [n], by the shares of the task.
        render: prompt indices [n] and generator to clean images [n, C, H, W] in [-1, 1].
        tokens: [P, caption_length] int64, one row per prompt.
        score: scores of a network on the frozen held-out set.
    """

    network: ShapesNetConfig
    sample: Callable[[int, torch.Generator], Tensor]
    render: Callable[[Tensor, torch.Generator], Tensor]
    tokens: Tensor
    score: Callable[[nn.Module], dict[str, float]]


def pretrain_shapes(out: Path, seed: int, config: PretrainConfig | None = None) -> dict[str, float]:
    """Train the base of the coloured objects from scratch; see `pretrain_base`.

    Returns:
        `strict`, `soft` and `strict/KIND` on the frozen held-out prompts at `EVAL_STEPS` Euler steps.
    """
    return pretrain_base(out, seed, config or PretrainConfig(), _shapes())


def _shapes() -> Subject:
    return Subject(
        network=ShapesNetConfig(),
        sample=lambda count, generator: sample_prompts(count, generator, split="all"),
        render=render,
        tokens=tables().tokens,
        score=score_base,
    )


def pretrain_base(out: Path, seed: int, config: PretrainConfig, subject: Subject) -> dict[str, float]:
    """Train a base from scratch and write model.safetensors and config.json into `out`.

    Args:
        out: folder, made if absent.
        seed: of the initial weights, the images and the noise.
        config: settings of the run.
        subject: what to draw.

    Returns:
        What `subject.score` says of the averaged weights.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ShapesNet(subject.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network)
    optimizers = _optimizers(network, config)
    start, scores = time.monotonic(), dict[str, float]()
    for step in range(1, config.steps + 1):
        scale = _rate(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
        late = step > config.steps - config.wrong_caption_steps
        if late and config.wrong_caption_layers == "caption":
            network.freeze_drawing()
        loss = _loss(network, subject, config, generator, config.wrong_caption_fraction if late else 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        _average(averaged, network, step, config.ema_decay)
        if step == config.steps or (config.log_every and step % config.log_every == 0):
            scores = subject.score(averaged)
            print(_line(step, loss.item(), time.monotonic() - start, scores), flush=True)
    save_base(out, averaged, {"seed": seed, **asdict(config)}, scores)
    return scores


def _optimizers(network: ShapesNet, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    edges = {id(p) for module in (network.embed, network.stem, network.head) for p in module.parameters()}
    matrices = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in edges]
    chosen = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(rest, lr=config.adam_lr, weight_decay=0.0)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def _rate(step: int, config: PretrainConfig) -> float:
    clean = config.steps - config.wrong_caption_steps
    if not config.wrong_caption_rate:
        return _leg(step, config.steps, config)
    if step <= clean:
        return _leg(step, clean, config)
    return config.wrong_caption_rate * _leg(step - clean, config.wrong_caption_steps, config)


def _leg(step: int, steps: int, config: PretrainConfig) -> float:
    left = (steps - step) / max(1.0, config.decay_fraction * steps)
    return min(1.0, step / config.warmup_steps, left)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    # The shorter horizon of early steps keeps the random initial weights out of the average.
    weight = 1 - min(decay, step / (step + 10))
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), weight)


def _loss(
    network: ShapesNet,
    subject: Subject,
    config: PretrainConfig,
    generator: torch.Generator,
    wrong_fraction: float = 0.0,
) -> Tensor:
    """Conditional flow matching, |v(x_s, s) - (eps - x0)|^2 at logit-normal s."""
    prompts = subject.sample(config.batch, generator)
    clean = subject.render(prompts, generator)
    others = subject.sample(config.batch, generator)
    wrong = torch.rand(config.batch, generator=generator) < wrong_fraction
    captions = subject.tokens[torch.where(wrong, others, prompts)]
    noise = torch.randn(clean.shape, generator=generator)
    s = torch.sigmoid(torch.randn(config.batch, generator=generator) + config.s_mean)
    mixed = (1 - s)[:, None, None, None] * clean + s[:, None, None, None] * noise
    mixed = mixed.contiguous(memory_format=torch.channels_last)
    velocity: Tensor = network(mixed, s, {"tokens": captions})
    return (velocity - (noise - clean)).square().mean()


@torch.no_grad()
def euler(network: nn.Module, noise: Tensor, tokens: Tensor, steps: int, batch: int = 256) -> Tensor:
    """Deterministic samples from noise [B, C, H, W] on `steps` equal steps of s; same shape."""
    grid = torch.linspace(1, 0, steps + 1)
    images = []
    for x, words in zip(torch.split(noise, batch), torch.split(tokens, batch), strict=True):
        for s, s_next in itertools.pairwise(grid.tolist()):
            x = x + (s_next - s) * network(x, torch.full((len(x),), s), {"tokens": words})
        images.append(x)
    return torch.cat(images)


def score_base(network: nn.Module) -> dict[str, float]:
    """Scores of a network on the frozen held-out set with deterministic sampling."""
    prompts = evaluation_prompts().repeat_interleave(EVAL_GROUP_SIZE)
    shape = (len(prompts), 3, IMAGE_SIZE, IMAGE_SIZE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(EVAL_NOISE_SEED))
    verdict = judge(euler(network, noise, tables().tokens[prompts], EVAL_STEPS), prompts)
    kinds = tables().kind[prompts]
    scores = {"strict": verdict.strict.float().mean().item(), "soft": verdict.soft.mean().item()}
    for index, kind in enumerate(KINDS):
        scores[f"strict/{kind}"] = verdict.strict[kinds == index].float().mean().item()
    return scores


def _line(step: int, loss: float, seconds: float, scores: dict[str, float]) -> str:
    values = " ".join(f"{name}={value:.3f}" for name, value in scores.items())
    return f"step {step} loss {loss:.4f} {seconds / 60:.1f} min {values}"


def save_base(out: Path, network: ShapesNet, recipe: dict[str, object], scores: dict[str, float]) -> None:
    """Write the weights and, next to them, sizes, recipe and scores."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, out / "model.safetensors")
    content = {"network": asdict(network.config), "recipe": recipe, "scores": scores}
    (out / "config.json").write_text(json.dumps(content, indent=2) + "\n")
