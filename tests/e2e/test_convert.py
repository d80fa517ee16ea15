"""export and import on the command line."""

import json
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from featcache.store.journal import Plan
from featcache.store.writing.writer import CacheWriter
from support.caches import cache_folder, flip, make_content, make_plan, write_cache

from .conftest import featcache
from .test_errors import check


@pytest.fixture
def made(tmp_path):
    """A cache that a probe can train on."""
    plan = make_plan({"train": 200, "test": 60}, num_layers=3, width=8)
    folder = cache_folder(tmp_path / "root", plan)
    write_cache(folder, plan, make_content(plan))
    return folder


def test_there_and_back_again(cli, made, tmp_path):
    key = made.name[-12:]
    exported = cli("export", key, "--to", "h5", "--out", "made.h5", "--json")
    document = json.loads(exported.out)
    assert (document["key"], document["bytes"]) == (key, (tmp_path / "made.h5").stat().st_size)
    assert document["splits"]["test"] == {"samples": 60, "layers": ["0", "1", "2", "final"]}
    assert cli("import", "made.h5").out == f"already there: {made}\n"
    assert cli("rm", key, "--yes").status == 0
    assert cli("import", "made.h5").out == f"cache: {made}\n"
    assert cli("info", key).status == 0
    assert cli("export", key, "--to", "npy", "--out", "npy").out.startswith("npy (")


def test_foreign_features_can_be_probed(cli, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File("feats.h5", "w") as file:
        for split, rows in (("train", 200), ("test", 50)):
            labels = np.arange(rows) % 2
            file[f"{split}/y"] = labels
            file[f"{split}/feats"] = rng.standard_normal((rows, 8)).astype("f4") + 4 * labels[:, None]
    arguments = ["import", "feats.h5", "--features", "train/feats", "--features", "test/feats"]
    arguments += ["--labels", "train/y", "--labels", "test/y", "--dtype", "float16"]
    check(cli(*arguments), 2, "is no export of featcache: name it with --dataset NAME and --model NAME")
    outcome = cli(*arguments, "--dataset", "mine", "--model", "my-vit", "--json")
    assert outcome.status == 0, outcome.err
    probed = cli("probe", "--head", "linear", "--protocol", "quick", "--dataset", "mine", "--json")
    assert probed.status == 0, probed.err
    assert json.loads(probed.out)[0]["top1"] > 0.9


@pytest.mark.parametrize("damaged", ["README.md", "features.zarr/train/norm2/c.0.0.0.0"])
def test_an_imported_cache_is_repaired_by_importing_it_again(cli, made, tmp_path, damaged):
    assert cli("export", made, "--to", "h5", "--out", "made.h5").status == 0
    assert cli("rm", made, "--yes").status == 0
    assert cli("import", "made.h5").status == 0
    flip(made / damaged)
    repaired = cli("verify", made, "--repair")
    assert "dropped; run the same `featcache import` again: " in repaired.out
    check(
        cli("probe", "--cache", made, "--head", "linear"),
        1,
        "Run the same `featcache import` again to finish it",
    )
    assert cli("import", "made.h5").out == f"cache: {made}\n"
    assert cli("verify", made).status == 0


def test_requests_that_are_refused(cli, made, tmp_path):
    key = made.name[-12:]
    check(cli("export", key, "--to", "h5", "--out", "none/made.h5"), 2, "none does not exist")
    check(cli("export", key, "--to", "matlab", "--out", "x"), 2, "unknown format 'matlab'; valid: h5, npy")
    check(cli("export", key, "--to", "h5", "--out", "x", "--layers", "9"), 2, "unknown layer '9'")
    check(cli("import", "nothing.h5"), 2, "nothing.h5 does not exist")
    check(cli("import", str(made), "--dataset", "a", "--model", "b"), 2, "has no folder train or test")
    check(cli("import", "x.h5", "--dtype", "float8"), 2, "unknown dtype 'float8'")
    (tmp_path / "x.h5").write_bytes(b"junk")
    check(cli("import", "x.h5"), 1, "x.h5 cannot be read as HDF5")
    plan: Plan = make_plan({"train": 3, "test": 3}, name="unfinished")
    with CacheWriter(cache_folder(tmp_path / "root", plan), plan):
        pass
    check(cli("export", plan.spec.key, "--to", "h5", "--out", "y.h5"), 1, "is incomplete: 2 of 2 blocks")
    assert not (tmp_path / "y.h5").exists()


@pytest.mark.parametrize("to", ["npy", "safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(made, tmp_path, to):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = ("export", made.name[-12:], "--to", to, "--out", "out", "--layers", "every")
    process = featcache(*arguments, preexec_fn=limit)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("featcache: out cannot be written (File too large); nothing of it is left"), err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("to", ["h5", "npy", "safetensors"])
def test_a_disk_without_room_is_refused_at_once(cli, made, tmp_path, monkeypatch, to):
    free = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    outcome = cli("export", made.name[-12:], "--to", to, "--out", "out")
    check(outcome, 1, "out needs 0.0 MB, its disk has 0.0 MB; make room")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_light_commands_stay_light(made):
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from featcache.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'zarr', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["gc"], ["export", "--help"], ["rm", made.name[-12:], "--yes"]):
        command = [sys.executable, "-c", code, "featcache", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
