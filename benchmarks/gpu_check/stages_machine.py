"""Stages that look at the machine: its ceilings, the product's own tests, and races between streams."""

import io
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from extraction_setup import matrix_rate, photo, toy_backbone
from PIL import Image
from stage import REPO, Check, Found

from featcache.extraction.decoding.rgb import to_rgb

TESTS = ("extract/test_cuda.py", "probe/test_cuda.py", "extract/test_memory.py")
TESTS_LIMIT_S, RACES_LIMIT_S = 150.0, 90.0
TAIL = 1500
"""Characters of a failed command's output that are kept."""

# Extracts with a small backbone, on the device that is named.
EXTRACTION = """
import sys, tempfile
from pathlib import Path
import torch
from extraction_setup import Bench, Synthetic, decoded, toy_backbone
backbone = toy_backbone()
backbone.transform = decoded(backbone.spec.input_size)
with tempfile.TemporaryDirectory() as folder:
    bench = Bench(backbone, Synthetic(96), torch.device(sys.argv[1]), Path(folder), 1, 16)
    bench.extract(bench.plan(96))
print("finished")
"""


def machine(check: Check) -> Found:
    """Measure the ceilings: matrix products, memory, copies to and from the host, decoding on one core."""
    shared = Path("/dev/shm")
    found: Found = {
        "device": torch.cuda.get_device_name(check.device) if check.on_gpu else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: version(name) for name in ("featcache", "torch", "timm", "numpy")},
        "python": platform.python_version(),
        "shared memory, GB": _gigabytes(os.statvfs(shared)) if shared.is_dir() else None,
        "bfloat16 matrix products, TFLOP/s": round(
            matrix_rate(check.device, 256 if check.toy else 8192) / 1e12, 2
        ),
    }
    num_bytes = 2**20 if check.toy else 2**28
    a, b = (torch.zeros(num_bytes, dtype=torch.uint8, device=check.device) for _ in range(2))
    # A copy on the device reads and writes.
    found["copy on the device, GB/s"] = _rate(2 * num_bytes, check.seconds(lambda: a.copy_(b)))
    if check.on_gpu:
        pinned = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)
        pageable = torch.zeros(num_bytes, dtype=torch.uint8)
        for name, call in (
            ("from pinned memory", lambda: a.copy_(pinned, non_blocking=True)),
            ("to pinned memory", lambda: pinned.copy_(a, non_blocking=True)),
            ("from pageable memory", lambda: a.copy_(pageable)),
        ):
            found[f"copy {name}, GB/s"] = _rate(num_bytes, check.seconds(call))
    found["decode and preprocess a JPEG of 500 x 375 on one core, ms"] = round(
        1e3 * _decode_seconds(check), 2
    )
    return found


def _gigabytes(status: os.statvfs_result) -> float:
    return round(status.f_blocks * status.f_frsize / 1e9, 2)


def _rate(num_bytes: int, seconds: float) -> float:
    return round(num_bytes / seconds / 1e9, 1)


def _decode_seconds(check: Check) -> float:
    files, transform = [photo(seed) for seed in range(2 if check.toy else 32)], toy_backbone().transform
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    for data in files:
        transform(to_rgb(Image.open(io.BytesIO(data))))
    seconds = (time.process_time() - started) / len(files)
    torch.set_num_threads(threads)
    return seconds


def suite(check: Check) -> Found:
    """Run the product's own tests of GPUs; in toy size one of them."""
    chosen = (TESTS[0], "-k", "does_not_exist") if check.toy else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *chosen]
    done = _run(command, min(TESTS_LIMIT_S, max(20.0, check.left_s())))
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    found: Found = {"ok": done.returncode == 0, "result": lines[-1][:200] if lines else ""}
    return found if found["ok"] else {**found, "tail": (done.stdout + done.stderr)[-TAIL:]}


def races(check: Check) -> Found:
    """Look for races between streams with torch's own detector, which sees the operands of every kernel."""
    is_real = check.on_gpu and not check.pretended
    device = str(check.device) if is_real else "cpu"
    command = [sys.executable, "-W", "ignore", "-c", EXTRACTION, device]
    variables = {"TORCH_CUDA_SANITIZER": "1"} if is_real else {}
    done = _run(command, min(RACES_LIMIT_S, max(20.0, check.left_s())), variables)
    output = done.stdout + done.stderr
    number = output.count("CSAN detected")
    ok = done.returncode == 0 and "finished" in done.stdout and not number
    found: Found = {"ok": ok, "races": number, "detector": "on" if variables else "off: no GPU"}
    return found if ok else {**found, "tail": output[-TAIL:]}


def _run(
    command: list[str], limit_s: float, variables: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **(variables or {})}
    environment["PYTHONPATH"] = os.pathsep.join((str(REPO / "benchmarks"), str(REPO / "tests")))
    return subprocess.run(
        command,
        cwd=REPO / "tests",
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
