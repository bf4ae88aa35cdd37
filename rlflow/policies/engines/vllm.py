"""vLLM: paged attention and continuous batching, in a child of this process."""

from __future__ import annotations

import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from rlflow import distributed
from rlflow.policies.engines.apart import Apart, EngineDiedError, Rows
from rlflow.policies.engines.engine import EngineError, Sampling
from rlflow.policies.engines.transfer import adapter_folder, weights_file

INSTALL = "pip install 'rlflow[vllm]' on CUDA; docs/engines.md tells how on a CPU"
BACKEND = "rlflow_file"
WORKER = "rlflow.policies.engines.vllm_worker.FileWeights"
POLL_S = 0.2
# What vLLM makes room for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTER = "rlflow"
# vLLM clamps a bias at this; e^-100 of the mass is none in float32.
BANNED_BIAS = -100.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """How vLLM runs.

    Attributes:
        dtype: Of weights and kernels; another one than the trainer's adds to `rollout/engine_difference_mean`.
        max_model_len: Longest prompt and completion together; 0 takes the model's own. Too high: the key-value cache
            of one row does not fit.
        memory_fraction: Share of a GPU (of the memory, on a CPU) for weights and key-value cache. Too high: the trainer
            runs out of memory.
        kv_cache_gb: Size of the key-value cache instead of a share; 0 leaves it to `memory_fraction`.
        max_num_seqs: Rows in flight. Too low: slow; too high: rows are preempted and computed again.
        enforce_eager: No compilation and no CUDA graphs: slower rollouts, faster start.
        tensor_parallel: GPUs of one engine.
        lora_rank: Rank of a LoRA that is sent alone and added by vLLM's own kernels to the weights that it started
            from: a fast transfer, for slower tokens. 0 merges a LoRA into the weights that are sent.
        sleep: Give its memory back while the trainer updates, on one GPU; nothing on a CPU.
        canary_tolerance: See `Apart`.
        server: Address of a running `vllm serve`, e.g. `http://HOST:8000`, instead of a child (docs/engines.md); of
            the settings above it uses `max_num_seqs` and `canary_tolerance` alone. For several training processes.
        server_folder: Folder that this machine and the server both see, through which weights go; empty: the shared
            memory of this machine.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int = 0
    memory_fraction: float = 0.5
    kv_cache_gb: float = 0.0
    max_num_seqs: int = 256
    enforce_eager: bool = False
    tensor_parallel: int = 1
    lora_rank: int = 0
    sleep: bool = False
    canary_tolerance: float = 0.1
    server: str = ""
    server_folder: str = ""

    def __post_init__(self) -> None:
        """Refuse a rank that vLLM has no kernels for."""
        if not 0 <= self.lora_rank <= LORA_RANKS[-1]:
            raise ValueError(
                f"task.vllm.lora_rank: expected 0 (merged) to {LORA_RANKS[-1]}, found {self.lora_rank}; "
                "merge a larger LoRA"
            )

    @property
    def room_for_lora(self) -> int:
        """The least rank that vLLM makes room for and that holds `lora_rank`."""
        return next(rank for rank in LORA_RANKS if rank >= self.lora_rank)


@dataclass(kw_only=True)
class VLLM(Apart):
    """vLLM's `LLM` with its core in a child process: a crash there costs a restart, not the run.

    In this very process vLLM would open the default process group, replace `torch.set_num_threads` and bind memory to
    a NUMA node, all of which are the trainer's. Weights go through vLLM's weight-transfer API by a safetensors file in
    shared memory. Rows have seeds of their own, so that a batch does not depend on its schedule, up to rounding.

    Attributes:
        source: Folder or hub id of the model; its weights are replaced before the first token.
        config: How it runs.
    """

    source: str
    config: VLLMConfig
    _llm: Any = field(default=None, init=False)
    _adapter: Any = field(default=None, init=False)
    _processes: list[Any] = field(default_factory=list, init=False)

    def start(self) -> None:
        """Start the child.

        Raises:
            EngineError: vLLM is not installed, or refuses the configuration.
        """
        if self._llm is not None:
            return
        if distributed.world_size() > 1:
            raise EngineError(
                f"task.engine: expected one training process beside vLLM, found {distributed.world_size()}, which "
                "would all start it on the same GPU; set trainer.devices=1, or task.vllm.server"
            )
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(f"task.engine: expected vLLM to be installed, found no package; {INSTALL}")
        # A forked child would inherit the locks that the trainer's threads hold.
        with _environment({"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}):
            from vllm import LLM

            try:
                with torch.random.fork_rng():
                    self._llm = LLM(self.source, **self._arguments())
            except (RuntimeError, ValueError) as error:
                raise EngineError(f"task.engine: vLLM does not start with {self.source}: {error}") from error
        self._processes = list(self._llm.llm_engine.engine_core.resources.engine_manager.processes)
        self._ask(lambda: self._llm.init_weight_transfer_engine({"init_info": {}}))

    def bring(self, actor: nn.Module) -> None:
        """All weights, or the LoRA alone where `lora_rank` says so."""
        if self.config.lora_rank == 0:
            super().bring(actor)
            return
        with adapter_folder(actor, self.config.lora_rank) as folder:
            self._ask(lambda: self._replace_adapter(folder))

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Write a file that the child's workers read, and drop the prefix cache."""
        with weights_file(weights) as path:
            self._ask(lambda: self._replace_weights(path))

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> Rows:
        """One request per prompt."""
        from vllm import SamplingParams

        params = [SamplingParams(**request_parameters(sampling, seed), detokenize=False) for seed in seeds]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._ask(self._wake)
        answers = self._ask(lambda: self._llm.generate(asked, params, use_tqdm=False, lora_request=self._adapter))
        made = [answer.outputs[0] for answer in answers]
        tokens = [list(row.token_ids) for row in made]
        return tokens, [
            [at[token].logprob for token, at in zip(row.token_ids, row.logprobs, strict=True)] for row in made
        ]

    def rest(self) -> None:
        """Sleep, where configured."""
        if self.config.sleep:
            self._ask(lambda: self._llm.sleep(level=1))

    def stop(self) -> None:
        """End the child."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _wake(self) -> None:
        if self.config.sleep:
            self._llm.wake_up()

    def _replace_weights(self, path: Path) -> None:
        self._wake()
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"path": str(path)}})
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()

    def _replace_adapter(self, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        self._wake()
        self._llm.llm_engine.add_lora(LoRARequest(ADAPTER, 1, str(folder), load_inplace=True))
        self._adapter = LoRARequest(ADAPTER, 1, str(folder))
        self._llm.reset_prefix_cache()

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """Ask the child and watch its life: vLLM itself waits for ever on the answer of a killed one."""
        answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

        def ask() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        while True:
            try:
                answer, error = answers.get(timeout=POLL_S)
            except queue.Empty:
                if all(process.is_alive() for process in self._processes):
                    continue
                raise EngineDiedError("vLLM's process has ended") from None
            if error is None:
                return cast(Answer, answer)
            if type(error).__name__ == "EngineDeadError":
                raise EngineDiedError(str(error)) from error
            raise error

    def _arguments(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig

        config = self.config
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": config.room_for_lora} if config.lora_rank else {}
        optional = {"max_model_len": config.max_model_len, "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30)}
        return {
            "skip_tokenizer_init": True, "dtype": config.dtype, "seed": 0, "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs", "gpu_memory_utilization": config.memory_fraction,
            "max_num_seqs": config.max_num_seqs, "enforce_eager": config.enforce_eager,
            "tensor_parallel_size": config.tensor_parallel, "enable_sleep_mode": config.sleep,
            "worker_extension_cls": WORKER, "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
            **{name: value for name, value in optional.items() if value}, **lora,
        }  # fmt: skip


def request_parameters(sampling: Sampling, seed: int) -> dict[str, Any]:
    """Sampling parameters of vLLM: the whole distribution, and the log-probability of each drawn token in it."""
    return {
        "temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "seed": seed, "logprobs": 0,
        "stop_token_ids": [sampling.eos_id], "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "logit_bias": {token: BANNED_BIAS for token in sampling.banned_ids} or None,
    }  # fmt: skip


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that a child inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
