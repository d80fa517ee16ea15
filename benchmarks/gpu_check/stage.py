"""A stage of the check, and what all stages share: the device, sizes, timing and the time that is left."""

import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

import torch

REPO = Path(__file__).parents[2]
Found = dict[str, object]
"""Results of a stage, by what they are. A stage that can fail has `ok` among them."""


@dataclass
class Check:
    """One run of the check.

    Args:
        device: the GPU, or the CPU in toy size.
        toy: whether sizes are those of a toy, which show that a stage runs, and nothing else.
        limit_s: seconds in which all stages should end.
        folder: folder for caches and images.
        pretended: whether the GPU is pretended, so that it has no kernels to profile and only this process has it.
    """

    device: torch.device
    toy: bool
    limit_s: float
    folder: Path
    pretended: bool = False
    _started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.limit_s - (time.monotonic() - self._started)

    def synchronize(self) -> None:
        """Wait for all work on the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], runs: int = 5, warm: int = 2) -> float:
        """Return the median seconds of a call, with the work on the device that it starts."""
        if self.toy:
            runs, warm = 1, 0
        for _ in range(warm):
            function()
        self.synchronize()
        taken = []
        for _ in range(runs):
            started = time.perf_counter()
            function()
            self.synchronize()
            taken.append(time.perf_counter() - started)
        return median(taken)

    def clean(self) -> None:
        """Give memory back that nobody uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def allocated_bytes(self) -> int:
        """Return the bytes that tensors take on the device; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    def peak_bytes(self) -> int:
        """Return the most bytes since the last reset; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)


@dataclass(frozen=True)
class Stage:
    """A part of the check that runs alone."""

    run: Callable[[Check], Found]
    least_s: float
    """Seconds that must be left for the stage to begin."""

    @property
    def name(self) -> str:
        """Name on the command line and in the results."""
        return self.run.__name__


def run_stages(check: Check, stages: Iterable[Stage], file: IO[str]) -> dict[str, Found]:
    """Run stages one after another; a failure of one does not keep the others back.

    Args:
        check: the run.
        stages: the stages.
        file: receives one line of JSON a stage, as soon as it ends.

    Returns:
        The results by name.
    """
    results: dict[str, Found] = {}
    for stage in stages:
        print(f"running: {stage.name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        if not check.toy and check.left_s() < stage.least_s:
            found: Found = {"skipped": f"{check.left_s():.0f} s are left, and it takes {stage.least_s:.0f} s"}
        else:
            found = _guarded(check, stage)
        found["stage_s"] = round(time.monotonic() - started, 1)
        results[stage.name] = found
        file.write(json.dumps({"stage": stage.name, **found}, default=str) + "\n")
        file.flush()
    return results


def _guarded(check: Check, stage: Stage) -> Found:
    try:
        return stage.run(check)
    except Exception as error:
        return {
            "ok": False,
            "error": f"{type(error).__name__}: {str(error)[:300]}",
            "trace": traceback.format_exc()[-1500:],
        }
    finally:
        check.clean()


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for a run."""
    return tempfile.TemporaryDirectory(prefix="featcache-gpu-check-")
