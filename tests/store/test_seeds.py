"""Seeds: one range, whatever asks for one."""

import numpy as np
import pytest

from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.probing.estimators import LinearProbe
from featcache.probing.requests.request import ProbeRequest
from featcache.store.errors import RequestError
from featcache.store.seeds import MAX_SEED, check_seed

BAD = [-1, MAX_SEED + 1, 10**30, 0.5, True, "0", None]


@pytest.mark.parametrize("seed", BAD)
def test_seeds_out_of_range_are_refused_everywhere(seed):
    for ask in (
        check_seed,
        lambda s: ProbeRequest(heads=("linear",), seeds=(0, s)),
        lambda s: ExtractRequest("m", "d", split_seed=s),
        lambda s: DatasetOptions(split_seed=s),
    ):
        with pytest.raises(RequestError, match="must be a whole number from 0 to 9223372036854775807, got "):
            ask(seed)


def test_an_estimator_refuses_them_when_it_is_fitted():
    probe = LinearProbe(protocol="quick", random_state=-1)
    with pytest.raises(RequestError, match="random_state must be a whole number from 0"):
        probe.fit(np.eye(8, dtype=np.float32), np.arange(8) % 2)


def test_the_ends_of_the_range_are_seeds():
    assert [check_seed(seed) for seed in (0, MAX_SEED, np.uint64(7))] == [0, MAX_SEED, 7]
    ProbeRequest(heads=("linear",), seeds=(MAX_SEED,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": (10**30,)}, "shots must be at most 1,000,000,000"),
        ({"shots": (1,), "draws": 10**20}, "draws must be at most 1,000,000"),
        ({"folds": 2**70}, "folds must be at most 1,000,000"),
        ({"halving": 2**70}, "halving must be at most 1,000,000"),
        ({"memory": -5}, "memory must be at least 1 byte, got -5"),
    ],
)
def test_so_are_other_numbers_that_no_file_holds(given, message):
    with pytest.raises(RequestError, match=message):
        ProbeRequest(heads=("linear",), **given)
