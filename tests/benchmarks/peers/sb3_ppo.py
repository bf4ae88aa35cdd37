"""PPO of Stable-Baselines3 on HalfCheetah-v5 with rlflow's sizes; prints environment steps a second as JSON.

    PEER_PYTHON tests/benchmarks/peers/sb3_ppo.py --iterations 5 --threads 2 [--engine]

The first iteration is left out. With --engine only its environments are stepped, with random actions.
"""

import argparse
import json
import time

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCH = 8, 256, 10, 256


class Clock(BaseCallback):
    """Notes when each rollout begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begins_s: list[float] = []

    def _on_rollout_start(self) -> None:
        self.begins_s.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True


def train(iterations: int) -> float:
    """Steps a second of rollout and update together."""
    env = VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=NUM_ENVS, seed=0))
    net = {"pi": [64, 64], "vf": [64, 64]}
    model = PPO(
        "MlpPolicy", env, learning_rate=1e-3, n_steps=NUM_STEPS, batch_size=MINIBATCH, n_epochs=EPOCHS, seed=0,
        policy_kwargs={"net_arch": net, "activation_fn": torch.nn.Tanh}, device="cpu",
    )  # fmt: skip
    clock = Clock()
    model.learn((iterations + 1) * NUM_ENVS * NUM_STEPS, callback=clock)
    elapsed_s = time.perf_counter() - clock.begins_s[1]
    return iterations * NUM_ENVS * NUM_STEPS / elapsed_s


def step(iterations: int) -> float:
    """Steps a second of the environments alone."""
    env = make_vec_env("HalfCheetah-v5", n_envs=NUM_ENVS, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (NUM_STEPS, NUM_ENVS, 6)).astype(np.float32)
    begin_s = time.perf_counter()
    for _ in range(iterations):
        for action in actions:
            env.step(action)
    return iterations * NUM_ENVS * NUM_STEPS / (time.perf_counter() - begin_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps({"per_s": (step if options.engine else train)(options.iterations)}))


if __name__ == "__main__":
    main()
