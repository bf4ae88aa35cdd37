"""Settings of a pretrained pipeline: where it is, what of it is trained, how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A pipeline of diffusers.

    Attributes:
        path: Folder that `save_pretrained` wrote, or a name on the hub.
        dtype: Of the transformer and the text encoders. The VAE, a LoRA, latents and likelihoods are always float32.
        max_tokens: Longest prompt of the last text encoder. Too low: prompts are cut; too high: every step pays for
            the padding.
        negative_prompt: Of classifier-free guidance.
        cached_prompts: Prompt embeddings kept on the CPU; 1,000 of SD3.5 are 2.7 GB in bfloat16. Fewer than the
            training prompts: they are encoded again in every pass over them.
        offload: Keep text encoders and VAE on the CPU except while they are used. Off is faster where they fit.
    """

    path: str = ""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_tokens: int = 256
    negative_prompt: str = ""
    cached_prompts: int = 1024
    offload: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainedSettings:
    """What of the transformer is trained.

    Attributes:
        lora_rank: 0 trains the whole transformer. Too low: cannot express the change; too high: memory, and faster
            reward hacking.
        lora_alpha: The update is scaled by alpha / rank.
        lora_targets: Names of modules that carry a LoRA; none means the projections of the attention.
        gradient_checkpointing: Compute activations again in the backward pass: a third slower, far less memory.
    """

    lora_rank: int = 32
    lora_alpha: float = 64.0
    lora_targets: tuple[str, ...] = ()
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        """Refuse what would train nothing."""
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ValueError(
                f"task.trained: expected lora_rank >= 0 and lora_alpha > 0, found {self.lora_rank} and "
                f"{self.lora_alpha}"
            )


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The frozen evaluation; its steps and solver are `flow.eval_steps` and `flow.eval_solver`.

    Attributes:
        prompts: As `task.prompts`; empty takes the test split of the same source, which files do not have.
        num_prompts: The first of them. Too few: scores are noise.
        images_per_prompt: Images of each.
        guidance: Of evaluation images, e.g. 4.5 where training goes without.
        seed: Of their noise, the same at every checkpoint.
        sheet_images: Images on the sample sheets.
        compare: A sheet of each image beside what the untrained model makes of the same noise, drawn once a process.
            Trained in full this opens a second transformer for that time.
        guard_prompts: Prompts of every kind that the rewards marked `guard` score; none is drawn without such a reward.
        num_guard_prompts: The first of them; 0 takes all.
        diversity_model: CLIP model, folder or name on the hub, that also measures how different the images of a prompt
            are; empty measures it on pixels alone. Either needs images_per_prompt >= 2.
    """

    prompts: str = ""
    num_prompts: int = 64
    images_per_prompt: int = 1
    guidance: float = 1.0
    seed: int = 0
    sheet_images: int = 24
    compare: bool = True
    guard_prompts: str = "guard"
    num_guard_prompts: int = 0
    diversity_model: str = ""

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing."""
        sizes = {name: getattr(self, name) for name in ("num_prompts", "images_per_prompt", "sheet_images")}
        if min(sizes.values()) < 1:
            raise ValueError(f"task.judge: expected at least 1 of each, found {sizes}")
        if self.diversity_model and self.images_per_prompt < 2:
            raise ValueError(
                f"task.judge.diversity_model: expected images_per_prompt >= 2, found {self.images_per_prompt}; "
                "one picture has nothing to differ from"
            )
        if self.num_guard_prompts < 0:
            raise ValueError(f"task.judge.num_guard_prompts: expected at least 0, found {self.num_guard_prompts}")
