"""Linear heads that are solved: solutions are held against formulas written down plainly, and against scikit-learn."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from featcache.probing.inputs.features import ResidentFeatures
from featcache.probing.inputs.split import stratified_holdout
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.scoring.metrics import balanced_accuracy, class_weights
from featcache.probing.solver.exact import run_exact_sweep
from featcache.probing.solver.group_lasso import solve_group_path, strongest_penalty
from featcache.probing.solver.groups import make_groups
from featcache.probing.solver.logistic import (
    LinearFit,
    Problem,
    c_from_penalty,
    fit_logistic,
    penalty_from_c,
)
from featcache.probing.solver.spaces import FeatureSpace, GramSpace, make_space
from featcache.store.errors import RequestError

WIDE, LONG = (40, 150), (150, 12)


def samples(
    num_samples: int, num_features: int, num_classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Classes of unequal size that overlap; features of unequal scale, far from the origin."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.4, num_samples) - 1, num_classes - 1)
    labels[:num_classes] = range(num_classes)
    centres = random.normal(size=(num_classes, num_features))
    features = (centres[labels] * 0.5 + random.normal(size=(num_samples, num_features))) * random.exponential(
        size=num_features
    ) + 2
    return torch.from_numpy(features).float() / num_features**0.5, torch.from_numpy(labels)


def obvious_objective(
    weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, penalty: float, weights: Tensor
) -> Tensor:
    """The objective as the documentation states it."""
    losses = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
    per_sample = weights[labels]
    return (per_sample * losses).sum() / per_sample.sum() + penalty / 2 * weight.square().sum()


def obvious_gradients(
    fit: LinearFit, features: Tensor, labels: Tensor, penalty: float, weights: Tensor
) -> list[Tensor]:
    """Gradient of the smooth part of the objective in weight and bias, in float64."""
    point = [fit.weight.double().requires_grad_(), fit.bias.double().requires_grad_()]
    objective = obvious_objective(*point, features.double(), labels, penalty, weights.double())
    return list(torch.autograd.grad(objective, point))


@pytest.mark.parametrize("shape", [WIDE, LONG])
@pytest.mark.parametrize(("penalty", "float32_first"), [(1e-1, True), (1e-5, True), (1e-5, False)])
def test_the_gradient_vanishes_at_the_solution(
    shape: tuple[int, int], penalty: float, float32_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if float32_first:
        monkeypatch.setattr("featcache.probing.solver.logistic.FLOAT64_VALUES", 0)
    features, labels = samples(*shape)
    weights = class_weights(labels, 4)
    (fit,) = fit_logistic(features, labels, 4, [penalty], class_weights=weights, tolerance=1e-9)
    assert fit.certificate.converged
    gradients = obvious_gradients(fit, features, labels, penalty, weights)
    # The head is float32: its rounding is what is left.
    size = float(fit.weight.abs().max())
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-7 * max(1.0, size)
    objective = float(obvious_objective(fit.weight, fit.bias, features, labels, penalty, weights))
    assert objective == pytest.approx(fit.certificate.objective, rel=1e-5)


@pytest.mark.parametrize("shape", [WIDE, LONG])
def test_it_finds_what_scikit_learn_finds(shape: tuple[int, int]) -> None:
    features, labels = samples(*shape)
    weights = class_weights(labels, 4)
    penalties = [3e-2, 1e-4]
    fits = fit_logistic(features, labels, 4, penalties, class_weights=weights, tolerance=1e-8)
    for penalty, fit in zip(penalties, fits, strict=True):
        c = c_from_penalty(penalty, float(weights[labels].sum()))
        assert penalty_from_c(c, float(weights[labels].sum())) == pytest.approx(penalty)
        other = LogisticRegression(C=c, tol=1e-10, max_iter=100_000, class_weight="balanced")
        other.fit(features.double().numpy(), labels.numpy())
        theirs = obvious_objective(
            torch.from_numpy(other.coef_),
            torch.from_numpy(other.intercept_),
            features.double(),
            labels,
            penalty,
            weights.double(),
        )
        assert fit.certificate.objective <= float(theirs) * (1 + 1e-9)
        probabilities = (features @ fit.weight.T + fit.bias).softmax(1)
        expected = other.predict_proba(features.double().numpy())
        np.testing.assert_allclose(probabilities, expected, atol=2e-4)


def test_every_space_gives_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = samples(30, 40)
    fits = []
    # Without eigenvalues, too: large problems are solved in the features as they are.
    for space, max_eigen in (
        (lambda matrix: GramSpace(ResidentFeatures(matrix)), 8192),
        (FeatureSpace, 8192),
        (make_space, 10),
    ):
        monkeypatch.setattr("featcache.probing.solver.spaces.MAX_EIGEN", max_eigen)
        monkeypatch.setattr("featcache.probing.solver.logistic.make_space", space)
        fits += fit_logistic(features, labels, 4, [1e-2], tolerance=1e-9)
    for fit in fits:
        assert fit.certificate.converged
        torch.testing.assert_close(fit.weight, fits[0].weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(fit.bias, fits[0].bias, rtol=1e-4, atol=1e-6)


def test_the_bound_on_suboptimality_holds_and_lack_of_convergence_is_told() -> None:
    features, labels = samples(*LONG)
    (best,) = fit_logistic(features, labels, 4, [1e-4], tolerance=1e-10)
    for limit in (0, 1, 3, 8):
        (fit,) = fit_logistic(features, labels, 4, [1e-4], max_iterations=limit)
        certificate = fit.certificate
        assert certificate.iterations == limit
        excess = certificate.objective - best.certificate.objective
        assert 0 <= excess <= certificate.suboptimality
        assert certificate.converged == (certificate.suboptimality <= 1e-4 * certificate.objective)
    (separable,) = fit_logistic(*samples(*WIDE), 4, [1e-14], max_iterations=30)
    assert not separable.certificate.converged
    assert separable.certificate.iterations == 30
    assert separable.weight.isfinite().all()


def test_a_path_does_not_depend_on_the_company() -> None:
    """Side by side or one by one, and in any order, every penalty has its own solution."""
    features, labels = samples(*LONG)
    penalties = [1e-3, 1.0, 1e-4]
    together = fit_logistic(features, labels, 4, penalties, tolerance=1e-8)
    assert [fit.certificate.penalty for fit in together] == penalties
    for fit, penalty in zip(together, penalties, strict=True):
        (alone,) = fit_logistic(features, labels, 4, [penalty], tolerance=1e-8)
        torch.testing.assert_close(fit.weight, alone.weight, rtol=1e-3, atol=1e-5)
    by_default = [fit.certificate.penalty for fit in fit_logistic(features, labels, 4)]
    assert by_default == sorted(by_default, reverse=True)


def test_classes_without_samples_get_no_probability() -> None:
    features, labels = samples(*LONG)
    few, wide = (fit_logistic(features, labels, c, [1e-2], tolerance=1e-8)[0] for c in (4, 6))
    torch.testing.assert_close(wide.weight[:4], few.weight)
    assert not wide.weight[4:].any()
    assert (wide.bias[4:] == -torch.inf).all()
    (single,) = fit_logistic(features, torch.full_like(labels, 2), 6, [1e-2])
    assert single.certificate.converged
    assert single.certificate.objective == 0
    assert (features @ single.weight.T + single.bias).argmax(1).eq(2).all()


def test_odd_features() -> None:
    """A constant feature, one that is always 0, duplicate rows, fewer samples than classes, one sample."""
    features, labels = samples(3, 5, num_classes=3)
    features = torch.cat([features, torch.full((3, 1), 1e3), torch.zeros(3, 1)], dim=1).repeat(2, 1)
    (fit,) = fit_logistic(features, labels.repeat(2), 9, [1e-2], tolerance=1e-6)
    assert fit.certificate.converged
    assert fit.weight[:, 5:].abs().max() < 1e-6
    assert (features @ fit.weight.T + fit.bias).argmax(1).equal(labels.repeat(2))
    (alone,) = fit_logistic(features[:1], labels[:1], 9, [1e-2])
    assert alone.certificate.converged


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 30),
    st.integers(1, 20),
    st.integers(2, 5),
    st.floats(-4, 1, allow_subnormal=False),
    st.floats(-2, 2, allow_subnormal=False),
    st.integers(0, 10**6),
)
def test_any_small_problem(n: int, f: int, c: int, log_penalty: float, log_scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(n, f, generator=random) * 10**log_scale + torch.randn(f, generator=random)
    labels = torch.randint(0, c, (n,), generator=random)
    penalty = 10**log_penalty
    # Nearly separable and badly scaled, one in some hundred takes more than the iterations of the default.
    (fit,) = fit_logistic(features, labels, c, [penalty], tolerance=1e-7, max_iterations=50_000)
    assert fit.certificate.converged
    present = labels.unique()
    inside = LinearFit(fit.weight[present], fit.bias[present], fit.certificate)
    targets = torch.searchsorted(present, labels)
    gradients = obvious_gradients(inside, features, targets, penalty, torch.ones(len(present)))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5 * max(1.0, 10**log_scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalties": [1.0, 0.0]}, "penalties must be positive numbers, not 0.0"),
        ({"penalties": [float("nan")]}, "penalties must be positive numbers, not nan"),
        ({"penalties": []}, "at least one penalty"),
        ({"num_classes": 3}, "count from 0 to 2, but the labels run from 0 to 3"),
        ({"class_weights": torch.ones(3)}, "4 classes need as many weights"),
        ({"class_weights": torch.zeros(4)}, "every sample has the class weight 0"),
        ({"labels": torch.zeros(7)}, r"150 samples need int64 labels of shape \(150,\)"),
        ({"features": torch.zeros(150, 2, dtype=torch.int64)}, "features must be float32 or float64"),
        ({"features": torch.zeros(150, 2).index_fill(0, torch.tensor([3]), torch.inf)}, "1 samples .* row 3"),
    ],
)
def test_bad_requests(changes: dict[str, object], message: str) -> None:
    features, labels = samples(*LONG)
    request = {"features": features, "labels": labels, "num_classes": 4, "penalties": [1.0], **changes}
    with pytest.raises(RequestError, match=message):
        fit_logistic(**request)


def grouped_problem(num_classes: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three groups: one that tells the classes apart, one that does a little, one of noise; more features than samples
    in the last."""
    features, labels = samples(60, 80, num_classes, seed=3)
    features[:, 6:20] -= 0.8 * (features[:, 6:20] - features[:, 6:20].mean(0))
    features[:, 20:] = features[torch.randperm(60, generator=torch.Generator().manual_seed(0)), 20:]
    return features * 5, labels, [torch.arange(6), torch.arange(6, 20), torch.arange(20, 80)]


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_a_group_lasso_meets_its_conditions(ridge: float) -> None:
    features, labels, groups = grouped_problem()
    weights = class_weights(labels, 3)
    problem = Problem.make(features, labels, 3, weights)
    grouped = make_groups(features, problem.loss.weights, groups)
    strongest = strongest_penalty(grouped, problem.loss)
    penalties = [1.001 * strongest, 0.999 * strongest, 0.3 * strongest, 0.001 * strongest]
    path = solve_group_path(grouped, problem.loss, penalties, ridge=ridge, tolerance=1e-9)
    kept = [solution.kept for solution in path]
    assert kept[0] == ()
    assert len(kept[1]) == 1
    assert 1 <= len(kept[2]) < 3
    assert len(kept[3]) > 1
    for penalty, solution in zip(penalties, path, strict=True):
        assert solution.certificate.converged
        weight, bias = grouped.head(solution.params)
        head = LinearFit(weight, bias, solution.certificate)
        on_weight, on_bias = obvious_gradients(head, features, labels, ridge, weights)
        assert on_bias.abs().max() < 1e-9
        for index, columns in enumerate(groups):
            threshold = penalty * len(columns) ** 0.5
            part, pull = weight[:, columns], on_weight[:, columns]
            assert bool(part.any()) == (index in solution.kept)
            if index in solution.kept:
                assert torch.linalg.vector_norm(pull + threshold * part / part.norm()) < 1e-6
            else:
                assert pull.norm() <= threshold * (1 + 1e-6)


def test_the_duality_gap_of_a_group_lasso_bounds_the_suboptimality() -> None:
    features, labels, groups = grouped_problem()
    problem = Problem.make(features, labels, 3, None)
    grouped = make_groups(features, problem.loss.weights, groups)
    penalty = [0.05 * strongest_penalty(grouped, problem.loss)]
    (best,) = solve_group_path(grouped, problem.loss, penalty, tolerance=1e-10)
    for limit in (0, 2, 5):
        (found,) = solve_group_path(grouped, problem.loss, penalty, max_iterations=limit)
        excess = found.certificate.objective - best.certificate.objective
        assert 0 <= excess <= found.certificate.suboptimality
        assert not found.certificate.converged


class MaskedTokens(InMemoryTokens):
    """Puts nonsense in place of some rows."""

    def __init__(self, array: np.ndarray, hidden: np.ndarray | None = None) -> None:
        super().__init__(array)
        self.hidden = hidden

    def batch(self, rows: Tensor) -> Tensor:
        tokens = super().batch(rows)
        if self.hidden is not None:
            tokens[torch.from_numpy(np.isin(rows.numpy(), self.hidden))] = 1.0
        return tokens


def token_problem(num_samples: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of which the second tells the classes apart."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, num_samples)
    tokens = random.normal(size=(num_samples, 3, width)).astype(np.float32)
    tokens[:, 1] += 1.2 * random.normal(size=(3, width))[labels]
    return tokens, labels


@pytest.mark.parametrize("width", [8, 60])
@pytest.mark.parametrize("kind", ["l2", "group-lasso"])
def test_sweep(width: int, kind: str) -> None:
    array, labels = token_problem(120, width)
    tokens, progress = InMemoryTokens(array), []
    run = partial(run_exact_sweep, protocol=QUICK, seed=0, penalty_kind=kind, tolerance=1e-6)
    asked = [1e-3, 1e-1, 1e-2, 1e-4] if kind == "l2" else None
    result = run(
        tokens, labels, penalties=asked, on_progress=lambda done, total: progress.append((done, total))
    )
    assert list(result.validation) == list(result.tuning) == sorted(result.validation, reverse=True)
    assert progress[-1] == (len(result.validation) + 1,) * 2
    assert result.validation[result.penalty] == max(result.validation.values())

    train_rows, held_rows = stratified_holdout(labels, QUICK.validation_fraction, 0)
    features = tokens.batch(torch.arange(120)).flatten(1)
    targets = torch.from_numpy(labels)
    if kind == "l2":
        part = torch.from_numpy(train_rows)
        weights = class_weights(targets[part], 3)
        penalties = list(result.validation)
        fits = fit_logistic(
            features[part], targets[part], 3, penalties, class_weights=weights, tolerance=1e-6
        )
        for fit, penalty in zip(fits, penalties, strict=True):
            logits = features[held_rows] @ fit.weight.T + fit.bias
            assert result.validation[penalty] == balanced_accuracy(logits, targets[held_rows], 3)
        weights = class_weights(targets, 3)
        (final,) = fit_logistic(features, targets, 3, [result.penalty], class_weights=weights, tolerance=1e-7)
        torch.testing.assert_close(result.weight, final.weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(result.bias, final.bias, rtol=1e-3, atol=1e-4)
    else:
        assert 1 in result.kept_groups
        of_groups = result.weight.view(3, 3, width).square().sum((0, 2))
        assert result.kept_groups == tuple(of_groups.nonzero().squeeze(1).tolist())
    assert (features @ result.weight.T + result.bias).argmax(1).eq(targets).double().mean() > 0.8

    # Held-out rows that are nonsense change scores, but neither the heads that are scored nor their certificates.
    nonsense = run(MaskedTokens(array, held_rows), labels, penalties=list(result.validation))
    for penalty, certificate in result.tuning.items():
        assert nonsense.tuning[penalty].objective == pytest.approx(certificate.objective, rel=1e-6)
    assert nonsense.validation != result.validation
    assert nonsense.certificate.objective != pytest.approx(result.certificate.objective, rel=1e-3)


def test_a_tie_keeps_the_stronger_penalty_and_notes_say_what_went_wrong() -> None:
    array, labels = token_problem(60, 4)
    labels[:] = 5
    run = partial(run_exact_sweep, InMemoryTokens(array), protocol=QUICK, seed=0, num_classes=7)
    tied = run(labels, penalties=[1e-3, 1e-1, 1e-2])
    assert tied.penalty == 1e-1
    assert tied.notes == ["the largest penalty was chosen, 0.1; a better one may lie beyond"]
    assert tied.weight.shape == (7, 12)
    array, labels = token_problem(60, 4)
    short = run(labels, penalties=[1e-6], max_iterations=2)
    assert [note.split(":")[0] for note in short.notes] == [
        "penalty 1e-06 did not converge in 2 iterations",
        "the final head, penalty 1e-06, did not converge in 2 iterations",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalties": [-1.0]}, "penalties must be positive numbers, not -1.0"),
        ({"penalty_kind": "lasso"}, "unknown penalty kind 'lasso'; did you mean group-lasso"),
        ({"penalty_kind": "group-lasso", "groups": [0, 2, 2]}, "each of the 3 tokens from 0 on"),
        ({"penalty_kind": "group-lasso", "groups": [0, 1]}, "each of the 3 tokens from 0 on"),
        ({"labels": np.arange(10)}, "10 labels of 10 samples leave 0 to hold out"),
        ({"labels": np.zeros(9, int)}, "9 labels of 10 samples"),
    ],
)
def test_bad_sweeps(changes: dict[str, object], message: str) -> None:
    array, labels = token_problem(10, 4)
    request = {"labels": labels, "protocol": QUICK, "seed": 0, **changes}
    with pytest.raises(RequestError, match=message):
        run_exact_sweep(InMemoryTokens(array), **request)
