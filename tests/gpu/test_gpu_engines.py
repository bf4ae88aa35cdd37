"""The `warp` engine trains on a CUDA device; skipped where there is none (see engines.py for the table)."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.control.engines import open_vector, spec_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("mujoco_warp") is None, reason="needs mujoco_warp: pip install 'rlflow[warp]'"),
]
# Of float32 after one step without contacts, as on the CPU.
CLOSE = 1e-5


def test_the_script_measures_both_engines(tmp_path, monkeypatch):
    out = tmp_path / "engines.md"
    script = Path(__file__).with_name("engines.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--num-envs", "64", "--iterations", "1", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    # A title, a blank line, two header lines and two engines.
    assert len(out.read_text().splitlines()) == 6


def test_a_step_on_the_device_is_the_batched_engines():
    warp, batched = (
        open_vector(spec_of(engine, "InvertedPendulum-v5"), [3, 4], lambda start, episode: 1000 * start + episode)
        for engine in ("warp", "batched")
    )
    action = np.array([[0.5], [-0.5]], dtype=np.float32)
    found, expected = warp.step(action), batched.step(action)
    assert found.next_observation.is_cuda
    assert np.allclose(found.next_observation.cpu(), expected.next_observation, rtol=CLOSE, atol=CLOSE)
    assert found.reward.tolist() == expected.reward.tolist()
