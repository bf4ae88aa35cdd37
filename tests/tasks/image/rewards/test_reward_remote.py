"""A real server on a real socket: scores, order, retries by count, refusals, broken answers; nothing is unpickled."""

import ast
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tasks.image.rewards import Prompt, Reward, RewardError, RewardMix, remote, server
from tasks.image.rewards.mix import Part
from tasks.image.rewards.remote import Remote
from tasks.image.rewards.server import RewardServer

EXACT = {"rtol": 0.0, "atol": 1e-6}
IMAGES = (torch.arange(5).float()[:, None, None, None].expand(5, 3, 6, 6) * 40 / 255).contiguous()
PROMPTS = [Prompt(text=f"p{i}", meta={"weight": i, "target": "é"}) for i in range(5)]


@dataclass(kw_only=True)
class Brightness(Reward):
    """Mean of the picture plus the weight in the metadata."""

    def __call__(self, images, prompts):
        assert all(prompt.meta["target"] == "é" for prompt in prompts)
        return images.mean((1, 2, 3)) + torch.tensor([float(prompt.meta["weight"]) for prompt in prompts])


@dataclass(kw_only=True)
class Broken(Reward):
    """Answers NaN."""

    def __call__(self, images, prompts):
        return torch.full((len(images),), float("nan"))


@contextmanager
def running(http_server):
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http_server.server_address[1]}"
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()


def scripted(answers):
    """A server that gives the answers (status, body) in turn and then repeats the last; counts requests."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((dict(self.headers), body))
            status, content = answers[min(len(made.requests), len(answers)) - 1]
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    made.requests = []
    return made


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_scores_come_back_in_order_whatever_the_batch(batch):
    with running(RewardServer(Brightness(), "brightness")) as url:
        scores = Remote(url=url, batch=batch, parallel=3)(IMAGES, PROMPTS)
    # Grey i * 40 / 255 survives the PNG exactly, and each row has weight i.
    assert torch.allclose(scores, torch.arange(5) * (1 + 40 / 255), **EXACT)


def test_beside_a_local_reward_in_a_mix():
    with running(RewardServer(Brightness(), "brightness")) as url:
        parts = [
            Part(name=name, reward=reward, weight=weight, held_out=False)
            for name, reward, weight in (("there", Remote(url=url), 1.0), ("here", Brightness(), -1.0))
        ]
        scores = RewardMix(parts)(IMAGES, PROMPTS)
    assert torch.allclose(scores.reward, torch.zeros(5), **EXACT)


GOOD = (200, json.dumps({"scores": [1, 2, 3, 4, 5]}).encode())


@pytest.mark.parametrize("failure", [(503, b"busy"), (500, b"restart"), (429, b"later"), (0, b"")])
def test_passing_failures_are_tried_again(failure):
    made = scripted([failure, failure, GOOD])
    with running(made) as url:
        scores = Remote(url=url, retries=2, backoff_s=0.0)(IMAGES, PROMPTS)
    assert scores.tolist() == [1, 2, 3, 4, 5]
    assert len(made.requests) == 3


def test_the_last_try_says_what_to_do():
    made = scripted([(503, b"busy")])
    with running(made) as url, pytest.raises(RewardError, match=r"no answer in 3 tries .* status 503, 'busy'; is the"):
        Remote(url=url, retries=2, backoff_s=0.0)(IMAGES, PROMPTS)
    assert len(made.requests) == 3


def test_pauses_double(monkeypatch):
    pauses = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with running(scripted([(503, b"")])) as url, pytest.raises(RewardError):
        Remote(url=url, retries=3, backoff_s=0.5)(IMAGES, PROMPTS)
    assert pauses == [0.5, 1.0, 2.0]


def test_a_server_that_never_answers_times_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RewardError, match=r"in 2 tries of at most 0.05 s: TimeoutError"):
            Remote(url=url, timeout_s=0.05, retries=1, backoff_s=0.0)(IMAGES, PROMPTS)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RewardError, match="refused"):
        Remote(url=url, retries=0)(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, b"what?"), "refused the request with status 400: 'what\\?'"),
        ((200, b"<html>"), "expected {\"scores\": \\[numbers\\]}, found '<html>'"),
        ((200, b'{"score": [1]}'), 'expected {"scores"'),
        ((200, b'{"scores": [1, 2]}'), "expected 5 scores, found 2 numbers in 2 entries"),
        ((200, b'{"scores": [1, 2, 3, 4, "5"]}'), "expected 5 scores, found 4 numbers in 5 entries"),
        ((200, b'{"scores": [1, 2, 3, 4, null]}'), 'expected {"scores"'),
    ],
)
def test_a_wrong_answer_is_not_tried_again(answer, message):
    made = scripted([answer])
    with running(made) as url, pytest.raises(RewardError, match=message):
        Remote(url=url, retries=5, backoff_s=0.0)(IMAGES, PROMPTS)
    assert len(made.requests) == 1


def test_the_servers_own_failure_arrives_with_the_prompt():
    with running(RewardServer(Broken(), "broken")) as url:
        mix = RewardMix([Part(name="far", reward=Remote(url=url), weight=1.0, held_out=False)])
        with pytest.raises(RewardError, match=r"reward 'far' failed .*status 422: .*found nan for prompt .*p0"):
            mix(IMAGES, PROMPTS)


def test_the_token_comes_from_the_environment(monkeypatch):
    made = scripted([GOOD])
    with running(made) as url:
        reward = Remote(url=url, token_variable="REWARD_TOKEN")
        with pytest.raises(RewardError, match="expected a token in the environment variable REWARD_TOKEN"):
            reward(IMAGES, PROMPTS)
        monkeypatch.setenv("REWARD_TOKEN", "secret")
        reward(IMAGES, PROMPTS)
    assert made.requests[0][0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(reward)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "expected an object with version 1"),
        (b'{"version": 2}', "expected an object with version 1"),
        (b'{"version": 1, "images": ["AA=="], "prompts": []}', "equally long"),
        (b'{"version": 1, "images": ["AA=="], "prompts": [{"text": "a"}]}', "expected base64 PNG"),
        (b'{"version": 1, "images": ["!"], "prompts": [{"text": "a"}]}', "expected base64 PNG"),
    ],
)
def test_the_server_refuses_what_is_not_the_protocol(body, message):
    with pytest.raises(ValueError, match=message):
        server.parse(body)


@pytest.mark.parametrize("settings", [{"url": "file:///etc/passwd"}, {"url": "http://h", "batch": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="remote reward: expected"):
        Remote(**settings)


def test_nothing_is_unpickled():
    for module in (remote, server):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
        assert not names & {"pickle", "cloudpickle", "dill", "joblib", "load"}
        assert not any(isinstance(n, ast.Attribute) and ast.unparse(n) == "torch.load" for n in ast.walk(tree))
