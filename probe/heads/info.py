"""What the rest of the package knows of a head without building it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from featcache.probing.scoring.kinds import KINDS, SINGLE_LABEL
from featcache.store.errors import RequestError

if TYPE_CHECKING:
    from featcache.probing.heads.base import Head

TRAINED, CLOSED_FORM, EXACT, AUTO, BY_LAYER, ZERO_SHOT = (
    "trained",
    "closed",
    "exact",
    "auto",
    "layer",
    "zero-shot",
)
"""How a head is fitted: by the members of a protocol, by formula for every setting, by the exact solver, as others are, as another is on
the one layer that validation chooses, or not at all, with the embeddings of class names."""
SOLVED_HEAD = "logreg"
"""The head of the exact solver; ``--head linear --solver exact`` is another way to ask for it."""


@dataclass(frozen=True)
class HeadInfo:
    """One head of the registry."""

    name: str
    factory: str
    """``module:class`` of a `Head`."""
    default_layers: str
    default_tokens: tuple[str, ...]
    summary: str
    source: str
    size: str
    """Parameters as a formula of T tokens, D width, C classes, N training samples, L layers, K tokens a layer and the options."""
    fitting: str = TRAINED
    has_dropout: bool = False
    has_attention: bool = False
    """Whether it has the method ``attention(x)``."""
    by_layer: bool = False
    """Whether it has to know which tokens are of one layer: it takes the option ``num_layers``."""
    options: Mapping[str, int] = field(default_factory=dict)
    """What it takes besides its size and ``num_layers``, with defaults; 0 stands for one that follows from the tokens."""
    swept: Mapping[str, str] = field(default_factory=dict)
    """What validation chooses for a head that is not trained: name and values, for people."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of targets that it can be fitted to."""
    listed: bool = True
    """Whether it can be asked for by name."""

    @property
    def fits_arrays(self) -> bool:
        """Whether the head can be fitted to an array of tokens; others need the cache that the tokens are from."""
        return self.fitting not in (BY_LAYER, ZERO_SHOT)

    def build(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        **options: Any,
    ) -> "Head":
        """Build M heads for inputs ``[B, num_tokens, width]``, all initialized alike from torch's global generator.

        Args:
            num_tokens: T.
            width: D.
            num_classes: C, or outputs of a regression.
            dropouts: one probability for each of the M members.
            options: what the head takes besides, such as ``num_heads``.

        Raises:
            RequestError: the head cannot have this size, or has no dropout.
        """
        for dropout in dropouts:
            if dropout and not self.has_dropout:
                raise RequestError(f"head {self.name!r} has no dropout, so {dropout} cannot be set; use 0")
        head: Head = self.load()(num_tokens, width, num_classes, tuple(dropouts), **options)
        return head

    def num_parameters(self, **sizes: int) -> int | None:
        """Evaluate `size`: T, D, C, N, L and K, and options that are not the default; None for a head without a formula.

        Raises:
            NameError: one that the formula needs is not given.
        """
        if self.fitting == AUTO:
            return None
        given = {name: value for name, value in self.options.items() if value} | sizes
        number: int = eval(self.size, {"__builtins__": {}}, given)  # of the registry, not of a user
        return number

    def load(self) -> Any:
        """Import the head's class."""
        module, _, class_name = self.factory.partition(":")
        return getattr(import_module(module), class_name)

    def check_kind(self, kind: str) -> None:
        """Refuse targets that the head cannot be fitted to.

        Raises:
            RequestError: naming what it can.
        """
        if kind not in self.kinds:
            able = "linear, attentive, mlp or ridge" if self.kinds == (SINGLE_LABEL,) else "another"
            raise RequestError(
                f"head {self.name!r} is for {' and '.join(self.kinds)} targets, and these are {kind}; ask for {able}"
            )
