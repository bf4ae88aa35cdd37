"""Does the picture hold the asked objects, in number, colour and place? GenEval's rules on an open detector."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlflow.registry import did_you_mean
from tasks.image.rewards.clip_score import ClipScore
from tasks.image.rewards.colours import Colours
from tasks.image.rewards.detection import Detection, Detector, distinct
from tasks.image.rewards.geneval_rules import Verdict, verdict
from tasks.image.rewards.reward import Prompt, Reward, RewardError

DETECTORS = {
    "owlv2": "tasks.image.rewards.owlv2:Owlv2",
    "grounding_dino": "tasks.image.rewards.grounding_dino:GroundingDino",
}


@dataclass(kw_only=True)
class GenEval(Reward):
    """Strict or soft verdict on the prompt's `include` and `exclude` clauses.

    GenEval itself detects with a Mask2Former trained on COCO and cuts objects out by their masks; open detectors have
    no masks and other confidences, so scores do not compare with published ones. Calibrate the thresholds first.

    Attributes:
        detector: `owlv2`, `grounding_dino`, or `module:Class` of a `Detector`.
        model: Folder or hub id of the detector; empty takes its own default.
        colour_model: Folder or hub id of the CLIP that names colours.
        strict: True: 1 where everything holds, else 0, which teaches nothing in groups that all fail. False: the soft
            score.
        threshold: Least confidence of an object. Too low: phantom objects; too high: missed ones.
        counting_threshold: The same for prompts with the tag `counting`, where every phantom is an error.
        max_overlap: Intersection over union from which two boxes of a name are one object.
        max_objects: Most objects of a name.
        position_threshold: Share of two objects' sizes by which their centres may differ and still count as level.
        device: Where the models run; empty takes the images' device.
        dtype: Of the models' weights.
    """

    detector: str = "owlv2"
    model: str = ""
    colour_model: str = "openai/clip-vit-large-patch14"
    strict: bool = False
    threshold: float = 0.3
    counting_threshold: float = 0.4
    max_overlap: float = 0.5
    max_objects: int = 16
    position_threshold: float = 0.1
    device: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    _detector: Detector | None = field(default=None, init=False, repr=False)
    _colours: Colours | None = field(default=None, init=False, repr=False)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]` in [0, 1].

        Raises:
            RewardError: A prompt without GenEval's metadata.
        """
        verdicts = self.judge(images, prompts)
        return torch.tensor([float(v.strict) if self.strict else v.soft for v in verdicts])

    def judge(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        """The verdict on each picture, with its reasons."""
        queries = [_names(prompt, row) for row, prompt in enumerate(prompts)]
        if self._detector is None:
            self._detector = self._open_detector()
        if self._colours is None:
            self._colours = Colours(clip=ClipScore(model=self.colour_model, device=self.device, dtype=self.dtype))
        found = self._detector(images, queries)
        return [
            self._judge(image, prompt, seen, self._colours)
            for image, prompt, seen in zip(images, prompts, found, strict=True)
        ]

    def close(self) -> None:
        """Drop the models."""
        for held in (self._detector, self._colours):
            if held is not None:
                held.close()
        self._detector = self._colours = None

    def _judge(self, image: Tensor, prompt: Prompt, seen: Sequence[Detection], colours: Colours) -> Verdict:
        counting = prompt.meta.get("tag") == "counting"
        objects = {
            name: distinct(
                [d for d in seen if d.label == name],
                threshold=self.counting_threshold if counting else self.threshold,
                max_overlap=self.max_overlap,
                limit=self.max_objects,
            )
            for name in {d.label for d in seen}
        }
        return verdict(objects, prompt.meta, lambda found, name: colours(image, found, name), self.position_threshold)

    def _open_detector(self) -> Detector:
        target = DETECTORS.get(self.detector, self.detector)
        module, colon, name = target.partition(":")
        if not colon:
            raise ValueError(f"unknown detector {self.detector!r}{did_you_mean(self.detector, DETECTORS)}")
        settings = {"device": self.device, "dtype": self.dtype, **({"model": self.model} if self.model else {})}
        detector: Detector = getattr(importlib.import_module(module), name)(**settings)
        return detector


def _names(prompt: Prompt, row: int) -> list[str]:
    clauses = [*prompt.meta.get("include", ()), *prompt.meta.get("exclude", ())]
    if not clauses:
        raise RewardError("expected GenEval's include or exclude in the metadata, found neither", row)
    return list(dict.fromkeys(str(clause["class"]) for clause in clauses))
