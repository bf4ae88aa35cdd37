"""Speed of image/prompted against the bare work of its transformer and against diffusers, side by side (`make perf`).

    python -m tests.benchmarks.perf_image [--rounds 7] [--threads 2] [--width 192] [--layers 4] [--pixels 64]

A random Stable Diffusion 3 of a few million weights, trained by LoRA with Flow-GRPO: 4 prompts x 4 images, 10 steps of
which 3 are trained. Everything happens in one process: after each iteration of the real loop the bare forward passes,
the bare forward and backward passes and the pipeline's own call are timed with the same transformer, so that a machine
that slows down slows all. A ratio is the median of the rounds' ratios; the first iteration is outside. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlflow.config import Config, resolve
from rlflow.launch import quiet_libraries
from rlflow.run import build_trainer
from rlflow.tracker import MemoryTracker
from rlflow.trainer import Loop
from tests.tasks.image.tiny_pipelines import save_sd3

GROUPS, GROUP_SIZE, PASS, STEPS, WINDOW, UPDATES, MAX_TOKENS = 4, 4, 8, 10, 3, 2, 64
ROWS = GROUPS * GROUP_SIZE
PROMPTS = [f"{number} cups" for number in ("two", "three", "four", "five", "six", "seven")]


class Compared(Loop):
    """The real loop, which times the bare work after each of its iterations; evaluation is left out."""

    pipeline: Any
    rounds: list[dict[str, float]]

    def judge(self) -> None:  # type: ignore[override]
        self.evaluations += 1

    def training_step(self, starts: Tensor, index: int) -> None:
        """One iteration and its counterparts."""
        before = dict(self.cost.seconds)
        super().training_step(starts, index)
        spent = {stage: self.cost.seconds[stage] - before.get(stage, 0.0) for stage in ("rollout_s", "update_s")}
        noise = self.noise("eval")
        with torch.no_grad():
            rollout = self.task.rollout(self.policy, starts.to(self.device), noise)
        work = {
            "forwards_s": lambda: self.forwards(rollout),
            "backwards_s": lambda: self.backwards(rollout),
            "drawn_s": lambda: self.drawn(rollout),
            "diffusers_s": lambda: self.called(rollout),
        }
        self.rounds.append(spent | {name: seconds(run) for name, run in work.items()})

    def velocity(self, rollout: Any, rows: slice, x: Tensor, s: Tensor) -> Tensor:
        """One bare call of the transformer on tensors that lie there."""
        held = self.held(rollout)
        v: Tensor = self.policy.actor.transformer(
            hidden_states=x, timestep=s * 1000, encoder_hidden_states=held["prompt"][rows],
            pooled_projections=held["pooled"][rows], return_dict=False,
        )[0]  # fmt: skip
        return v

    def held(self, rollout: Any) -> dict[str, Tensor]:
        """Embeddings of the rollout's prompts."""
        kept = self.policy.actor.embeddings
        found: dict[str, Tensor] = kept.rows(rollout.context["prompt"], self.device)
        return found

    @torch.no_grad()
    def forwards(self, rollout: Any) -> None:
        """The forward passes of a rollout."""
        x, s = rollout.action["latents"][:, 0, 0], rollout.action["times"][:, 0, 0]
        for _ in range(STEPS):
            for begin in range(0, ROWS, PASS):
                rows = slice(begin, begin + PASS)
                self.velocity(rollout, rows, x[rows], s[rows])

    def backwards(self, rollout: Any) -> None:
        """The forward and backward passes of an update, micro-batch by micro-batch."""
        latents, times = rollout.action["latents"][:, 0], rollout.action["times"][:, 0]
        for begin in range(0, ROWS, PASS):
            rows = slice(begin, begin + PASS)
            steps = [self.velocity(rollout, rows, latents[rows, k], times[rows, k]) for k in range(WINDOW)]
            torch.stack(steps).square().mean().backward()
        self.policy.zero_grad(set_to_none=True)

    @torch.no_grad()
    def drawn(self, rollout: Any) -> None:
        """Images of the evaluation's sampler."""
        adapter = self.policy.actor.embeddings.adapter
        start = adapter.initial(range(ROWS))
        context = {"prompt": rollout.context["prompt"]}
        made = self.policy.sample(context, self.noise("eval"), train=False, initial=start)["sample"]
        adapter.decode(made, PASS)

    @torch.no_grad()
    def called(self, rollout: Any) -> None:
        """The same images by the pipeline, from the same embeddings, in the same passes."""
        held = self.held(rollout)
        for begin in range(0, ROWS, PASS):
            rows = slice(begin, begin + PASS)
            self.pipeline(
                prompt_embeds=held["prompt"][rows], pooled_prompt_embeds=held["pooled"][rows], guidance_scale=1.0,
                num_inference_steps=STEPS, height=self.task.height, width=self.task.width, output_type="pt",
                generator=[torch.Generator().manual_seed(seed) for seed in range(PASS)],
            )  # fmt: skip


def seconds(run: Callable[[], None]) -> float:
    """Wall-clock seconds of a call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def save_model(folder: Path, width: int, layers: int) -> None:
    """The tests' pipeline with a transformer that is large enough to be most of the work."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(save_sd3(folder / "tiny"))
    torch.manual_seed(0)
    pipeline.transformer = SD3Transformer2DModel(
        sample_size=64, patch_size=2, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=32,
        num_attention_heads=width // 32, caption_projection_dim=width, joint_attention_dim=32,
        pooled_projection_dim=64, pos_embed_max_size=64,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")


def configured(folder: Path, rounds: int, pixels: int, rank: int) -> Config:
    """An iteration of 16 images for each round."""
    (folder / "train.txt").write_text("\n".join(PROMPTS))
    (folder / "test.txt").write_text("a green door")
    return resolve("flow_grpo", "image/prompted", [
        f"task.model.path={folder / 'model'}", "task.model.dtype=float32", f"task.model.max_tokens={MAX_TOKENS}",
        f"task.prompts={folder / 'train.txt'}", f"task.judge.prompts={folder / 'test.txt'}", f"task.height={pixels}",
        f"task.width={pixels}", "task.rewards.jpeg_compressibility=1", f"task.groups_per_rollout={GROUPS}",
        f"task.group_size={GROUP_SIZE}", f"task.rows_per_pass={PASS}", f"task.trained.lora_rank={rank}",
        "task.trained.gradient_checkpointing=false", f"task.flow.train_steps={STEPS}", f"task.flow.eval_steps={STEPS}",
        f"task.flow.window={WINDOW}", "task.flow.sde=cps", f"update.updates_per_rollout={UPDATES}", "update.epochs=1",
        f"update.micro_batch={PASS}", f"trainer.budget={ROWS * (rounds + 1)}", "trainer.accelerator=cpu",
        "trainer.precision=32-true",
    ])  # fmt: skip


def report(rounds: list[dict[str, float]]) -> None:
    """Seconds, and ratios with their targets."""
    print("| work of an iteration | median seconds |\n|---|---|")
    names = {
        "rollout_s": f"rlflow's rollout, {STEPS} steps of {ROWS} images", "forwards_s": "bare forward passes",
        "update_s": f"rlflow's update, {WINDOW} trained steps, {UPDATES} optimiser steps",
        "backwards_s": "bare forward and backward passes",
        "drawn_s": "rlflow's evaluation images", "diffusers_s": "the diffusers pipeline's call",
    }  # fmt: skip
    for key, name in names.items():
        print(f"| {name} | {statistics.median(found[key] for found in rounds):.3f} |")
    ratios = (
        ("sampling speed / bare forward passes", "forwards_s", "rollout_s", "at least 0.9"),
        ("update time / bare forward and backward", "update_s", "backwards_s", "at most 1.15"),
        ("image speed / diffusers pipeline", "diffusers_s", "drawn_s", "at least 1.0"),
    )
    print("\n| ratio | median (min .. max) | target |\n|---|---|---|")
    for name, above, below, target in ratios:
        values = sorted(found[above] / found[below] for found in rounds)
        print(f"| {name} | {statistics.median(values):.3f} ({values[0]:.3f} .. {values[-1]:.3f}) | {target} |")


def main() -> None:
    """Train for some iterations and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 7), ("threads", 2), ("width", 192), ("layers", 4), ("pixels", 64), ("rank", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, options.width, options.layers)
        config = configured(folder, options.rounds, options.pixels, options.rank)
        loop = Compared(config, MemoryTracker(), folder)
        loop.rounds = []
        loop.pipeline = type(loop.policy.actor.embeddings.adapter.pipeline).from_pretrained(folder / "model")
        loop.pipeline.transformer = loop.policy.actor.transformer
        loop.pipeline.set_progress_bar_config(disable=True)
        build_trainer(config, folder).fit(loop)
        config.task.close()
        weights = sum(p.numel() for p in loop.policy.actor.transformer.parameters())
    print(f"{weights / 1e6:.1f} million weights, {options.pixels} pixels, {options.threads} threads", file=sys.stderr)
    report(loop.rounds[1:])


if __name__ == "__main__":
    main()
