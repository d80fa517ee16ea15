"""The arithmetic of an estimate, by a clock that the work itself advances, and that estimating leaves no trace."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featcache.probing.heads import get_head
from featcache.probing.heads.linear import LinearHead
from featcache.probing.inputs.data import load_split
from featcache.probing.inputs.tokens import InMemoryTokens, TokenSource
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.training import estimate
from featcache.probing.training.estimate import Estimate, estimate_sweep
from featcache.probing.training.sweep import run_sweep
from featcache.probing.training.sweep_options import SweepOptions
from featcache.probing.training.sweep_plan import Sweep, plan_sweep

from .caches import rich_cache, rich_plan, select

PER_BATCH, PER_MEMBER = 1.0, 0.25
PROTOCOL = replace(QUICK, min_epochs=1, min_steps=8)


class Clock:
    """Stands still unless something takes time; the first batch and the first update take ten times as long."""

    def __init__(self) -> None:
        self.now = 0.0
        self._met: set[str] = set()

    def take(self, what: str, seconds: float) -> None:
        self.now += seconds if what in self._met else 10 * seconds
        self._met.add(what)


class SlowTokens(InMemoryTokens):
    def __init__(self, array: np.ndarray, clock: Clock) -> None:
        super().__init__(array)
        self._clock = clock

    def epochs(self, *arguments: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epochs(*arguments):
            self._clock.take("batch", PER_BATCH)
            yield batch


def slow_sweep(monkeypatch: pytest.MonkeyPatch, num_samples: int = 60) -> Sweep:
    """Four members, whose updates take time by the clock."""
    clock = Clock()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    class SlowHead(LinearHead):
        def classify(self, inputs: Tensor) -> Tensor:
            clock.take("update", PER_MEMBER * self.num_members)
            return super().classify(inputs)

    array = np.random.default_rng(0).normal(size=(num_samples, 2, 8)).astype(np.float32)
    source, labels = SlowTokens(array, clock), np.arange(num_samples) % 3
    return plan_sweep(SlowHead, source, labels, protocol=PROTOCOL, has_dropout=False, seed=0)


@pytest.mark.parametrize(
    ("group", "finished", "batches", "updates"),
    # Every group reads the batches anew.
    [(None, 0, 1, 4), (4, 0, 1, 4), (3, 0, 2, 4), (1, 0, 4, 4), (3, 1, 1, 3), (2, 1, 2, 3), (2, 4, 0, 0)],
)
def test_groups_read_their_batches_each(monkeypatch, group, finished, batches, updates):
    sweep = slow_sweep(monkeypatch)
    done = dict.fromkeys(sweep.members[:finished], 0.5)
    found = estimate_sweep(sweep, SweepOptions(group_size=group, finished=[done]))
    assert (found.per_batch, found.per_member) == (PER_BATCH, PER_MEMBER), "without the first, which warms up"
    tuning = sweep.tuning.num_steps * (batches * PER_BATCH + updates * PER_MEMBER)
    final = sweep.final.num_steps * (PER_BATCH + PER_MEMBER)
    assert found.seconds == pytest.approx(tuning + final)


def test_a_training_of_a_single_update(monkeypatch):
    sweep = slow_sweep(monkeypatch, num_samples=15)  # one batch
    sweep = replace(sweep, protocol=replace(sweep.protocol, min_steps=1))
    assert sweep.tuning.num_steps == 1
    found = estimate_sweep(sweep, SweepOptions(group_size=4))  # measuring a group would warm up
    assert (found.per_batch, found.per_member) == (10 * PER_BATCH, 10 * PER_MEMBER)


def test_how_many_members_train_within_a_time():
    found = Estimate(per_batch=PER_BATCH, per_member=PER_MEMBER, seconds=0)
    assert found.group_of(300, steps=100) == 8
    assert found.group_of(100, steps=100) == 1
    assert found.group_of(1, steps=100) == 1, "a member at least"


@pytest.mark.parametrize("memory", [None, 50_000], ids=["memory", "streamed"])
def test_estimating_leaves_no_trace(tmp_path, memory):
    cache, _ = rich_cache(tmp_path, rich_plan())
    selection = select(cache, "last", "cls+patches")
    info = get_head("attentive")

    def sweep() -> Sweep:
        split = load_split(cache, "train", selection, "cpu", memory)
        assert split.streamed == bool(memory)
        source: TokenSource = split.tokens
        return plan_sweep(info.build, source, split.labels, protocol=PROTOCOL, has_dropout=True, seed=5)

    plain = run_sweep(sweep())
    before = torch.get_rng_state()
    estimated = sweep()
    assert estimate_sweep(estimated, SweepOptions()).seconds > 0
    assert torch.equal(torch.get_rng_state(), before)
    result = run_sweep(estimated)
    assert result.validation == plain.validation
    torch.testing.assert_close(result.head.state_dict(), plain.head.state_dict(), rtol=0, atol=0)
