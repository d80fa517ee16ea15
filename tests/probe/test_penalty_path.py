"""Which penalty a path chooses: ties go to the likelier, and the path goes on while its end is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.probing.inputs.split import stratified_folds, stratified_holdout
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.scoring.metrics import negative_log_likelihood
from featcache.probing.solver import group_lasso, logistic
from featcache.probing.solver.certificate import Certificate
from featcache.probing.solver.exact import run_exact_sweep
from featcache.probing.solver.path_choice import Bounds, Tried, further_penalties, most_steps
from featcache.probing.training.closed_form import ends_of_grid


def separable(num_samples: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes that no penalty confuses."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_samples) % 10
    centres = rng.normal(size=(10, 1, 32))
    return (1.2 * centres[labels] + 0.6 * rng.normal(size=(num_samples, 1, 32))).astype(np.float32), labels


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("penalty_kind", ["l2", "group-lasso"])
def test_a_tie_goes_to_the_likelier_penalty(folds: int, penalty_kind: str) -> None:
    array, labels = separable()
    protocol = replace(QUICK, folds=folds)
    result = run_exact_sweep(
        InMemoryTokens(array), labels, protocol=protocol, seed=0, penalty_kind=penalty_kind
    )
    scores = list(result.validation.values())
    tied = [penalty for penalty, score in result.validation.items() if score == max(scores)]
    assert len(tied) > 5
    assert result.penalty < max(tied)
    outputs = {}
    held = np.concatenate(
        [rows for _, rows in stratified_folds(labels, 3, 0)]
        if folds > 1
        else [stratified_holdout(labels, 0.2, 0)[1]]
    )
    for penalty in tied:
        alone = run_exact_sweep(
            InMemoryTokens(array),
            labels,
            protocol=protocol,
            seed=0,
            penalty_kind=penalty_kind,
            penalties=[penalty],
        )
        outputs[penalty] = negative_log_likelihood(alone.held_out, torch.from_numpy(labels[held]))
    assert min(outputs.values()) == pytest.approx(outputs[result.penalty], abs=2e-6)
    assert negative_log_likelihood(result.held_out, torch.from_numpy(labels[held])) < 0.1


def test_a_path_goes_on_while_its_end_is_chosen() -> None:
    def tried(likelihoods: dict[float, float], converged: bool = True) -> dict[float, Tried]:
        certificate = Certificate(1.0, 1.0, 0.0, 0.0, 1, converged)
        return {
            penalty: Tried(torch.empty(0, 2), 1.0, likelihood, certificate, [])
            for penalty, likelihood in likelihoods.items()
        }

    bounds = Bounds.of([1.0, 0.1, 0.01], stronger=True)
    assert (bounds.weakest, bounds.strongest) == pytest.approx((1e-5, 1e3))
    weak = further_penalties(tried({1.0: -3, 0.1: -2, 0.01: -1}), bounds)
    assert weak == pytest.approx([1e-3, 1e-4])
    assert further_penalties(tried({1.0: -1, 0.1: -2, 0.01: -3}), bounds) == pytest.approx([100, 10])
    assert further_penalties(tried({1.0: -3, 0.1: -1, 0.01: -2}), bounds) == []
    assert further_penalties(tried({1.0: -3, 0.1: -1, 0.01: -0.9999}), bounds) == [], "nothing is gained"
    assert further_penalties(tried({1.0: -3, 0.1: -2, 0.01: -1}, False), bounds) == [], "it did not converge"
    assert further_penalties(tried({1e-3: -3, 1e-4: -2, 1e-5: -1}), bounds) == [], "the bound"
    assert further_penalties(tried({1e-2: -3, 1e-3: -2, 1e-4: -1}), bounds) == pytest.approx([1e-5])
    assert further_penalties(tried({1.0: -1, 0.1: -2}), Bounds.of([1.0, 0.1], stronger=False)) == []
    assert further_penalties(tried({1.0: -1}), bounds) == []


def test_an_extended_path_finds_what_a_wide_one_would() -> None:
    """Tokens of a tiny informative part beside a large constant one: all default penalties are far too strong."""
    array, labels = separable()
    array = np.concatenate([1e-4 * array, np.random.default_rng(1).normal(size=(300, 1, 1))], 2).astype(
        np.float32
    )
    result = run_exact_sweep(InMemoryTokens(array), labels, protocol=QUICK, seed=0)
    assert result.extended > 0
    assert result.penalty < list(result.validation)[12]
    wide = run_exact_sweep(
        InMemoryTokens(array), labels, protocol=QUICK, seed=0, penalties=list(result.validation)
    )
    assert (wide.penalty, wide.validation) == (result.penalty, result.validation)


def test_the_end_of_a_grid_is_said() -> None:
    grid = [({"penalty": penalty}, 0.5) for penalty in (1.0, 0.1, 0.01)]
    assert ends_of_grid(grid, {"penalty": 0.01}) == [
        "the smallest penalty was chosen, 0.01; a better one may lie beyond"
    ]
    assert ends_of_grid(grid, {"penalty": 0.1}) == []
    assert ends_of_grid([({"shrinkage": one}, 0.5) for one in (1.0, 0.1)], {"shrinkage": 1.0}) == []
    neighbors = [({"k": k, "temperature": 0.1}, 0.5) for k in (1, 5, 20)]
    assert len(ends_of_grid(neighbors, {"k": 20, "temperature": 0.1})) == 1


@pytest.mark.parametrize("grid", [logistic.GRID, group_lasso.GRID])
def test_what_a_path_may_be_extended_by_is_counted(grid: tuple[float, ...]) -> None:
    """Every further penalty at the weak end is better, until the bound."""
    bounds = Bounds.of(list(grid), stronger=True)

    def better(penalty: float) -> Tried:
        certificate = Certificate(penalty, 0.0, 0.0, 0.0, 1, converged=True)
        return Tried(torch.empty(0), 1 - penalty, -penalty, certificate, [])

    tried = {penalty: better(penalty) for penalty in grid}
    while further := further_penalties(tried, bounds):
        tried |= {penalty: better(penalty) for penalty in further}
    assert len(tried) - len(grid) == most_steps(grid)
