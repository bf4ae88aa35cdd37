"""A sandbox for tests; where none can be had, tests skip with the reason, and fail where CI=true."""

import os

import pytest

from tasks.reasoning.sandbox import Sandbox
from tasks.reasoning.sandbox_isolation import Limits, isolation

QUICK = Limits(cpu_s=1, wall_s=30, memory_mb=256, output_mb=1, scratch_mb=4)


def sandbox(**changes) -> Sandbox:
    found = isolation()
    if found.kind == "none":
        reason = f"programs cannot be isolated here: {'; '.join(found.problems)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Sandbox(**{"limits": QUICK} | changes)
