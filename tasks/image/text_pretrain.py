"""The recipe of the shipped base of `image/text` (`rlflow pretrain image/text`), by the shared pretraining loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tasks.image.networks import ShapesNetConfig
from tasks.image.pretrain import EVAL_STEPS, PretrainConfig, Subject, euler, pretrain_base
from tasks.image.text_reader import judge, quality
from tasks.image.text_words import (
    CAPTION_LENGTH,
    EVAL_GROUP_SIZE,
    EVAL_NOISE_SEED,
    HEIGHT,
    LENGTHS,
    VOCABULARY_SIZE,
    WIDTH,
    evaluation_words,
    render,
    sample_words,
    tokens,
)

NETWORK = ShapesNetConfig(
    caption_length=CAPTION_LENGTH, vocabulary_size=VOCABULARY_SIZE, image_channels=1, size=(HEIGHT, WIDTH)
)


def pretrain_text(out: Path, seed: int, config: PretrainConfig | None = None) -> dict[str, float]:
    """Train the base of the words from scratch; see `pretrain_base`.

    Returns:
        `strict`, `soft`, `quality` and `strict/NUM_letters` on the frozen held-out words.
    """
    subject = Subject(network=NETWORK, sample=sample_words, render=render, tokens=tokens(), score=score_base)
    return pretrain_base(out, seed, config or text_config(), subject)


def text_config() -> PretrainConfig:
    """Settings of the shipped base."""
    return PretrainConfig(steps=600, wrong_caption_steps=150, wrong_caption_fraction=0.1, log_every=0)


@torch.no_grad()
def score_base(network: nn.Module) -> dict[str, float]:
    """Scores of a network on the frozen held-out words with deterministic sampling."""
    words = evaluation_words().repeat_interleave(EVAL_GROUP_SIZE)
    shape = (len(words), NETWORK.image_channels, *NETWORK.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(EVAL_NOISE_SEED))
    images = euler(network, noise, tokens()[words], EVAL_STEPS)
    verdict = judge(images, words)
    lengths = (tokens()[words] > 0).sum(1)
    scores = {
        "strict": verdict.strict.float().mean().item(),
        "soft": verdict.soft.mean().item(),
        "quality": quality(images, verdict.texts).mean().item(),
    }
    for length in LENGTHS:
        scores[f"strict/{length}_letters"] = verdict.strict[lengths == length].float().mean().item()
    return scores
