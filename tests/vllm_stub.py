"""A server with the endpoints of vLLM that the engine uses, which says what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

EOS = 2


class Stub(ThreadingHTTPServer):
    """Completes a prompt with its last token and the end; remembers weights and requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.version: str | None = None
        self.weights: dict[str, Tensor] = {}
        self.adapters: dict[str, dict[str, Tensor]] = {}
        self.paths: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.busy = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """The endpoints that the engine uses."""

    server: Stub

    def do_GET(self) -> None:
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": name} for name in ("model", *self.server.adapters)]},
            "/weight_info": {"weight_version": self.server.version},
        }
        self._answer(200 if self.path in answers else 404, answers.get(self.path, {"error": "no such path"}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        if self.path == "/update_weights":
            self.server.weights = load_file(body["update_info"]["path"])
        if self.path == "/v1/load_lora_adapter":
            folder = Path(body["lora_path"])
            assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
            self.server.adapters[body["lora_name"]] = load_file(folder / "adapter_model.safetensors")
        if self.path == "/v1/unload_lora_adapter":
            del self.server.adapters[body["lora_name"]]
        if self.path == "/finish_weight_update":
            self.server.version = body["weight_version"]
        if self.path == "/v1/completions":
            if self.server.busy:
                self.server.busy -= 1
                self._answer(503, {"error": "busy"})
                return
            self.server.asked.append(body)
            made = {"token_ids": [body["prompt"][-1], EOS], "logprobs": {"token_logprobs": [-0.5, -0.25]}}
            self._answer(200, {"choices": [made]})
            return
        self._answer(200, {})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to the console."""


@contextmanager
def serving() -> Iterator[Stub]:
    """A running one."""
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
