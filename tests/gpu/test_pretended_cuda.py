"""The pretended GPU: it computes as the CPU does, refuses what CUDA refuses, and finds the faults that it is for."""

import copy
import gc
import threading

import numpy as np
import pytest
import torch
from torch import nn

from support.pretended_cuda import pretended_cuda

SIDE = 8


def on_cpu(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def kinds(machine):
    """Kinds of the problems found so far, which are then forgotten."""
    found = [problem.kind for problem in machine.problems]
    machine.problems.clear()
    return found


# Values.


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, SIDE, 2, 2),
        nn.Flatten(2),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def trained(device):
    """Weights, losses and predictions of a network after some updates."""
    module, images, labels = (
        network().to(device),
        on_cpu(6, 3, 8, 8).to(device),
        torch.arange(6).to(device) % 5,
    )
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2, fused=True)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    with torch.inference_mode():
        outputs = module(images).softmax(1)
    return [*module.state_dict().values(), torch.stack(losses), outputs]


def test_training_gives_the_values_of_the_cpu(pretended):
    wanted = trained("cpu")
    found = trained("cuda:1")
    assert {str(tensor.device) for tensor in found} == {"cuda:1"}
    for tensor, expected in zip(found, wanted, strict=True):
        assert torch.equal(tensor.cpu(), expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x[x > 0],
        lambda x: x[[0, 2]],
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x.double().T @ x.double(),
        lambda x: torch.linalg.eigh(x @ x.T)[0],
        lambda x: torch.linalg.qr(x)[1].abs(),
        lambda x: nn.functional.one_hot(x.argmax(1)),
        lambda x: torch.cat([x, x.new_tensor([[1.0] * x.shape[1]])]),
        lambda x: x.masked_fill(x > 0, 2.0).cumsum(1).sort(1).values,
        lambda x: x.index_add(0, torch.tensor([0, 0, 1], device=x.device), x[:3]),
        lambda x: torch.stack([part.mean() for part in x.tensor_split(3)]),
        lambda x: copy.deepcopy(x).mul_(2),
        lambda x: x.clone().unsqueeze_(0).transpose(0, 1),
        lambda x: x.type_as(x.half()),
        lambda x: torch.tensor(x.tolist(), device=x.device),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_operations_give_the_values_of_the_cpu(pretended, operation, inference):
    x = on_cpu(SIDE, SIDE)
    with torch.inference_mode(inference):
        found = operation(x.to("cuda"))
        assert found.device == torch.device("cuda:0")
        assert torch.equal(found.cpu(), operation(x))


def test_draws_are_those_of_the_cpu(pretended):
    found = torch.rand(9, generator=torch.Generator("cuda:1").manual_seed(3), device="cuda:1")
    assert torch.equal(found.cpu(), torch.rand(9, generator=torch.Generator().manual_seed(3)))


def test_autocast_computes_products_in_bfloat16(pretended):
    x, linear = on_cpu(4, SIDE), nn.Linear(SIDE, SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = linear(x)
    with torch.autocast("cuda", torch.bfloat16):
        found = linear.to("cuda")(x.to("cuda"))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.cpu(), wanted)


def test_one_machine_at_a_time(pretended):
    with pytest.raises(RuntimeError, match="pretended already"), pretended_cuda():
        pass


def test_nothing_is_left_behind():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    before = [
        torch.Generator,
        torch.Tensor.is_pinned,
        torch.autograd.grad,
        threading.Thread.run,
        torch.cuda.Stream,
    ]
    with pretended_cuda(num_devices=3) as machine:
        assert (torch.cuda.device_count(), torch.cuda.mem_get_info(2)) == (3, (80 * 2**30, 80 * 2**30))
        torch.ones(3, device="cuda:2").requires_grad_().sum().backward()
    assert machine.counts.kernels
    after = [
        torch.Generator,
        torch.Tensor.is_pinned,
        torch.autograd.grad,
        threading.Thread.run,
        torch.cuda.Stream,
    ]
    assert after == before
    assert not torch.cuda.is_available()
    x = torch.ones(3, requires_grad=True)
    x.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(3, device="cuda")


# Refusals.

OTHER = "found at least two devices"


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x + on_cpu(SIDE, SIDE), OTHER),
        (lambda x: x @ on_cpu(SIDE, SIDE).to("cuda:1"), OTHER),
        (lambda x: nn.Linear(SIDE, SIDE)(x), OTHER),
        (lambda x: nn.functional.cross_entropy(x, torch.arange(SIDE)), OTHER),
        (lambda x: torch.cat([x, on_cpu(1, SIDE)]), OTHER),
        (lambda x: x.numpy(), "can't convert cuda:0 device type tensor to numpy"),
        (lambda x: np.asarray(x), "can't convert cuda:0 device type tensor to numpy"),
        (lambda x: x.normal_(generator=torch.Generator()), "Expected a 'cuda:0' device type for generator"),
        (
            lambda x: torch.rand(3, generator=torch.Generator("cuda")),
            "Expected a 'cpu' device type for generator",
        ),
        (lambda x: x.to("cuda:2"), "invalid device ordinal"),
    ],
)
def test_what_cuda_refuses_is_refused(pretended, operation, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        operation(on_cpu(SIDE, SIDE).to("cuda"))


def test_a_number_and_an_index_may_come_from_the_host(pretended):
    x = on_cpu(SIDE, SIDE).to("cuda")
    assert torch.equal((x * torch.tensor(2.0)).cpu(), on_cpu(SIDE, SIDE) * 2)
    pretended.counts.host_waits.clear()
    x[torch.arange(3)]
    assert pretended.counts.host_waits["indices from the host"]


# Streams.


def test_a_copy_to_the_host_is_not_there_before_somebody_waits(pretended):
    x = on_cpu(SIDE).to("cuda")
    host = torch.empty(SIDE, pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert host.isnan().all()
    event.synchronize()
    assert torch.equal(host, on_cpu(SIDE))


def test_an_event_tells_nothing_of_another_device(pretended):
    host = torch.empty(SIDE, pin_memory=True).copy_(on_cpu(SIDE).to("cuda:1"), non_blocking=True)
    event = torch.cuda.Event()
    event.record()  # on the current device, which is cuda:0
    event.synchronize()
    assert host.isnan().all()
    torch.cuda.synchronize("cuda:1")
    assert torch.equal(host, on_cpu(SIDE))


def test_pageable_memory_makes_the_host_wait(pretended):
    x = on_cpu(SIDE).to("cuda")
    pretended.counts.host_waits.clear()
    on_cpu(SIDE).pin_memory().to("cuda", non_blocking=True)
    assert not pretended.counts.host_waits
    on_cpu(SIDE).to("cuda", non_blocking=True)
    assert sum(pretended.counts.host_waits.values()) == 1
    assert torch.equal(torch.empty(SIDE).copy_(x, non_blocking=True), on_cpu(SIDE))
    assert sum(pretended.counts.host_waits.values()) == 2


@pytest.mark.parametrize("fault", ["none", "no wait", "no record_stream"])
def test_work_on_two_streams(pretended, fault):
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x = on_cpu(SIDE).pin_memory().to("cuda", non_blocking=True)
    if fault != "no wait":
        main.wait_stream(side)
    y = x + 1
    if fault != "no record_stream":
        x.record_stream(main)
    del x
    gc.collect()
    found = kinds(pretended)
    assert found == {"none": [], "no wait": ["race"], "no record_stream": ["freed in use"]}[fault]
    assert torch.equal(y.cpu(), on_cpu(SIDE) + 1)


def test_overwriting_what_another_stream_reads_is_a_race(pretended):
    x, side = on_cpu(SIDE).to("cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = x * 2
    x.zero_()
    assert kinds(pretended) == ["race"]
    torch.cuda.current_stream().wait_stream(side)
    x.fill_(1)
    assert kinds(pretended) == []
    del y


def test_the_backward_pass_runs_in_a_thread_of_its_own(pretended):
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 1

        @staticmethod
        def backward(context, gradient):
            seen.append(threading.current_thread())
            return gradient

    x = torch.ones(3, device="cuda", requires_grad=True)
    (gradient,) = torch.autograd.grad(Watched.apply(x).sum(), x)
    assert torch.equal(gradient.cpu(), torch.ones(3))
    assert seen != [threading.current_thread()]


# Memory.


def test_memory_is_counted_with_its_views_and_freed_with_the_last_one(pretended):
    memory = pretended.memory[0]
    x = torch.zeros(1024, device="cuda")
    view = x[:10].view(2, 5).T
    assert memory.allocated_bytes == torch.cuda.memory_allocated(0) == 4096
    del x
    y = torch.zeros(1, device="cuda")
    assert memory.allocated_bytes == 4096 + 512
    del view, y
    assert (memory.allocated_bytes, memory.peak_bytes) == (0, 4096 + 512)
    assert torch.cuda.mem_get_info(0)[0] == memory.capacity_bytes - (4096 + 512)
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info(0)[0] == memory.capacity_bytes
    assert pretended.memory[1].peak_bytes == 0


def test_out_of_memory_at_the_capacity(pretended):
    pretended.memory[1].capacity_bytes = 8192
    x = torch.zeros(1024, device="cuda:1")
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.cat([x, x])
    y = x + 1
    with pytest.raises(torch.OutOfMemoryError):
        x + y
    del y
    assert torch.equal((x + 1).cpu(), torch.ones(1024))
