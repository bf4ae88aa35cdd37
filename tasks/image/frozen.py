"""The frozen evaluation set of a caption network: prompts, their noise, and what the base makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rlflow.policies.flow import FlowPolicy
from rlflow.random import Noise, generator
from tasks.image.contact_sheet import ContactSheet, beside

# Rows of one evaluation forward; larger batches are no faster on a CPU.
_EVALUATION_ROWS = 256
# Of the sheet that compares.
_PAIRS = 24


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The prompts of a task and what its network reads.

    Attributes:
        tokens: [P, caption_length] int64, one row per prompt.
        num_words: rows of the token embedding.
        evaluation: [groups] int64, the frozen held-out prompts.
        evaluation_group_size: images of each.
        noise_seed: of the evaluation's fixed noise.
        image_shape: channels, height, width.
        base: folder of the shipped base.
        base_score: strict score of the shipped base on the whole frozen set.
    """

    tokens: Tensor
    num_words: int
    evaluation: Tensor
    evaluation_group_size: int
    noise_seed: int
    image_shape: tuple[int, int, int]
    base: Path
    base_score: float


class FrozenSet:
    """Draws items of the set, which are numbered group by group, each from noise of its own."""

    def __init__(self, captions: Captions) -> None:
        """Nothing is drawn yet."""
        self.captions = captions
        self._base: dict[int, tuple[Tensor, list[str]]] = {}

    @cached_property
    def prompts(self) -> Tensor:
        """Prompt of each item, `[items]`."""
        return self.captions.evaluation.repeat_interleave(self.captions.evaluation_group_size)

    def drawn(self, flow: FlowPolicy, items: Tensor, device: torch.device) -> Tensor:
        """Images `[n, C, H, W]` on the CPU of the items `[n]`."""
        captions, prompts = self.captions, self.prompts[items]
        start = torch.randn(
            (len(self.prompts), *captions.image_shape), generator=torch.Generator().manual_seed(captions.noise_seed)
        )[items]
        # For a stochastic sampler, which would else draw other noise in every evaluation.
        fixed = Noise(generator=generator(captions.noise_seed, "image", "evaluation"), device=device)
        images = []
        for rows, initial in zip(
            torch.split(prompts, _EVALUATION_ROWS), torch.split(start, _EVALUATION_ROWS), strict=True
        ):
            context = {"tokens": captions.tokens[rows].to(device)}
            images.append(flow.sample(context, fixed, train=False, initial=initial.to(device))["sample"].cpu())
        return torch.cat(images)

    def compared(
        self,
        images: Tensor,
        caption: Callable[[int], str],
        verdicts: Callable[[Tensor, Tensor], list[str]],
        base: Callable[[], FlowPolicy],
        device: torch.device,
    ) -> ContactSheet:
        """Evenly spread items, each beside what the base makes of the same noise, which is drawn once.

        Args:
            images: Of the first items, as many as there are.
            caption: Of a prompt.
            verdicts: Of images and prompts.
            base: Makes the untrained policy.
            device: Where it draws.
        """
        count = len(images)
        chosen = torch.arange(0, count, max(1, count // _PAIRS))[:_PAIRS]
        asked = self.prompts[chosen]
        if count not in self._base:
            untrained = base().to(device)
            # The noise of a stochastic sampler depends on all rows before.
            whole = untrained.config.eval_solver == "sde"
            drawn = self.drawn(untrained, torch.arange(count) if whole else chosen, device)
            drawn = drawn[chosen] if whole else drawn
            self._base[count] = drawn, verdicts(drawn, asked)
        before, judged = self._base[count]
        after = images[chosen]
        coloured = (len(chosen), 3, *images.shape[2:])
        texts = [caption(row) for row in asked.tolist()]
        return beside(before.expand(coloured), after.expand(coloured), texts, (judged, verdicts(after, asked)))
