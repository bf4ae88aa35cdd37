"""Rollout engines by name."""

from __future__ import annotations

from typing import Literal, get_args

from rlflow.policies.engines.engine import Engine
from rlflow.policies.engines.own_forward import OwnForward
from rlflow.policies.engines.vllm import VLLM, VLLMConfig
from rlflow.policies.engines.vllm_server import VLLMServer

EngineName = Literal["transformers", "transformers-cb", "vllm"]


def open_engine(name: EngineName, source: str, vllm: VLLMConfig) -> Engine:
    """The engine of a name; what it needs is imported and started with the first completion.

    Args:
        name: `transformers`, the policy's own forward; `transformers-cb`, the same module with continuous batching;
            `vllm`, a copy of the model in vLLM.
        source: Folder or hub id of the model, for engines with weights of their own.
        vllm: Settings of vLLM.

    Raises:
        ValueError: Unknown name.
    """
    if name == "transformers":
        return OwnForward()
    if name == "transformers-cb":
        from rlflow.policies.engines.transformers_cb import ContinuousBatching

        return ContinuousBatching()
    if name == "vllm" and vllm.server:
        return VLLMServer(source=source, config=vllm, canary_tolerance=vllm.canary_tolerance)
    if name == "vllm":
        return VLLM(source=source, config=vllm, canary_tolerance=vllm.canary_tolerance)
    raise ValueError(f"task.engine: expected one of {list(get_args(EngineName))}, found {name!r}")
