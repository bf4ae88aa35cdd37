"""A reward computed elsewhere: pictures as PNG in JSON over HTTP, scores back. Nothing is ever unpickled.

The request is `{"version": 1, "images": [BASE64 PNG, ...], "prompts": [{"text": ..., "meta": {...}}, ...]}` and the
answer `{"scores": [NUMBER, ...]}`, or `{"error": TEXT}` with a status of 400 or above. `server.py` is a reference.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tasks.image.rewards.pixels import to_uint8
from tasks.image.rewards.reward import Prompt, Reward, RewardError

VERSION = 1
_SHOWN_BYTES = 200
# The server is overloaded, restarting or behind a proxy that is; every other status of 400 and above is our fault.
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


class _PassingError(Exception):
    """A failure that another try may not see."""


@dataclass(kw_only=True)
class Remote(Reward):
    """Scores of a server; waits on threads of its own, so that rewards on this machine are computed meanwhile.

    Attributes:
        url: Address that takes the POST.
        timeout_s: Of each try, to connect and between bytes. Too low: a slow model never answers; too high: a dead
            server holds the run.
        retries: Tries after the first, for time-outs, refused connections and statuses 408, 425, 429 and 5xx. Other
            errors are not tried again.
        backoff_s: Pause before the first retry, doubled before each further one.
        batch: Images of one request. Too low: overhead; too high: time-outs and bodies that proxies refuse.
        parallel: Requests under way at once. More than the server has models only queue there.
        token_variable: Environment variable whose value is sent as bearer token; empty sends none. The configuration,
            and so the log, carries only the variable's name.
    """

    concurrent: ClassVar[bool] = True

    url: str
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 1.0
    batch: int = 16
    parallel: int = 2
    token_variable: str = ""

    def __post_init__(self) -> None:
        """Refuse other protocols (urllib would also read files) and sizes that cannot work."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"remote reward: expected a url with http:// or https://, found {self.url!r}")
        if min(self.batch, self.parallel) < 1 or self.timeout_s <= 0 or min(self.retries, self.backoff_s) < 0:
            raise ValueError(
                "remote reward: expected batch, parallel >= 1, timeout_s > 0, retries, backoff_s >= 0, found "
                f"{self.batch}, {self.parallel}, {self.timeout_s}, {self.retries}, {self.backoff_s}"
            )

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]` scores of the server.

        Raises:
            RewardError: No answer after the last try, a refusal, or an answer of another form.
        """
        pictures = to_uint8(images)
        bodies = [
            request_body([png(picture) for picture in pictures[i : i + self.batch]], prompts[i : i + self.batch])
            for i in range(0, len(prompts), self.batch)
        ]
        sizes = [min(self.batch, len(prompts) - i) for i in range(0, len(prompts), self.batch)]
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="remote") as threads:
            answers = list(threads.map(self._ask, bodies, sizes))
        return torch.tensor([score for answer in answers for score in answer], dtype=torch.float32)

    def _ask(self, body: bytes, size: int) -> list[float]:
        pause, tries = self.backoff_s, self.retries + 1
        for attempt in range(1, tries + 1):
            try:
                return _scores(self._post(body), size, self.url)
            except _PassingError as error:
                if attempt == tries:
                    raise RewardError(
                        f"{self.url} gave no answer in {tries} tries of at most {self.timeout_s:g} s: {error}; is the "
                        "server up and reachable? raise retries or timeout_s if it is only slow"
                    ) from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token_variable:
            token = os.environ.get(self.token_variable)
            if not token:
                raise RewardError(f"{self.url}: expected a token in the environment variable {self.token_variable}")
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            said = error.read()[:_SHOWN_BYTES].decode(errors="replace")
            if error.code in _PASSING_STATUS:
                raise _PassingError(f"status {error.code}, {said!r}") from error
            raise RewardError(f"{self.url} refused the request with status {error.code}: {said!r}") from error
        except (OSError, http.client.HTTPException) as error:  # time-outs and connections that break or are refused
            raise _PassingError(f"{type(error).__name__}: {error}") from error


def request_body(pictures: Sequence[bytes], prompts: Sequence[Prompt]) -> bytes:
    """The JSON of one request.

    Raises:
        TypeError: Metadata that JSON cannot carry.
    """
    content = {
        "version": VERSION,
        "images": [base64.b64encode(picture).decode("ascii") for picture in pictures],
        "prompts": [{"text": prompt.text, "meta": dict(prompt.meta)} for prompt in prompts],
    }
    return json.dumps(content).encode()


def png(picture: Any) -> bytes:
    """`[H, W, 3]` bytes as a PNG file, which loses nothing."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _scores(content: bytes, size: int, url: str) -> list[float]:
    try:
        scores = json.loads(content)["scores"]
        numbers = [float(score) for score in scores if not isinstance(score, bool | str)]
    except (ValueError, KeyError, TypeError) as error:
        shown = content[:_SHOWN_BYTES].decode(errors="replace")
        raise RewardError(f'{url}: expected {{"scores": [numbers]}}, found {shown!r}') from error
    if len(numbers) != size or len(scores) != size:
        raise RewardError(f"{url}: expected {size} scores, found {len(numbers)} numbers in {len(scores)} entries")
    return numbers
