"""Loaded inside vLLM's workers: reads the trainer's weights from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlflow.policies.engines.vllm import BACKEND


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the weights are, in the names of the checkpoint."""

    path: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Weight transfer by a file that workers of this machine, or of a shared file system, read."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Let each layer take weights as they lie in a checkpoint, also where it keeps them packed otherwise."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Without the device synchronisation of the base class, which a CPU does not have; reading is blocking."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Stream the tensors of the file into the model."""
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """Pack what the layers keep packed."""
        finalize_layerwise_reload(self.model, self.model_config)
        # On a CPU a tied LM head keeps a packed copy of the embedding, which vLLM 0.32 does not make anew: the states
        # would be those of the new weights and the logits those of the old.
        for layer in self.model.modules():
            if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing to release."""


class FileWeights:
    """Extension of the worker class: importing it registers the transfer before the worker asks for it."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
