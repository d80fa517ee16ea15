"""The constants and rules of the protocols. Where no other origin is given, numbers are those of arXiv 2601.09322."""

import os
from dataclasses import astuple, replace
from functools import partial
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.probing.heads import get_head
from featcache.probing.inputs.split import draw_shots, stratified_folds, stratified_holdout
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.files import read_text
from featcache.probing.protocols.protocol import (
    PAPER,
    QUICK,
    Member,
    Plan,
    batch_size,
    get_protocol,
    learning_rate_at,
    plan_training,
    training_batch_size,
)
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.training import batches
from featcache.probing.training.batches import Jitter
from featcache.probing.training.prediction import predict
from featcache.probing.training.sweep import run_sweep
from featcache.probing.training.sweep_options import SweepOptions
from featcache.probing.training.sweep_plan import Sweep, plan_sweep
from featcache.probing.training.trainer import fit_members
from featcache.probing.training.tuning import select_best
from featcache.store.errors import RequestError, UnknownNameError


def test_constants() -> None:
    assert astuple(PAPER) == (
        "paper",
        (0.1, 0.01, 0.001),
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        (0.0, 0.1, 0.3),
        40,  # epochs
        1000,  # steps
        2048,  # batch size
        17,  # smallest batch size
        5,  # full batches
        1e-6,  # floor of the learning rate
        5.0,  # gradient norm
        0.5,  # jitter probability
        0.05,  # jitter deviation
        0.2,  # held-out fraction
        (0.9, 0.999),
        1e-8,
        "l2",  # input transform
        1,  # a held-out part, no folds
        None,
        1,  # no halving
        50,
        *(False, False, False),  # none of the quirks of the published runs
    )
    quirks = ("jitter_validation", "projected_final", "patch_norm_over_tokens")
    assert get_protocol("paper-parity") == replace(PAPER, name="paper-parity", **dict.fromkeys(quirks, True))
    # Ours: everything else is as in the paper.
    assert replace(PAPER, **{k: getattr(QUICK, k) for k in ("name", "min_epochs", "min_steps")}) == replace(
        QUICK, **{k: getattr(PAPER, k) for k in ("learning_rates", "weight_decays", "dropouts")}
    )
    assert (QUICK.min_epochs, QUICK.min_steps) == (20, 300)
    with pytest.raises(UnknownNameError, match=r"unknown protocol 'papers'; did you mean paper\?"):
        get_protocol("papers")


def test_members_in_the_order_that_breaks_ties() -> None:
    linear, attentive = PAPER.members(has_dropout=False), PAPER.members(has_dropout=True)
    assert (len(linear), len(attentive)) == (21, 63)
    assert linear[:2] == (Member(0.1, 1e-6, 0.0), Member(0.1, 1e-5, 0.0))
    assert attentive[:21] == linear, "dropout is the outermost loop and starts with 0"
    assert attentive[7] == Member(0.01, 1e-6, 0.0)
    assert attentive[21] == Member(0.1, 1e-6, 0.1)
    assert attentive[-1] == Member(0.001, 1.0, 0.3)
    assert QUICK.members(has_dropout=True) == (
        Member(1e-2, 1e-4, 0.1),
        Member(1e-2, 1e-2, 0.1),
        Member(1e-3, 1e-4, 0.1),
        Member(1e-3, 1e-2, 0.1),
    )
    assert [member.dropout for member in QUICK.members(has_dropout=False)] == [0.0] * 4


def test_learning_rate() -> None:
    assert learning_rate_at(0, 1000, 0.1, 1e-6) == pytest.approx(0.1, rel=1e-12)
    assert learning_rate_at(500, 1000, 0.1, 1e-6) == pytest.approx((0.1 + 1e-6) / 2, rel=1e-12)
    by_formula = 1e-6 + (0.1 - 1e-6) * (1 + cos(pi * 250 / 1000)) / 2
    assert learning_rate_at(250, 1000, 0.1, 1e-6) == pytest.approx(by_formula, rel=1e-12)
    # The last step is one before the floor: 1 + cos(pi - d) is about d^2 / 2 with d = pi / 1000.
    last = learning_rate_at(999, 1000, 0.1, 1e-6)
    assert last == pytest.approx(1e-6 + 0.1 * (pi / 1000) ** 2 / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("num_train", "expected"),
    [
        (1020, 204),  # Flowers
        (6000, 1200),
        (1_281_167, 2048),  # ImageNet: 625 full batches and 1,167
        (50_000, 2040),  # 24 full batches and 848, too few; 24.5 b <= 50,000 gives 2,040, which leaves 1,040
        (10_240, 2048),  # five full batches, no rest
        (11_264, 2048),  # five full batches and exactly half of one
        (11_240, 2248),  # the rest of 1,000 is too small, so five batches exceed 2,048
        (10_241, 1862),  # one too many for five batches: 5 * 1862 leaves exactly half a batch
    ],
)
def test_batch_size_examples(num_train: int, expected: int) -> None:
    assert batch_size(num_train, PAPER) == expected


@settings(deadline=None)
@given(st.integers(94, 3_000_000))
def test_batch_size_rule(num_train: int) -> None:
    """Word by word: enough full batches, a rest of 0 or half a batch at least, and the largest such size."""
    required = max(5, num_train // 2048)

    def fits(size: int) -> bool:
        rest = num_train % size
        return num_train // size >= required and (rest == 0 or rest >= size / 2)

    size = batch_size(num_train, PAPER)
    assert size >= 17
    assert fits(size)
    if size == 2048:
        return
    assert not (num_train >= 5 * 2048 and fits(2048))
    assert not any(fits(larger) for larger in range(size + 1, num_train // required + 2))


@settings(deadline=None)
@given(st.integers(2, 93))
def test_batch_size_of_tiny_splits(num_train: int) -> None:
    """Ours, where the rule has no answer: fewer batches, but none of a handful of samples."""
    size = batch_size(num_train, PAPER)
    rest = num_train % size
    assert min(17, num_train) <= size <= num_train
    assert rest == 0 or rest >= size / 2


def test_last_batch_of_one() -> None:
    assert training_batch_size(816, 204) == 204
    assert training_batch_size(817, 204) == 205
    assert training_batch_size(13, 3) == 5, "3 and 4 leave one sample"
    assert training_batch_size(3, 100) == 100
    with pytest.raises(RequestError, match="at least 2 samples, not 1; use a larger train split"):
        training_batch_size(1, 17)


def test_epochs() -> None:
    assert plan_training(816, 204, PAPER) == Plan(204, 4, 250), "Flowers, tuning"
    assert plan_training(1020, 204, PAPER) == Plan(204, 5, 200), "Flowers, final fit"
    assert plan_training(6000, 1200, PAPER) == Plan(1200, 5, 200)
    assert plan_training(2048 * 25, 2048, PAPER).num_epochs == 40, "exactly 1,000 steps"
    assert plan_training(2048 * 24, 2048, PAPER).num_epochs == 42, "ceil(1000 / 24)"
    assert plan_training(816, 204, QUICK).num_epochs == 75, "300 steps (ours)"
    assert plan_training(2048 * 25, 2048, QUICK).num_steps == 500, "20 epochs (ours)"


def test_class_weights() -> None:
    """N / (C * count_c) by hand: N = 6, C = 4, class 2 empty."""
    weights = class_weights(torch.tensor([0, 0, 0, 1, 1, 3]), 4)
    torch.testing.assert_close(weights, torch.tensor([6 / 12, 6 / 8, 0.0, 6 / 4]))


def test_jitter() -> None:
    tokens = torch.zeros(2000, 3, 8)
    tokens[:, 0, 0] = 1
    noisy = Jitter(0.5, 0.05, 0, "cpu").add_(tokens.clone())
    noise = noisy - tokens
    changed = noise.flatten(1).any(dim=1)
    # 2,000 fair coins deviate by 4 times 22.4 once in 16,000 seeds.
    assert abs(int(changed.sum()) - 1000) < 90
    assert noise[changed].ne(0).all(), "every element of a chosen sample, none of another"
    # About 24,000 draws: the deviation is known to 0.5 %, the mean to 0.0003.
    assert noise[changed].std().item() == pytest.approx(0.05, rel=0.02)
    assert noise[changed].mean().item() == pytest.approx(0, abs=0.0013)
    again = Jitter(0.5, 0.05, 0, "cpu").add_(tokens.clone())
    assert torch.equal(noisy, again)
    assert torch.equal(Jitter(0.0, 0.05, 0, "cpu").add_(tokens.clone()), tokens)


def test_jitter_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.zeros(300, 3, 8)
    drawn = []
    for small in (batches.SMALL_NOISE, 1):  # one thread, then several
        monkeypatch.setattr(batches, "SMALL_NOISE", small)
        jitter = Jitter(0.5, 0.05, 0, "cpu")
        drawn.append([jitter.add_(tokens.clone()) for _ in range(3)])
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[0][0], drawn[0][1]), "every mini-batch has noise of its own"


def test_stratified_holdout_by_hand() -> None:
    """20 % of 19 is 4: shares 2, 1, 0.2 and 0.6; class 2 keeps its only sample, so class 3 gets the rest."""
    labels = np.repeat([0, 1, 2, 3], [10, 5, 1, 3])
    train, held = stratified_holdout(labels, 0.2, seed=0)
    assert np.bincount(labels[held], minlength=4).tolist() == [2, 1, 0, 1]
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(19))
    assert not np.array_equal(held, stratified_holdout(labels, 0.2, seed=1)[1])
    with pytest.raises(RequestError, match=r"between 0 and 1, not 1\.0"):
        stratified_holdout(labels, 1.0, seed=0)
    with pytest.raises(RequestError, match=r"vector of integers, not float64 of shape \(19,\)"):
        stratified_holdout(labels.astype(float), 0.2, seed=0)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 9)
)
def test_stratified_holdout_always(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, held = stratified_holdout(labels, fraction, seed)
    assert train.dtype == held.dtype == np.int64
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    assert set(labels[train]) == set(labels), "a class never loses its last sample"
    spare = sum(count - 1 for count in counts)
    assert len(held) == min(round(fraction * len(labels)), spare)
    if min(counts) >= 2 / (1 - fraction):  # no class runs out, so each is within one of its share
        share = fraction * np.array(counts)
        assert (np.abs(np.bincount(labels[held], minlength=len(counts)) - share) < 1).all()
    assert np.array_equal(held, stratified_holdout(labels, fraction, seed)[1])


def test_selection_keeps_the_earlier_of_a_tie() -> None:
    first, second, third, fourth = QUICK.members(has_dropout=True)
    assert select_best({first: 0.5, second: 0.8, third: 0.8, fourth: 0.7}) == second
    assert select_best({first: 0.8, second: 0.8}) == first


SHORT = replace(QUICK, min_epochs=1, min_steps=8)


def plan_linear(
    source: InMemoryTokens, labels: np.ndarray, seed: int = 0, num_classes: int | None = None
) -> Sweep:
    return plan_sweep(
        get_head("linear").build,
        source,
        labels,
        protocol=SHORT,
        has_dropout=False,
        seed=seed,
        num_classes=num_classes,
    )


def clusters(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, 2, 8] of 3 classes around 3 centres, with their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % 3
    centres = rng.normal(size=(3, 2, 8))
    return (centres[labels] + rng.normal(size=(num_samples, 2, 8))).astype(np.float32), labels


def test_training_never_sees_the_held_out_part() -> None:
    tokens, labels = clusters(60)
    train, held = stratified_holdout(labels, 0.2, seed=0)
    poisoned_tokens, poisoned_labels = tokens.copy(), labels.copy()
    poisoned_tokens[held] *= -100
    poisoned_labels[held] = 0
    heads = [
        fit_members(
            get_head("attentive").build,
            InMemoryTokens(some_tokens),
            torch.from_numpy(some_labels),
            torch.from_numpy(train),
            [Member(1e-2, 1e-4, 0.1)],
            protocol=SHORT,
            batch_size=20,
            seed=0,
            num_classes=3,
        )[0]
        for some_tokens, some_labels in ((tokens, labels), (poisoned_tokens, poisoned_labels))
    ]
    torch.testing.assert_close(heads[0].state_dict(), heads[1].state_dict(), rtol=0, atol=0)


class RecordingTokens(InMemoryTokens):
    """Remembers which rows were read, call by call."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self.calls: list[set[int]] = []

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls.append(set(rows.tolist()))
        return super().batch(rows)


def test_sweep_tunes_on_the_training_part_only() -> None:
    """All members share the mini-batches, so the reads are: trials of the memory, tuning, one validation per member, final fit."""
    tokens, labels = clusters(60)
    source = RecordingTokens(tokens)
    result = run_sweep(plan_linear(source, labels, seed=4))
    train, held = (set(rows.tolist()) for rows in stratified_holdout(labels, 0.2, seed=4))
    steps = result.tuning.num_steps
    trials = len(source.calls) - (steps + 4 + result.final.num_steps)
    assert all(rows <= train for rows in source.calls[:trials])
    calls = source.calls[trials:]
    assert set.union(*calls[:steps]) == train
    assert calls[steps : steps + 4] == [held] * 4
    assert set.union(*calls[steps + 4 :]) == train | held


def test_sweep_chooses_on_validation_and_fits_on_all_of_train() -> None:
    tokens, labels = clusters(60)
    source = InMemoryTokens(tokens)
    progress: list[tuple[int, int]] = []
    sweep = plan_linear(source, labels, seed=4)
    result = run_sweep(sweep, SweepOptions(on_progress=lambda done, total: progress.append((done, total))))
    assert tuple(result.validation) == SHORT.members(has_dropout=False)
    assert result.member == select_best(result.validation)
    # 60 = 3 * 17 + 9 has no five full batches: 60 = 3 * 20 comes first; tuning has 48 = 2 * 20 + 8.
    assert (result.tuning, result.final) == (Plan(20, 3, 3), Plan(20, 3, 3))
    assert (result.num_parameters, result.num_classes) == (2 * 8 * 3 + 3, 3)
    refit = fit_members(
        get_head("linear").build,
        source,
        torch.from_numpy(labels),
        torch.arange(60),
        [result.member],
        protocol=SHORT,
        batch_size=20,
        seed=4,
        num_classes=3,
    )[0]
    torch.testing.assert_close(result.head.state_dict(), refit.state_dict(), rtol=0, atol=0)
    assert progress[-1] == (4 * 9 + 9, 4 * 9 + 9)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})


def test_sweep_refuses_what_it_cannot_use() -> None:
    tokens, labels = clusters(3)
    source = InMemoryTokens(tokens)
    for wrong, message in [
        (labels, "3 samples leaves nothing to hold out .* use a larger one"),
        (labels[:2], r"3 samples need labels of shape \(3,\), not \(2,\)"),
        (labels - 1, "count from 0, but the labels run from -1 to 1"),
    ]:
        with pytest.raises(RequestError, match=message):
            plan_linear(source, wrong)
    with pytest.raises(RequestError, match="count from 0 to 1, but the labels run from 0 to 2"):
        plan_linear(source, labels, num_classes=2)


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "quick"\ninput = "standard"\nlearning_rates = [1]\nfolds = 5\nfolds_below = 500\n'
    )
    mine = get_protocol(str(path))
    assert mine == replace(
        QUICK, name="mine", input="standard", learning_rates=(1.0,), folds=5, folds_below=500
    )
    assert (mine.num_folds(499), mine.num_folds(500)) == (5, 1)
    # What is copied means the same.
    path.write_text(read_text("paper")[1])
    assert get_protocol(str(path)) == replace(PAPER, name="mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = [1]", r"unknown field 'learning_rate'; did you mean learning_rates.* \(in protocol .*mine.toml\)"),
        ("learning_rates = []", r"mine.toml: learning_rates must be a list of numbers, not \[\]"),
        ("learning_rates = [0.1, 1e-1]", "mine.toml: learning_rates has a value twice: 0.1, 0.1"),
        ("learning_rates = 0.1", "learning_rates must be a list of numbers, not 0.1"),
        ("dropouts = [1.0]", "dropouts must lie in the range 0 to 0.95, not 1"),
        ("weight_decays = [-1]", "weight_decays must lie in the range 0 or more, not -1"),
        ("eps = 0", "eps must lie in the range above 0, not 0"),
        ("min_steps = 1.5", "min_steps must be a whole number, not 1.5"),
        ("betas = [0.9]", r"betas must be a list of two numbers, not \[0.9\]"),
        ('jitter_validation = "no"', "jitter_validation must be true or false, not 'no'"),
        ('input = "l3"', r"unknown input transform 'l3'; valid: .*l2"),
        ('base = "papers"', r"unknown protocol 'papers'; did you mean paper"),
        ("base = 3", "base must be the name of a protocol, not 3"),
        ("a = ", "mine.toml is not TOML: Invalid value"),
        (f"min_epochs = 1{'0' * 400}", r"min_epochs must lie in the range 1 to 1e\+06, not 10{40,60}\.\.\."),
        (f"learning_rates = [1{'0' * 400}]", r"learning_rates must be a list of numbers, not \[10{40,60}\.\.\."),
        (f"jitter_std = 1{'0' * 400}", "jitter_std must be a number, not 1000"),
        (f"min_steps = 1{'0' * 5000}", "mine.toml is not TOML: .* digits"),
        (f"a = {'[' * 5000}", "mine.toml is not TOML: nested too deeply"),
    ],
)  # fmt: skip
def test_a_wrong_protocol_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        get_protocol(str(path))


def test_a_protocol_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfbase = "quick"\r\nfolds = 3\r\n')
    assert get_protocol(str(path)) == replace(QUICK, name="mine", folds=3)


def test_the_name_of_a_protocol_file_can_be_written(tmp_path: Path) -> None:
    """A file's name may be any bytes; that of a protocol stands in results, which are UTF-8."""
    path = tmp_path / os.fsdecode(b"mine\xff.toml")
    path.write_text("folds = 3\n")
    assert get_protocol(str(path)).name == r"mine\udcff"


def test_a_protocol_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"mine.toml cannot be read \(No such file or directory\); `featcache proto"
    ):
        get_protocol(str(tmp_path / "mine.toml"))
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "{path}"')
    with pytest.raises(RequestError, match="are each other's base"):
        get_protocol(str(path))


def test_successive_halving() -> None:
    """Rounds are short trainings; the score that counts is that of the last one, and fewer and fewer members are in."""
    tokens, labels = clusters(60)
    protocol = replace(SHORT, learning_rates=(1e-1, 1e-2, 1e-3, 1e-6), weight_decays=(1e-4,), halving=2)
    protocol = replace(protocol, min_steps=48, halving_min_steps=12)
    source = RecordingTokens(tokens)
    plan = partial(plan_sweep, get_head("linear").build, source, labels, has_dropout=False, seed=0)
    sweep = plan(protocol=protocol)
    assert [(one.num_members, one.factor) for one in sweep.rounds] == [(4, 0.25), (2, 0.5), (1, 1.0)]
    progress: list[tuple[int, int]] = []
    result = run_sweep(sweep, SweepOptions(on_progress=lambda done, total: progress.append((done, total))))
    assert list(result.validation) == [result.member]
    assert result.member.learning_rate > 1e-6, "what learns nothing falls out"
    assert progress[-1] == (4 * 12 + 2 * 24 + 48 + 48, 4 * 12 + 2 * 24 + 48 + 48)
    # A round that would be too short is not played.
    assert len(plan(protocol=replace(protocol, halving_min_steps=24)).rounds) == 2
    # Members of an earlier run are not trained again, and the outcome is the same.
    kept: list[list[dict[Member, float]]] = []
    run_sweep(sweep, SweepOptions(on_group=lambda rounds: kept.append([dict(one) for one in rounds])))
    again = run_sweep(sweep, SweepOptions(finished=kept[1]))
    assert again.member == result.member
    torch.testing.assert_close(again.head.state_dict(), result.head.state_dict(), rtol=0, atol=0)


def test_folds_hold_every_sample_out_once() -> None:
    tokens, labels = clusters(60)
    source = RecordingTokens(tokens)
    sweep = plan_sweep(
        get_head("linear").build, source, labels, protocol=replace(SHORT, folds=3), has_dropout=False, seed=0
    )
    assert torch.equal(sweep.held_rows.sort().values, torch.arange(60))
    for train, held in sweep.splits:
        assert not set(train.tolist()) & set(held.tolist())
        assert np.bincount(labels[held.numpy()]).tolist() in ([7, 7, 6], [7, 6, 7], [6, 7, 7])
    result = run_sweep(sweep)
    # Pooled, by hand: every fold's predictions are of heads that did not see it.
    outputs = []
    for train, held in sweep.splits:
        (head,) = fit_members(
            get_head("linear").build,
            InMemoryTokens(tokens),
            torch.from_numpy(labels),
            train,
            [result.member],
            protocol=sweep.protocol,
            batch_size=sweep.batch_size,
            seed=0,
            num_classes=3,
        )
        outputs.append(predict(head, InMemoryTokens(tokens), held, 64))
    right = torch.cat(outputs).argmax(1) == torch.from_numpy(labels)[sweep.held_rows]
    by_hand = [
        right[torch.from_numpy(labels)[sweep.held_rows] == label].double().mean() for label in range(3)
    ]
    assert result.validation[result.member] == pytest.approx(float(sum(by_hand)) / 3)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=9), st.integers(2, 5), st.integers(0, 9))
def test_stratified_folds_always(counts: list[int], number: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    spare = sum(count for count in counts if count > 1)
    if spare < number:
        with pytest.raises(RequestError, match=f"do not make {number} folds"):
            stratified_folds(labels, number, seed)
        return
    folds = stratified_folds(labels, number, seed)
    held = np.sort(np.concatenate([held for _, held in folds]))
    assert np.array_equal(held, np.flatnonzero(np.array(counts)[labels] > 1)), (
        "each once, but no class's only sample"
    )
    for train, out in folds:
        assert np.array_equal(np.sort(np.concatenate([train, out])), np.arange(len(labels)))
        assert set(labels[train]) == set(labels), "no class is without samples to train on"
        assert abs(len(out) - spare / number) < 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=9), st.integers(0, 9))
def test_shots(counts: list[int], draw: int) -> None:
    labels = np.random.default_rng(draw).permutation(np.repeat(np.arange(len(counts)), counts))
    few, more = draw_shots(labels, 3, draw), draw_shots(labels, 5, draw)
    assert np.bincount(labels[few]).tolist() == [min(3, count) for count in counts]
    assert set(few) <= set(more), "a draw of fewer shots is part of the same draw of more"
    assert (np.diff(few) > 0).all()
