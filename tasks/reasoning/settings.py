"""What of a language model is trained, and as what it is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainedSettings:
    """LoRA or full training of a causal LM.

    Attributes:
        lora_rank: 0 trains the whole model. Too low: cannot express the change; too high: memory.
        lora_alpha: The update is scaled by alpha / rank.
        lora_targets: Names of modules that carry a LoRA; none means every linear layer but the LM head.
        dtype: Of the frozen weights; a LoRA, heads and likelihoods are float32. Training in full needs float32.
        gradient_checkpointing: Compute activations again in the backward pass: a third slower, far less memory.
        export: What `rlflow export` writes of a LoRA: `merged` into the model, or the `adapter` of peft.
    """

    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        """Refuse what would train nothing, or lose small updates."""
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ValueError(
                f"task.trained: expected lora_rank >= 0 and lora_alpha > 0, found {self.lora_rank} and "
                f"{self.lora_alpha}"
            )
        if self.lora_rank == 0 and self.dtype != "float32":
            raise ValueError(
                f"task.trained.dtype: training in full needs float32 weights, found {self.dtype}, in which small "
                "updates are lost; set task.trained.dtype=float32 trainer.precision=bf16-mixed, or a lora_rank"
            )
