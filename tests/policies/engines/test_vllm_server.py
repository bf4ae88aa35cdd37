"""The engine that asks a running vLLM: what it sends and expects, by a server of the same protocol, and vLLM itself."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.engines import vllm_server
from rlflow.policies.engines.choice import open_engine
from rlflow.policies.engines.engine import EngineError, Sampling
from rlflow.policies.engines.vllm import VLLMConfig
from rlflow.policies.engines.vllm_server import VLLMServer
from rlflow.random import Noise, generator
from tasks.reasoning.checkpoint import Checkpoint
from tasks.reasoning.settings import TrainedSettings
from tests.tiny_models import save_tiny
from tests.vllm_stub import Answers, Stub, serving

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (docs/engines.md tells how)"
)
# Other kernels than the trainer's, in float32.
KERNELS = 1e-4
PAD, EOS, UNK = 0, 2, 3
SAMPLING = Sampling(max_new_tokens=3, temperature=0.7, eos_id=EOS, pad_id=PAD, banned_ids=(PAD,))
PROMPTS = {
    "prompt": torch.tensor([[PAD, 1, 5, 9], [1, 6, 7, 8]] * 4),
    "prompt_mask": torch.tensor([[False, True, True, True], [True] * 4] * 4),
}


class Model:
    """Agrees with the stub's likelihoods."""

    sampling = SAMPLING

    def __init__(self) -> None:
        self.actor = torch.nn.Linear(2, 2, bias=False)

    def completion_log_prob(self, context: dict[str, Tensor], token: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([-0.5, -0.25, 0.0]).expand(token.shape)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as server:
        yield server


def with_lora(folder: Path) -> Any:
    return Checkpoint.open(folder).load_trainable(TrainedSettings(lora_rank=4, lora_alpha=8.0))


def engine_of(address: str, **settings: Any) -> VLLMServer:
    engine = open_engine("vllm", "model", VLLMConfig(server=address, max_num_seqs=4, **settings))
    assert isinstance(engine, VLLMServer)
    return engine


def test_tokens_go_in_and_tokens_with_likelihoods_come_out(stub: Stub, tmp_path: Path) -> None:
    engine, model = engine_of(stub.address, server_folder=str(tmp_path)), Model()
    made = engine.complete(model, PROMPTS, Noise(generator=generator(0)))
    assert made.token[:2].tolist() == [[9, EOS, PAD], [8, EOS, PAD]]
    assert made.mask[0].tolist() == [True, True, False]
    assert made.log_prob is not None
    assert made.log_prob[0].tolist() == [-0.5, -0.25, 0.0]
    assert torch.equal(stub.weights["weight"], model.actor.weight)
    # The file is gone once it was read.
    assert list(tmp_path.iterdir()) == []
    transfer = ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"]
    assert stub.paths[:5] == [*transfer, "/reset_prefix_cache"]
    batch = stub.asked[-8:]
    assert sorted(one["prompt"] for one in batch) == sorted([[1, 5, 9], [1, 6, 7, 8]] * 4)
    assert len({one["seed"] for one in batch}) == 8
    asked = batch[0]
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"], asked["top_k"]) == (3, 0.7, 1.0, 0)
    assert (asked["logprobs"], asked["return_token_ids"], asked["logit_bias"]) == (0, True, {"0": -100.0})


def test_weights_are_sent_where_they_changed_or_were_lost(stub: Stub) -> None:
    engine, model, noise = engine_of(stub.address), Model(), Noise(generator=generator(0))
    for changed, lost, sent in ((False, False, 1), (False, False, 1), (True, False, 2), (False, True, 3)):
        with torch.no_grad():
            model.actor.weight.add_(float(changed))
        if lost:
            stub.version, stub.weights = None, {}
        engine.complete(model, PROMPTS, noise)
        assert stub.paths.count("/update_weights") == sent
        assert torch.equal(stub.weights["weight"], model.actor.weight)


def test_a_lora_is_sent_alone_under_a_new_name_where_the_server_is_to_add_it(stub: Stub, tmp_path: Path) -> None:
    actor = with_lora(save_tiny("Qwen2", tmp_path))
    engine, model, noise = engine_of(stub.address, lora_rank=8), Model(), Noise(generator=generator(0))
    model.actor = actor
    names = []
    for changed, lost, sent in ((False, False, 1), (False, False, 1), (True, False, 2), (False, True, 3)):
        with torch.no_grad():
            for name, weight in actor.named_parameters():
                weight.add_(float(changed and "lora_B" in name))
        if lost:
            stub.adapters.clear()
        engine.complete(model, PROMPTS, noise)
        assert stub.paths.count("/v1/load_lora_adapter") == sent
        # One adapter at a time, with the weights of the LoRA alone, and requests are addressed to it.
        ((name, weights),) = stub.adapters.items()
        assert {one["model"] for one in stub.asked[-8:]} == {name}
        own = {key: weight for key, weight in actor.named_parameters() if ".lora_" in key}
        assert weights.keys() == {key.replace(".default", "") for key in own}
        assert all(torch.equal(weights[key.replace(".default", "")], weight) for key, weight in own.items())
        names.append(name)
    assert len(set(names)) == 3
    assert "/update_weights" not in stub.paths


def test_a_server_without_adapters_is_told_how_to_start(stub: Stub, tmp_path: Path, monkeypatch: Any) -> None:
    model = Model()
    model.actor = with_lora(save_tiny("Qwen2", tmp_path))
    monkeypatch.setattr(Answers, "do_POST", lambda self: self._answer(404, {"detail": "Not Found"}))
    with pytest.raises(EngineError, match=r"(?s)HTTP 404.*ALLOW_RUNTIME_LORA.* --enable-lora .* --max-lora-rank 16"):
        engine_of(stub.address, lora_rank=9).complete(model, PROMPTS, Noise(generator=generator(0)))


def test_a_server_that_was_away_gets_weights_and_the_same_batch_again(stub: Stub) -> None:
    engine, model = engine_of(stub.address), Model()
    whole = engine.complete(model, PROMPTS, Noise(generator=generator(0)))
    seeds = {one["seed"] for one in stub.asked[-8:]}
    stub.busy = 1
    again = engine.complete(model, PROMPTS, Noise(generator=generator(0)))
    assert torch.equal(again.token, whole.token)
    assert engine.metrics["engine_restarts"] == 1.0
    assert {one["seed"] for one in stub.asked[-8:]} == seeds
    assert stub.paths.count("/update_weights") == 2


def test_no_server_and_a_server_of_another_kind_are_told_apart(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "PATIENCE_S", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    noise = Noise(generator=generator(0))
    command = r"VLLM_SERVER_DEV_MODE=1 vllm serve model .* '\{\"backend\": \"rlflow_file\"\}'"
    with pytest.raises(EngineError, match=rf"found no answer for 0 s .*; start it with\n  {command}"):
        engine_of(nobody).complete(Model(), PROMPTS, noise)
    monkeypatch.setattr(Answers, "do_POST", lambda self: self._answer(404, {"detail": "Not Found"}))
    with pytest.raises(
        EngineError, match=r"expected http.*/init_weight_transfer_engine to take .* found HTTP 404: .*has to be"
    ):
        engine_of(stub.address).complete(Model(), PROMPTS, noise)


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """Folder of a random Qwen2 and the address of a vLLM that serves it; a parameter adds options."""
    folder = save_tiny("Qwen2", tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }  # fmt: skip
    # As `vllm serve`, which asks for the metadata of a package that has another name for CPUs.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    command += ["--worker-extension-cls", vllm_server.WORKER, "--weight-transfer-config", '{"backend": "rlflow_file"}']
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "64", "--max-num-seqs", "16"]
    command += ["--kv-cache-memory-bytes", str(2**26), *getattr(request, "param", [])]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 400
    try:
        while not _answers(address):
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, "no vLLM within 400 s"
            time.sleep(0.5)
        yield folder, address
    finally:
        process.terminate()
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=5).close()
    except OSError:
        return False
    return True


@needs_vllm
@pytest.mark.timeout(560)
def test_rollouts_of_a_real_server_follow_the_weights(served: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM

    folder, address = served
    actor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The server starts from other weights than the trainer has, as after a resumed run.
    with torch.no_grad():
        for weight in actor.parameters():
            weight.mul_(0.5)
    engine = engine_of(address, dtype="float32", canary_tolerance=KERNELS)
    policy = CausalLMPolicy(
        actor, LMConfig(max_new_tokens=8), requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD,
        banned_ids=(PAD, UNK), engine=engine,
    )  # fmt: skip
    for _ in range(2):
        made = policy.sample(PROMPTS, Noise(generator=generator(0)))
        found = policy.completion_log_prob(PROMPTS, made["token"], made["mask"])
        assert float((found - made["sampler_log_prob"])[made["mask"]].abs().max()) < 10 * KERNELS
        assert not bool(torch.isin(made["token"][made["mask"]], torch.tensor([PAD, UNK])).any())
        with torch.no_grad():
            actor.lm_head.weight.mul_(1.5)


@needs_vllm
@pytest.mark.timeout(560)
@pytest.mark.parametrize(
    "served", [["--enable-lora", "--max-loras", "1", "--max-lora-rank", "8"]], indirect=True, ids=["lora"]
)
def test_rollouts_of_a_real_server_follow_a_lora_that_it_adds(served: tuple[Path, str]) -> None:
    folder, address = served
    actor = with_lora(folder)
    engine = engine_of(address, dtype="float32", canary_tolerance=KERNELS, lora_rank=4)
    policy = CausalLMPolicy(
        actor, LMConfig(max_new_tokens=8), requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD,
        banned_ids=(PAD, UNK), engine=engine,
    )  # fmt: skip
    for step in range(2):
        with torch.no_grad():
            for weight in (weight for weight in actor.parameters() if weight.requires_grad):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator(step)))
        made = policy.sample(PROMPTS, Noise(generator=generator(0)))
        found = policy.completion_log_prob(PROMPTS, made["token"], made["mask"])
        with actor.disable_adapter():
            base = policy.completion_log_prob(PROMPTS, made["token"], made["mask"])
        assert float((found - made["sampler_log_prob"])[made["mask"]].abs().max()) < 10 * KERNELS
        assert float((found - base).abs().max()) > 100 * KERNELS
