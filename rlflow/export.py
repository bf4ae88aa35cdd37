"""A trained policy as files that need no rlflow: weights, configuration, a card, and ONNX where the task has it."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from rlflow.doctor import EXTRAS
from rlflow.task import Acting, Acts, Evaluation, Saves
from rlflow.trainer import Loop

WEIGHTS = "policy.safetensors"
NETWORK = "policy.onnx"
CONFIG = "config.json"
CARD = "README.md"
CHECKED_ROWS = 64
MAX_DIFFERENCE = 1e-4
OPSET = 20


class ExportError(RuntimeError):
    """The policy cannot be exported; nothing has been written."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Files of an export, and by how much the actions of the ONNX network differ at most; None where there is none."""

    files: tuple[Path, ...]
    max_difference: float | None


def export(loop: Loop, evaluation: Evaluation, folder: Path) -> Exported:
    """Write the policy of `loop` to `folder`, which must not exist.

    Args:
        loop: Of a checkpoint.
        evaluation: Of that checkpoint; its metrics stand on the card.
        folder: Made as a whole, or not at all.

    Raises:
        ExportError: The folder exists, a package is missing, or the exported network acts differently.
    """
    if folder.exists():
        raise ExportError(f"expected a folder that does not exist, found {folder}; choose another with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name, torch.no_grad():
        unfinished = Path(name, folder.name)
        unfinished.mkdir()
        with loop.averaged.in_place():
            difference = _network(loop, unfinished / NETWORK)
            (unfinished / WEIGHTS).write_bytes(save(_tensors(loop.policy)))
            if isinstance(loop.task, Saves):
                loop.task.save(loop.policy, unfinished)
        (unfinished / CONFIG).write_text(json.dumps(loop.config.resolved, indent=1) + "\n", encoding="utf-8")
        (unfinished / CARD).write_text(card(loop, evaluation, difference is not None), encoding="utf-8")
        unfinished.rename(folder)
    return Exported(files=tuple(sorted(folder.iterdir())), max_difference=difference)


def to_onnx(acting: Acting, path: Path, about: Mapping[str, str]) -> float:
    """Write `acting` as ONNX with a free batch size and `about` as its metadata; the largest difference of an output.

    Raises:
        ExportError: ONNX is not installed, or the network in ONNX Runtime differs from the policy.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it and would say so in many lines
    except ImportError as error:
        raise ExportError(f"expected ONNX to be installed, found: {error}; {EXTRAS['onnx']}") from error
    # It warns of every operator of packages that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            acting.module.eval(), tuple(acting.inputs.values()), input_names=list(acting.inputs),
            output_names=[acting.output], dynamic_shapes=tuple({0: rows} for _ in acting.inputs), opset_version=OPSET,
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(path)
    # Several rows and one: a network whose batch size is not free would fail here.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return max(_difference(acting, session, num_rows) for num_rows in (CHECKED_ROWS, 1))


def card(loop: Loop, evaluation: Evaluation, has_network: bool) -> str:
    """A model card in the form of the Hugging Face hub."""
    config, task = loop.config, loop.task
    name = f"{config.algorithm_name} on {config.task_name}"
    metrics = "".join(
        f"    - type: {json.dumps(key)}\n      value: {value:.6g}\n" for key, value in evaluation.metrics.items()
    )
    table = "\n".join(f"| {key} | {value:.6g} |" for key, value in evaluation.metrics.items())
    network = (
        f"\n`{NETWORK}` maps raw observations to actions, normaliser and clipping inside:\n\n```python\n"
        "import numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{NETWORK}")\n'
        "feed = {i.name: np.zeros((1, i.shape[1]), np.float32) for i in session.get_inputs()}\n"
        "(action,) = session.run(None, feed)\n```\n"
    )
    return f"""---
library_name: rlflow
tags:
- reinforcement-learning
- {config.algorithm_name}
- {config.task_name}
model-index:
- name: {name}
  results:
  - task:
      type: reinforcement-learning
      name: {config.task_name}
    dataset:
      type: {config.task_name}
      name: {config.task_name}, version {task.revision}
    metrics:
{metrics}---

# {name}

Trained by rlflow for {loop.samples:,} {task.unit.replace("_", " ")} of a budget of {config.trainer.budget:,}.
Seed {config.trainer.seed}, policy `{task.policy_kind}`. One seed of one setting: no statement about the algorithm.

| metric | value |
|---|---|
{table}

Measured as by `rlflow eval` on the task's frozen evaluation set, version {task.revision}.
An untrained policy has the score {task.anchors.base:g}, the reference {task.anchors.reference:g}.

`{WEIGHTS}` holds the policy's tensors, `{CONFIG}` everything that was set.
{network if has_network else ""}"""


def _tensors(policy: nn.Module) -> dict[str, Tensor]:
    """The policy's tensors, tied ones (embedding and LM head) once, by their first name."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for key, value in policy.state_dict().items():
        place = (value.data_ptr(), value.shape)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        kept[key] = value.contiguous()
    return kept


def _network(loop: Loop, path: Path) -> float | None:
    if not isinstance(loop.task, Acts):
        return None
    try:
        acting = loop.task.acting(loop.policy)
    except ValueError as error:
        raise ExportError(str(error)) from error
    config = loop.config
    names = {"rlflow.algorithm": config.algorithm_name, "rlflow.task": config.task_name}
    difference = to_onnx(acting, path, names | {"rlflow.samples": str(loop.samples)})
    if difference > MAX_DIFFERENCE:
        raise ExportError(
            f"expected the exported network to act as the policy within {MAX_DIFFERENCE:g}, found a difference of "
            f"{difference:g}; this is a bug of the task's `acting`"
        )
    return difference


def _difference(acting: Acting, session: object, num_rows: int) -> float:
    rng = np.random.default_rng(num_rows)
    feed = {name: rng.normal(size=(num_rows, *x.shape[1:])).astype(np.float32) for name, x in acting.inputs.items()}
    (found,) = session.run([acting.output], feed)  # type: ignore[attr-defined]
    expected: Tensor = acting.module(*map(torch.from_numpy, feed.values()))
    return float(np.abs(found - expected.numpy()).max())
