"""Type checkers see the public functions on the installed wheel, and take nothing else for public."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SNIPPET = """
from pathlib import Path
from typing import assert_type

import featcache
from featcache import errors

cache = featcache.open("photos/vit-l-14-0123456789ab", layers="last", root=["caches"])
assert_type(cache, featcache.Cache)
assert_type(cache["train"], featcache.SplitReader)
assert_type(list(cache), list[str])
split = cache["train"]
assert_type(len(split), int)
split.load("quarters", "cls+ap")
split.load(["11", "final"], ["cls"], out=None)
assert_type(featcache.extract("vit-l-14", "digits", limit=3, layers="last"), featcache.Cache)
rows = featcache.probe(cache, ["linear", "attentive"], layers="all", tokens="cls+ap", seeds=(0, 1))
assert_type(rows, list[featcache.ResultRow])
head = featcache.load_head(Path("featcache-results") / rows[0].folder)
assert_type(head, featcache.TrainedHead)
head.predict_proba(split.load(head.layers, head.tokens))
assert_type(featcache.ls(model="vit"), list[featcache.CacheListing])
assert_type(featcache.info(cache), featcache.CacheInfo)
assert_type(featcache.verify(cache).passed, bool)
assert_type(featcache.push(cache, "s3://bucket/team"), featcache.PushResult)
assert_type(featcache.pull("s3://bucket/team/0123", layers="last"), featcache.PullResult)
assert_type(featcache.results(layers="all", seed=[0, 1]), featcache.Table)
assert_type(featcache.plot(kind="gains"), list[Path])
featcache.CachedSamples(split, "all", "cls")
featcache.AttentiveProbe(protocol="quick")
featcache.Parts("blocks", "norm", {"norm2": "norm2"})
featcache.TokenLayout(True, 0, (14, 14))
try:
    cache["nope"]
except errors.UnknownSplitError as error:
    print(error)

# A comment that hides no error is an error itself.
featcache.probe(cache, nonsense=1)  # type: ignore
featcache.probe(cache, tap=3)  # type: ignore
featcache.probe()  # type: ignore
featcache.extract("vit-l-14")  # type: ignore
featcache.open(3)  # type: ignore
featcache.probe.estimators  # type: ignore
featcache.prob  # type: ignore
from featcache.probe.estimators import HeadProbe  # type: ignore
"""
"""A user's code; the lines at the end are wrong."""

MYPY = """
[mypy]
strict = true
# What featcache is made of takes minutes to read, and does not matter here.
[mypy-torch.*,torchvision.*,sklearn.*,scipy.*,timm.*,open_clip.*,matplotlib.*,PIL.*,zarr.*,h5py.*,requests.*]
follow_imports = skip
ignore_missing_imports = true
"""
PYRIGHT = '{"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}'


def run(folder: Path, *command: str) -> None:
    """Run a type checker in `folder`, and fail with what it finds."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "use.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy(tmp_path):
    (tmp_path / "use.py").write_text(SNIPPET)
    (tmp_path / "mypy.ini").write_text(MYPY)
    run(tmp_path, "mypy", "--config-file", "mypy.ini")


def test_pyright(tmp_path):
    pytest.importorskip("pyright", reason="pyright is not installed")
    if shutil.which("node") is None:
        pytest.skip("pyright needs Node.js, which is not installed")
    (tmp_path / "use.py").write_text(SNIPPET)
    (tmp_path / "pyrightconfig.json").write_text(PYRIGHT)
    run(tmp_path, "pyright", "--pythonpath", sys.executable)
