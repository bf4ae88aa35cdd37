"""Train the toy task in two gloo processes, one run after the other.

python -m tests.ddp_run FOLDER "ALGORITHM key=value ..." "ALGORITHM key=value ..."
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from tests.fakes import fit, toy_loop

if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    for number, run in enumerate(sys.argv[2:]):
        algorithm, *overrides = run.split()
        folder = Path(sys.argv[1]) / str(number)
        loop = fit(toy_loop(algorithm, folder, *overrides))
        if loop.is_first_rank:
            (folder / "logged.json").write_text(json.dumps(loop.tracker.calls))
