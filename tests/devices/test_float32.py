"""Float32 products stay exact where the program around allows less, and its settings are as before afterwards."""

import subprocess
import sys
import threading

import pytest

# Settings of torch belong to the process, so each way to make them runs in a process of its own.
WAYS = {
    "nothing": "",
    "allow_tf32": "b.cuda.matmul.allow_tf32 = True",
    "no TF32 in cuDNN": "b.cudnn.allow_tf32 = False",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "all of torch": "b.fp32_precision = 'tf32'",
    "one operation": "b.cudnn.conv.fp32_precision = 'ieee'; b.cuda.matmul.fp32_precision = 'tf32'",
}
PROGRAM = """
import torch
from featcache.devices.float32 import exact_float32
b = torch.backends
operations = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)

def precisions():
    return [operation.fp32_precision for operation in operations]

def flags():
    found = []
    for read in (lambda: b.cuda.matmul.allow_tf32, lambda: b.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:  # flags and `fp32_precision` disagree
            found.append(None)
    return found

{way}
before = precisions(), flags()
with exact_float32():
    assert set(precisions()) == {{"ieee"}}, precisions()
    if None not in before[1]:
        assert flags() == [False, False, "highest"], flags()
    with exact_float32():
        pass
    assert set(precisions()) == {{"ieee"}}, precisions()
assert (precisions(), flags()) == before, (precisions(), flags(), before)
try:
    with exact_float32():
        raise KeyError
except KeyError:
    assert (precisions(), flags()) == before
"""


@pytest.mark.parametrize("way", WAYS)
def test_settings_are_pinned_and_restored(way):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(way=WAYS[way])], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_an_operation_inherits_again_what_all_of_torch_is_set_to():
    program = """
import torch
from featcache.devices.float32 import exact_float32
torch.backends.fp32_precision = "tf32"
with exact_float32():
    pass
torch.backends.fp32_precision = "ieee"
assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_threads_that_overlap_restore_the_settings_once():
    """The second thread enters inside the first one's block and leaves after it."""
    import torch

    from featcache.devices.float32 import exact_float32

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    entered, left = threading.Event(), threading.Event()
    seen = []

    def second():
        with exact_float32():
            entered.set()
            left.wait(60)
            seen.append(matmul.fp32_precision)

    thread = threading.Thread(target=second)
    with exact_float32():
        thread.start()
        assert entered.wait(60)
    left.set()
    thread.join()
    assert seen == ["ieee"]
    assert matmul.fp32_precision == before
