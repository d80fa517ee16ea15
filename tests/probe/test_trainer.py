"""Training of many members at once against one plain loop, and the parts around it: tokens, metrics, sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.heads.base import Head
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER, QUICK, Member, learning_rate_at
from featcache.probing.scoring.metrics import balanced_accuracy, scores, top_k
from featcache.probing.training import trainer
from featcache.probing.training.batches import Jitter, Seeds
from featcache.probing.training.group_memory import measure_group
from featcache.probing.training.prediction import predict
from featcache.probing.training.sweep import run_sweep
from featcache.probing.training.sweep_options import SweepOptions, group_size
from featcache.probing.training.sweep_plan import plan_sweep
from featcache.probing.training.trainer import fit_members
from featcache.store.errors import RequestError

from .oracle import ObviousAttentiveHead, ObviousLinearHead

HEADS = pytest.mark.parametrize(
    "head_info", [get_head("linear"), get_head("attentive")], ids=lambda info: info.name
)
NUM_CLASSES = 4
ROWS = torch.arange(100)[17:]
# 83 of 100 rows in batches of 20: five per epoch, the last of 3; ten epochs, so 50 steps.
PROTOCOL = replace(QUICK, min_epochs=2, min_steps=50)
BATCH_SIZE = 20
NUM_STEPS = 50


def members_of(head_info: HeadInfo) -> list[Member]:
    dropout = 0.3 if head_info.has_dropout else 0.0
    return [Member(1e-1, 1e-2, 0.0), Member(1e-2, 1e-1, dropout), Member(1e-3, 0.0, dropout)]


def make_data() -> tuple[np.ndarray, Tensor]:
    """Tokens [100, 3, 8] and labels of unequal frequency; class 2 is empty."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3], size=100, p=[0.6, 0.3, 0.1])
    tokens = rng.normal(size=(100, 3, 8)) + rng.normal(size=(4, 3, 8))[labels]
    return tokens.astype(np.float32), torch.from_numpy(labels)


class DoubleTokens(InMemoryTokens):
    """Makes everything run in float64, so that rounding cannot hide a difference."""

    def batch(self, rows: Tensor) -> Tensor:
        return super().batch(rows).double()


def build_double(head_info: HeadInfo, *size: Any) -> Head:
    return head_info.build(*size).double()


def fit(head_info: HeadInfo, members: list[Member], seed: int = 7, **options: Any) -> list[Head]:
    tokens, labels = make_data()
    return fit_members(
        options.pop("build", partial(build_double, head_info)),
        options.pop("source", DoubleTokens(tokens)),
        labels,
        ROWS,
        members,
        protocol=PROTOCOL,
        batch_size=BATCH_SIZE,
        seed=seed,
        num_classes=NUM_CLASSES,
        **options,
    )


def plain_loop(head_info: HeadInfo, member: Member, seed: int, dtype: torch.dtype) -> torch.nn.Module:
    """One member trained alone by `torch.optim.AdamW` on the obvious module, everything written out."""
    seeds = Seeds.derive(seed)
    tokens, labels = make_data()
    x_all = F.normalize(torch.from_numpy(tokens), dim=-1).to(dtype)
    torch.manual_seed(seeds.init)
    attends = head_info.name == "attentive"
    head = (ObviousAttentiveHead(8, NUM_CLASSES, 3) if attends else ObviousLinearHead(3, 8, NUM_CLASSES)).to(
        dtype
    )
    optimizer = torch.optim.AdamW(
        head.parameters(),
        lr=member.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=member.weight_decay,
    )
    order = torch.Generator().manual_seed(seeds.order)
    noise = Jitter(0.5, 0.05, seeds.jitter, "cpu")
    dropout = torch.Generator().manual_seed(seeds.dropout)
    counts = [int((labels[ROWS] == c).sum()) for c in range(NUM_CLASSES)]
    weight = torch.tensor([83 / (NUM_CLASSES * count) if count else 0.0 for count in counts]).to(dtype)
    for step in range(NUM_STEPS):
        if step % 5 == 0:
            permuted = ROWS[torch.randperm(83, generator=order)]
        rows = permuted[step % 5 * BATCH_SIZE :][:BATCH_SIZE]
        x = noise.add_(x_all[rows].clone())
        arguments = []
        if attends:
            draws = torch.rand((len(rows), 3, 3), generator=dropout, dtype=dtype)
            arguments = [((draws >= member.dropout).to(dtype) / (1 - member.dropout)).transpose(1, 2)]
        of_sample = weight[labels[rows]]
        nll = -F.log_softmax(head(x, *arguments), dim=1)[torch.arange(len(rows)), labels[rows]]
        loss = (of_sample * nll).sum() / of_sample.sum()
        rate = learning_rate_at(step, NUM_STEPS, member.learning_rate, 1e-6)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
    return head.eval()


# What differs is the order of rounding, which 50 updates compound, the more the larger the learning rate. In float32 it matters
# most where a true gradient is 0, such as that of a bias before a BatchNorm: Adam makes full steps of what is rounding alone.
@HEADS
@pytest.mark.parametrize(
    ("dtype", "tolerances"), [(torch.float64, (1e-3, 1e-6, 1e-6)), (torch.float32, (0.3, 0.02, 2e-3))]
)
def test_members_equal_a_plain_loop(
    head_info: HeadInfo, dtype: torch.dtype, tolerances: tuple[float, ...]
) -> None:
    tokens, _ = make_data()
    members, everything = members_of(head_info), torch.arange(100)
    double = dtype is torch.float64
    source = DoubleTokens(tokens) if double else InMemoryTokens(tokens)
    options = {} if double else {"build": head_info.build, "source": source}
    for member, head, tolerance in zip(members, fit(head_info, members, **options), tolerances, strict=True):
        alone = plain_loop(head_info, member, 7, dtype)
        with torch.inference_mode():
            expected = alone(source.batch(everything))
        torch.testing.assert_close(
            predict(head, source, everything, 32), expected, rtol=tolerance, atol=tolerance
        )


CLOSE = {"fp32": (0.3, 0.02, 1e-3), "bf16": (0.3, 0.1, 2e-2)}


@HEADS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_members_do_not_depend_on_each_other(head_info: HeadInfo, precision: str) -> None:
    """Up to the order of rounding, which the sizes of matrix products decide."""
    tokens, _ = make_data()
    source, everything = InMemoryTokens(tokens), torch.arange(100)
    options = {"build": head_info.build, "source": source, "precision": precision}
    members = members_of(head_info)
    together = fit(head_info, members, **options)
    for index, member in enumerate(members):
        (alone,) = fit(head_info, [member], **options)
        close = {"rtol": 0, "atol": CLOSE[precision][index]}
        pair = [predict(head, source, everything, 32).softmax(1) for head in (together[index], alone)]
        torch.testing.assert_close(*pair, **close)


@HEADS
def test_grouping_changes_nothing(head_info: HeadInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither how many members train at a time, nor how many of them share a head."""
    tokens, labels = make_data()
    source = DoubleTokens(tokens)
    sweep = plan_sweep(
        partial(build_double, head_info),
        source,
        labels.numpy(),
        protocol=PROTOCOL,
        has_dropout=head_info.has_dropout,
        seed=1,
        num_classes=5,
    )
    results = [run_sweep(sweep, SweepOptions(group_size=size)) for size in (None, 1, 3)]
    monkeypatch.setitem(trainer.STEP_BYTES, "cpu", 1)
    results.append(run_sweep(sweep))
    logits = [predict(result.head, source, torch.arange(100), 32) for result in results]
    for result, other in zip(results[1:], logits[1:], strict=True):
        assert result.validation == results[0].validation
        torch.testing.assert_close(other, logits[0], rtol=1e-6, atol=1e-6)


def test_groups_fit_the_memory() -> None:
    tokens, labels = make_data()
    info = get_head("attentive")
    sweep = plan_sweep(
        info.build, InMemoryTokens(tokens), labels.numpy(), protocol=PAPER, has_dropout=True, seed=0
    )
    assert len(sweep.members) == 63
    memory = measure_group(sweep, torch.device("cpu"), "fp32", 10**9)
    assert group_size(sweep, SweepOptions(memory=memory.of(5))) == 5
    assert group_size(sweep, SweepOptions(memory=1)) == 1
    assert group_size(sweep, SweepOptions(memory=10**9)) >= 63
    assert group_size(sweep, SweepOptions(memory=10**9, group_size=7)) == 7


def test_an_interrupted_sweep_goes_on_with_the_members_that_are_left() -> None:
    tokens, labels = make_data()
    info = get_head("linear")
    sweep = plan_sweep(
        info.build, InMemoryTokens(tokens), labels.numpy(), protocol=PROTOCOL, has_dropout=False, seed=0
    )
    whole = run_sweep(sweep)
    kept: list[dict[Member, float]] = []

    def interrupt(rounds: Sequence[Mapping[Member, float]]) -> None:
        kept.append(dict(rounds[0]))
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, SweepOptions(group_size=1, on_group=interrupt))
    assert [len(scores) for scores in kept] == [1, 2]
    progress: list[tuple[int, int]] = []
    options = SweepOptions(finished=kept[-1:], on_progress=lambda done, total: progress.append((done, total)))
    again = run_sweep(sweep, options)
    assert list(again.validation) == list(whole.validation), "in the order of the protocol"
    assert again.validation == whole.validation
    torch.testing.assert_close(again.head.state_dict(), whole.head.state_dict(), rtol=0, atol=0)
    per_member = sweep.tuning.num_steps
    assert progress[0] == (2 * per_member + 2, 4 * per_member + sweep.final.num_steps)


def test_seed_fixes_everything_and_leaves_the_global_generator_alone() -> None:
    members = [Member(1e-2, 1e-2, 0.3)]
    before = torch.get_rng_state()
    first = fit(get_head("attentive"), members)[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again, other = (fit(get_head("attentive"), members, seed)[0] for seed in (7, 8))
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.get_parameter("query"), other.get_parameter("query"))
    assert not first.training


def test_predict_is_in_eval_mode_and_batch_by_batch() -> None:
    source = DoubleTokens(make_data()[0])
    head = fit(get_head("attentive"), [Member(1e-2, 1e-2, 0.3)])[0]
    rows = torch.tensor([5, 3, 99, 0])
    expected = head(source.batch(rows))[0]
    got = predict(head.train(), source, rows, batch_size=3)
    assert not head.training
    torch.testing.assert_close(got, expected)


@HEADS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_digits(head_info: HeadInfo, precision: str) -> None:
    """Rows of scikit-learn's digits as tokens, 600 to train and 300 to test, the quick protocol.

    A row carries its index as a one-hot part: attention over tokens knows no order.
    Origin of the bound: scikit-learn's logistic regression on the same inputs (checked below), less 0.05.
    """
    digits = load_digits()
    index = np.broadcast_to(8 * np.eye(8), (900, 8, 8))
    tokens = np.concatenate([digits.images[:900], index], axis=2).astype(np.float16)
    train, test = InMemoryTokens(tokens[:600]), InMemoryTokens(tokens[600:])
    sweep = plan_sweep(
        head_info.build,
        train,
        digits.target[:600],
        protocol=QUICK,
        has_dropout=head_info.has_dropout,
        seed=0,
    )
    result = run_sweep(sweep, SweepOptions(precision=precision))
    logits = predict(result.head, test, torch.arange(300), 128)
    got = scores(logits, torch.from_numpy(digits.target[600:900])).balanced_accuracy

    flat = [source.batch(torch.arange(source.num_samples)).flatten(1).numpy() for source in (train, test)]
    reference = LogisticRegression(max_iter=1000).fit(flat[0], digits.target[:600])
    assert got > reference.score(flat[1], digits.target[600:900]) - 0.05


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tokens_are_normalised_and_zeros_stay(dtype: type) -> None:
    array = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(dtype)
    array[2, 1] = 0
    array.setflags(write=False)  # as a memory map
    source = InMemoryTokens(array)
    assert (source.num_samples, source.num_tokens, source.width) == (5, 3, 8)
    rows = torch.tensor([2, 0])
    batch = source.batch(rows)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, F.normalize(torch.tensor(array[[2, 0]]).float(), dim=-1))
    assert torch.equal(batch[0, 1], torch.zeros(8))
    batch.fill_(9)
    assert not torch.equal(source.batch(rows), batch), "a batch is a copy"


def test_tokens_that_cannot_be_used() -> None:
    array = np.ones((4, 2, 8), dtype=np.float32)
    array[3, 1, 5] = np.nan
    with pytest.raises(RequestError, match="1 sample holds values that are not finite, the first is row 3"):
        InMemoryTokens(array)
    with pytest.raises(RequestError, match=r"shape \[N, T, D\], not torch.float64 of shape \(4, 16\)"):
        InMemoryTokens(np.ones((4, 16)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 9, generator=generator)
    labels = torch.randint(0, 8, (200,), generator=generator)  # class 8 is absent
    labels[labels == 3] = 2  # and class 3 too
    got = scores(logits, labels)
    pred = logits.argmax(dim=1)
    assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, pred), rel=1e-12)
    assert got.balanced_accuracy == balanced_accuracy(pred, labels, 9)
    for k, mine in ((1, got.top1), (5, got.top5), (3, top_k(logits, labels, 3))):
        assert mine == pytest.approx(
            top_k_accuracy_score(labels, logits, k=k, labels=np.arange(9)), rel=1e-12
        )


def test_top5_needs_six_classes() -> None:
    logits = torch.eye(6)
    assert scores(logits, torch.arange(6)).top5 == 1.0
    assert scores(logits[:5], torch.arange(5)).top5 is None
    # A class that training did not know cannot be recalled: 5 of 6 classes by hand.
    assert scores(logits[:, :5], torch.arange(6)).balanced_accuracy == pytest.approx(5 / 6)
