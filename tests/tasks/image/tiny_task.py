"""The prompted task around a random Stable Diffusion 3, in Python and as words of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlflow.policies.flow_config import ScheduledFlowConfig
from tasks.image.pipelines.settings import JudgeSettings, ModelSettings, TrainedSettings
from tasks.image.prompted import Prompted
from tests.tasks.image.tiny_pipelines import save_sd3

FLOW = ScheduledFlowConfig(train_steps=4, eval_steps=3, window=2, num_probes=2)
TRAINING = ["a cat", "two dogs", "a red cube", "a blue cup"]
FROZEN = ["a green door", "three birds"]


def save_folder(folder: Path) -> Path:
    """A model and its prompts."""
    save_sd3(folder / "model")
    (folder / "train.txt").write_text("\n".join(TRAINING))
    (folder / "test.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in FROZEN))
    return folder


def make(folder: Path, **changes: Any) -> Prompted:
    settings: dict[str, Any] = {
        "groups_per_rollout": 3, "group_size": 2, "rows_per_pass": 2, "height": 16, "width": 16,
        "prompts": str(folder / "train.txt"), "rewards": {"jpeg_compressibility": 1.0},
        "model": ModelSettings(path=str(folder / "model"), dtype="float32", max_tokens=24),
        "trained": TrainedSettings(lora_rank=2, lora_alpha=4.0),
        "judge": JudgeSettings(prompts=str(folder / "test.jsonl"), images_per_prompt=2, guidance=2.0), "flow": FLOW,
    }  # fmt: skip
    return Prompted(**(settings | changes))


def settings_of(folder: Path) -> list[str]:
    """`key=value` of a task whose iterations are 8 images."""
    return [
        f"task.model.path={folder / 'model'}", "task.model.dtype=float32", "task.model.max_tokens=24",
        f"task.prompts={folder / 'train.txt'}", f"task.judge.prompts={folder / 'test.jsonl'}",
        "task.rewards.jpeg_compressibility=1", "task.height=16", "task.width=16", "task.groups_per_rollout=2",
        "task.group_size=4", "task.rows_per_pass=4", "task.trained.lora_rank=2", "task.flow.train_steps=4",
        "task.flow.eval_steps=3", "task.flow.window=2", "task.flow.num_probes=2", "update.updates_per_rollout=2",
        "update.micro_batch=4", "update.epochs=1", "trainer.num_evaluations=2", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "update.ema=0.5",
    ]  # fmt: skip


def arguments(folder: Path, algorithm: str, out: Path, *more: str) -> list[str]:
    """Words of `rlflow`."""
    return ["train", algorithm, "image/prompted", "--folder", str(out), *settings_of(folder), *more]
