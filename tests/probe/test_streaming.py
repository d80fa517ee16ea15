"""Tokens that are streamed are those in memory: the same rows, the same values, the same sizes of batches."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.probing.heads import get_head
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.tokens import InMemoryTokens, TokenSource
from featcache.probing.inputs.transforms import fit_input_transform
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.scoring.metrics import scores
from featcache.probing.training.prediction import predict
from featcache.probing.training.sweep import run_sweep
from featcache.probing.training.sweep_plan import plan_sweep
from featcache.store.errors import RequestError
from support.caches import write_cache
from support.processes import environment

from .caches import WIDTH, make_rich_content, rich_cache, rich_plan, select

SKIPPED = [0, 7, 128, 299]
SELECTIONS = [("last", "cls"), ("all", "cls+ap+patches"), ("3,final", "ap+registers+grid2")]


def both(cache, selection, memory=1) -> tuple[TokenSource, TokenSource]:
    """The train split in memory, and streamed."""
    loaded, streamed = (
        load_split(cache, "train", selection, "cpu", None),
        load_split(cache, "train", selection, "cpu", memory),
    )
    assert (loaded.streamed, streamed.streamed) == (False, True)
    np.testing.assert_array_equal(loaded.labels, streamed.labels)
    assert loaded.sample_ids == streamed.sample_ids
    return loaded.tokens, streamed.tokens


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("skipped", [[], SKIPPED], ids=["whole", "skipped"])
def test_every_row_equals_the_one_in_memory(tmp_path, dtype, skipped):
    cache, _ = rich_cache(tmp_path, rich_plan(dtype=dtype), {"train": skipped})
    for layers, kinds in SELECTIONS:
        selection = select(cache, layers, kinds)
        memory = 300 * selection.num_tokens * WIDTH * 2 // 2  # half of the split, or a quarter in float32
        loaded, streamed = both(cache, selection, memory)
        for size in ("num_samples", "num_tokens", "width"):
            assert getattr(loaded, size) == getattr(streamed, size)
        rows = torch.from_numpy(np.random.default_rng(0).permutation(loaded.num_samples))
        torch.testing.assert_close(streamed.batch(rows), loaded.batch(rows), rtol=0, atol=0)
        wanted = rows[:140].sort().values
        visited = []
        for chosen, tokens in streamed.epochs(wanted, 16, 2, seed=3):
            torch.testing.assert_close(tokens, loaded.batch(chosen), rtol=0, atol=0)
            visited.append(chosen)
        # 140 = 8 * 16 + 12, twice.
        assert [len(chosen) for chosen in visited] == ([16] * 8 + [12]) * 2
        for epoch in (visited[:9], visited[9:]):
            assert torch.equal(torch.cat(epoch).sort().values, wanted)


def test_every_epoch_and_every_seed_has_its_order(tmp_path):
    cache, _ = rich_cache(tmp_path, rich_plan())
    _, streamed = both(cache, select(cache, "all", "cls+patches"), 100_000)
    rows = torch.arange(300)

    def epochs(seed: int, count: int) -> list[list[int]]:
        visited = torch.cat([chosen for chosen, _ in streamed.epochs(rows, 20, count, seed)])
        return visited.view(count, 300).tolist()

    first, again, other = epochs(1, 3), epochs(1, 2), epochs(2, 1)
    assert first[:2] == again, "the seed fixes the order"
    orders = [*first, *other]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    # Batches mix: sorted as the rows are, neighbours in a batch are not neighbours in the split.
    gaps = np.diff(np.array(first[0]).reshape(15, 20), axis=1)
    assert np.median(gaps) > 3


def test_a_head_trained_from_the_stream_is_as_good(tmp_path):
    """Rows sorted by class are the hardest for an order that is shuffled window by window.

    Origin of the bound: the scores of five seeds in memory, and half their range on either side.
    """
    plan = rich_plan({"train": 360, "test": 300}, num_classes=4)
    content = make_rich_content(plan)
    rng = np.random.default_rng(0)
    for split, rows in (("train", 360), ("test", 300)):
        content[split]["label"] = labels = np.sort(np.arange(rows) % 4)
        centres = np.random.default_rng(1).normal(size=(4, WIDTH))
        for name in ("final", "final_patches"):
            values = content[split][name]
            noise = 2 * rng.standard_normal(values.shape)
            content[split][name] = (centres[labels][:, None, None] + noise).astype(values.dtype)
    cache = write_cache(tmp_path, plan, content)
    selection = select(cache, "last", "cls+patches")
    test = load_split(cache, "test", selection, "cpu")
    # Windows of two batches of 52, of seven batches.
    loaded, streamed = both(cache, selection, 5 * 53 * selection.num_tokens * WIDTH * 2)

    def score(source: TokenSource, seed: int) -> float:
        sweep = plan_sweep(
            get_head("linear").build,
            source,
            content["train"]["label"],
            protocol=replace(QUICK, min_epochs=5, min_steps=60),
            has_dropout=False,
            seed=seed,
        )
        logits = predict(run_sweep(sweep).head, test.tokens, torch.arange(300), 128)
        return scores(logits, torch.from_numpy(test.labels)).balanced_accuracy

    of_seeds = [score(loaded, seed) for seed in range(5)]
    slack = (max(of_seeds) - min(of_seeds)) / 2
    from_stream = [score(streamed, seed) for seed in range(3)]
    assert 0.6 < min(of_seeds) < max(of_seeds) < 0.99, "learnable, and not trivial"
    assert min(of_seeds) - slack <= min(from_stream), (of_seeds, from_stream)
    assert max(from_stream) <= max(of_seeds) + slack, (of_seeds, from_stream)


@pytest.mark.parametrize("kinds", ["cls", "cls+patches"])
def test_a_value_that_is_not_finite_is_refused_by_its_row(tmp_path, kinds):
    plan = rich_plan()
    content = make_rich_content(plan)
    content["train"]["valid"][[2, 4]] = False
    name = "final" if kinds == "cls" else "final_patches"
    content["train"][name][211, 0, 0, 5] = np.inf
    cache = write_cache(tmp_path, plan, content)
    selection = select(cache, "last", kinds)
    message = "1 sample holds values that are not finite, the first is row 211"
    with pytest.raises(RequestError, match=message):
        load_split(cache, "train", selection, "cpu")
    streamed = load_split(cache, "train", selection, "cpu", 6000).tokens
    with pytest.raises(RequestError, match=message):
        list(streamed.epochs(torch.arange(298), 4, 1, 0))
    with pytest.raises(RequestError, match=message):
        streamed.batch(torch.tensor([3, 209]))


def test_a_budget_of_less_than_three_batches(tmp_path):
    cache, _ = rich_cache(tmp_path, rich_plan())
    _, streamed = both(cache, select(cache, "last", "cls"), 100)
    with pytest.raises(RequestError, match="memory must hold 3 batches of 20 rows"):
        next(streamed.epochs(torch.arange(300), 20, 1, 0))


STREAM = """
import sys
import torch
from featcache.probing.inputs.data import load_split
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.store.reading.reader import open_cache
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
torch.set_num_threads(1)
cache = open_cache(sys.argv[1])
selection = jobs(cache, ProbeRequest(heads="attentive", layers="final,1,3", tokens="cls+patches"))[-1].selection
split = load_split(cache, "train", selection, "cpu", int(sys.argv[2]))
assert split.streamed
epochs = split.tokens.epochs(torch.arange(split.tokens.num_samples), 64, 2, 0)
next(epochs)
before, most = anonymous(), 0
for rows, tokens in epochs:
    most = max(most, anonymous() - before)
print(most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells anonymous memory apart")
def test_streaming_takes_no_more_than_its_budget(tmp_path):
    """12 MB are streamed within 2 MB, and a batch in float32 (0.1 MB) is made on the way, and its parts."""
    plan = rich_plan({"train": 18_000, "test": 1})
    write_cache(tmp_path, plan, make_rich_content(plan))
    num_bytes, budget = 18_000 * 21 * WIDTH * 2, 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path), str(budget)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert num_bytes > 6 * budget
    assert int(done.stdout) < budget + 2_000_000


def test_a_source_of_ones_own_array_counts_from_zero():
    array = np.ones((4, 2, 8), np.float32)
    array[2:] = np.nan
    with pytest.raises(RequestError, match="2 samples hold values that are not finite, the first is row 2"):
        InMemoryTokens(array)


def test_transforms_and_subsets_of_streamed_tokens_are_those_in_memory(tmp_path) -> None:
    cache, _ = rich_cache(tmp_path, rich_plan(), {"train": SKIPPED})
    loaded, streamed = both(cache, select(cache, "all", "cls+ap+patches"), 20_000)
    rows, some = torch.arange(100, 250), torch.tensor([5, 70, 71, 90])
    for name in ("l2", "standard", "l2+standard"):
        transforms = [fit_input_transform(name, source, rows) for source in (streamed, loaded)]
        batches = [
            source.with_transform(transform).subset(rows).batch(some)
            for source, transform in zip((streamed, loaded), transforms, strict=True)
        ]
        torch.testing.assert_close(*batches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batches[1], loaded.with_transform(transforms[1]).batch(rows[some]))
    assert streamed.subset(rows).num_samples == 150


def test_a_gpu_gets_stored_values_ahead_of_time(tmp_path, pretended):
    """The same numbers as in memory, half the bytes, and no wait for a copy."""
    cache, _ = rich_cache(tmp_path, rich_plan())
    selection = select(cache, "all", "cls+ap+patches")
    memory = 300 * selection.num_tokens * WIDTH * 2 // 2
    loaded, _ = both(cache, selection, memory)
    streamed = load_split(cache, "train", selection, "cuda:0", memory).tokens
    rows = torch.arange(140)
    pretended.counts.bytes_to_device = 0
    pretended.counts.host_waits.clear()
    batches = list(streamed.epochs(rows, 16, 1, seed=3))
    values = 140 * selection.num_tokens * WIDTH
    assert pretended.counts.bytes_to_device == 2 * values
    assert set(pretended.counts.host_waits) <= {"event.synchronize"}, pretended.counts.host_waits
    for chosen, tokens in batches:
        assert str(tokens.device) == "cuda:0"
        torch.testing.assert_close(tokens.cpu(), loaded.batch(chosen), rtol=0, atol=1e-6)


def test_a_gpu_refuses_a_value_that_is_not_finite_in_the_last_batch_too(tmp_path, pretended):
    plan = rich_plan()
    content = make_rich_content(plan)
    content["train"]["final"][211, 0, 0, 5] = np.inf
    cache = write_cache(tmp_path, plan, content)
    streamed = load_split(cache, "train", select(cache, "last", "cls"), "cuda:0", 6000).tokens
    for size in (50, 60):
        with pytest.raises(RequestError, match="the first is row 211"):
            list(streamed.epochs(torch.arange(300), size, 1, seed=3))
    with pytest.raises(RequestError, match="the first is row 211"):
        streamed.batch(torch.arange(300))
