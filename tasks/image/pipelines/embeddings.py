"""Prompt embeddings by text, made on first use and kept on the CPU, so that a rollout carries only prompt numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.image.pipelines.adapter import Adapter, Rows


class PromptEmbeddings:
    """Embeddings of a catalogue of prompts and of the negative prompt, at most `limit` prompts at a time.

    1,000 prompts of SD3.5 in bfloat16 are 2.7 GB; what is dropped is encoded anew when it comes up again, which gives
    the same numbers.
    """

    def __init__(self, adapter: Adapter, texts: Sequence[str], negative: str, limit: int) -> None:
        """Count the tokens of the catalogue; nothing is encoded yet."""
        self.adapter = adapter
        self.texts = tuple(texts)
        self.negative = negative
        self.limit = limit
        lengths = {text: adapter.num_tokens(text) for text in dict.fromkeys(self.texts)}
        self.overlong = [text for text, length in lengths.items() if length > adapter.max_prompt_tokens]
        cut = {min(length, adapter.max_tokens) for length in lengths.values()}
        self._longest = max(cut) if len(cut) > 1 else None
        self._kept: OrderedDict[str, Rows] = OrderedDict()
        self.num_encoded = 0

    def refuse_overlong(self) -> None:
        """Refuse texts that an encoder would cut.

        Raises:
            ValueError: Names the limit and the first text.
        """
        adapter, limit = self.adapter, self.adapter.max_prompt_tokens
        shown = f"model.max_tokens = {limit} tokens" if limit == adapter.max_tokens else f"the {limit} tokens of CLIP"
        advice = "raise it, shorten them" if limit == adapter.max_tokens else "shorten them, take a model with T5"
        if self.overlong:
            raise ValueError(
                f"task.prompts: {len(self.overlong)} of {len(self.texts)} prompts have more than {shown}, the first is "
                f"{self.overlong[0][:60]!r}; {advice}, or set task.overlong=truncate"
            )
        tokens = adapter.num_tokens(self.negative) if adapter.takes_negative else 0
        if tokens > limit:
            raise ValueError(
                f"task.model.negative_prompt has {tokens} tokens, more than {shown}; {advice}, or set "
                "task.overlong=truncate"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptEmbeddings:
        """A copy of the network reads the same cache."""
        return self

    def rows(self, prompts: Tensor, device: torch.device) -> Rows:
        """Embeddings of catalogue numbers `prompts [n]`, `[n, ...]` on `device`."""
        texts = [self.texts[i] for i in prompts.tolist()]
        self._encode(texts, device)
        made = self.adapter.collate([self._kept[text] for text in texts], self._longest)
        return {name: value.to(device) for name, value in made.items()}

    def pooled(self, prompts: Tensor, device: torch.device) -> Tensor:
        """Pooled embeddings `[n, P]` float32 of catalogue numbers `prompts [n]`."""
        texts = [self.texts[i] for i in prompts.tolist()]
        self._encode(texts, device)
        return torch.stack([self._kept[text]["pooled"] for text in texts]).float().to(device)

    def negatives(self, num_rows: int, device: torch.device) -> Rows:
        """Embeddings of the negative prompt, `num_rows` times."""
        self._encode([self.negative], device)
        row = self._kept[self.negative]
        return {name: value.to(device).expand(num_rows, *value.shape) for name, value in row.items()}

    def _encode(self, texts: Sequence[str], device: torch.device) -> None:
        wanted = dict.fromkeys(texts)
        missing = [text for text in wanted if text not in self._kept]
        if missing:
            self._kept.update(zip(missing, self.adapter.encode(missing, device), strict=True))
            self.num_encoded += len(missing)
        for text in wanted:
            self._kept.move_to_end(text)
        while len(self._kept) > max(self.limit, len(wanted)):
            self._kept.popitem(last=False)
