"""A cache of ImageNet's size opens at once, and reading a few rows of it touches only those."""

import subprocess
import sys

import numpy as np

from featcache.store.reading.reader import open_cache
from support.caches import make_plan
from support.sparse import write_sparse_cache

# Processor time after imports, in units of parsing the manifest's JSON, so that a busy machine does not matter.
OPEN = """
import json, sys, time
from pathlib import Path
from featcache.store.reading.reader import open_cache
def best(function):
    seconds = []
    for _ in range(7):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)
text = Path(sys.argv[1], "manifest.json").read_bytes()
print(best(lambda: open_cache(sys.argv[1])["train"]) / best(lambda: json.loads(text)))
assert "torch" not in sys.modules and "zarr" not in sys.modules
"""


def test_a_large_cache(tmp_path):
    plan = make_plan({"train": 1_281_167, "test": 50_000}, num_layers=24, width=1024, batch_size=128)
    write_sparse_cache(tmp_path, plan, layers=("23", "final"))
    run = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert float(run.stdout) < 14
    split = open_cache(tmp_path)["train"]
    for method in ("map", "read"):
        got = split.gather([1_281_166, 0, 700_000], ["final", "23"], ["ap"], method=method)
        np.testing.assert_array_equal(got, np.zeros((3, 2, 1, 1024), "f2"))
