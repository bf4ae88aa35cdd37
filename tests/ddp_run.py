"""Train the toy task in two gloo processes, one run after the other.

python -m tests.ddp_run FOLDER "ALGORITHM key=value ..." "ALGORITHM key=value ..."
"""

from __future__ import annotations

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
        fit(toy_loop(algorithm, Path(sys.argv[1]) / str(number), *overrides))
