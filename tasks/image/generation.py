"""What evaluation pictures were made with, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlflow.policies.flow_config import FlowConfig
from rlflow.task import SampleWriter

GENERATION = "generation.json"
COMPARED = "base_and_trained.png"
BY_KIND = "by_kind.csv"


@dataclass(frozen=True, kw_only=True)
class Generation(SampleWriter):
    """Writes settings as JSON; equal files of two checkpoints say that they differ by their weights alone.

    Attributes:
        settings: Plain values by name.
    """

    settings: Mapping[str, Any]

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        path.write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sampler_settings(flow: FlowConfig, times: Tensor) -> dict[str, Any]:
    """The sampler of an evaluation on the grid `times [steps + 1]`."""
    kind = {"sde": flow.sde, "noise_level": flow.noise_level} if flow.eval_solver == "sde" else {}
    return {
        "steps": flow.eval_steps,
        "solver": flow.eval_solver,
        "times": times.tolist(),
        "torch": torch.__version__,
        **kind,
    }
