"""GRPO of TRL on countdown with rlflow's sizes; prints completions a second as JSON.

    PEER_PYTHON tests/benchmarks/peers/trl_grpo.py --base FOLDER --prompts FILE --iterations 3 --threads 2

The base and the prompts (a JSON list) come from rlflow. One optimiser step takes half of a generation, as there; no
KL, no evaluation, no checkpoint. The reward is a count of characters: nothing of TRL's time goes into verifying. The
first iteration is left out.
"""

import argparse
import json
import tempfile
import time

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

GROUPS, GROUP_SIZE, UPDATES, MAX_TOKENS = 32, 8, 2, 32
COMPLETIONS = GROUPS * GROUP_SIZE


class Clock(TrainerCallback):
    """Notes the end of each optimiser step."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_step_end(self, args: object, state: object, control: object, **more: object) -> None:
        self.ends_s.append(time.perf_counter())


class Length:
    """A reward that costs nothing and has variance in a group; remembers the lengths."""

    __name__ = "length"

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __call__(self, completion_ids: list[list[int]], **more: object) -> list[float]:
        self.tokens += map(len, completion_ids)
        return [float(len(ids)) for ids in completion_ids]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with open(options.prompts, encoding="utf-8") as file:
        prompts = json.load(file)
    clock, length = Clock(), Length()
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, num_generations=GROUP_SIZE, per_device_train_batch_size=COMPLETIONS // UPDATES,
            steps_per_generation=UPDATES, max_completion_length=MAX_TOKENS, temperature=1.0, beta=0.0,
            learning_rate=1e-6, lr_scheduler_type="constant", max_steps=UPDATES * (options.iterations + 1),
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=options.base, reward_funcs=length, args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=PreTrainedTokenizerFast.from_pretrained(options.base, padding_side="left"),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    elapsed_s = clock.ends_s[-1] - clock.ends_s[UPDATES - 1]
    tokens = sum(length.tokens) / len(length.tokens)
    print(json.dumps({"per_s": options.iterations * COMPLETIONS / elapsed_s, "tokens": tokens}))


if __name__ == "__main__":
    main()
