"""Which of ten colours an object has, by CLIP's zero-shot classification of its box, as GenEval asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.rewards.clip_score import ClipScore
from tasks.image.rewards.detection import Detection

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


@dataclass(kw_only=True)
class Colours:
    """Classifies boxes; texts of a name are embedded once.

    Attributes:
        clip: The model that embeds.
    """

    clip: ClipScore
    _texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, image: Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        """Colour of each object of a picture `[3, H, W]`."""
        if not objects:
            return []
        crops = [self.clip.image_features(crop(image, found)[None]) for found in objects]
        best = (torch.cat(crops) @ self._classifier(name, image.device).T).argmax(dim=1)
        return [COLOURS[i] for i in best.tolist()]

    def close(self) -> None:
        """Drop the model."""
        self.clip.close()

    def _classifier(self, name: str, device: torch.device) -> Tensor:
        """`[10, d]`: the direction of the mean over the templates."""
        if name not in self._texts:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in _TEMPLATES]
            features = self.clip.text_features(texts, device).view(len(COLOURS), len(_TEMPLATES), -1)
            self._texts[name] = F.normalize(features.mean(dim=1), dim=-1)
        return self._texts[name]


def crop(image: Tensor, found: Detection) -> Tensor:
    """The part of a picture `[3, H, W]` in a box, at least one pixel."""
    height, width = image.shape[-2:]
    left, top = (max(0, min(int(v), limit - 1)) for v, limit in zip(found.box[:2], (width, height), strict=True))
    right, bottom = (min(limit, round(v)) for v, limit in zip(found.box[2:], (width, height), strict=True))
    return image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
