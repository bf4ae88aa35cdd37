"""Grounding DINO (arXiv 2303.05499) as a detector: all names in one sentence, a score per box and token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.rewards.detection import Detection, Detector, detections, from_centre, same_queries
from tasks.image.rewards.weights import pretrained

_FLOOR = 0.01
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class GroundingDino(Detector):
    """`GroundingDinoForObjectDetection` of transformers.

    Attributes:
        model: Folder or hub id.
        device: Where it runs; empty takes the images' device.
        dtype: Of the weights.
        batch: Images of one forward.
        short_side: Pixels of the shorter side that the model sees. Too low: small objects are missed.
        long_side: Most pixels of the longer side.
    """

    model: str = "IDEA-Research/grounding-dino-tiny"
    device: str = ""
    dtype: str = "float32"
    batch: int = 4
    short_side: int = 800
    long_side: int = 1333
    _model: Any = field(default=None, init=False, repr=False)
    _words: Any = field(default=None, init=False, repr=False)

    def __call__(self, images: Tensor, queries: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector`."""
        model = self._open(images.device)
        height, width = images.shape[-2:]
        scale = torch.tensor([width, height, width, height])
        found: list[list[Detection]] = [[] for _ in queries]
        for rows, names in same_queries(queries, self.batch):
            sentence, spans = self._sentence(names)
            pixels = self._prepare(images[rows].to(model.device))
            with torch.inference_mode():
                out = model(
                    pixel_values=pixels.to(model.dtype),
                    **{name: value.expand(len(rows), -1).to(model.device) for name, value in sentence.items()},
                )
            for row, logits, boxes in zip(rows, out.logits.float().cpu(), out.pred_boxes.float().cpu(), strict=True):
                scores = torch.stack([logits[:, span].max(dim=1).values for span in spans], dim=1).sigmoid()
                found[row] = detections(scores, from_centre(boxes) * scale, names, _FLOOR)
        return found

    def close(self) -> None:
        """Drop the model."""
        self._model = self._words = None

    def _sentence(self, names: Sequence[str]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Tokens of `name. name.` and the positions of each name's tokens."""
        text, begins = "", []
        for name in names:
            begins.append(len(text))
            text += f"{name.lower()}. "
        tokens = self._words(text.strip(), return_tensors="pt", return_offsets_mapping=True)
        offsets = tokens.pop("offset_mapping")[0].tolist()
        spans = [
            [i for i, (left, right) in enumerate(offsets) if begin <= left < right <= begin + len(name)]
            for begin, name in zip(begins, names, strict=True)
        ]
        kept = {name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokens}
        return kept, spans

    def _prepare(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        size = (round(height * scale), round(width * scale))
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (_MEAN, _STD))
        return (images - mean) / std

    def _open(self, device: torch.device) -> Any:
        if self._model is None:
            from transformers import AutoTokenizer, GroundingDinoForObjectDetection

            model = pretrained(GroundingDinoForObjectDetection.from_pretrained, self.model, "model")
            model = model.requires_grad_(False).eval()
            self._model = model.to(device=self.device or device, dtype=getattr(torch, self.dtype))
            self._words = pretrained(AutoTokenizer.from_pretrained, self.model, "model")
        return self._model
