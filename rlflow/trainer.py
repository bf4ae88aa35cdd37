"""The loop: rollout -> score -> targets -> minibatch losses -> optimiser steps -> track, for every pair alike.

One `training_step` is one iteration: Lightning's cost per batch is then within noise of a bare loop. Lightning owns
devices, precision, strategy and checkpoints; optimisation is manual because one rollout feeds many steps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlflow import distributed, sharding
from rlflow.averaging import AveragedWeights
from rlflow.bucketing import by_length
from rlflow.checkpoint import VERSION
from rlflow.cost import Cost
from rlflow.launch import CHECKPOINT
from rlflow.minibatches import minibatches
from rlflow.optimiser import clip_gradients, make_optimiser, set_rates
from rlflow.random import Noise, Streams
from rlflow.refill import refilled
from rlflow.rollout import Minibatch, Rollout, Targets, assert_shapes, flatten_targets
from rlflow.samples import keep_samples
from rlflow.settings import SHARDED, Config
from rlflow.starts import Starts
from rlflow.task import Evaluation
from rlflow.totals import Totals
from rlflow.tracker import Log

TERM, NORM = "_loss", "update/grad_norm_"


class DivergedError(ArithmeticError):
    """A number that is not finite; names the stage and the samples consumed."""

    def __init__(self, stage: str, what: str, samples: int) -> None:
        super().__init__(f"{stage}: {what} is not finite after {samples} samples")
        self.stage = stage
        self.samples = samples


class Loop(L.LightningModule):
    """One run: a policy, an algorithm and a task, through the whole budget."""

    def __init__(self, config: Config, tracker: Log, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.tracker = tracker
        self.folder = folder
        self.algorithm, self.task = config.algorithm, config.task
        self.streams = Streams(config.trainer.seed)
        torch.manual_seed(self.streams["init"].initial_seed())
        self.policy = self.task.build_policy(self.algorithm.requires)
        self.iteration = 0
        self.collected = 0
        self.controls = self.algorithm.controls
        self.starts = Starts(config, 0)
        self.evaluations = 0
        self.cost = Cost()
        self.cost.watch(self.policy.trunk)
        self.averaged = AveragedWeights(self.policy, config.update.ema)
        self._resumed: dict[str, Any] | None = None

    @property
    def samples(self) -> int:
        """Budget consumed so far, over all ranks: every rollout that was collected, used or not."""
        return self.collected * self.task.samples_per_rollout

    @property
    def is_done(self) -> bool:
        """Whether the budget is consumed."""
        return self.collected >= self.config.num_iterations

    def on_train_batch_start(self, starts: Tensor, _: int) -> int | None:
        """End before the loader does, where refills have consumed the budget of later iterations."""
        return -1 if self.is_done else None

    def training_step(self, starts: Tensor, _: int) -> None:
        """One iteration of the loop."""
        rollout, rounds = self._collect(starts)
        rollout.controls = dict(self.controls)
        with self.cost.timed("targets_s"), torch.no_grad():
            targets = self.algorithm.targets(self.policy, rollout)
            for name, tensor in targets.tensors.items():
                self._finite("advantage", name, tensor)
        with self.cost.timed("update_s"):
            metrics = self._update(rollout, targets)
            self.policy.end_iteration(rollout)
        self.iteration += 1
        self.collected += rounds
        metrics |= self._shared(rollout, targets)
        if self.controls:
            self.controls = self.algorithm.adjusted(self.controls, metrics)
        if self.is_first_rank:
            self.tracker.log(metrics | self.cost.clock(), self.samples)
        if self.samples >= self._next_evaluation():
            self.judge()

    def _collect(self, starts: Tensor) -> tuple[Rollout, int]:
        """A scored rollout, and how many were collected for it: more than one only where silent groups are refilled."""
        if self.config.update.refill == 0:
            return self._scored(starts, record=True), 1
        rollout, rounds = refilled(
            self._scored(starts, record=False),
            lambda n: self._scored(self.starts.of(self.collected + n), record=False),
            limit=min(self.config.update.refill, self.config.num_iterations - self.collected - 1),
        )
        self.starts.ahead += rounds - 1
        with self.cost.timed("rollout_s"), torch.no_grad():
            # Once joined: other padding than the replay's would move the ratio off 1.
            self.policy.record_behaviour(rollout)
        return rollout, rounds

    def _scored(self, starts: Tensor, *, record: bool) -> Rollout:
        with self.cost.timed("rollout_s"), torch.no_grad():
            rollout = self.task.rollout(self.policy, self._local(starts), self.noise("rollout"))
            if record:
                self.policy.record_behaviour(rollout)
        with self.cost.timed("reward_s"), torch.no_grad():
            rollout = self.task.score(rollout)
            assert_shapes(rollout)
            self._finite("reward", "the reward", rollout.reward)
        self.cost.count(rollout, self.task.unit)
        return rollout

    def judge(self) -> Evaluation:
        """Evaluate on the frozen set, log it with its sample artifacts, and write the checkpoint."""
        forwards = self.cost.policy_forwards
        with self.cost.timed("eval_s"), torch.no_grad(), self.averaged.in_place():
            result = self.task.evaluate(self.policy, self.noise("eval"))
        self.evaluations += 1
        self.cost.policy_forwards = forwards
        if self.is_first_rank:
            self.tracker.log(_prefixed("eval", result.metrics) | self.cost.metrics(self.device), self.samples)
            keep_samples(result, self.folder, self.tracker, self.samples, self.config.trainer)
        self._finite("eval", "the score", torch.tensor(result.metrics["score"]))
        self.trainer.save_checkpoint(self.folder / CHECKPOINT)
        return result

    def _update(self, rollout: Rollout, targets: Targets) -> dict[str, float]:
        update, window = self.config.update, self.algorithm.row_decisions
        with torch.no_grad():
            rows = self.policy.prepared(rollout.flatten(window))
        goals = flatten_targets(targets, rollout, window)
        set_rates(self._optimiser, update, self.collected, self.config.num_iterations)
        totals, num_parts = Totals(), update.updates_per_rollout // update.epochs
        for _ in range(update.epochs):
            for part in minibatches(rows, goals, num_parts, self.streams["minibatch"]):
                totals.add(self._optimiser_step(part))
        answer = {name: total / update.updates_per_rollout for name, total in totals.read().items()}
        self._check_update(answer)
        if (first_ratio := totals.first.get("loss/ratio")) is not None:
            answer["update/first_ratio_error"] = abs(float(distributed.all_sum(first_ratio[None])) - 1.0)
        return answer

    def _optimiser_step(self, part: Minibatch) -> dict[str, Tensor]:
        """Accumulate the micro-batches of one optimiser batch, clip each parameter group apart, step."""
        optimiser, world = self._optimiser, distributed.world_size()
        optimiser.zero_grad(set_to_none=True)
        metrics: dict[str, Tensor] = {}
        for micro in self._micro_batches(part):
            loss = self.algorithm.loss(self.policy, micro)
            # DDP averages gradients over ranks, while the parts of a global mean have to be summed.
            self.manual_backward(loss.total * world if world > 1 else loss.total)
            for name, value in (loss.metrics | {f"{k}{TERM}": v.detach() for k, v in loss.terms.items()}).items():
                key = f"loss/{name}"
                metrics[key] = metrics[key] + value if key in metrics else value
        for group in optimiser.param_groups:
            norm = clip_gradients(group["params"], self.config.update.grad_clip or math.inf)
            metrics[f"{NORM}{group['name']}"] = norm / world if world > 1 else norm
        optimiser.step()
        self.cost.optimizer_steps += 1
        self.averaged.update()
        return metrics

    def _check_update(self, metrics: dict[str, float]) -> None:
        # After the update, whose sums keep what was not finite: a look at every step would wait for the device.
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if any(name.startswith("loss/") and name.endswith(TERM) for name in broken):
            raise DivergedError("loss", "the loss", self.samples)
        for name in broken:
            if name.startswith(NORM):
                raise DivergedError("update", f"the gradient of {name.removeprefix(NORM)}", self.samples)

    def _micro_batches(self, part: Minibatch) -> list[Minibatch]:
        """As many on every rank, whose rows of a minibatch differ in number: each backward pass waits for all."""
        limit = self.config.update.micro_batch_decisions
        parts = list(by_length(part, limit) if limit else part.split(self.config.update.micro_batch))
        missing = distributed.all_max(len(parts), part.device) - len(parts)
        return parts + [part.silent() for _ in range(missing)]

    @property
    def _optimiser(self) -> torch.optim.Optimizer:
        optimiser = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimiser, torch.optim.Optimizer)
        return optimiser

    def _shared(self, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """Metrics of rollout, reward, targets and controls, the same on every rank."""
        terms = {name: float(value.float().mean()) for name, value in rollout.reward_terms.items()}
        local = _prefixed("rollout", rollout.metrics) | _prefixed("reward", terms)
        local |= _prefixed("advantage", {name: float(value) for name, value in targets.metrics.items()})
        return distributed.averaged(local, self.device) | _prefixed("update", self.controls)

    def _next_evaluation(self) -> float:
        intervals = self.config.trainer.num_evaluations - 1
        budget = self.config.num_iterations * self.task.samples_per_rollout
        return math.ceil(self.evaluations * budget / intervals) if self.evaluations <= intervals else math.inf

    def _finite(self, stage: str, what: str, value: Tensor) -> None:
        # All ranks end together: one that raised alone would leave the others waiting in a collective.
        broken = int(not bool(torch.isfinite(value).all()))
        if distributed.all_max(broken, value.device):
            raise DivergedError(stage, what, self.samples)

    def _local(self, starts: Tensor) -> Tensor:
        groups = starts.shape[0] // distributed.world_size()
        return starts[distributed.rank() * groups : (distributed.rank() + 1) * groups].to(self.device)

    def noise(self, stream: str) -> Noise:
        """Row noise of a named stream on this rank."""
        where = torch.device(self.device)
        if stream == "eval":
            return Noise(generator=self.streams[stream], device=where)
        return Noise(
            generator=self.streams[stream], device=where, rank=distributed.rank(), world_size=distributed.world_size()
        )

    @property
    def is_first_rank(self) -> bool:
        """Whether this process writes."""
        return distributed.rank() == 0

    def configure_model(self) -> None:
        """Shard the policy, where the strategy is to."""
        if self.config.trainer.strategy == SHARDED and self.device_mesh is not None:
            sharding.shard(self.policy, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with a group per role."""
        return make_optimiser(self.policy, self.config.update)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Starts of the iterations left; rollouts are made in `training_step`."""
        self.starts = Starts(self.config, self.collected)
        return DataLoader(self.starts, batch_size=None, shuffle=False)

    def on_train_start(self) -> None:
        """Point 0 of the evaluation grid, or the place where a checkpoint left off."""
        self.policy.eval()  # dropout would move the ratio off 1
        self.averaged.to(self.device)
        if self._resumed is not None:
            self._optimiser.load_state_dict(sharding.placed(self._resumed["optimizer_states"][0], self._optimiser))
        elif self.evaluations == 0:
            self.judge()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that the next iteration depends on."""
        checkpoint["rlflow"] = {
            "version": VERSION,
            "config": self.config.resolved,
            "task_revision": self.task.revision,
            "iteration": self.iteration,
            "collected": self.collected,
            "controls": self.controls,
            "samples": self.samples,
            "evaluations": self.evaluations,
            "streams": self.streams.state_dict(),
            "task": self.task.state_dict(),
            "cost": self.cost.state_dict(),
            "averaged": self.averaged.values,
        }

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a loaded checkpoint: weights now, optimiser when training starts.

        Lightning's own resume would replay its loop counters against a loader that only holds what is left.
        """
        state = checkpoint["rlflow"]
        self.load_state_dict(checkpoint["state_dict"])
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]
        # Checkpoints from before refills and controls have neither.
        self.collected = state.get("collected", self.iteration)
        self.controls = state.get("controls", self.controls)
        self.streams.load_state_dict(state["streams"])
        self.task.load_state_dict(state["task"])
        self.cost.load_state_dict(state["cost"])
        self.averaged.values = state["averaged"]
        self._resumed = checkpoint


def _prefixed(stage: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": float(value) for name, value in metrics.items()}
