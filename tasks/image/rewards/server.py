"""The reference server of the remote protocol: any registered reward behind HTTP, on the standard library alone.

`python -m tasks.image.rewards.server ocr --port 8765` serves a reward to training runs on other machines. It has no
encryption and no login: bind it to an address that only they reach, or put a proxy before it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import json
import math
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tasks.image.rewards.remote import VERSION
from tasks.image.rewards.reward import Prompt, Reward, RewardError, check_images, checked

# 256 pictures of 1024 px as PNG in base64 are about 500 MB.
_MAX_BYTES = 1_000_000_000


class RewardServer(ThreadingHTTPServer):
    """Answers POSTs with the scores of one reward; one call at a time, since models share one device."""

    daemon_threads = True

    def __init__(self, reward: Reward, name: str, host: str = "127.0.0.1", port: int = 0) -> None:
        """Bind; port 0 takes a free one (`server_address` says which)."""
        super().__init__((host, port), _Answer)
        self.reward = reward
        self.name = name
        self.lock = Lock()


class _Answer(BaseHTTPRequestHandler):
    server: RewardServer

    def do_POST(self) -> None:
        try:
            images, prompts = parse(self.rfile.read(self._length()))
            with self.server.lock:
                scores = _score(self.server, images, prompts)
        except ValueError as error:
            self._say(400, {"error": str(error)})
        except RewardError as error:
            # Not a 5xx: the same pictures would fail again, and the run has to stop with this message.
            self._say(422, {"error": str(error)})
        else:
            self._say(200, {"scores": scores})

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a line per request would drown what matters."""

    def _length(self) -> int:
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= _MAX_BYTES:
            raise ValueError(f"expected a body of 1 to {_MAX_BYTES} bytes, found {length}")
        return length

    def _say(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def parse(body: bytes) -> tuple[list[Tensor], list[Prompt]]:
    """Images `[3, H, W]` float32 in [0, 1], and prompts, of a request.

    Raises:
        ValueError: Not the protocol, or another version of it.
    """
    content = json.loads(body)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"expected an object with version {VERSION}")
    images, prompts = content.get("images"), content.get("prompts")
    if not isinstance(images, list) or not isinstance(prompts, list) or len(images) != len(prompts):
        raise ValueError("expected the lists images and prompts, equally long")
    try:
        pictures = [Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) for text in images]
        arrays = [torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]
        asked = [Prompt(text=str(entry["text"]), meta=dict(entry.get("meta", {}))) for entry in prompts]
    except (binascii.Error, UnidentifiedImageError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected base64 PNG images and prompts with text: {type(error).__name__}: {error}"
        ) from error
    return [array.permute(2, 0, 1).float() / 255 for array in arrays], asked


def _score(server: RewardServer, images: list[Tensor], prompts: Sequence[Prompt]) -> list[float]:
    if not images:
        return []
    if len({image.shape for image in images}) != 1:
        raise ValueError("expected images of one size")
    batch = torch.stack(images)
    check_images(batch, prompts)
    scores: list[float] = checked(server.name, server.reward, batch, prompts).tolist()
    assert all(math.isfinite(score) for score in scores)
    return scores


def main() -> None:
    """Serve a reward until interrupted."""
    from tasks.image.rewards.registry import make_reward

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", help="registered name or module:Class")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON object of the reward's settings")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    server = RewardServer(make_reward(options.reward, options.settings), options.reward, options.host, options.port)
    print(f"{options.reward} at http://{options.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
        server.reward.close()


if __name__ == "__main__":
    main()
