"""Start-up time of a command, independent of other load on the machine."""

import os
import subprocess
from collections.abc import Sequence


def least_seconds(command: Sequence[str], times: int = 3) -> tuple[float, str]:
    """Run a command that must succeed; the least processor time of its runs, and what the last one printed.

    Processor time and not the clock's: beside other tests a command waits for its turn.
    """
    seconds = []
    for _ in range(times):
        before = os.times()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()
        assert done.returncode == 0, done.stderr
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return min(seconds), done.stdout
