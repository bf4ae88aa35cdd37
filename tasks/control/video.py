"""Sample artifact of an evaluation: a rollout video, or a plot of the trajectory where no renderer exists."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rlflow.task import SampleWriter
from tasks.control.environments import Spec, make
from tasks.control.evaluation import Episodes

log = logging.getLogger(__name__)

VIDEO_S = 10.0
FRAMES_PER_S = 10
BACKENDS = ("egl", "osmesa")
TIMEOUT_S = 60.0
RENDERER_HINT = (
    "install a software renderer (Debian: apt-get install libegl1 libegl-mesa0, or libosmesa6) or set MUJOCO_GL"
)


class RenderError(RuntimeError):
    """A frame could not be drawn under a backend."""


def sample_files(spec: Spec, episodes: Episodes) -> dict[str, SampleWriter]:
    """`rollout.mp4`; `rollout.png` where the engine hides poses or no renderer works (the log says how to get one)."""
    backend = None if spec.engine == "envpool" else renderer(os.environ.get("MUJOCO_GL"))
    if backend is None:
        return {"rollout.png": TrajectoryPlot(episodes)}
    return {"rollout.mp4": RolloutVideo(spec.env_id, episodes, backend)}


@cache
def renderer(chosen: str | None) -> str | None:
    """The first backend that draws a frame: `chosen` alone where given, else EGL, then OSMesa; None where none does.

    Drawing happens in a process of its own: a broken OpenGL driver takes down whoever loads it, and MuJoCo fixes its
    backend at import, which the training process has done long before.
    """
    reasons = []
    for backend in (chosen,) if chosen else BACKENDS:
        try:
            _run(backend, {"probe": True})
        except RenderError as error:
            reasons.append(f"{backend}: {error}")
        else:
            return backend
    log.warning("no rollout videos, plots instead: %s; %s", "; ".join(reasons), RENDERER_HINT)
    return None


@dataclass(frozen=True)
class RolloutVideo(SampleWriter):
    """The first `VIDEO_S` seconds of the first evaluated episode as MP4."""

    env_id: str
    episodes: Episodes
    backend: str

    def __call__(self, path: Path) -> None:
        """Write `path`.

        Raises:
            RenderError: If the process that draws fails.
        """
        env = make(self.env_id)
        stride = max(1, round(1.0 / (FRAMES_PER_S * env.dt)))
        poses = np.stack(self.episodes.poses[: max(1, int(VIDEO_S / env.dt)) : stride])
        with TemporaryDirectory() as folder:
            source = Path(folder) / "poses.npy"
            np.save(source, poses)
            job = {"model": str(env.fullpath), "poses": str(source), "target": str(path), "fps": 1 / (stride * env.dt)}
            _run(self.backend, job)
        env.close()


@dataclass(frozen=True)
class TrajectoryPlot(SampleWriter):
    """Return so far and the first coordinates of the first evaluated episode as PNG."""

    episodes: Episodes

    def __call__(self, path: Path) -> None:
        """Write `path`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4))
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(np.cumsum(self.episodes.rewards))
        above.set_ylabel("return so far")
        below.plot(np.stack(self.episodes.poses)[:, :3])
        below.set_ylabel("first coordinates")
        below.set_xlabel("environment step")
        figure.savefig(path, format="png", dpi=80)


def _run(backend: str, job: dict[str, object]) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.control.render", json.dumps(job)],
            env={**os.environ, "MUJOCO_GL": backend, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"no answer within {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise RenderError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
