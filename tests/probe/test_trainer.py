"""Training of many members at once against one plain loop, and the parts around it: tokens, metrics, sweep."""

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

from featcache.probe.batches import Seeds, jitter_
from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.heads.base import Head
from featcache.probe.metrics import balanced_accuracy, scores, top_k
from featcache.probe.protocol import QUICK, Member, learning_rate_at
from featcache.probe.sweep import run_sweep
from featcache.probe.tokens import InMemoryTokens
from featcache.probe.trainer import fit_members, predict
from featcache.store.errors import RequestError

HEADS = pytest.mark.parametrize(
    "head_info", [get_head("linear"), get_head("attentive")], ids=lambda info: info.name
)
# 83 of 100 rows in batches of 20: five per epoch, the last of 3; three epochs.
PROTOCOL = replace(QUICK, min_epochs=2, min_steps=15)
BATCH_SIZE = 20
NUM_CLASSES = 4
ROWS = torch.arange(100)[17:]


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


def fit(head_info: HeadInfo, members: list[Member], seed: int = 7) -> list[Head]:
    tokens, labels = make_data()
    return fit_members(
        partial(build_double, head_info),
        DoubleTokens(tokens),
        labels,
        ROWS,
        members,
        protocol=PROTOCOL,
        batch_size=BATCH_SIZE,
        seed=seed,
        num_classes=NUM_CLASSES,
    )


def plain_loop(head_info: HeadInfo, member: Member, seed: int) -> Head:
    """One member trained alone, everything written out."""
    seeds = Seeds.derive(seed)
    tokens, labels = make_data()
    x_all = DoubleTokens(tokens).batch(torch.arange(100))
    torch.manual_seed(seeds.init)
    head = build_double(head_info, 3, 8, NUM_CLASSES, member.dropout)
    head.generator = torch.Generator().manual_seed(seeds.dropout)
    optimizer = torch.optim.AdamW(
        head.parameters(),
        lr=member.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=member.weight_decay,
    )
    order = torch.Generator().manual_seed(seeds.order)
    noise = torch.Generator().manual_seed(seeds.jitter)
    counts = [int((labels[ROWS] == c).sum()) for c in range(NUM_CLASSES)]
    weight = torch.tensor([83 / (NUM_CLASSES * count) if count else 0.0 for count in counts]).double()
    step = 0
    for _ in range(3):
        permuted = ROWS[torch.randperm(83, generator=order)]
        for start in range(0, 83, BATCH_SIZE):
            rows = permuted[start : start + BATCH_SIZE]
            x = jitter_(x_all[rows].clone(), 0.5, 0.05, noise)
            of_sample = weight[labels[rows]]
            nll = -F.log_softmax(head(x), dim=1)[torch.arange(len(rows)), labels[rows]]
            loss = (of_sample * nll).sum() / of_sample.sum()
            optimizer.param_groups[0]["lr"] = learning_rate_at(step, 15, member.learning_rate, 1e-6)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
            optimizer.step()
            step += 1
    return head.eval()


@HEADS
def test_members_equal_a_plain_loop(head_info: HeadInfo) -> None:
    tokens, _ = make_data()
    source, everything = DoubleTokens(tokens), torch.arange(100)
    members = members_of(head_info)
    for member, head in zip(members, fit(head_info, members), strict=True):
        alone = plain_loop(head_info, member, seed=7)
        # Only the order of rounding differs (fused update, form of the loss).
        torch.testing.assert_close(
            predict(head, source, everything, 32),
            predict(alone, source, everything, 100),
            rtol=1e-8,
            atol=1e-8,
        )


@HEADS
def test_members_do_not_depend_on_each_other(head_info: HeadInfo) -> None:
    members = members_of(head_info)
    together = fit(head_info, members)
    for member, head in zip(members, together, strict=True):
        (alone,) = fit(head_info, [member])
        torch.testing.assert_close(head.state_dict(), alone.state_dict(), rtol=0, atol=0)


@HEADS
def test_grouping_changes_nothing(head_info: HeadInfo) -> None:
    tokens, labels = make_data()
    sweep = partial(
        run_sweep, head_info, InMemoryTokens(tokens), labels.numpy(), protocol=PROTOCOL, seed=1, num_classes=5
    )
    whole, ones, threes = sweep(), sweep(group_size=1), sweep(group_size=3)
    assert whole.validation == ones.validation == threes.validation
    for other in (ones, threes):
        torch.testing.assert_close(whole.head.state_dict(), other.head.state_dict(), rtol=0, atol=0)


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
    expected = head(source.batch(rows))
    got = predict(head.train(), source, rows, batch_size=3)
    assert not head.training
    torch.testing.assert_close(got, expected)


@HEADS
def test_it_learns_digits(head_info: HeadInfo) -> None:
    """Rows of scikit-learn's digits as tokens, 600 to train and 300 to test, the quick protocol.

    A row carries its index as a one-hot part: attention over tokens knows no order.
    Origin of the bound: scikit-learn's logistic regression on the same inputs (checked below), less 0.05.
    """
    digits = load_digits()
    index = np.broadcast_to(8 * np.eye(8), (900, 8, 8))
    tokens = np.concatenate([digits.images[:900], index], axis=2).astype(np.float16)
    train, test = InMemoryTokens(tokens[:600]), InMemoryTokens(tokens[600:])
    result = run_sweep(head_info, train, digits.target[:600], protocol=QUICK, seed=0)
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
    with pytest.raises(RequestError, match="1 samples hold values that are not finite, the first is row 3"):
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
