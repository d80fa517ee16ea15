"""How label sets are divided: every label has its share in each part, and rare ones are not lost by lot."""

from dataclasses import replace

import numpy as np
import pytest

from featcache.probing.heads import get_head
from featcache.probing.inputs.label_sets import iterative_parts, label_set_folds, label_set_holdout
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.scoring.tasks import MultiLabel
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.store.errors import RequestError

from .recording_reporter import RecordingReporter

SHORT = replace(QUICK, min_epochs=1, min_steps=20, learning_rates=(1e-2,), weight_decays=(1e-4,))


def label_sets(seed: int, counts: tuple[int, ...] = (120, 60, 20, 4)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sets = np.zeros((200, len(counts)), np.float32)
    for label, count in enumerate(counts):
        sets[rng.choice(200, count, replace=False), label] = 1
    return sets


@pytest.mark.parametrize("seed", range(30))
def test_a_rare_label_is_both_trained_on_and_held_out(seed: int) -> None:
    sets = label_sets(seed, (120, 60, 20, 4, 3, 2, 1))
    train, held = MultiLabel(7).holdout(sets, 0.2, seed)
    assert sorted([*train, *held]) == list(range(200))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert abs(len(held) - 40) <= 4
    counts = sets[held].sum(0)
    assert abs(counts[:3] - (24, 12, 4)).max() <= 2
    assert counts[3] >= 1
    assert counts[4] >= 1
    assert (sets[train].sum(0) >= 1).all()


def test_labels_that_come_together_have_their_shares() -> None:
    """Every sample of the rare label also has a rarer one, so a stratum for each rarest label would miss it."""
    sets = label_sets(0, (120, 60, 20, 4))
    rare = np.flatnonzero(sets[:, 3])
    both = np.concatenate([sets, np.zeros((200, 2), np.float32)], 1)
    both[rare[:2], 4], both[rare[2:], 5] = 1, 1
    assert all(both[label_set_holdout(both, 0.2, seed)[1], 3].sum() >= 1 for seed in range(20))


@pytest.mark.parametrize("number", [2, 5])
def test_folds_have_equal_shares_of_every_label(number: int) -> None:
    sets = label_sets(3)
    folds = label_set_folds(sets, number, 0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(200))
    shares = np.array([sets[held].sum(0) for _, held in folds])
    assert np.ptp(shares, 0).max() <= 2
    for train, held in folds:
        assert not {*train} & {*held}


def test_the_same_seed_gives_the_same_parts() -> None:
    sets = label_sets(1)
    first, again, other = (iterative_parts(sets, (0.8, 0.2), seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    nothing = iterative_parts(np.zeros((50, 3)), (0.8, 0.2), 0)
    assert (nothing == 1).sum() == 10


def test_what_cannot_be_divided() -> None:
    with pytest.raises(RequestError, match="between 0 and 1, not 1"):
        label_set_holdout(label_sets(0), 1, 0)
    with pytest.raises(RequestError, match="do not make 1 folds"):
        label_set_folds(label_sets(0), 1, 0)


@pytest.mark.parametrize("each", [2, 3])
def test_many_rare_labels_leave_enough_to_choose_with(each: int) -> None:
    """Of two samples of a label, 0.4 should be held out: label by label, none would be."""
    sets = np.eye(100, dtype=np.uint8)[np.arange(100 * each) % 100]
    for seed in range(5):
        train, held = label_set_holdout(sets, 0.2, seed)
        assert sorted([*train, *held]) == list(range(100 * each))
        assert len(held) >= 20 * each
        assert sets[train].any(0).all()


def test_a_handful_of_label_sets_is_divided_or_fitted_without_a_choice() -> None:
    sets = np.eye(3, dtype=np.uint8)[np.arange(5) % 3]
    train, held = label_set_holdout(sets, 0.2, 0)
    assert (len(train), len(held)) == (4, 1)
    assert not len(label_set_holdout(np.eye(4), 0.2, 0)[1])
    features = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for head in ("linear", "ridge"):
        heard = RecordingReporter()
        job = array_job(get_head(head), 1)
        fitted = fit_head(
            job, InMemoryTokens(features[:, None]), np.eye(4, dtype=int), protocol=SHORT, reporter=heard
        )
        assert np.isnan(fitted.validation)
        assert any("leave none to choose with" in message for message in heard.messages)
