"""How heads are trained: the constants of a protocol, its sweep, and the rules for batches, epochs and rates.

Protocols are TOML files; see `featcache.probing.protocols.files`. No torch here, so that the command line can list them at once.
"""

from dataclasses import dataclass, fields, replace
from itertools import product
from math import ceil, cos, pi
from typing import Any

from featcache.probing.protocols.files import BASE, check_fields, parse, read_text
from featcache.store.errors import RequestError

L2_INPUT, STANDARD_INPUT, L2_STANDARD_INPUT = INPUTS = ("l2", "standard", "l2+standard")
NO_FOLDS = 0
"""Of a protocol in which nothing is held out."""


@dataclass(frozen=True)
class Member:
    """One training of a sweep: what it does not share with the others."""

    learning_rate: float
    weight_decay: float
    dropout: float


@dataclass(frozen=True)
class Protocol:
    """Every constant of a training run. The defaults are those of arXiv 2601.09322."""

    name: str
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    dropouts: tuple[float, ...]
    min_epochs: int
    min_steps: int
    max_batch_size: int = 2048
    """Kept where the train split fills enough batches of it; the largest batch can exceed it a little."""
    min_batch_size: int = 17
    """Below this the batch statistics of a head's BatchNorm are too noisy."""
    min_batches: int = 5
    lr_floor: float = 1e-6
    grad_clip_norm: float = 5.0
    jitter_probability: float = 0.5
    jitter_std: float = 0.05
    """Of the noise on every element of a chosen sample, after the input transform."""
    validation_fraction: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    input: str = L2_INPUT
    """Input transform: ``l2`` (every token to length 1), ``standard`` (mean and deviation per token and channel of the samples that
    are trained on) or ``l2+standard``."""
    folds: int = 1
    """1 chooses on a held-out part; more, on all of train, each fold held out once."""
    folds_below: int | None = None
    """Train splits of fewer samples are divided into folds, others are not; None for no such limit."""
    halving: int = 1
    """Of successive halving: a round keeps one in so many members and trains them as many times longer; 1 trains all in full."""
    halving_min_steps: int = 50
    """The first round trains no shorter."""
    jitter_validation: bool = False
    """Whether held-out features are jittered as well, as in the published runs."""
    projected_final: bool = False
    """Whether the final layer's tokens go through the model's projection where it has one, zero-padded, as in the published runs."""
    patch_norm_over_tokens: bool = False
    """Whether selections with patches are L2-normalised along the token axis, as in the published runs."""

    def members(self, has_dropout: bool) -> tuple[Member, ...]:
        """All trainings of the sweep: dropout outermost, then learning rate, then weight decay.

        The order matters: a tie in validation keeps the earlier member. A head without dropout has the one
        dropout 0.
        """
        dropouts = self.dropouts if has_dropout else (0.0,)
        return tuple(
            Member(learning_rate, weight_decay, dropout)
            for dropout, learning_rate, weight_decay in product(
                dropouts, self.learning_rates, self.weight_decays
            )
        )

    def without_choice(self) -> "Protocol":
        """One member, the middle one of the sweep, and nothing held out: where there is nothing to choose with."""
        rates, decays, dropouts = (
            (values[len(values) // 2],) for values in (self.learning_rates, self.weight_decays, self.dropouts)
        )
        return replace(
            self,
            learning_rates=rates,
            weight_decays=decays,
            dropouts=dropouts,
            folds=NO_FOLDS,
            folds_below=None,
        )

    def num_folds(self, num_train: int) -> int:
        """Folds for a train split of so many samples; 1 for a held-out part, 0 for nothing held out."""
        return self.folds if self.folds_below is None or num_train < self.folds_below else 1


def get_protocol(name: str) -> Protocol:
    """Return a preset (``paper``, ``paper-parity``, ``quick``), or the protocol of a file whose name ends with ``.toml``.

    Raises:
        UnknownNameError: there is no such preset, field or input transform.
        RequestError: a file that cannot be read, is no TOML, or has a value of the wrong type or out of range.
    """
    return _parse(name, *read_text(name), ())


def protocol_text(name: str) -> str:
    """Return the file of a protocol, after it was checked; arguments and errors as for `get_protocol`."""
    stem, text = read_text(name)
    _parse(name, stem, text, ())
    return text


def check_protocol(protocol: Protocol) -> Protocol:
    """Check a protocol made in Python by the rules for files.

    Raises:
        UnknownNameError: the input transform does not exist.
        RequestError: a value is of the wrong type or out of range.
    """
    values = {
        name: [_plain(item) for item in value] if isinstance(value, list | tuple) else _plain(value)
        for name, value in vars(protocol).items()
    }
    # A file cannot express that nothing is held out, or that folds have no limit.
    unsaid = {"name": True, "folds": protocol.folds == NO_FOLDS, "folds_below": protocol.folds_below is None}
    said = {name: value for name, value in values.items() if not unsaid.get(name)}
    return replace(protocol, **check_fields(said, f"protocol {protocol.name}", _DEFAULTS, INPUTS))


def _plain(value: Any) -> Any:
    """Return a numpy number as a Python number; anything else unchanged."""
    return value.item() if hasattr(value, "item") else value


def _parse(name: str, stem: str, text: str, above: tuple[str, ...]) -> Protocol:
    found = parse(text, f"protocol {name}", _DEFAULTS, INPUTS)
    base = found.pop(BASE, None if name == PAPER_NAME else PAPER_NAME)
    if base is None:
        return Protocol(**(found | {"name": stem}))
    if base in (*above, name):
        raise RequestError(f"the protocols {' and '.join((*above, name, base))} are each other's base")
    inherited = vars(_parse(base, *read_text(base), (*above, name)))
    return Protocol(**(inherited | found | {"name": stem}))


PAPER_NAME = "paper"
_EXAMPLES: dict[str, Any] = {
    "learning_rates": (0.0,),
    "weight_decays": (0.0,),
    "dropouts": (0.0,),
    "min_epochs": 1,
    "min_steps": 1,
    "folds_below": 1,
}
# A value of the right type for every field of a file.
_DEFAULTS = {field.name: _EXAMPLES.get(field.name, field.default) for field in fields(Protocol)[1:]}

PAPER, QUICK = get_protocol(PAPER_NAME), get_protocol("quick")


@dataclass(frozen=True)
class Plan:
    """The length of one training."""

    batch_size: int
    num_batches: int
    """Batches per epoch, the last one possibly smaller."""
    num_epochs: int

    @property
    def num_steps(self) -> int:
        """Updates of each member."""
        return self.num_batches * self.num_epochs

    def shortened(self, factor: float) -> "Plan":
        """A training of so many times as many epochs, at least one."""
        return replace(self, num_epochs=max(1, round(self.num_epochs * factor)))


def plan_training(num_part: int, batch_size: int, protocol: Protocol) -> Plan:
    """Plan the training on `num_part` samples, with `batch_size` as found for the full train split.

    Raises:
        RequestError: fewer than 2 samples.
    """
    size = training_batch_size(num_part, batch_size)
    return Plan(size, ceil(num_part / size), num_epochs(num_part, size, protocol))


def batch_size(num_train: int, protocol: Protocol) -> int:
    """Find the batch size for a train split of `num_train` samples; its 80 % part uses the same.

    The protocol's largest size is kept where at least `min_batches` full batches of it fit and the rest is 0 or at
    least half a batch. Otherwise it is the largest size that gives at least as many full batches as would
    have fitted (and at least `min_batches`) and such a rest.

    Where no size from `min_batch_size` up does that, which needs fewer than 94 samples under the presets,
    arXiv 2601.09322 has no rule. Ours: the required number of full batches falls one by one, because fewer
    batches do less harm than a BatchNorm over a handful of samples; fewer samples than `min_batch_size` are one batch.
    """
    if num_train < protocol.min_batch_size:
        return num_train
    num_full = num_train // protocol.max_batch_size
    if num_full >= protocol.min_batches and _rest_is_fine(num_train, protocol.max_batch_size):
        return protocol.max_batch_size
    # Ends at the latest with one full batch of everything.
    for required in range(max(protocol.min_batches, num_full), 0, -1):
        for size in range(num_train // required, protocol.min_batch_size - 1, -1):
            if _rest_is_fine(num_train, size):
                return size
    return num_train


def _rest_is_fine(num_samples: int, size: int) -> bool:
    rest = num_samples % size
    return rest == 0 or 2 * rest >= size


def training_batch_size(num_part: int, batch_size: int) -> int:
    """Enlarge `batch_size` by one while the last batch of `num_part` samples would hold a single one.

    BatchNorm has no variance of one sample.

    Raises:
        RequestError: fewer than 2 samples.
    """
    if num_part < 2:
        raise RequestError(f"a head trains on at least 2 samples, not {num_part}; use a larger train split")
    size = max(batch_size, 2)
    while num_part % size == 1:
        size += 1
    return size


def num_epochs(num_part: int, batch_size: int, protocol: Protocol) -> int:
    """Return the protocol's epochs, or as many as its least number of steps takes, whichever is more."""
    batches_per_epoch = ceil(num_part / batch_size)
    return max(protocol.min_epochs, ceil(protocol.min_steps / batches_per_epoch))


def learning_rate_at(step: int, num_steps: int, peak: float, floor: float) -> float:
    """Cosine from `peak` at step 0 towards `floor`, which step `num_steps` would reach; no warm-up."""
    return floor + (peak - floor) * (1 + cos(pi * step / num_steps)) / 2
