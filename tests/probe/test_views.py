"""Heads on several views: they equal heads on the rows of all views put together, and average over the views of a sample."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.inputs.view_rows import StreamedViews, rows_of_views
from featcache.probing.protocols.protocol import get_protocol
from featcache.probing.requests.jobs import jobs, needed
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel
from featcache.probing.solver.exact import run_exact_sweep
from featcache.probing.trained import TrainedHead
from featcache.probing.training.closed_form import run_closed_form_sweep
from featcache.probing.training.sweep_plan import make_splits
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import Inventory
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.views import as_views
from support.caches import make_content, write_cache

from .caches import BLOCKS, WIDTH, rich_plan

NAMES = ("plain", "crop1", "flip")
EVERY = tuple(str(block) for block in range(BLOCKS))


def viewed_plan(skip=()):
    """The plan of a cache with two views besides the plain one; `skip` names arrays that are left out."""
    plan = rich_plan(groups={"patches": ("3",), "max": EVERY}, samples={"train": 60, "test": 20})
    views = {view.name: view for view in as_views("flip,crop1")}
    splits = {}
    for split in plan.inventory.splits.values():
        arrays = [array for array in split.arrays.values() if array.layers]
        tokens = [
            TokenArray(
                *array.name.partition("_")[::2],
                array.layers,
                array.shape[1],
                array.tokens,
                array.shape[3],
                view,
            )
            for array in arrays
            for view in ("", *views)
        ]
        tokens = [replace(token, group=token.group or "pooled") for token in tokens]
        kept = [token for token in tokens if token.name not in skip]
        splits[split.name] = plan_arrays(split.name, split.num_samples, kept, WIDTH, "float16", 12)
    return replace(plan, inventory=Inventory(splits, plan.inventory.class_names, views=views))


def viewed_cache(folder, skip=()):
    plan = viewed_plan(skip)
    content = make_content(plan)
    centres = np.random.default_rng(1).standard_normal((3, WIDTH))
    for split in plan.inventory.splits.values():
        columns = content[split.name]
        for array in split.arrays.values():
            if array.layers:
                columns[array.name] = columns[array.name][:, : len(array.layers)]
                near = centres[columns["label"]][:, None, None]
                columns[array.name] = (columns[array.name] + near).astype(np.float16)
    return write_cache(folder / "root" / "made" / f"tiny-{plan.spec.key}", plan, content), content


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return viewed_cache(tmp_path_factory.mktemp("views"))


def selection_of(cache, **options):
    request = ProbeRequest(
        heads=("ridge",), **{"layers": "last", "tokens": "cls+ap", "views": "all", **options}
    )
    return jobs(cache, request)[-1].selection


def written(content, split, view):
    """The tokens ``[N, 2, D]`` of the final layer as they were written."""
    name = "final" if view == "plain" else f"{view}-final"
    return torch.from_numpy(content[split][name][:, 0].astype(np.float32))


def test_the_rows_of_views_follow_each_other(cached):
    cache, content = cached
    data = load_split(cache, "train", selection_of(cache), "cpu")
    assert (data.num_samples, data.num_views, data.tokens.num_samples) == (60, 3, 180)
    wanted = torch.cat(
        [torch.nn.functional.normalize(written(content, "train", view), dim=-1) for view in NAMES]
    )
    torch.testing.assert_close(data.tokens.batch(torch.arange(180)), wanted)
    assert np.array_equal(data.row_labels, np.tile(data.labels, 3))
    part = data.subset(np.array([3, 7, 50]))
    assert part.sample_ids == ["train-3", "train-7", "train-50"]
    rows = rows_of_views(np.array([3, 7, 50]), 60, 3)
    torch.testing.assert_close(part.tokens.batch(torch.arange(9)), wanted[rows])


@pytest.mark.parametrize("tokens", ["cls+ap", "cls+max", "patches"])
def test_streamed_views_meet_every_row_once_in_full_batches(cached, tokens):
    cache, _ = cached
    selection = selection_of(cache, tokens=tokens, layers="all")
    loaded = load_split(cache, "train", selection, "cpu").tokens
    streamed = load_split(cache, "train", selection, "cpu", 30_000)
    assert streamed.streamed
    source = streamed.tokens
    assert isinstance(source, StreamedViews)
    assert (source.num_samples, source.num_tokens, source.width) == (180, loaded.num_tokens, WIDTH)
    mixed = torch.tensor([179, 0, 61, 60, 5])
    torch.testing.assert_close(source.batch(mixed), loaded.batch(mixed))
    samples = np.arange(0, 60, 2)
    part = source.subset(torch.from_numpy(rows_of_views(samples, 60, 3)))
    rows = torch.arange(part.num_samples)
    seen, sizes = [], []
    for chosen, values in part.epochs(rows, 16, 2, seed=4):
        torch.testing.assert_close(values, part.batch(chosen))
        seen += chosen.tolist()
        sizes.append(len(chosen))
    assert sizes == [16, 16, 16, 16, 16, 10] * 2
    assert sorted(seen[:90]) == sorted(seen[90:]) == list(range(90))
    orders = [seen[:90], seen[90:]]
    assert orders[0] != orders[1]
    again = [chosen.tolist() for chosen, _ in part.epochs(rows, 16, 1, seed=4)]
    assert [row for rows in again for row in rows] == orders[0]
    assert {row // 30 for row in seen[:16]} == {0, 1, 2}, "a batch has rows of every view"
    with pytest.raises(ValueError, match="all views"):
        source.subset(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_views_of_a_sample_are_held_out_together_as_the_sample_would_be(folds, grouped):
    labels = np.arange(60) % 3
    protocol = replace(get_protocol("quick"), folds=folds, folds_below=None)
    groups = np.array([f"patient {index // 4}" for index in range(60)]) if grouped else None
    alone = make_splits(labels, SingleLabel(3), protocol, 0, groups)
    together = make_splits(np.tile(labels, 3), SingleLabel(3), protocol, 0, groups, 3)
    assert len(alone) == len(together)
    for (train, held), (all_train, all_held) in zip(alone, together, strict=True):
        assert all_train.tolist() == rows_of_views(train.numpy(), 60, 3).tolist()
        assert all_held.tolist() == rows_of_views(held.numpy(), 60, 3).tolist()


def test_closed_form_and_exact_heads_equal_those_of_all_rows_put_together(cached):
    cache, content = cached
    data = load_split(cache, "train", selection_of(cache), "cpu")
    joined = torch.cat([written(content, "train", view) for view in NAMES]).half()
    as_samples = InMemoryTokens(joined)
    labels = np.tile(content["train"]["label"], 3)
    # With nothing held out, what remains is the fit itself.
    protocol = replace(get_protocol("quick"), folds=0, folds_below=None)
    info = jobs(cache, ProbeRequest(heads=("ridge",), layers="last"))[-1].head
    fits = [
        run_closed_form_sweep(info, tokens, labels, protocol=protocol, seed=0).head
        for tokens in (data.tokens, as_samples)
    ]
    for name, values in fits[0].member_state().items():
        torch.testing.assert_close(values, fits[1].member_state()[name])
    solved = [
        run_exact_sweep(tokens, labels, protocol=protocol, seed=0, penalties=[1e-3])
        for tokens in (data.tokens, as_samples)
    ]
    torch.testing.assert_close(solved[0].weight, solved[1].weight)


def test_probabilities_are_averaged():
    logits = np.random.default_rng(0).standard_normal((3, 7, 4)).astype(np.float32) * 5
    outputs = torch.from_numpy(logits)
    mean = softmax(logits.astype(np.float64), -1).mean(0)
    averaged = SingleLabel(4).average(outputs)
    np.testing.assert_allclose(softmax(averaged.numpy(), -1), mean, rtol=1e-5)
    np.testing.assert_allclose(
        MultiLabel(4).average(outputs).sigmoid(), expit(logits.astype(np.float64)).mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(Regression(4).average(outputs), logits.mean(0), rtol=1e-5)
    extreme = torch.tensor([[[800.0, -800.0]], [[900.0, -700.0]]])
    for task in (SingleLabel(2), MultiLabel(2)):
        assert task.average(extreme).isfinite().all()
    unseen = torch.tensor([[[1.0, float("-inf")]], [[2.0, float("-inf")]]])
    assert SingleLabel(2).average(unseen)[0, 1] == float("-inf"), "a class without samples stays without"
    assert np.allclose(SingleLabel(4).average(outputs[:1]), log_softmax(logits[0], -1), atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "logreg", "ridge", "knn", "lda", "ncm", "attentive", "auto"])
def test_a_head_on_views_predicts_the_mean_of_its_views(cached, tmp_path, head):
    cache, content = cached
    request = ProbeRequest(
        heads=(head,), layers="last", tokens="cls+ap", views="all", protocol="quick", out=tmp_path / "out"
    )
    rows = probe(cache, request)
    assert rows[0].views == ("plain",)
    assert rows[-1].views == NAMES
    assert (rows[-1].train_samples, rows[-1].test_samples) == (60, 20)
    trained = TrainedHead.load(tmp_path / "out" / rows[-1].folder)
    assert trained.views == NAMES
    single = TrainedHead(trained._head, replace(trained.config, views=("plain",)))
    each = [single.predict_proba(written(content, "test", view)[:, None]) for view in NAMES]
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(trained.predict_proba(cache), mean, atol=1e-5)
    hits = (mean.argmax(1) == content["test"]["label"]).mean()
    assert rows[-1].top1 == pytest.approx(hits)
    lines = (tmp_path / "out" / rows[-1].folder / "predictions.csv").read_text().splitlines()
    assert len(lines) == 21, "a line for every image, not for every view"


def test_few_shots_and_streams_take_whole_samples(cached, tmp_path):
    cache, _ = cached
    request = ProbeRequest(
        heads=("ridge",), layers="last", views="plain,flip", shots="4", protocol="quick", out=tmp_path / "a"
    )
    assert probe(cache, request)[-1].train_samples == 12
    streamed = ProbeRequest(
        heads=("linear",),
        layers="all",
        tokens="cls+ap",
        views="all",
        protocol="quick",
        memory=200_000,
        out=tmp_path / "b",
    )
    loaded = ProbeRequest(
        heads=("linear",), layers="all", tokens="cls+ap", views="all", protocol="quick", out=tmp_path / "c"
    )
    scores = [probe(cache, one)[-1].score for one in (streamed, loaded)]
    assert scores[0] == pytest.approx(scores[1], abs=0.11)


def test_one_view_and_views_that_a_cache_lacks(cached, tmp_path):
    cache, content = cached
    one = selection_of(cache, views="flip")
    assert one.views == ("flip",)
    data = load_split(cache, "test", one, "cpu")
    wanted = torch.nn.functional.normalize(written(content, "test", "flip"), dim=-1)
    torch.testing.assert_close(data.tokens.batch(torch.arange(20)), wanted)
    assert str(one) == "last, cls+ap, view flip"
    with pytest.raises(UnknownNameError, match="unknown view 'crop2'"):
        selection_of(cache, views="crops5")
    request = ProbeRequest(heads=("ridge",), layers="last", tokens="cls+ap", views="flip")
    part = needed(cache.manifest, request)
    arrays = {name for name, array in part.splits["train"].arrays.items() if array.layers}
    assert arrays == {"final", "flip-final"}, "the baseline takes the plain view"
    lacking, _ = viewed_cache(tmp_path, skip=("flip-final_patches", "flip-norm2_patches", "crop1-norm2_max"))
    with pytest.raises(RequestError, match="no patches of the train split"):
        selection_of(lacking, tokens="patches", views="flip")
    with pytest.raises(RequestError, match="no max of layer 1"):
        selection_of(lacking, tokens="cls+max", layers="all")


def test_views_are_part_of_ids_and_runs_without_them_keep_theirs(cached, tmp_path):
    cache, _ = cached
    out = tmp_path / "out"
    options = {"heads": ("ridge",), "layers": "last", "tokens": "cls+ap", "protocol": "quick", "out": out}
    plain = probe(cache, ProbeRequest(**options))[-1]
    named = probe(cache, ProbeRequest(**options, views="plain"))[-1]
    both = probe(cache, ProbeRequest(**options, views="flip,plain"))[-1]
    again = probe(cache, ProbeRequest(**options, views="plain,flip"))[-1]
    assert plain == named
    assert both == again
    assert plain.run != both.run
    assert "views" not in plain.to_dict()
    documents = [json.loads((out / row.folder / "head.json").read_text()) for row in (plain, both)]
    assert [document.get("views") for document in documents] == [None, ["plain", "flip"]]
