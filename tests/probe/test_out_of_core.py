"""Heads that are fitted block by block are those that are fitted in memory, to the tolerance that each method states."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from featcache.probing.heads import get_head, knn
from featcache.probing.heads.gallery_file import write_gallery
from featcache.probing.heads.lda import LdaHead
from featcache.probing.heads.ridge import RidgeHead
from featcache.probing.inputs.features import ResidentFeatures, StreamedFeatures
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.results.large_tensors import write_tensors
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.scoring.tasks import SingleLabel, make_task
from featcache.probing.solver import logistic, streamed_path
from featcache.probing.solver.exact import ExactResult, run_exact_sweep
from featcache.probing.solver.journal import PathJournal
from featcache.probing.solver.logistic import Targets, fit_logistic
from featcache.probing.solver.pca import principal_components
from featcache.probing.solver.streamed_objective import StreamedObjective
from featcache.probing.solver.streamed_path import StreamedFitting, StreamedLimits, solve_streamed_path
from featcache.probing.solver.streamed_solver import StreamedPlan
from featcache.probing.training.closed_form import run_closed_form_sweep
from featcache.probing.training.out_of_core import report_first_pass
from featcache.probing.training.prediction import predict
from featcache.store.errors import RequestError

from .recording_reporter import RecordingReporter

CPU = torch.device("cpu")
TIGHT = StreamedPlan(block_rows=37)


def overlapping(num_samples: int, width: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes of unequal size that overlap; features of unequal scale, far from the origin."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.4, num_samples) - 1, num_classes - 1)
    labels[: 2 * num_classes] = np.arange(2 * num_classes) % num_classes
    centers = 0.5 * rng.normal(size=(num_classes, width))
    noise = rng.normal(size=(num_samples, width))
    features = (centers[labels] + noise) * rng.exponential(size=width) + 2
    return torch.from_numpy(features).float() / width**0.5, torch.from_numpy(labels)


def tokens_of(num_samples: int, width: int, num_classes: int) -> tuple[InMemoryTokens, np.ndarray]:
    features, labels = overlapping(num_samples, width, num_classes)
    return InMemoryTokens(features.view(num_samples, 2, width // 2)), labels.numpy()


def streamed(features: Tensor, block_rows: int) -> StreamedFeatures:
    """The features as tokens that no transform changes."""
    tokens = InMemoryTokens(features[:, None])
    raw = tokens.with_transform(replace(tokens.input_transform, l2=False))
    return StreamedFeatures(raw, torch.arange(len(features)), CPU, block_rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 90), st.integers(2, 12), st.integers(2, 5), st.integers(1, 50), st.integers(0, 2**20))
def test_a_pass_is_the_objective_of_autograd(
    num_samples: int, width: int, num_classes: int, block_rows: int, seed: int
) -> None:
    features, labels = overlapping(num_samples, width, num_classes, seed)
    targets = Targets.balanced(labels, num_classes, CPU)
    mean = features.double().mean(0)
    objective = StreamedObjective(streamed(features, block_rows), mean, targets.loss)
    generator = torch.Generator().manual_seed(seed)
    params = torch.randn(2, num_classes, width + 1, dtype=torch.float64, generator=generator)
    penalties = torch.tensor([0.1, 1e-3], dtype=torch.float64)
    at = objective.evaluate(params, penalties, torch.float64, bias_hessian=True)
    for index, penalty in enumerate(penalties.tolist()):

        def obvious(own: Tensor, penalty: float = penalty) -> Tensor:
            logits = (features.double() - mean) @ own[:, :-1].T + own[:, -1]
            losses = torch.nn.functional.cross_entropy(logits, targets.loss.targets, reduction="none")
            return targets.loss.weights @ losses + penalty / 2 * own[:, :-1].square().sum()

        own = params[index].clone().requires_grad_()
        value = obvious(own)
        (gradient,) = torch.autograd.grad(value, own)
        torch.testing.assert_close(at.objective[index], value.detach())
        torch.testing.assert_close(at.gradient[index], gradient)
        fixed = params[index]

        def of_bias(bias: Tensor, fixed: Tensor = fixed) -> Tensor:
            return obvious(torch.cat([fixed[:, :-1], bias[:, None]], 1))

        hessian = torch.autograd.functional.hessian(of_bias, fixed[:, -1].contiguous())
        assert at.bias_hessian is not None
        torch.testing.assert_close(at.bias_hessian[index], hessian)


@pytest.mark.parametrize("first_in_float32", [False, True])
@pytest.mark.parametrize("size", [(300, 12, 4), (120, 30, 3)])
def test_streamed_solutions_are_certified_minima(
    size: tuple[int, int, int], first_in_float32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both solvers prove how far above the minimum they may be, so their objectives differ by no more than that."""
    for module in (logistic, streamed_path):
        monkeypatch.setattr(module, "FLOAT64_VALUES", 0 if first_in_float32 else 2**20)
    features, labels = overlapping(*size)
    num_classes = size[2]
    penalties = [1e-1, 1e-2, 1e-3, 1e-4]
    weights = class_weights(labels, num_classes)
    in_memory = fit_logistic(
        features.double(), labels, num_classes, penalties, class_weights=weights, tolerance=1e-8
    )
    targets = Targets.balanced(labels, num_classes, CPU)
    fitting = StreamedFitting.of(streamed(features, 41), targets)
    path = solve_streamed_path(fitting, penalties, StreamedLimits())
    for reference, weight, found in zip(in_memory, path.coefficients.body, path.certificates, strict=True):
        assert found.converged
        excess = found.objective - reference.certificate.objective
        assert -1e-8 <= excess <= found.suboptimality + 1e-12
        assert found.suboptimality <= 1e-4 * found.objective
        # Strong convexity: weights are as close as the gap says.
        distance = float((weight - reference.weight).norm())
        assert distance <= (2 * (found.suboptimality + 1e-8) / reference.certificate.penalty) ** 0.5 + 1e-5


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("transform", ["l2", "standard"])
@pytest.mark.parametrize(("samples", "width"), [(300, 10), (60, 90)], ids=["long", "wide"])
def test_a_streamed_sweep_chooses_as_one_in_memory(
    samples: int, width: int, transform: str, folds: int
) -> None:
    tokens, labels = tokens_of(samples, width, 3)
    protocol = replace(QUICK, input=transform, folds=folds, folds_below=None)
    plans = [None, TIGHT, replace(TIGHT, gram=False, max_eigen=0, history=3)]
    in_memory, *others = (
        run_exact_sweep(
            tokens, labels, protocol=protocol, seed=0, penalties=[1e-1, 1e-2, 1e-3], plan=plan, memory=memory
        )
        for plan, memory in zip(plans, (2**31, 2**31, 0), strict=True)
    )
    for result in others:
        assert result.certificate.converged
        assert result.penalty == in_memory.penalty
        assert result.validation == pytest.approx(in_memory.validation, abs=0.02)
        assert result.held_out.shape == in_memory.held_out.shape
        assert float((result.held_out - in_memory.held_out).abs().max()) < 0.05 * float(
            in_memory.held_out.abs().max()
        )
        slack = result.certificate.suboptimality + in_memory.certificate.suboptimality
        assert abs(result.certificate.objective - in_memory.certificate.objective) <= slack


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count passes over the features; the first entry is their number, the second the number after which they fail."""
    count = [0, 10**9]
    evaluate = StreamedObjective.evaluate

    def counted(self: StreamedObjective, *args: object, **options: object) -> object:
        count[0] += 1
        if count[0] > count[1]:
            raise KeyboardInterrupt
        return evaluate(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamedObjective, "evaluate", counted)
    return count


@pytest.mark.parametrize("at", [5, 40])
def test_an_interrupted_path_resumes(tmp_path: Path, passes: list[int], at: int) -> None:
    """Saved after every iteration, a minimisation takes the same steps as without an interruption."""
    tokens, labels = tokens_of(300, 12, 4)

    def sweep(journal: PathJournal | None) -> ExactResult:
        penalties = [1e-2, 1e-4]
        return run_exact_sweep(
            tokens, labels, protocol=QUICK, seed=0, penalties=penalties, plan=TIGHT, journal=journal
        )

    whole = sweep(None)
    total = passes[0]
    assert total > 50
    journal = PathJournal(tmp_path / "unfinished" / "run", save_seconds=0.0)
    passes[:] = [0, at]
    with pytest.raises(KeyboardInterrupt):
        sweep(journal)
    passes[:] = [0, 10**9]
    resumed = sweep(journal)
    assert passes[0] <= total - at + 5
    assert resumed.validation == whole.validation
    torch.testing.assert_close(resumed.weight, whole.weight)
    passes[0] = 0
    again = sweep(journal)
    assert passes[0] == 0, "everything is solved already"
    torch.testing.assert_close(again.weight, resumed.weight)
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_solutions_count_as_absent(tmp_path: Path) -> None:
    tokens, labels = tokens_of(120, 8, 3)
    journal = PathJournal(tmp_path / "run")
    first = run_exact_sweep(tokens, labels, protocol=QUICK, seed=0, journal=journal)
    files = sorted(journal.folder.iterdir())
    assert files
    for damaged in (b"", b"no", files[0].read_bytes()[:-3]):
        files[0].write_bytes(damaged)
        again = run_exact_sweep(tokens, labels, protocol=QUICK, seed=0, journal=journal)
        torch.testing.assert_close(again.weight, first.weight)
    other = run_exact_sweep(tokens, labels, protocol=QUICK, seed=1, journal=journal)
    alone = run_exact_sweep(tokens, labels, protocol=QUICK, seed=1)
    torch.testing.assert_close(other.weight, alone.weight)


def test_blocks_are_the_features(tmp_path: Path) -> None:
    features, _ = overlapping(50, 6, 3)
    for source in (ResidentFeatures(features), streamed(features, 7)):
        part = source.select(slice(3, None, 2))
        assert (part.num_samples, part.num_features) == (24, 6)
        joined = torch.cat([block for _, block in part.blocks()])
        torch.testing.assert_close(joined, features[3::2])
        assert [index for rows, _ in part.blocks() for index in range(50)[rows]] == list(range(24))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["ridge", "lda", "ncm"]),
    st.integers(24, 80),
    st.sampled_from([4, 40, 100]),
    st.integers(2, 4),
    st.integers(1, 60),
    st.sampled_from(["l2", "standard"]),
    st.integers(0, 2**20),
)
def test_closed_form_heads_do_not_depend_on_the_blocks(
    name: str, num_samples: int, width: int, num_classes: int, block_rows: int, transform: str, seed: int
) -> None:
    features, labels = overlapping(num_samples, width, num_classes, seed)
    # Channels of very unequal scale: sums in float32 would lose the small ones.
    features = features * torch.logspace(0, -4, width)
    tokens = InMemoryTokens(features[:, None])
    protocol = replace(QUICK, input=transform)
    whole, blocks = (
        run_closed_form_sweep(
            get_head(name), tokens, labels.numpy(), protocol=protocol, seed=0, block_rows=rows
        )
        for rows in (None, block_rows)
    )
    assert blocks.settings == whole.settings
    assert [score for _, score in blocks.validation] == [score for _, score in whole.validation]
    torch.testing.assert_close(blocks.held_out, whole.held_out, rtol=1e-4, atol=1e-5)
    for own, other in zip(blocks.head.state_dict().values(), whole.head.state_dict().values(), strict=True):
        torch.testing.assert_close(
            own, other, rtol=1e-4, atol=1e-5 * float(other[other.isfinite()].abs().max())
        )


@pytest.mark.parametrize(("samples", "width"), [(60, 9), (20, 45)], ids=["long", "wide"])
def test_closed_form_heads_are_their_formulas(samples: int, width: int) -> None:
    """Both spaces give what the inverse of the covariance, written down plainly, gives."""
    features, labels = overlapping(samples, width, 3)
    tokens = InMemoryTokens(features[:, None])
    raw = tokens.with_transform(replace(tokens.input_transform, l2=False))
    blocks = StreamedFeatures(raw, torch.arange(samples), CPU, 7)
    task, exact = SingleLabel(3), features.double()
    weights = class_weights(labels, 3).double()[labels]
    weights /= weights.sum()
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    means = torch.stack([exact[labels == index].mean(0) for index in range(3)])
    center, level = weights @ exact, weights @ one_hot
    for penalty, shrinkage in ((1e-1, 0.5), (1e-5, 1e-4)):
        ridge = RidgeHead.fit_blocks(blocks, labels, (1, width), task, [{"penalty": penalty}])
        z, y = exact - center, one_hot - level
        gram = z.T @ (weights[:, None] * z)
        expected = torch.linalg.solve(
            gram + penalty * gram.trace() * torch.eye(width), z.T @ (weights[:, None] * y)
        )
        torch.testing.assert_close(ridge.classifier.weight[0].double(), expected.T, rtol=1e-4, atol=1e-5)
        lda = LdaHead.fit_blocks(blocks, labels, (1, width), task, [{"shrinkage": shrinkage}])
        z = exact - means[labels]
        gram = z.T @ (weights[:, None] * z)
        shrunk = (1 - shrinkage) * gram + shrinkage * gram.trace() / width * torch.eye(width)
        expected = torch.linalg.solve(shrunk, (means - means.mean(0)).T).T
        scale = float(expected.abs().max())
        torch.testing.assert_close(lda.classifier.weight[0].double(), expected, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize(("samples", "width"), [(70, 9), (20, 45)], ids=["long", "wide"])
def test_principal_components_are_those_of_a_decomposition(samples: int, width: int) -> None:
    features, _ = overlapping(samples, width, 3)
    source = streamed(features, 7)
    centered = features.double() - features.double().mean(0)
    _, values, vectors = torch.linalg.svd(centered / samples**0.5, full_matrices=False)
    found = principal_components(source, count=4)
    torch.testing.assert_close(found.variances, values[:4].square())
    overlap = (found.basis.T @ vectors[:4].T).abs()
    torch.testing.assert_close(overlap, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.basis.T @ found.basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10
    )
    half = principal_components(source, share=0.8)
    parts = half.variances / half.total_variance
    assert float(parts.sum()) >= 0.8 > float(parts[:-1].sum())
    whole = principal_components(source, share=1.0)
    assert whole.basis.shape[1] == min(samples - 1, width)
    for wrong in ({}, {"count": 0}, {"count": width + 1}, {"share": 0.0}, {"count": 2, "share": 0.5}):
        with pytest.raises(RequestError):
            principal_components(source, **wrong)
    with pytest.raises(RequestError, match="same for all samples"):
        principal_components(ResidentFeatures(torch.ones(9, 4)), count=2)


@pytest.mark.parametrize("kind", ["single-label", "multi-label", "regression"])
def test_neighbors_from_a_file_are_those_in_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gallery is read in many parts, and samples are compared with each part in several blocks."""
    for name, value in (("PART_BYTES", 4 * 12 * 40), ("LEAST_ROWS", 16), ("PART_VALUES", 16 * 16)):
        monkeypatch.setattr(knn, name, value)
    features, labels = overlapping(300, 12, 4)
    targets: np.ndarray = {
        "single-label": labels.numpy(),
        "multi-label": torch.nn.functional.one_hot(labels, 4).numpy().astype(np.uint8),
        "regression": features[:, :2].numpy().copy(),
    }[kind]
    tokens = InMemoryTokens(features[:, None])
    task, targets = make_task(targets, kind)
    whole, blocks = (
        run_closed_form_sweep(
            get_head("knn"), tokens, targets, protocol=QUICK, seed=0, task=task, block_rows=rows
        )
        for rows in (None, 23)
    )
    assert (whole.head.mapped, blocks.head.mapped) == (False, True)
    assert blocks.settings == whole.settings
    torch.testing.assert_close(blocks.held_out, whole.held_out, rtol=1e-4, atol=1e-5)
    rows = torch.arange(300)
    torch.testing.assert_close(
        predict(blocks.head, tokens, rows, 50), predict(whole.head, tokens, rows, 300), rtol=1e-4, atol=1e-5
    )
    assert blocks.head.member(0).mapped


def test_large_parameters_are_written_in_the_format(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(5),
        "a": torch.randn(3, 4),
        "flags": torch.tensor([1, 0], dtype=torch.uint8),
        "half": torch.randn(7).half(),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    content = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in load(content).items():
        assert torch.equal(tensor, tensors[name])
    assert set(load(content)) == set(tensors)
    assert content == save(tensors), "the very bytes of the library"


def test_a_gallery_needs_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RequestError, match=r"knn keeps 480 bytes .* has 10 bytes free; set TMPDIR"):
        write_gallery(ResidentFeatures(torch.randn(10, 12)))


def test_a_long_pass_is_reported_once() -> None:
    reporter = RecordingReporter()
    fit_task = SimpleNamespace(title="logreg")
    report = report_first_pass(fit_task, SimpleNamespace(reporter=reporter))
    for seconds in (40.0, 50.0):
        report(seconds)
    assert [line.partition(";")[0] for line in reporter.messages] == [
        "logreg: a step over all samples takes about 40 s"
    ]
    report = report_first_pass(fit_task, SimpleNamespace(reporter=reporter))
    report(0.2)
    assert len(reporter.messages) == 1
