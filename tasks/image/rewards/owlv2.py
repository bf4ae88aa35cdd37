"""OWLv2 (arXiv 2306.09683) as a detector: text queries against every patch of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.rewards.detection import Detection, Detector, detections, from_centre, same_queries
from tasks.image.rewards.pixels import CLIP_MEAN, CLIP_STD
from tasks.image.rewards.weights import pretrained

_FLOOR = 0.01


@dataclass(kw_only=True)
class Owlv2(Detector):
    """`Owlv2ForObjectDetection` of transformers.

    Attributes:
        model: Folder or hub id.
        device: Where it runs; empty takes the images' device.
        dtype: Of the weights.
        batch: Images of one forward.
    """

    model: str = "google/owlv2-base-patch16-ensemble"
    device: str = ""
    dtype: str = "float32"
    batch: int = 8
    _model: Any = field(default=None, init=False, repr=False)
    _words: Any = field(default=None, init=False, repr=False)

    def __call__(self, images: Tensor, queries: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector`."""
        model = self._open(images.device)
        side = max(images.shape[-2:])
        found: list[list[Detection]] = [[] for _ in queries]
        for rows, names in same_queries(queries, self.batch):
            pixels = prepare(images[rows].to(model.device), int(model.config.vision_config.image_size))
            tokens = self._words(
                [f"a photo of a {name}" for name in names] * len(rows), padding="max_length", truncation=True,
                max_length=int(model.config.text_config.max_position_embeddings), return_tensors="pt",
            ).to(model.device)  # fmt: skip
            with torch.inference_mode():
                out = model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    pixel_values=pixels.to(model.dtype),
                )
            for row, logits, boxes in zip(rows, out.logits, out.pred_boxes, strict=True):
                found[row] = detections(logits.float().sigmoid(), from_centre(boxes) * side, names, _FLOOR)
        return found

    def close(self) -> None:
        """Drop the model."""
        self._model = self._words = None

    def _open(self, device: torch.device) -> Any:
        if self._model is None:
            from transformers import AutoTokenizer, Owlv2ForObjectDetection

            model = pretrained(Owlv2ForObjectDetection.from_pretrained, self.model, "model")
            model = model.requires_grad_(False).eval()
            self._model = model.to(device=self.device or device, dtype=getattr(torch, self.dtype))
            self._words = pretrained(AutoTokenizer.from_pretrained, self.model, "model")
        return self._model


def prepare(images: Tensor, size: int) -> Tensor:
    """Grey to the right and below up to a square, then `size` pixels, normalised; boxes are of the square."""
    height, width = images.shape[-2:]
    side = max(height, width)
    images = F.pad(images, (0, side - width, 0, side - height), value=0.5)
    if side != size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std
