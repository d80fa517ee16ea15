"""Forks a process for every command line that it reads from its input; see `faults.FaultyProcesses`."""

import atexit
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import zarr  # noqa: F401  # so that no child has to import it

from support.commands import main

PRELOADED = ctypes.CDLL(None)
PRELOADED.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int)
PRELOADED.fault_count.restype = ctypes.c_long


def serve() -> dict[str, Any] | None:
    """Answer requests; returns the request in the child that is to do it, and None at the end of the input."""
    child = 0

    def take_the_child_along(number: int, frame: FrameType | None) -> None:
        if child:
            os.kill(child, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, take_the_child_along)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            os.kill(child, signal.SIGCONT)
            _, status = os.waitpid(child, 0)
            child, answer = 0, os.waitstatus_to_exitcode(status)
        else:
            child = os.fork()
            if child == 0:
                return request
            answer = child
            os.waitid(os.P_PID, child, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        print(answer, flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Run the command line of a request to the end of the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    scratch = Path(request["scratch"])
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    atexit.register(lambda: (scratch / "operations").write_text(str(PRELOADED.fault_count())))
    folder, *numbers = request["fault"]
    PRELOADED.fault_arm(folder.encode(), *numbers)
    sys.argv = ["featcache", *request["arguments"]]
    main()


if __name__ == "__main__":
    request = serve()
    if request is not None:
        become(request)
