"""Examines an installation: packages, device, renderer, tracking store; every fault comes with its remedy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "lightning", "mlflow", "transformers", "diffusers", "gymnasium", "mujoco", "numpy", "rlflow")
EXTRAS = {
    "onnx": "policies that act outside rlflow, rlflow export: pip install 'rlflow[onnx]'",
    "ray": "a matrix on several machines, --launcher ray: pip install 'rlflow[ray]'",
    "vllm": "fast language-model rollouts on CUDA: pip install 'rlflow[vllm]'",
}
# A renderer that does not work can end the process, so it is tried in another one.
RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
with mujoco.Renderer(model, 16, 16) as renderer:
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    renderer.render()
"""
RENDER_TIMEOUT_S = 60

Verdict = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report: `missing` is optional, `broken` is not."""

    verdict: Verdict
    subject: str
    detail: str


def examine(tracking_uri: str | None, results: Path) -> list[Finding]:
    """Every check, in the order in which a fault would be met."""
    return [
        Finding(verdict="ok", subject="python", detail=f"{platform.python_version()} at {sys.executable}"),
        *(_package(name) for name in PACKAGES),
        *(_extra(name, remedy) for name, remedy in EXTRAS.items()),
        _device(),
        _renderer(),
        _plugins(),
        _tracking(tracking_uri, results),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(verdict="ok", subject=name, detail=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(verdict="broken", subject=name, detail="not installed: pip install -e .")


def _extra(name: str, remedy: str) -> Finding:
    if find_spec(name) is None:
        return Finding(verdict="missing", subject=name, detail=remedy)
    # The CPU build of vLLM installs the same module under another name.
    distributions = metadata.packages_distributions().get(name, [name])
    return Finding(verdict="ok", subject=name, detail=metadata.version(distributions[0]))


def _device() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding(verdict="ok", subject="device", detail=f"CUDA: {names}; {cores} cores")
    built = f"torch is built for CUDA {torch.version.cuda}, but sees no device" if torch.version.cuda else "CPU build"
    return Finding(verdict="ok", subject="device", detail=f"CPU, {cores} cores ({built})")


def _renderer() -> Finding:
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa"]:
        if _renders(backend):
            return Finding(verdict="ok", subject="renderer", detail=f"MuJoCo renders with MUJOCO_GL={backend}")
    remedy = "rollouts are shown as plots; for videos: apt-get install libegl1 libegl-mesa0 (or libosmesa6)"
    return Finding(verdict="missing", subject="renderer", detail=remedy)


def _renders(backend: str) -> bool:
    command = [sys.executable, "-c", RENDER]
    try:
        done = subprocess.run(
            command, env=os.environ | {"MUJOCO_GL": backend}, capture_output=True, timeout=RENDER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _plugins() -> Finding:
    from rlflow.registry import GROUPS, UnknownNameError, entries

    def load(kind: str) -> int:
        found = entries(kind)
        if kind != "suite":
            for entry in found.values():
                entry.load()
        return len(found)

    return _checked("plugins", lambda: ", ".join(f"{load(kind)} {kind}" for kind in GROUPS), UnknownNameError)


def _tracking(tracking_uri: str | None, results: Path) -> Finding:
    from rlflow.store import TrackingError, open_store

    return _checked("tracking", lambda: f"{open_store(tracking_uri, results=results).uri} answers", TrackingError)


def _checked(subject: str, work: Callable[[], str], expected: type[Exception]) -> Finding:
    try:
        return Finding(verdict="ok", subject=subject, detail=work())
    except expected as error:
        return Finding(verdict="broken", subject=subject, detail=str(error))
