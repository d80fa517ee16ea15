"""What the scikit-learn estimators over heads share: their parameters, how X becomes tokens, and how a head is fitted.

Shapes: N samples, L layers, K token kinds, T tokens, D width, O outputs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from featcache.devices.precision import TRAINING_PRECISIONS, training_precision
from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.heads.info import CLOSED_FORM, EXACT
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.inputs.transforms import is_constant
from featcache.probing.protocols.protocol import INPUTS, Protocol, check_protocol, get_protocol
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.prediction import predict, prediction_batch
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.layers import parse_tokens
from featcache.store.reading.split import SplitReader
from featcache.store.requests import AUTO
from featcache.store.seeds import check_seed

Array = npt.NDArray[Any]

_DTYPES = (np.float32, np.float16)
"""What X may be as it is; anything else becomes the first."""


class TokenEstimator(BaseEstimator):  # type: ignore[misc]
    """A head that is fitted to tokens; see `featcache.probing.estimators.HeadProbe`."""

    def __init__(
        self,
        head: str = "linear",
        *,
        layers: str | None = None,
        tokens: str | None = None,
        num_heads: int | None = None,
        input: str | None = None,
        protocol: str | Protocol = "paper",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        dropout: float | None = None,
        device: str = "cpu",
        precision: str = "auto",
        random_state: Any = 0,
    ) -> None:
        """Store the parameters; they are checked when the estimator is fitted."""
        self.head = head
        self.layers = layers
        self.tokens = tokens
        self.num_heads = num_heads
        self.input = input
        self.protocol = protocol
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def _read(self, X: Array | SplitReader, y: Any, **checks: Any) -> tuple[Array, Array]:  # noqa: N803
        """Return X as an array of two to four axes, and y, by default the split's, as an array; leave out rows without features."""
        if not isinstance(X, SplitReader):
            self._refuse(("layers", "tokens"), "says what is read of a split of a cache, and X is an array")
        else:
            valid = np.flatnonzero(X.valid())
            y = X.labels()[valid] if y is None else np.asarray(y)[valid]
            X = self._load(X, valid)  # noqa: N806
        array, y = validate_data(self, X, y, allow_nd=True, dtype=_DTYPES, ensure_min_samples=2, **checks)
        warn_of_rounding(X, array)
        return array, y

    def _fit(self, array: Array, targets: Array, kind: str, groups: Any = None) -> None:
        info = get_head(self.head if isinstance(self.head, str) else repr(self.head))
        self._check(info)
        self._shape = array.shape[1:]
        source = InMemoryTokens(_as_tokens(array), self.device)
        fitted = fit_head(
            self._job(info, source, array),
            source,
            targets,
            protocol=self._protocol(info.has_dropout),
            seed=_seed(self.random_state),
            target_kind=kind,
            groups=None if groups is None else self._groups(groups, len(array)),
            device=self.device,
            precision=training_precision(self.precision, torch.device(self.device)),
        )
        self.head_ = fitted.head
        self.chosen_ = {name: value for name, value in vars(fitted.chosen).items() if value is not None}
        self.validation_score_ = fitted.validation

    def _check(self, info: HeadInfo) -> None:
        """Refuse parameters that are invalid, or that the head does not use.

        Raises:
            RequestError: a parameter has the wrong type, or the head does not use it.
            UnknownNameError: the input transform or the precision does not exist.
        """
        if not info.fits_arrays:
            raise RequestError(
                f"head {info.name!r} is fitted to a cache, not to arrays; ask for it with featcache.probe, or take logreg"
            )
        if info.fitting in (CLOSED_FORM, EXACT):
            self._refuse(
                ("learning_rate", "weight_decay"), f"is for heads that are trained, and {info.name} is not"
            )
        if self.dropout and not info.has_dropout:
            self._refuse(("dropout",), f"is for heads that have one, and {info.name} has none")
        if "num_heads" not in info.options:
            self._refuse(
                ("num_heads",), f"is for heads with attention, such as attentive, and {info.name} has none"
            )
        elif self.num_heads is not None and not (
            isinstance(self.num_heads, int | np.integer) and self.num_heads >= 1
        ):
            raise RequestError(f"num_heads must be a whole number from 1 on, not {self.num_heads!r}")
        for what, name, valid in (
            ("input transform", self.input, INPUTS),
            ("precision", self.precision, (AUTO, *TRAINING_PRECISIONS)),
        ):
            if name is not None and name not in valid:
                raise UnknownNameError(what, str(name), valid)
        check_device(self.device)

    def _refuse(self, names: Sequence[str], why: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise RequestError(f"{given[0]}={getattr(self, given[0])!r} {why}; leave it out")

    def _groups(self, groups: Any, num_samples: int) -> Array:
        """The group of every sample, ``[N]``."""
        found: Array = column_or_1d(groups)
        if len(found) != num_samples:
            raise RequestError(f"{num_samples} samples need as many groups, not {len(found)}")
        missing = [index for index, group in enumerate(found.tolist()) if _is_missing(group)]
        if missing:
            raise RequestError(
                f"{len(missing)} samples have no group, the first is row {missing[0]}; name all of them"
            )
        try:
            np.unique(found)
        except TypeError:
            raise RequestError("groups must be all numbers or all text, not some of each") from None
        return found

    def _outputs(self, X: Array | SplitReader) -> torch.Tensor:  # noqa: N803
        """What the head gives for X, ``[N, O]``."""
        check_is_fitted(self)
        array = self._load(X, np.flatnonzero(X.valid())) if isinstance(X, SplitReader) else X
        array = validate_data(self, array, reset=False, allow_nd=True, dtype=_DTYPES)
        if array.shape[1:] != self._shape:
            raise RequestError(
                f"{type(self).__name__} was fitted on X of shape {['N', *self._shape]}, not {list(array.shape)}"
            )
        source = InMemoryTokens(_as_tokens(array), self.device)
        rows = torch.arange(source.num_samples)
        return predict(self.head_, source, rows, prediction_batch(source, self.head_)).cpu()

    def _load(self, split: SplitReader, rows: npt.NDArray[np.int64]) -> Array:
        """The rows of a split that hold features, ``[N, L, K, D]``."""
        info = get_head(self.head)
        asked = info.default_layers if self.layers is None else self.layers
        layers = split.resolve_layers(asked)
        tokens = parse_tokens("+".join(info.default_tokens) if self.tokens is None else self.tokens)
        return split.gather(rows, layers, tokens, dtype="float32")

    def _protocol(self, has_dropout: bool) -> Protocol:
        protocol = self.protocol if isinstance(self.protocol, Protocol) else get_protocol(str(self.protocol))
        single = {
            "learning_rates": self.learning_rate,
            "weight_decays": self.weight_decay,
            "dropouts": self.dropout if has_dropout else None,
        }
        given: dict[str, Any] = {name: (value,) for name, value in single.items() if value is not None}
        if self.input is not None:
            given["input"] = self.input
        return check_protocol(replace(protocol, **given))

    def _job(self, info: HeadInfo, source: InMemoryTokens, array: Array) -> HeadJob:
        """What to fit: X of two axes is one layer, of three a layer for each token."""
        num_layers = array.shape[1] if array.ndim == 4 else None
        # One attention head for each token, as in arXiv 2601.09322, as far as there are channels for them.
        num_heads = self.num_heads or min(source.num_tokens, source.width)
        return array_job(
            info, source.num_tokens, num_layers, num_heads if "num_heads" in info.options else None
        )


def valid_rows(X: Array | SplitReader, groups: Any) -> Any:  # noqa: N803
    """Return the groups of the rows of a split that hold features; for an array, of all rows."""
    if groups is None or not isinstance(X, SplitReader):
        return groups
    return np.asarray(groups)[np.flatnonzero(X.valid())]


def warn_of_rounding(given: Any, array: Array) -> None:
    """Warn of features whose differences are below the resolution of float32, in which heads compute."""
    given = np.asarray(given)
    if given.dtype.kind not in "fiu" or given.dtype.itemsize <= 4:
        return
    features = given.reshape(len(given), -1).astype(np.float64)
    variance, mean = torch.var_mean(torch.from_numpy(features), dim=0, correction=0)
    kept = torch.from_numpy(array.reshape(len(array), -1).astype(np.float64)).var(dim=0, correction=0)
    lost = ~is_constant(variance, mean, len(features)) & ((kept - variance).abs() > variance / 2)
    if lost.any():
        warnings.warn(
            f"{int(lost.sum())} of {features.shape[1]} features lose what tells samples apart in float32, in which heads compute: "
            "take their means off, or scale them",
            stacklevel=4,
        )


def check_device(name: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        RequestError: the device does not exist; the message lists the possible names.
    """
    try:
        torch.ones(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, TypeError):
        raise RequestError(
            f"device {name!r} cannot be used here; write cpu, cuda, cuda:1 or mps, as far as the machine has it"
        ) from None


def _is_missing(group: Any) -> bool:
    """Return whether a group is missing: None, NaN, or a missing value of pandas."""
    try:
        return group is None or bool(group != group)
    except TypeError:  # pandas.NA is neither equal to itself nor not
        return True


def _as_tokens(array: Array) -> Array:
    """``[N, T, D]`` of ``[N, L, K, D]``, ``[N, T, D]`` or ``[N, D]``."""
    if not 2 <= array.ndim <= 4:
        raise RequestError(f"X must be [N, L, K, D], [N, T, D] or [N, D], not of {array.ndim} axes")
    return array.reshape(len(array), -1, array.shape[-1])


def _seed(random_state: Any) -> int:
    """A seed of whatever scikit-learn takes: a number, a generator, or None."""
    if isinstance(random_state, int | np.integer):
        return check_seed(random_state, "random_state")
    return int(check_random_state(random_state).randint(2**31))
