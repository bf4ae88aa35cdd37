"""Every pair of the core suite runs on a CUDA device; skipped where there is none (see pairs.py for the table)."""

import runpy
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_pairs_run_on_the_device(tmp_path, monkeypatch):
    out = tmp_path / "gpu.md"
    script = Path(__file__).with_name("pairs.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--iterations", "1", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    # A title, a blank line, two header lines and 15 pairs.
    assert len(out.read_text().splitlines()) == 19
