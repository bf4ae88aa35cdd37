"""Named random streams from one seed, and row noise that does not depend on the number of ranks.

All generators live on the CPU, so that CPU and CUDA runs, and one or many ranks, draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

STREAMS = ("init", "rollout", "minibatch", "eval")


def derived_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from a root seed and a path of names; neighbouring seeds give unrelated streams."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for `derived_seed(seed, *names)`."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


class Streams:
    """The named generators of one run: init, rollout, minibatch, eval."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators = {name: generator(seed, name) for name in STREAMS}

    def __getitem__(self, name: str) -> torch.Generator:
        """The generator of a stream.

        Raises:
            KeyError: If `name` is not one of `STREAMS`.
        """
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Generator states, one byte tensor per stream."""
        return {name: g.get_state() for name, g in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for name, g in self._generators.items():
            g.set_state(state[name].cpu())


@dataclass(kw_only=True)
class Noise:
    """Draws row noise for the global batch and hands out this rank's rows.

    Every rank draws the whole batch from the same generator state and keeps its slice, so that the union over ranks
    is the batch that one process would have drawn.

    Attributes:
        generator: CPU generator, in the same state on every rank.
        device: Where the numbers are wanted.
        rank: This process.
        world_size: Number of processes; rows of rank r follow those of rank r-1.
    """

    generator: torch.Generator
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 of the local `shape [rows, ...]`."""
        return self._local(torch.randn(self._global(shape), generator=self.generator))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1) of the local `shape [rows, ...]`."""
        return self._local(torch.rand(self._global(shape), generator=self.generator))

    def integer(self, high: int) -> int:
        """One integer in [0, high), the same on every rank."""
        return int(torch.randint(high, (1,), generator=self.generator))

    def _global(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0] * self.world_size, *shape[1:])

    def _local(self, x: Tensor) -> Tensor:
        if self.world_size == 1:
            return x.to(self.device)
        rows = x.shape[0] // self.world_size
        return x[self.rank * rows : (self.rank + 1) * rows].to(self.device)


@dataclass(kw_only=True)
class RowNoise(Noise):
    """Draws each row from a generator of its own: a row's numbers do not depend on where and with which others it is.

    Integers are still drawn from `generator`, once for all rows.

    Attributes:
        seeds: One for each row of this rank.
    """

    seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Open the generators."""
        self._rows = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 of the local `shape [rows, ...]`."""
        return self._drawn(torch.randn, shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1) of the local `shape [rows, ...]`."""
        return self._drawn(torch.rand, shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        if shape[0] != len(self._rows):
            raise ValueError(f"expected noise for {len(self._rows)} rows, one seed each, found {shape[0]} rows")
        return torch.stack([draw(tuple(shape[1:]), generator=row) for row in self._rows]).to(self.device)
