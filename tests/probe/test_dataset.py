"""The torch datasets hand out what the cache holds, in this process and in workers, forked or spawned."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from featcache.probing.inputs.dataset import CachedSamples, ShuffledBatches
from support.caches import make_content, make_plan, write_cache

LAYERS, TOKENS = ["2", "final", "0"], ["ap", "cls"]


@pytest.fixture(params=["float16", "bfloat16"])
def split_and_features(request, tmp_path):
    """A split and all its features as float32 ``[N, L, K, D]``, from what was written."""
    plan = make_plan({"train": 300, "test": 1}, width=16, dtype=request.param)
    content = make_content(plan)["train"]
    split = write_cache(tmp_path, plan, make_content(plan))["train"]
    stored = np.concatenate([content["norm2"], content["final"]], axis=1)[:, [2, 3, 0]][:, :, [1, 0]]
    bits = torch.from_numpy(stored.view(np.int16))
    return split, bits.view(getattr(torch, request.param)).float()


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_workers_read_the_same_samples(split_and_features, context):
    split, features = split_and_features
    split.gather([0], LAYERS, TOKENS)  # maps that are open must not trouble the workers
    options = {"num_workers": 2 if context else 0, "multiprocessing_context": context}
    samples = CachedSamples(split, LAYERS, TOKENS, rows=range(299, -1, -1))
    loaded = [*DataLoader(samples, batch_size=64, **options)]
    assert torch.equal(torch.cat([x for x, _ in loaded]).float(), features.flip(0))
    assert torch.equal(torch.cat([y for _, y in loaded]), torch.arange(299, -1, -1) % 3)
    shuffled = ShuffledBatches(split, 32, LAYERS, TOKENS, seed=1)
    found = torch.cat([x for x, _ in DataLoader(shuffled, batch_size=None, **options)]).float()
    assert torch.equal(found.flatten(1).unique(dim=0), features.flatten(1).unique(dim=0))
    assert found.shape == features.shape
    assert not torch.equal(found, features)


def test_every_epoch_has_its_order_and_labels_stay_with_their_samples(split_and_features):
    split, _ = split_and_features
    batches = pickle.loads(pickle.dumps(ShuffledBatches(split, 20, LAYERS, TOKENS, rows=range(0, 300, 2))))
    epochs = [[*batches], [*batches]]
    batches.set_epoch(1)
    epochs.append([*batches])
    labels = [torch.cat([y for _, y in epoch]) for epoch in epochs]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])
    assert [int((labels[2] == c).sum()) for c in range(3)] == [50, 50, 50]
    known = {
        x.numpy().tobytes(): int(y)
        for x, y in _plain(CachedSamples(split, LAYERS, TOKENS).__getitems__(range(300)))
    }
    assert all(
        known[x.numpy().tobytes()] == int(y)
        for xs, ys in epochs[2]
        for x, y in _plain(zip(xs, ys, strict=True))
    )


def _plain(samples):
    # numpy has no bfloat16.
    return [(x.view(torch.int16), y) for x, y in samples]


def test_only_rows_that_hold_features(split_and_features):
    split, _ = split_and_features
    samples = CachedSamples(split, ["final"], ["cls"])
    assert len(samples) == 300
    assert samples[5][0].shape == (1, 1, 16)
    assert int(samples[5][1]) == 2
