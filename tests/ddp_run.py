"""Train in two gloo processes, one run after the other, the toy task unless another is named.

python -m tests.ddp_run FOLDER "ALGORITHM key=value ..." "ALGORITHM TASK key=value ..."
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from tests.fakes import fit, task_loop, toy_loop

if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    for number, run in enumerate(sys.argv[2:]):
        algorithm, *overrides = run.split()
        folder = Path(sys.argv[1]) / str(number)
        task = overrides.pop(0) if overrides and "=" not in overrides[0] else ""
        loop = fit(task_loop(algorithm, task, folder, *overrides) if task else toy_loop(algorithm, folder, *overrides))
        if loop.is_first_rank:
            (folder / "logged.json").write_text(json.dumps(loop.tracker.calls))
