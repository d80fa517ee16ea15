"""What of the machine's matrix rate the attentive sweep reaches, in all and product by product.

Shapes: M members, B batch, T tokens, D width, C classes, H heads, h head width, n = M * H, b samples of a tile.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from timing import Document
from torch import Tensor
from trainer_sweeps import ATTENTIVE, CPU, PRECISIONS, TINY, Setting, compare

from featcache.probe.heads.pooling import _Sums
from featcache.probe.heads.scratch import release
from featcache.probe.optimizer import MemberAdamW
from featcache.probe.protocol import PAPER
from featcache.probe.tokens import InMemoryTokens
from featcache.probe.trainer import initial_head, members_together

SIDE = 2048
BOUND = (
    "The sums over tokens are products of inner dimension T, whose result is larger than what goes in: they are bound by "
    "how fast it is stored, as are the copies between the order of samples and that of heads. AdamW is bound by memory: "
    "it reads four numbers a parameter and writes three."
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_rates(tiny: bool) -> Document:
    """Work of the attentive sweep (rearranged as it is) over its seconds, against the machine's matrix rate."""
    side = 256 if tiny else SIDE
    document: Document = {"what bounds it": BOUND}
    for precision in PRECISIONS:
        a, b = (torch.randn(side, side).to(DTYPES[precision]) for _ in range(2))
        peak = 2 * side**3 / _seconds(lambda a=a, b=b: torch.mm(a, b), 10)
        document[f"GFLOP/s of {side} x {side} x {side}, {precision}"] = _giga(peak)
        for setting in TINY if tiny else ATTENTIVE:
            work, seconds = (
                sum(step_work(setting).values()),
                float(str(compare(setting, precision)["seconds"])),
            )
            document[f"{setting.name}, {precision}"] = {
                "GFLOP of an update": _giga(work),
                "GFLOP/s": _giga(work / seconds),
                "share of the matrix rate": round(work / seconds / peak, 3),
                "AdamW": _adamw(setting, seconds),
                "products": _products(setting, DTYPES[precision]),
            }
            release()
    return document


def step_work(setting: Setting) -> dict[str, float]:
    """Floating-point operations of the products of an update of all members, forward and backward."""
    batch, width = setting.batch, setting.width
    inner = setting.heads * (2 * (width // setting.heads))
    one = {
        # Forward, and backward for the keys alone.
        "scores": 2 * setting.tokens * setting.heads * width * 2,
        # Forward, again for the backward pass, and the gradient of the weights.
        "pooling": 2 * setting.tokens * setting.heads * width * 3,
        "value": 2 * inner * width * 3,
        "output": 2 * inner * width * 3,
        "classifier": 2 * width * setting.classes * 3,
    }
    return {name: float(work * batch * len(setting.members)) for name, work in one.items()}


def _products(setting: Setting, kind: torch.dtype) -> Document:
    return {name: _giga(work / _seconds(run, 5)) for name, work, run in _product_list(setting, kind)}


def _product_list(setting: Setting, kind: torch.dtype) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """Name, operations (bytes for a copy) and call of what pooling and the output projection consist of, at their sizes."""
    members, num_heads, width = _together(setting), setting.heads, setting.width
    n, h = members * num_heads, 2 * (width // num_heads)
    tokens = torch.randn(setting.batch, setting.tokens, width).to(kind)
    b = next(_Sums(tokens, n).tiles()).stop

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(kind)

    flat, tile = tokens.flatten(0, 1), tokens[:b]
    keys, grad_scores, weights = random(n, width), random(len(flat), n), random(b, setting.tokens, n)
    by_sample, by_head = random(b, n, width), random(n, b, width)
    value, transposed, grad = random(n, h, width), random(n, width, h), random(n, b, h)
    proj, pooled = random(members, width, n * h // members), random(members, setting.batch, n * h // members)
    all_scores, sums, values = (
        2.0 * len(flat) * width * n,
        2.0 * b * setting.tokens * width * n,
        2.0 * n * b * width * h,
    )
    yield f"scores: {len(flat)} x {width} x {n}", all_scores, lambda: flat @ keys.T
    yield f"keys' gradient: {n} x {len(flat)} x {width}", all_scores, lambda: grad_scores.T @ flat
    yield (
        f"sums over tokens: {b} of {n} x {setting.tokens} x {width}",
        sums,
        lambda: torch.bmm(weights.transpose(1, 2), tile, out=by_sample),
    )
    yield (
        f"weights' gradient: {b} of {setting.tokens} x {width} x {n}",
        sums,
        lambda: torch.bmm(tile, by_sample.transpose(1, 2)),
    )
    yield f"values: {n} of {b} x {width} x {h}", values, lambda: torch.bmm(by_head, transposed)
    yield (
        f"values' gradient: {n} of {h} x {b} x {width}",
        values,
        lambda: torch.bmm(grad.transpose(1, 2), by_head),
    )
    yield (
        f"sums' gradient: {n} of {b} x {h} x {width}",
        values,
        lambda: torch.bmm(grad, value, out=by_head),
    )
    yield (
        f"output projection: {members} of {width} x {n * h // members} x {setting.batch}",
        2.0 * setting.batch * width * n * h,
        lambda: torch.bmm(proj, pooled.transpose(1, 2)),
    )
    moved = 2.0 * by_head.numel() * by_head.element_size()
    yield "copy from samples to heads, GB/s", moved, lambda: by_head.copy_(by_sample.transpose(0, 1))


def _adamw(setting: Setting, step_seconds: float) -> Document:
    """The optimiser's part of an update of all members."""
    members = _together(setting)
    tokens = InMemoryTokens(setting.samples()[0][:2])
    head = initial_head(setting.build, tokens, setting.classes, [0.0] * members, 0)
    optimizer = MemberAdamW(list(head.parameters()), [1e-2] * members, PAPER)
    gradients = [torch.randn_like(parameter) * 1e-3 for parameter in head.parameters()]
    seconds = _seconds(lambda: optimizer.step(gradients, [1e-3] * members), 5)
    numbers = sum(parameter.numel() for parameter in head.parameters())
    share = seconds * len(setting.members) / members / step_seconds
    return {
        "share of the seconds": round(share, 3),
        # And the norms read the gradients once more.
        "GB/s": round(8 * 4 * numbers / seconds / 1e9, 1),
    }


def _together(setting: Setting) -> int:
    tokens = InMemoryTokens(setting.samples()[0][:2])
    return min(len(setting.members), members_together(setting.build, tokens, setting.classes, CPU))


def _seconds(function: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def _giga(value: float) -> float:
    return round(value / 1e9, 1)
