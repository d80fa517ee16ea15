"""A program around that allows TF32 changes no fit: products in float32 stay exact in training, solver and predictions."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.probing.heads import get_head
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.prediction import predict

SHORT = replace(
    QUICK, min_epochs=1, min_steps=2, learning_rates=(1e-2,), weight_decays=(0.0,), dropouts=(0.0,)
)


class Watch(torch.overrides.TorchFunctionMode):
    """Records the precision that float32 products may have, at each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("matmul", "__matmul__", "mm", "bmm", "addmm", "linear"):
            self.precisions.add(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("head", ["linear", "ridge", "logreg"])
def test_fits_and_predictions_are_exact(head):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    tokens = InMemoryTokens(rng.normal(size=(60, 1, 8)).astype(np.float32))
    with Watch() as watch:
        fitted = fit_head(array_job(get_head(head), 1), tokens, labels, protocol=SHORT)
        assert watch.precisions == {"ieee"}
        predict(fitted.head, tokens, torch.arange(60), 60)
    assert watch.precisions == {"ieee"}
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
