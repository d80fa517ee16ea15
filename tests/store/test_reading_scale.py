"""A cache of ImageNet's size opens at once, and reading a few rows of it touches only those."""

import subprocess
import sys

import numpy as np

from featcache.store.reader import open_cache
from support.caches import make_plan
from support.sparse import write_sparse_cache

# After imports, as a program that already runs would see it; the best of five, for busy machines.
OPEN = """
import sys, time
from featcache.store.reader import open_cache
seconds = []
for _ in range(5):
    started = time.perf_counter()
    open_cache(sys.argv[1])["train"]
    seconds.append(time.perf_counter() - started)
assert "torch" not in sys.modules and "zarr" not in sys.modules
print(min(seconds))
"""


def test_a_large_cache(tmp_path):
    plan = make_plan({"train": 1_281_167, "test": 50_000}, num_layers=24, width=1024, batch_size=128)
    write_sparse_cache(tmp_path, plan, layers=("23", "final"))
    run = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert float(run.stdout) < 0.2
    split = open_cache(tmp_path)["train"]
    for method in ("map", "read"):
        got = split.gather([1_281_166, 0, 700_000], ["final", "23"], ["ap"], method=method)
        np.testing.assert_array_equal(got, np.zeros((3, 2, 1, 1024), "f2"))
