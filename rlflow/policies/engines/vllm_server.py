"""vLLM as a server of its own: rollouts of one or many training processes, on other cards than theirs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlflow import distributed
from rlflow.policies.engines.apart import Apart, EngineDiedError, Rows
from rlflow.policies.engines.engine import Completions, EngineError, LanguageModel, Sampling
from rlflow.policies.engines.transfer import PREFIX, adapter_folder, weights_file
from rlflow.policies.engines.vllm import BACKEND, WORKER, VLLMConfig, request_parameters
from rlflow.random import Noise

# How the server has to be started, so that its tokens, likelihoods and weights are what the trainer takes them for.
START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve {source} --logprobs-mode processed_logprobs --generation-config vllm "
    f'--worker-extension-cls {WORKER} --weight-transfer-config \'{{{{"backend": "{BACKEND}"}}}}\''
)
LORA_START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {source} --logprobs-mode processed_logprobs "
    "--generation-config vllm --enable-lora --max-loras 1 --max-lora-rank {rank}"
)
# A server that is started again, e.g. by whatever watches it, has this long to come back.
PATIENCE_S = 300.0
POLL_S = 1.0
ANSWER_TIMEOUT_S = 3600.0


@dataclass(kw_only=True)
class VLLMServer(Apart):
    """A running `vllm serve`, whose weights are replaced by its weight-transfer endpoints through a file.

    All training processes send their prompts to it; the first one sends the weights. Rows have seeds of their own, so
    that a batch does not depend on its schedule, up to rounding. With several processes a death ends the run: one that
    repeated its batch alone would leave the others waiting.

    Attributes:
        source: Folder or hub id of the model, for the advice how to start a server.
        config: `server`, `server_folder`, `max_num_seqs` and `lora_rank`; the rest is the server's own.
    """

    takes_sharded: ClassVar[bool] = True

    source: str
    config: VLLMConfig
    _version: str = field(default="", init=False)
    _device: torch.device = field(default=torch.device("cpu"), init=False)

    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """As every engine apart."""
        self._device = context["prompt"].device
        return super().complete(model, context, noise)

    def start(self) -> None:
        """Wait for the server; one that has lost the weights is given them again.

        Raises:
            EngineError: No server, or one that was not started for weight transfer.
        """
        if self._on_first(self._lacks_weights):
            self._loaded = ()

    def bring(self, actor: nn.Module) -> None:
        """All weights, or the LoRA alone where `lora_rank` says so."""
        if self.config.lora_rank == 0:
            super().bring(actor)
        else:
            self._on_first(lambda: self._replace_adapter(actor))

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Write a file that the server's workers read, from the first process, and drop the prefix cache."""
        self._on_first(lambda: self._replace_weights(weights))

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> Rows:
        """One request per prompt, `max_num_seqs` at a time."""
        model = self._model

        def ask(row: int) -> tuple[list[int], list[float]]:
            body = {**request_parameters(sampling, seeds[row]), "model": model, "prompt": list(prompts[row])}
            (made,) = self._post("/v1/completions", body | {"return_token_ids": True})["choices"]
            return made["token_ids"], made["logprobs"]["token_logprobs"]

        def all_rows() -> list[tuple[list[int], list[float]]]:
            with ThreadPoolExecutor(self.config.max_num_seqs) as pool:
                return list(pool.map(ask, range(len(prompts))))

        rows = self._together(all_rows)
        return [tokens for tokens, _ in rows], [said for _, said in rows]

    def stop(self) -> None:
        """The server is not this run's to end."""

    @property
    def _command(self) -> str:
        if self.config.lora_rank:
            return LORA_START.format(source=self.source, rank=self.config.room_for_lora)
        return START.format(source=self.source)

    @property
    def _model(self) -> str:
        """The name of the weights that are to be asked, the same on every process."""
        names = self._names()
        return names[0] if self.config.lora_rank == 0 else next(name for name in names if name.startswith(PREFIX))

    def _names(self) -> list[str]:
        return [str(one["id"]) for one in self._get("/v1/models")["data"]]

    def _lacks_weights(self) -> bool:
        self._wait()
        if self.config.lora_rank:
            return self._version not in self._names()
        if self._version and self._get("/weight_info")["weight_version"] == self._version:
            return False
        # Also one that was started again, or has served another run.
        self._post("/init_weight_transfer_engine", {"init_info": {}})
        return True

    def _replace_weights(self, weights: Iterator[tuple[str, Tensor]]) -> bool:
        with weights_file(weights, self.config.server_folder) as path:
            self._post("/start_weight_update", {})
            self._post("/update_weights", {"update_info": {"path": str(path)}})
            version = Path(path).parent.name
            self._post("/finish_weight_update", {"weight_version": version})
        self._post("/reset_prefix_cache", {})
        self._version = version
        return True

    def _replace_adapter(self, actor: nn.Module) -> bool:
        """Under a new name each time: cached keys and values of a prompt belong to a name."""
        for name in self._names():
            if name.startswith(PREFIX):
                self._tell("/v1/unload_lora_adapter", {"lora_name": name})
        with adapter_folder(actor, self.config.lora_rank, self.config.server_folder) as folder:
            self._tell("/v1/load_lora_adapter", {"lora_name": folder.name, "lora_path": str(folder)})
        self._version = folder.name
        return True

    def _wait(self) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._request("/health", None)
                return
            except EngineDiedError as error:
                if time.monotonic() > until_s:
                    raise EngineError(
                        f"task.vllm.server: expected vLLM at {self.config.server}, found no answer for {PATIENCE_S:g} "
                        f"s ({error}); start it with\n  {self._command}"
                    ) from error
            time.sleep(POLL_S)

    def _on_first(self, call: Callable[[], bool]) -> bool:
        """The answer of the first process on every process."""
        answer = self._together(lambda: call() if distributed.rank() == 0 else False)
        return bool(distributed.all_max(int(answer), self._device))

    def _together(self, call: Callable[[], Any]) -> Any:
        """The own answer, or the same kind of error on every process."""
        if distributed.world_size() == 1:
            return call()
        answer: Any = None
        failure: Exception | None = None
        try:
            answer = call()
        except (EngineDiedError, EngineError) as error:
            failure = error
        if distributed.all_max(int(failure is not None), self._device):
            raise EngineError(f"task.vllm.server: {failure or 'another process found an error there'}") from failure
        return answer

    def _get(self, path: str) -> Any:
        return json.loads(self._request(path, None))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return json.loads(self._tell(path, body))

    def _tell(self, path: str, body: dict[str, Any]) -> bytes:
        return self._request(path, json.dumps(body).encode())

    def _request(self, path: str, body: bytes | None) -> bytes:
        address = self.config.server.rstrip("/") + path
        asked = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=ANSWER_TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            if error.code in (502, 503, 504):
                raise EngineDiedError(f"{address} answers HTTP {error.code}: {said}") from error
            raise EngineError(
                f"task.vllm.server: expected {address} to take the request, found HTTP {error.code}: {said}; the "
                f"server has to be started with\n  {self._command}"
            ) from error
        except (OSError, HTTPException) as error:
            raise EngineDiedError(f"{address} does not answer: {error}") from error
