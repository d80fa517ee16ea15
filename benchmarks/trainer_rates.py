"""What of the machine's matrix rate the attentive sweep reaches, in all and product by product.

Shapes: M members, B batch, T tokens, D width, C classes, H heads, h head width, n = M * H, b samples of a tile.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timing import Document
from torch import Tensor
from trainer_sweeps import ATTENTIVE, CPU, PRECISIONS, TOY, Setting, compare

from featcache.probing.heads.pooling import _Sums
from featcache.probing.heads.scratch import release
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER
from featcache.probing.training.optimizer import MemberAdamW
from featcache.probing.training.trainer import initial_head, members_together

SIDE = 2048
ROUNDS = 9
BOUND = (
    "Products over a small dimension (T tokens in the sums, h channels of a head in the values) move almost as much as they "
    "compute: they are bound by loads and stores, and the faster the matrix unit, the less of its rate they reach. So are the "
    "copies between the order of samples and that of heads. AdamW is bound by memory: it reads five numbers a parameter, "
    "with the norm of the gradient, and writes three."
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_rates(toy: bool) -> Document:
    """Work of the attentive sweep (rearranged as it is) over its seconds, against the machine's matrix rate."""
    side = 256 if toy else SIDE
    document: Document = {"what bounds it": BOUND}
    for precision in PRECISIONS:
        a, b = (torch.randn(side, side).to(DTYPES[precision]) for _ in range(2))
        for setting in TOY if toy else ATTENTIVE:
            work, seconds = (
                sum(step_work(setting).values()),
                float(str(compare(setting, precision)["seconds"])),
            )
            matrix = Part(
                f"matrix product of {side} x {side} x {side}", 2.0 * side**3, partial(torch.mm, a, b)
            )
            adamw = _adamw(setting)
            best = _best([matrix, adamw, *_products(setting, DTYPES[precision])])
            members = len(setting.members) / _together(setting)
            document[f"{setting.name}, {precision}"] = {
                "GFLOP of an update": _giga(work),
                "GFLOP/s": _giga(work / seconds),
                "share of the matrix rate": round(work / seconds * best[matrix] / matrix.work, 3),
                "share of AdamW in the seconds": round(members * best[adamw] / seconds, 3),
                "GFLOP/s alone (GB/s where it says bytes)": {
                    part.name: _giga(part.work / part_seconds) for part, part_seconds in best.items()
                },
            }
            release()
    return document


@dataclass(frozen=True)
class Part:
    """Something that an update does: floating-point operations (bytes where it only moves them), and the call."""

    name: str
    work: float
    run: Callable[[], object]


def _best(parts: Sequence[Part]) -> dict[Part, float]:
    """Least seconds of every part, all in turn: what they take where nothing else is at work."""
    best = dict.fromkeys(parts, math.inf)
    for _ in range(ROUNDS):
        for part in parts:
            started = time.perf_counter()
            part.run()
            best[part] = min(best[part], time.perf_counter() - started)
    return best


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


def _products(setting: Setting, kind: torch.dtype) -> list[Part]:
    """What pooling and the output projection of one head consist of, at their sizes."""
    members, num_heads, width = _together(setting), setting.heads, setting.width
    n, h = members * num_heads, 2 * (width // num_heads)
    inner = num_heads * h
    tokens = torch.randn(setting.batch, setting.tokens, width).to(kind)
    b = next(_Sums(tokens, n).tiles()).stop

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(kind)

    flat, tile = tokens.flatten(0, 1), tokens[:b]
    keys, grad_scores, weights = random(n, width), random(len(flat), n), random(b, setting.tokens, n)
    by_sample, by_head = random(b, n, width), random(n, b, width)
    value, transposed, grad = random(n, h, width), random(n, width, h), random(n, b, h)
    proj, pooled = random(members, width, inner), random(members, setting.batch, inner)
    all_scores, sums, values = (
        2.0 * len(flat) * width * n,
        2.0 * b * setting.tokens * width * n,
        2.0 * n * b * width * h,
    )
    return [
        Part(f"scores: {len(flat)} x {width} x {n}", all_scores, lambda: flat @ keys.T),
        Part(f"keys' gradient: {n} x {len(flat)} x {width}", all_scores, lambda: grad_scores.T @ flat),
        Part(
            f"sums over tokens: {b} of {n} x {setting.tokens} x {width}",
            sums,
            lambda: torch.bmm(weights.transpose(1, 2), tile, out=by_sample),
        ),
        Part(
            f"weights' gradient: {b} of {setting.tokens} x {width} x {n}",
            sums,
            lambda: torch.bmm(tile, by_sample.transpose(1, 2)),
        ),
        Part(f"values: {n} of {b} x {width} x {h}", values, lambda: torch.bmm(by_head, transposed)),
        Part(
            f"values' gradient: {n} of {h} x {b} x {width}",
            values,
            lambda: torch.bmm(grad.transpose(1, 2), by_head),
        ),
        Part(
            f"sums' gradient: {n} of {b} x {h} x {width}",
            values,
            lambda: torch.bmm(grad, value, out=by_head),
        ),
        Part(
            f"output projection: {members} of {width} x {inner} x {setting.batch}",
            2.0 * setting.batch * width * n * h,
            lambda: torch.bmm(proj, pooled.transpose(1, 2)),
        ),
        Part(
            "copy from samples to heads, bytes",
            2.0 * by_head.numel() * by_head.element_size(),
            lambda: by_head.copy_(by_sample.transpose(0, 1)),
        ),
    ]


def _adamw(setting: Setting) -> Part:
    """The optimiser on the members that share a head."""
    members = _together(setting)
    tokens = InMemoryTokens(setting.samples()[0][:2])
    head = initial_head(setting.build, tokens, setting.classes, [0.0] * members, 0)
    optimizer = MemberAdamW(list(head.parameters()), [1e-2] * members, PAPER)
    gradients = [torch.randn_like(parameter) * 1e-4 for parameter in head.parameters()]
    numbers = sum(parameter.numel() for parameter in head.parameters())
    # Reads parameter, gradient and both moments and writes all but the gradient, which the norm reads once more.
    moved = 8.0 * 4 * numbers
    return Part("AdamW, bytes", moved, lambda: optimizer.step(gradients, [1e-3] * members))


def _together(setting: Setting) -> int:
    tokens = InMemoryTokens(setting.samples()[0][:2])
    return min(len(setting.members), members_together(setting.build, tokens, setting.classes, CPU))


def _giga(value: float) -> float:
    return round(value / 1e9, 1)
