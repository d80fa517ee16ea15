"""Memory of members that train together: what is accounted is what a training takes, for every head that is trained."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.devices.peak import measure_peak
from featcache.probing.heads import get_head, scratch
from featcache.probing.heads.info import TRAINED
from featcache.probing.heads.registry import HEADS
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER, Plan
from featcache.probing.training import tuning
from featcache.probing.training.array_fitting import array_job
from featcache.probing.training.group_memory import GroupMemory, Growth, measure_group
from featcache.probing.training.sweep import run_sweep
from featcache.probing.training.sweep_options import SweepOptions
from featcache.probing.training.sweep_plan import Sweep, plan_sweep
from featcache.probing.training.trainer import fit_members
from featcache.store.errors import RequestError

CPU = torch.device("cpu")
TRAINED_HEADS = [name for name in HEADS if get_head(name).fitting == TRAINED]
NUM_LAYERS, NUM_TOKENS, WIDTH, NUM_CLASSES = 6, 12, 96, 20


def sweep_of(name: str, batch_size: int, device: torch.device = CPU) -> Sweep:
    rng = np.random.default_rng(0)
    samples = 3 * batch_size * 5 // 4
    tokens = InMemoryTokens(rng.normal(size=(samples, NUM_TOKENS, WIDTH)).astype(np.float16), device)
    info = get_head(name)
    sweep = plan_sweep(
        array_job(info, NUM_TOKENS, NUM_LAYERS).build,
        tokens,
        np.arange(samples) % NUM_CLASSES,
        protocol=replace(PAPER, max_batch_size=batch_size, min_batches=1),
        has_dropout=info.has_dropout,
        seed=0,
    )
    assert sweep.tuning.batch_size == batch_size
    return sweep


def measured_peak(sweep: Sweep, members: int, device: torch.device, precision: str) -> int:
    """Peak of a training of three updates of some members, above what was there."""
    scratch.release()
    gc.collect()
    (rows, _), *_ = sweep.splits
    return measure_peak(
        device,
        lambda: fit_members(
            sweep.build,
            sweep.tokens,
            sweep.targets,
            rows,
            sweep.members[-members:],
            protocol=sweep.protocol,
            batch_size=sweep.batch_size,
            seed=0,
            num_classes=NUM_CLASSES,
            plan=Plan(sweep.batch_size, 3, 1),
            device=device,
            precision=precision,
        ),
    )


@pytest.mark.parametrize("batch_size", [64, 512])
@pytest.mark.parametrize("name", TRAINED_HEADS)
def test_the_peak_of_a_group_is_what_is_accounted(name, batch_size):
    sweep = sweep_of(name, batch_size)
    number = len(sweep.members)
    memory = measure_group(sweep, CPU, "bf16", 2**40).of(number // 2)
    accounted = measure_group(sweep, CPU, "bf16", memory)
    members = accounted.fitting(memory, number)
    assert members > 1
    assert accounted.of(members) <= memory
    assert members == number or accounted.of(members + 1) > memory
    peak = measured_peak(sweep, members, CPU, "bf16")
    assert 0.8 <= peak / accounted.of(members) <= 1.1, f"{members} members: {peak:,} bytes, {accounted}"


def test_memory_that_grows_evenly():
    growth = Growth((4, 100), (16, 220))
    assert [growth.of(members) for members in (4, 16, 63)] == [100, 220, 690]
    assert Growth((4, 100), (16, 220), most=300).of(63) == 300
    assert Growth((1, 50), (1, 50)).of(3) == 150, "nothing tells what is shared"


@pytest.mark.parametrize("most", [1, 5, 100])
def test_the_largest_group_that_fits(most):
    memory = GroupMemory(
        kept=10, buffers=(), step=Growth((1, 105), (2, 110)), reading=90, outputs=0, together=8
    )
    assert memory.of(1) == 115
    assert memory.of(8) == 10 * 8 + 140
    assert memory.of(20) == 10 * 20 + 140, (
        "the members of further heads go through an update one head after another"
    )
    for limit in (0, 115, 130, 219, 220, 340, 10**6):
        fitting = memory.fitting(limit, most)
        assert 1 <= fitting <= most
        assert fitting == 1 or memory.of(fitting) <= limit
        assert fitting == most or memory.of(fitting + 1) > limit


class OneRoom:
    """Runs out of memory wherever more than some members train together."""

    def __init__(self, monkeypatch, most):
        self.sizes = []
        fit = tuning.fit_members

        def limited(build, tokens, labels, rows, members, **options):
            self.sizes.append(len(members))
            if len(members) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return fit(build, tokens, labels, rows, members, **options)

        monkeypatch.setattr(tuning, "fit_members", limited)


def test_a_group_that_runs_out_of_memory_is_divided_and_the_choice_is_the_same(monkeypatch):
    sweep, notes, progress, written = sweep_of("linear", 64), [], [], []
    sweep = replace(sweep, members=sweep.members[:7])
    whole = run_sweep(sweep)
    room = OneRoom(monkeypatch, 2)
    options = SweepOptions(
        on_note=notes.append,
        on_progress=lambda done, total: progress.append((done, total)),
        on_group=lambda rounds: written.append(len(rounds[0])),
    )
    divided = run_sweep(sweep, options)
    assert room.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    assert notes == [f"out of memory on cpu: going on with {size} members at a time" for size in (3, 1)]
    assert progress[-1][0] == progress[-1][1]
    assert written == list(range(1, 8))
    assert divided.member == whole.member
    assert divided.validation == whole.validation


def test_a_device_without_room_for_one_member_is_named(monkeypatch):
    sweep = sweep_of("linear", 64)
    OneRoom(monkeypatch, 0)
    with pytest.raises(
        RequestError, match=r"^one member does not fit into the memory of cpu; free some, ask for"
    ):
        run_sweep(sweep)


def test_other_errors_are_not_taken_for_too_little_memory(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tuning, "fit_members", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_sweep(sweep_of("linear", 64))


@pytest.mark.parametrize("name", ["attentive", "linear", "mlp", "recurrent"])
def test_the_peak_on_a_gpu_is_what_is_accounted(gpus, name):
    """By the allocator of the device; the backward pass runs in a thread of its own there, on the same buffers."""
    device = torch.device(gpus.names[0])
    sweep = sweep_of(name, 64, device)
    number = len(sweep.members)
    memory = measure_group(sweep, device, "bf16", 2**40).of(number // 2)
    accounted = measure_group(sweep, device, "bf16", memory)
    members = accounted.fitting(memory, number)
    peak = measured_peak(sweep, members, device, "bf16")
    assert members > 1
    assert 0.8 <= peak / accounted.of(members) <= 1.1, f"{members} members: {peak:,} bytes, {accounted}"


def test_buffers_of_the_backward_pass_on_a_gpu_are_given_back(gpus):
    device = torch.device(gpus.names[0])
    sweep = sweep_of("attentive", 64, device)
    scratch.release()
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    measured_peak(sweep, 2, device, "bf16")
    assert torch.cuda.memory_allocated(device) > before
    scratch.release()
    gc.collect()
    assert torch.cuda.memory_allocated(device) == before
