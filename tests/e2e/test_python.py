"""The public functions, from images to a head that scores them."""

import json

import numpy as np
import pytest

import featcache
from featcache import errors

from .conftest import MODEL


def test_from_images_to_a_head(weights, images, capsys):
    quiet = {"progress": False}
    cache = featcache.extract(MODEL, f"imagefolder:{images}", weights=weights, precision="fp32", **quiet)
    assert (
        featcache.extract(MODEL, f"imagefolder:{images}", weights=weights, precision="fp32", **quiet).key
        == cache.key
    )
    asked = {
        "layers": "all",
        "tokens": "cls+ap",
        "protocol": "quick",
        "baselines": "trained",
        "out": "results",
        **quiet,
    }
    rows = featcache.probe(cache, ["ridge", "ncm"], **asked)
    assert [row.head for row in rows] == ["linear", "ridge", "ncm"]
    # By folder or by key it is the same cache, and what is known is not trained again.
    for name in (cache.directory, cache.key):
        assert featcache.probe(name, "ridge", **asked) == rows[:2]
    head = featcache.load_head(f"results/{rows[1].folder}")
    assert head.score(cache).scores == pytest.approx(rows[1].scores)
    features = cache["test"].load(head.layers, head.tokens)
    assert (head.predict(features) == cache["test"].labels()).mean() == pytest.approx(rows[1].top1)
    table = featcache.results("results", layers="all", **quiet)
    assert {record["head"] for record in table.to_records()} == {"ncm", "ridge"}
    scores = table.to_pandas().set_index("head")
    assert scores.loc["ridge", "balanced accuracy"] == pytest.approx(100 * rows[1].score)
    assert {row.run for row in featcache.read_rows("results")} >= {row.run for row in rows}
    drawn = featcache.plot("results", kind=["gains"], head=["ridge", "ncm"], to="figures", **quiet)
    assert [path.suffix for path in drawn] == [".png", ".svg"]
    assert all(path.stat().st_size for path in drawn)
    assert tuple(capsys.readouterr()) == ("", ""), "nothing is printed where progress is not wanted"
    with pytest.raises(ValueError, match="unknown head 'rigde'; did you mean ridge"):
        featcache.probe(cache, "rigde", **quiet)
    with pytest.raises(ValueError, match="the table paper says which heads it has; leave them out"):
        featcache.probe(cache, "ridge", table="paper", **quiet)
    with pytest.raises(FileNotFoundError, match="no cache matches ffff"):
        featcache.probe("ffff", **quiet)


def test_what_the_command_line_does_beside(cli, made, tmp_path):
    """The functions give what the commands print for programs."""
    quiet = {"progress": False}
    name = f"{made.parent.name}/{made.name}"
    (listed,) = featcache.ls(dataset=made.parent.name)
    assert [listed.to_dict()] == json.loads(cli("ls", "--json").out)
    assert (listed.path, listed.state, listed.samples) == (made, "complete", {"train": 300, "test": 90})
    assert featcache.ls(model="nope", root=[tmp_path / "root"]) == featcache.ls(root=tmp_path / "empty") == []

    cache = featcache.open(name)
    for given in (None, cache, made, listed.key, listed.key[:5], name):
        found = featcache.info(given, **quiet)
        assert found.to_dict() == json.loads(cli("info", name, "--json").out)
    assert found.spec == cache.spec
    for given in (str(made), listed.key, listed.key[:5], f"root/{name}"):
        assert featcache.open(given).directory.resolve() == made
    assert featcache.open(name, root=tmp_path / "root").key == listed.key
    with pytest.raises(errors.CacheNotFoundError, match=rf"no cache matches ffff under .*\n  {name}"):
        featcache.open("ffff")
    with pytest.raises(errors.CacheNotFoundError, match="no cache here"):
        featcache.open(tmp_path)

    (tmp_path / "remote").mkdir()
    pushed = featcache.push(cache, tmp_path / "remote", **quiet)
    assert not pushed.there
    assert featcache.push(name, tmp_path / "remote", **quiet).there
    (remote,) = featcache.ls(tmp_path / "remote")
    assert [remote.to_dict()] == json.loads(cli("ls", tmp_path / "remote", "--json").out)
    assert featcache.info(remote.address).to_dict() == json.loads(cli("info", remote.address, "--json").out)
    pulled = featcache.pull(remote.address, splits="test", layers="last", root=tmp_path / "other", **quiet)
    assert not pulled.whole
    part = featcache.open(pulled.path)
    assert list(part) == ["test"]
    np.testing.assert_array_equal(part["test"].load("last", "cls"), cache["test"].load("last", "cls"))
    assert featcache.ls(root=tmp_path / "other")[0].state.startswith("partial (")


def test_verify_tells_damage_and_repairs_it(made, capsys):
    quiet = {"progress": False}
    assert featcache.verify(made, **quiet).passed
    files = (path for path in (made / "features.zarr" / "test").rglob("*") if path.is_file())
    damaged = next(path for path in files if path.name != "zarr.json")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    check = featcache.verify(**quiet)
    assert not check.passed
    assert [str(damaged.relative_to(made)) in str(damage) for damage in check.files.damages] == [True]
    assert check.to_dict()["damages"]
    assert featcache.verify(made, repair=True, **quiet).repair.dropped
    with pytest.raises(errors.IncompleteCacheError):
        featcache.open(made)
    with pytest.raises(errors.RequestError, match="need the images"):
        featcache.verify(made, recompute=3, **quiet)
    with pytest.raises(errors.RequestError, match="--seed is for --recompute"):
        featcache.verify(made, seed=3, **quiet)
    assert tuple(capsys.readouterr()) == ("", "")


def test_bfloat16_weights_have_a_cache_of_their_own(weights, images):
    def extract(precision):
        asked = {"weights": weights, "precision": precision, "limit": 4, "progress": False}
        return featcache.extract(MODEL, f"imagefolder:{images}", **asked)

    half = extract("bf16")
    # Less exact than autocast, so only a request that names it takes it.
    assert extract("auto").key != half.key
    assert extract("bf16").key == half.key
    check = featcache.verify(
        half, recompute=3, dataset=f"imagefolder:{images}", weights=weights, progress=False
    )
    assert check.recomputation.agrees
