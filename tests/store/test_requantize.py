"""Conversion to int8: the values are those of the plain rule, the rest is the source's, and it resumes."""

import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from featcache.store.checking.verify import verify
from featcache.store.convert.requantize import ConvertRequest, convert
from featcache.store.errors import CacheError, PartialCacheError, RequestError, UnknownNameError
from featcache.store.partial_copy import PartialCopy
from featcache.store.quantization import RangeFit
from featcache.store.reading.dtype_loss import LossSum
from featcache.store.reading.reader import as_float32, open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, make_content, make_plan, write_blocks, write_cache
from support.int8 import PROVENANCE, without_layers, write_int8

INT8 = ConvertRequest()
MISSING = (2, 140)


def make_source(root, dtype="float16", samples=None):
    plan = make_plan(samples, dtype=dtype)
    content = make_content(plan)
    train = content["train"]
    train["valid"][list(MISSING)] = False
    for name in ("norm2", "final"):
        train[name][list(MISSING)] = 0x7FC0 if dtype == "bfloat16" else np.nan
    return write_cache(cache_folder(root, plan), plan, content)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_those_of_the_rule_and_columns_those_of_the_source(tmp_path, dtype):
    source = make_source(tmp_path, dtype)
    done = convert(source, INT8, [tmp_path])
    made = open_cache(done.path)
    assert verify(done.path).intact
    assert (done.cached, done.samples) == (False, 390)
    train, valid = source["train"], source["train"].valid()
    for name, layers in (("norm2", ["0", "1", "2"]), ("final", ["final"])):
        exact = as_float32(train.load(layers, "cls+ap"), dtype)
        fit = RangeFit(made.inventory.splits["train"].arrays[name])
        fit.add(exact[valid])
        scales = fit.scales()
        got = made["train"].load(layers, "cls+ap", dtype="int8")
        np.testing.assert_array_equal(got[valid], scales.encode(exact[valid])[0])
        assert (got[~valid] == -128).all()
        assert np.isnan(made["train"].load(layers, "cls+ap")[~valid]).all()
    for split in ("train", "test"):
        for name in ("label", "sample_id", "valid"):
            np.testing.assert_array_equal(made[split].column(name), source[split].column(name))
    if dtype != "bfloat16":  # whose values here span eighteen orders of magnitude in each channel
        assert 1e-4 < np.mean([loss.mean_relative for loss in done.losses]) < 0.03
    assert len(done.losses) == 8


def test_the_key_says_what_it_was_converted_from(tmp_path):
    half, single = make_source(tmp_path / "a"), make_source(tmp_path / "b", "float32")
    specs = [open_cache(convert(cache, INT8, [tmp_path]).path).spec for cache in (half, single)]
    assert [spec.converted_from for spec in specs] == ["float16", "float32"]
    # An extraction has yet another key, since it fits other scales.
    assert len({specs[0].key, specs[1].key, replace(specs[0], converted_from=None).key}) == 3
    assert "converted_from" not in half.spec.to_dict()


def test_a_second_conversion_finds_the_first_and_nothing_answers_a_request(tmp_path):
    source = make_source(tmp_path)
    first = convert(source, INT8, [tmp_path])
    before = all_files(first.path)
    again = convert(source, INT8, [tmp_path])
    assert (again.cached, again.path) == (True, first.path)
    assert all_files(first.path) == before
    assert not (first.path / "request.json").exists()
    assert open_cache(first.path).provenance["converted_from"]["key"] == source.key


def test_what_cannot_be_converted(tmp_path):
    int8, _, _ = write_int8(tmp_path / "int8")
    with pytest.raises(RequestError, match="is stored as int8 already; nothing is to be converted"):
        convert(int8, INT8, [tmp_path])
    with pytest.raises(UnknownNameError, match="unknown dtype 'int4'; did you mean int8"):
        ConvertRequest(dtype="int4")
    source = make_source(tmp_path / "part")
    part = source.inventory.select(["test"], {"final": ("final",)})
    PartialCopy(part, "s3://bucket/team/x", "1", False).write(source.directory)
    with pytest.raises(
        PartialCacheError, match="is a partial copy and cannot be converted; complete it first"
    ):
        convert(open_cache(source.directory), INT8, [tmp_path])
    whole = make_source(tmp_path / "whole")
    (whole.directory / "features.zarr/train/norm2/c.0.1.0.0").unlink()
    with pytest.raises(CacheError, match="missing; the cache is damaged"):
        convert(whole, INT8, [tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_a_source_that_has_grown(tmp_path):
    plan, content = make_plan(), make_content(make_plan())
    folder = cache_folder(tmp_path, plan)

    def add(layers):
        with CacheWriter(folder, without_layers(plan, layers)) as writer:
            held = writer.plan.inventory.splits["train"].arrays
            picked = {
                split: {
                    name: values[:, [int(x) for x in held[name].layers]] if name == "norm2" else values
                    for name, values in columns.items()
                    if name in held
                }
                for split, columns in content.items()
            }
            write_blocks(writer, picked)
            writer.finish(PROVENANCE, "# card\n")
        return open_cache(folder)

    first = convert(add(["1"]), INT8, [tmp_path])
    assert np.isfinite(open_cache(first.path)["train"].load(["1", "final"], "cls")).all()
    with pytest.raises(CacheError, match=r"was converted when .* held less; remove it, and convert again"):
        convert(add(["0", "1"]), INT8, [tmp_path])


def test_orientations_of_images_are_kept(tmp_path):
    plan = make_plan()
    folder, content = cache_folder(tmp_path, plan), make_content(plan)
    with CacheWriter(folder, plan) as writer:
        while (block := writer.claim()) is not None:
            where = block.block
            values = {name: v[where.start : where.stop] for name, v in content[where.split].items()}
            block.append(values, "1" * (where.rows - 1) + "6" if where.split == "train" else "1" * where.rows)
            writer.commit(block)
        writer.finish(PROVENANCE, "# card\n")
    source = open_cache(folder)
    made = open_cache(convert(source, INT8, [tmp_path]).path)
    for split in ("train", "test"):
        np.testing.assert_array_equal(made.manifest.orientations(split), source.manifest.orientations(split))
    assert (made.manifest.orientations("train") == 6).sum() == 3


def test_views_cannot_be_converted(tmp_path, monkeypatch):
    source = make_source(tmp_path)
    object.__setattr__(source.inventory, "views", {"flip": None})
    with pytest.raises(
        RequestError, match="holds the views flip, which cannot be stored as int8; extract a cache without"
    ):
        convert(source, INT8, [tmp_path])


def _convert(folder, root, after):
    from featcache.store.writing.writer import CacheWriter

    commit = CacheWriter.commit

    def then_die(self, block):
        commit(self, block)
        if after and len(list(self.directory.glob("journal/*.?????.json"))) >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    CacheWriter.commit = then_die
    convert(open_cache(folder), INT8, [root])


def test_a_killed_conversion_resumes_to_the_same_bytes(tmp_path):
    source = make_source(tmp_path)
    whole = convert(source, INT8, [tmp_path / "whole"]).path
    process = get_context("spawn").Process(target=_convert, args=(source.directory, tmp_path / "killed", 2))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    begun = time.time()
    done = convert(source, INT8, [tmp_path / "killed"])
    assert done.samples < 390
    scale = done.path / "features.zarr/scale_norm2/c.0.0.0"
    assert scale.stat().st_mtime < begun
    files = [
        {k: v for k, v in all_files(p).items() if k.startswith("features.zarr")} for p in (done.path, whole)
    ]
    assert files[0] == files[1]


def test_a_layer_that_the_fitted_split_lacks_is_refused(tmp_path):
    plan = make_plan()
    splits = {
        name: plan.inventory.select([name], {"norm2": layers, "final": ("final",)}).splits[name]
        for name, layers in {"train": ("1", "2"), "test": ("0", "2")}.items()
    }
    plan = replace(plan, inventory=replace(plan.inventory, splits=splits))
    content = make_content(make_plan())
    for name, layers in {"train": [1, 2], "test": [0, 2]}.items():
        content[name]["norm2"] = content[name]["norm2"][:, layers]
    cache = write_cache(cache_folder(tmp_path, plan), plan, content)
    with pytest.raises(CacheError, match="lacks layer 0 of norm2, which another split holds"):
        convert(cache, INT8, [tmp_path])


def test_losses_are_kept_by_layer_whatever_splits_hold():
    rng = np.random.default_rng(0)
    sums = LossSum(["cls", "ap"])
    wanted = {}
    for layers in (["0"], ["2", "0"], ["1", "2"]):
        exact, stored = rng.standard_normal((2, 5, len(layers), 2, 4)).astype(np.float32)
        sums.add(layers, exact, stored, stored, np.zeros(exact.shape, bool))
        relative = np.linalg.norm(stored - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        for index, layer in enumerate(layers):
            wanted.setdefault(layer, []).append(relative[:, index])
    found = {(loss.layer, loss.token): loss.mean_relative for loss in sums.losses("norm2")}
    for layer, parts in wanted.items():
        means = np.concatenate(parts).mean(0)
        assert [found[layer, "cls"], found[layer, "ap"]] == pytest.approx(means.tolist(), rel=1e-5)
