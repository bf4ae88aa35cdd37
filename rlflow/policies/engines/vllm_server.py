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
from torch import Tensor

from rlflow import distributed
from rlflow.policies.engines.apart import Apart, EngineDiedError, Rows
from rlflow.policies.engines.engine import Completions, EngineError, LanguageModel, Sampling
from rlflow.policies.engines.vllm import BACKEND, WORKER, VLLMConfig, request_parameters, weights_file
from rlflow.random import Noise

# How the server has to be started, so that its tokens, likelihoods and weights are what the trainer takes them for.
START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve {source} --logprobs-mode processed_logprobs --generation-config vllm "
    f'--worker-extension-cls {WORKER} --weight-transfer-config \'{{{{"backend": "{BACKEND}"}}}}\''
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
        config: `server`, `server_folder` and `max_num_seqs`; the rest is the server's own.
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
    def _model(self) -> str:
        return str(self._get("/v1/models")["data"][0]["id"])

    def _lacks_weights(self) -> bool:
        self._wait()
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
                        f"s ({error}); start it with\n  {START.format(source=self.source)}"
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
        return json.loads(self._request(path, json.dumps(body).encode()))

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
                f"server has to be started with\n  {START.format(source=self.source)}"
            ) from error
        except (OSError, HTTPException) as error:
            raise EngineDiedError(f"{address} does not answer: {error}") from error
