"""Names to rewards: a table of modules that are imported when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rlflow.registry import UnknownNameError, did_you_mean
from tasks.image.rewards.reward import Reward

REWARDS = {
    "aesthetic": "tasks.image.rewards.aesthetic:Aesthetic",
    "clip_score": "tasks.image.rewards.clip_score:ClipScore",
    "geneval": "tasks.image.rewards.geneval:GenEval",
    "hpsv2": "tasks.image.rewards.hpsv2:HpsV2",
    "image_reward": "tasks.image.rewards.image_reward:ImageReward",
    "jpeg_compressibility": "tasks.image.rewards.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "tasks.image.rewards.jpeg:JpegIncompressibility",
    "ocr": "tasks.image.rewards.ocr:Ocr",
    "pickscore": "tasks.image.rewards.pickscore:PickScore",
    "remote": "tasks.image.rewards.remote:Remote",
}


def make_reward(name: str, settings: Mapping[str, Any]) -> Reward:
    """Construct a reward from its registered name, or from `module:Class` of another package.

    Raises:
        UnknownNameError: Neither; names the nearest.
        ValueError: A setting that the reward does not have; names the nearest.
        TypeError: The class is no reward, or a setting without default is missing.
    """
    target = REWARDS.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UnknownNameError(f"unknown reward {name!r}{did_you_mean(name, REWARDS)}")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownNameError(f"reward {name!r}: {target} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Reward)):
        raise TypeError(f"reward {name!r}: expected a class that derives from Reward, found {kind!r}")
    if is_dataclass(kind):
        known = [f.name for f in fields(kind) if f.init]
        for key in settings:
            if key not in known:
                raise ValueError(f"reward {name!r}: unknown setting {key!r}{did_you_mean(key, known)}")
    reward: Reward = kind(**settings)
    return reward
