"""Seconds of one update of a whole sweep, against all its members one after another.

Either side reads its mini-batch from float16 tokens in memory, normalises and jitters it. Of the obvious side only `measured`
members are updated, and the seconds multiplied.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import torch
from timing import Document, side_by_side
from torch import Tensor
from trainer_obvious import ObviousTraining

from featcache.probing.heads import get_head
from featcache.probing.heads.base import Head
from featcache.probing.heads.scratch import release
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER, Member, Plan
from featcache.probing.scoring.losses import CrossEntropy
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.training.batches import Batch, Seeds, mini_batches
from featcache.probing.training.trainer import Training, divide, initial_head, members_together

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16")
EPOCHS = 1000
"""Enough that the mini-batches do not end."""


@dataclass(frozen=True)
class Setting:
    """A sweep at a size."""

    batch: int
    tokens: int
    width: int
    classes: int
    members: tuple[Member, ...]
    head: str = "attentive"
    num_heads: int | None = None

    @property
    def heads(self) -> int:
        """H."""
        return self.num_heads or self.tokens

    @property
    def name(self) -> str:
        """As the document calls it."""
        return f"{self.batch} x {self.tokens} x {self.width}, {len(self.members)} members"

    @property
    def build(self) -> Callable[..., Head]:
        """Builds the head."""
        build = get_head(self.head).build
        return build if self.num_heads is None else partial(build, num_heads=self.num_heads)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Tokens ``[N, T, D]`` float16 and labels ``[N]`` of four mini-batches."""
        number = 4 * self.batch
        random = torch.Generator().manual_seed(0)
        tokens = torch.randn(number, self.tokens, self.width, generator=random).half()
        return tokens, torch.arange(number) % self.classes


MEMBERS = PAPER.members(has_dropout=True)
ATTENTIVE = (Setting(1200, 24, 384, 100, MEMBERS), Setting(204, 48, 1024, 102, MEMBERS))
TOY = (Setting(40, 6, 32, 10, MEMBERS[::9]), Setting(20, 12, 64, 10, MEMBERS[::9]))
ONE = Member(1e-3, 1e-2, 0.1)


class Sweep:
    """The members of a setting while they train, as `fit_members` trains them, an update at a time."""

    def __init__(self, setting: Setting, precision: str, device: torch.device = CPU) -> None:
        features, labels = setting.samples()
        self.token_bytes = features.nbytes
        """Bytes of the tokens, on the device."""
        tokens, seeds = InMemoryTokens(features, device), Seeds.derive(0)
        together = members_together(setting.build, tokens, setting.classes, device)
        heads = [
            initial_head(
                setting.build, tokens, setting.classes, [member.dropout for member in part], seeds.init
            ).to(device)
            for part in divide(setting.members, together)
        ]
        self.num_parameters = sum(parameter.numel() for head in heads for parameter in head.parameters())
        """Of all members."""
        plan = Plan(setting.batch, 4, EPOCHS)
        self._training = Training(
            heads,
            setting.members,
            PAPER,
            CrossEntropy(class_weights(labels, setting.classes).to(device)),
            plan.num_steps,
            precision,
            torch.Generator(device).manual_seed(seeds.dropout),
        )
        self._batches: Iterator[Batch] = mini_batches(
            tokens, labels, torch.arange(len(labels)), plan, PAPER, seeds, device
        )

    def step(self) -> None:
        """Update all members."""
        self._training.step(next(self._batches))


@cache
def compare(setting: Setting, precision: str, measured: int = 1, runs: int = 3) -> Document:
    """Seconds of an update of all members, both ways; `measured` members stand for all on the obvious side."""
    features, labels = setting.samples()
    member = next(member for member in setting.members if member.dropout or setting.head != "attentive")
    obvious = ObviousTraining(
        setting.head, features, labels, member, PAPER, setting.classes, setting.num_heads
    )

    def others() -> None:
        for _ in range(measured):
            obvious.step(torch.randperm(len(labels))[: setting.batch], member.learning_rate)

    result = side_by_side(Sweep(setting, precision).step, others, runs)
    release()
    seconds, other = (float(str(result[name])) for name in ("seconds", "other_seconds"))
    other *= len(setting.members) / measured
    return {
        "seconds": round(seconds, 4),
        "other_seconds": round(other, 4),
        "times_faster": round(other / seconds, 2),
        "runs": runs,
    }


def _table(settings: tuple[Setting, ...], **options: int) -> Document:
    return {
        f"{setting.name}, {precision}": compare(setting, precision, **options)
        for setting in settings
        for precision in PRECISIONS
    }


def bench_attentive(toy: bool) -> Document:
    """One update of the attentive sweep of `paper`, against the obvious module in fp32, member after member."""
    return _table(TOY if toy else ATTENTIVE)


def bench_aat(toy: bool) -> Document:
    """One update of one attentive head with 8 heads on all tokens of a layer, against the obvious module in fp32."""
    batch, tokens, width = (8, 17, 64) if toy else (64, 257, 1024)
    return _table((Setting(batch, tokens, width, 100, (ONE,), num_heads=8),), runs=7)


def bench_linear(toy: bool) -> Document:
    """One update of the linear sweep of `paper`, against one head after another in fp32."""
    batch, tokens, width = (20, 6, 32) if toy else (204, 48, 1024)
    members = PAPER.members(has_dropout=False)
    setting = Setting(batch, tokens, width, 102, members, head="linear")
    document = _table((setting,), measured=3, runs=7)
    alone = {f"{precision}, seconds": _linear_products(setting, precision) for precision in PRECISIONS}
    return {**document, "its matrix products alone, which no order of work avoids": alone}


def _linear_products(setting: Setting, precision: str, runs: int = 7) -> float:
    """Median seconds of the products of an update: logits of all members, and the gradients of their weights."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = (
        (setting.batch, setting.tokens * setting.width),
        (setting.classes, setting.tokens * setting.width),
    )
    x, weight = (torch.randn(shape).to(dtype) for shape in shapes)
    gradient, out = torch.randn(setting.classes, setting.batch).to(dtype), torch.empty_like(weight)
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        for _ in setting.members:
            torch.mm(x, weight.T)
            torch.mm(gradient, x, out=out)
        times.append(time.perf_counter() - started)
    return round(median(times[1:]), 4)
