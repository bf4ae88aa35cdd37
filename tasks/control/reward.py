"""Scale of the training reward: the running standard deviation of the discounted return."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlflow.policies.heads import RunningNorm


class ReturnScaler:
    """Divides rewards by the std of the discounted return, over all environments and ranks.

    The scale changes once per rollout, so that all decisions of a rollout are rewarded on one scale and the ranks need
    one exchange. The mean is not subtracted: that would change which policy is best where episodes end.
    """

    def __init__(self, gamma: float) -> None:
        """`gamma` is the discount of the return whose spread is measured."""
        self.gamma = gamma
        self.statistics = RunningNorm((1,))
        self._trace: Tensor | None = None

    @property
    def std(self) -> float:
        """Current divisor."""
        return float((self.statistics.variance + 1e-8).sqrt())

    def __call__(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Take the block into the statistics and scale it.

        Args:
            reward: `[B, T]` raw.
            ended: `[B, T]` bool, the episode ended here (termination or time limit): the trace starts anew. The end
                of a block alone is no end.

        Returns:
            `[B, T]` float32.
        """
        values, alive = reward.double().cpu().numpy(), ~ended.cpu().numpy()
        trace = np.zeros(len(values)) if self._trace is None else self._trace.numpy().copy()
        returns = np.empty_like(values)
        for t in range(values.shape[1]):
            returns[:, t] = trace = values[:, t] + self.gamma * trace
            trace = trace * alive[:, t]
        self._trace = torch.from_numpy(trace)
        if np.isfinite(returns).all():
            self.statistics.to(reward.device).update(torch.from_numpy(returns).to(reward.device).unsqueeze(-1))
        return (reward.double() / self.std).float()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and the unfinished traces of this rank; copies, as the statistics change in place."""
        statistics = {name: value.clone() for name, value in self.statistics.state_dict().items()}
        return {"statistics": statistics, "trace": self._trace}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.statistics.load_state_dict(state["statistics"])
        self._trace = state["trace"]
