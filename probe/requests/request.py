"""A request for a probe: what is to be trained, whatever a cache holds. No torch, so that a wrong name shows at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from attrs import field, frozen

from featcache.devices.precision import TRAINING_PRECISIONS
from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.heads.info import SOLVED_HEAD, ZERO_SHOT
from featcache.probing.protocols.protocol import INPUTS, Protocol
from featcache.probing.requests.tables import TABLES
from featcache.probing.requests.templates import PHOTO, as_templates
from featcache.probing.requests.values import (
    NONE,
    as_baselines,
    as_groups,
    as_head_options,
    as_heads,
    as_protocol,
    as_seeds,
    as_shots,
    as_token_kinds,
)
from featcache.probing.scoring.kinds import KINDS, REGRESSION_LOSSES
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, TAPS
from featcache.store.layers import LAYER_SETS, LayerSelection, as_optional_layers
from featcache.store.parameters import (
    DEVICE,
    FILE,
    FOLDER,
    SIZE,
    as_names,
    as_optional_path,
    as_path,
    one_of,
    parameter,
)
from featcache.store.requests import AUTO
from featcache.store.seeds import check_seed

RESULTS = "featcache-results"
MAX_OPTION = 2**20
"""Largest number of hidden units, queries and the like: a larger one is refused at once instead of running out of memory."""
MAX_REPEATS, MAX_SHOTS = 10**6, 10**9
ADAMW, EXACT = SOLVERS = ("adamw", "exact")
CLOSED_FORM, CHOICE, LAYER_CHOICE, TEXT = "closed", "auto", "layer", "text"
"""Solvers of the heads that are fitted by formula, of the head that is chosen, of the head whose layer is chosen, and of zero-shot."""
TRAINED, SOLVED, BEST_LAYER = BASELINES = ("trained", "solved", "best-layer")
"""Baselines beside which heads are shown; see `ProbeRequest.baselines`."""
L2, GROUP_LASSO = PENALTIES = ("l2", "group-lasso")
BY_HEAD, BY_PROTOCOL = "by head", "the protocol's"

HEADS = parameter(
    "Head, or several heads, such as auto, linear, attentive or logreg; `featcache heads` lists them.",
    "--head",
    repeated=True,
    several=True,
)


@dataclass(frozen=True)
class HeadRequest:
    """A head on tokens, as they are asked for, whatever a cache holds."""

    head: HeadInfo
    layers: LayerSelection | None
    """None for the head's own."""
    tokens: tuple[str, ...] | None
    """Token kinds; None for the head's own."""

    def __str__(self) -> str:
        """Such as ``linear on last, cls``."""
        return f"{self.head.name} on {self.layers}, {'+'.join(self.tokens or ())}"


@frozen(kw_only=True)
class ProbeRequest:
    """What to train. Values are parsed here, once: names of heads, layers and tokens, the protocol and the file of groups.

    Raises:
        UnknownNameError: a head, the protocol or the tap does not exist.
        RequestError: no head or no seed is named, attention heads for heads without attention, a solver that cannot
            solve for a head, or a table together with heads, layers or tokens.
    """

    heads: tuple[HeadInfo, ...] = field(default=(), converter=as_heads, metadata=HEADS)
    table: str | None = field(
        default=None,
        validator=one_of("table", TABLES),
        metadata=parameter(
            "Train the rows of a table instead of heads on layers and tokens: paper, the ten rows of arXiv 2601.09322.",
            "--table",
        ),
    )
    layers: LayerSelection | None = field(
        default=None,
        converter=as_optional_layers,
        metadata=parameter(
            f"Layer set ({', '.join(LAYER_SETS)}) or a list such as 0,3,final.", "--layers", default=BY_HEAD
        ),
    )
    tokens: tuple[str, ...] | None = field(
        default=None,
        converter=as_token_kinds,
        metadata=parameter(
            "Token kinds, such as cls, cls+ap, cls+ap+max+min, cls+patches or cls+ap+grid2.",
            "--tokens",
            default=BY_HEAD,
        ),
    )
    tap: str = field(
        default=DEFAULT_TAP,
        validator=one_of("tap", TAPS),
        metadata=parameter(f"Tap (place in a block), one that the cache holds: {', '.join(TAPS)}.", "--tap"),
    )
    views: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter(
            "Views of each image that heads train on and average over (of probabilities), such as plain,flip or crops5, one view, or all.",
            "--views",
            several=True,
            default="plain",
        ),
    )
    num_heads: int | None = field(
        default=None,
        metadata=parameter(
            "Number of attention heads.", "--num-heads", default="one for each token; 8 with patches"
        ),
    )
    protocol: Protocol = field(  # type: ignore[assignment]  # the default is converted too
        default="paper",
        converter=as_protocol,
        metadata=parameter(
            "How heads are trained and what is swept over: paper, the full sweep of the paper; paper-parity; quick; or a "
            "TOML file of your own. `featcache protocols` lists them.",
            "--protocol",
        ),
    )
    solver: str = field(
        default=ADAMW,
        validator=one_of("solver", SOLVERS),
        metadata=parameter(
            "adamw trains heads by the protocol; exact solves for linear heads, penalty by penalty, as the head logreg does.",
            "--solver",
        ),
    )
    penalty: str = field(
        default=L2,
        validator=one_of("penalty", PENALTIES),
        metadata=parameter("Penalty of the exact solver: l2, or group-lasso over layers.", "--penalty"),
    )
    input: str | None = field(
        default=None,
        validator=one_of("input transform", INPUTS),
        metadata=parameter(
            "Input transform: l2 (every token to length 1), standard (mean and deviation) or l2+standard; auto chooses "
            "among heads on this one alone.",
            "--input",
            default=BY_PROTOCOL,
        ),
    )
    folds: int | None = field(
        default=None,
        metadata=parameter(
            "Number of folds of train by which settings are chosen; 1 holds out a part instead.",
            "--folds",
            default=BY_PROTOCOL,
        ),
    )
    groups: Mapping[str, str] | None = field(
        default=None,
        converter=as_groups,
        metadata=parameter(
            "CSV file of sample_id and group: train samples of one group (a patient) are held out together when settings "
            "are chosen.",
            "--groups",
            form=FILE,
            metavar="FILE",
        ),
    )
    halving: int | None = field(
        default=None,
        metadata=parameter(
            "Reduction factor of successive halving: each round keeps 1/halving of the members and trains them halving times "
            "longer; 1 disables it.",
            "--halving",
            default=BY_PROTOCOL,
        ),
    )
    shots: tuple[int, ...] = field(
        default=(),
        converter=as_shots,
        metadata=parameter(
            "Number of samples of each class to train on, or several numbers such as 1,5,10.",
            "--shots",
            default="all samples",
        ),
    )
    draws: int = field(
        default=1,
        metadata=parameter("Number of times that few-shot samples are drawn.", "--draws"),
    )
    target_kind: str | None = field(
        default=None,
        validator=one_of("kind of targets", KINDS),
        metadata=parameter(
            "Target type: single-label, multi-label or regression.",
            "--targets",
            default="what the cache's targets are",
        ),
    )
    regression_loss: str = field(
        default=REGRESSION_LOSSES[0],
        validator=one_of("regression loss", REGRESSION_LOSSES),
        metadata=parameter("Loss of a regression: mse or mae.", "--loss"),
    )
    baselines: tuple[str, ...] | None = field(
        default=None,
        converter=as_baselines,
        metadata=parameter(
            "Baselines that are fitted beside the heads: trained, the linear probe on the last class token by the protocol; "
            "solved, the same solved exactly; best-layer, the solved probe on the layer that is best on held-out samples; or none.",
            "--baselines",
            default="all three; of large data, those that take minutes",
        ),
    )
    templates: tuple[str, ...] = field(
        default=PHOTO,
        converter=as_templates,
        metadata=parameter(
            "Templates of zero-shot prompts: photo (a photo of a {}.), clip7 (the seven of CLIP's authors), or a text file with one a "
            "line, in which {} stands for the name of a class.",
            "--templates",
            metavar="NAME|FILE",
        ),
    )
    text_weights: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter(
            "Local weights of the whole model for zero-shot, whose text tower embeds the class names.",
            "--weights",
            form=FILE,
            default="the hub's, as the cache's provenance names them",
        ),
    )
    options: Mapping[str, int] = field(
        default=None,
        converter=as_head_options,
        metadata=parameter(
            "Options of heads, such as hidden=512, of which each head takes those that it has; `featcache heads` lists them.",
            "--option",
            repeated=True,
            metavar="NAME=NUMBER",
        ),
    )
    seeds: tuple[int, ...] = field(
        default=(0,),
        converter=as_seeds,
        metadata=parameter("Seeds, such as 0,1,2; each is a run of its own.", "--seeds"),
    )
    precision: str = field(
        default=AUTO,
        validator=one_of("precision", (AUTO, *TRAINING_PRECISIONS)),
        metadata=parameter(
            "Precision of matrix products: fp32, bf16, or auto, which takes what is fast on the device.",
            "--precision",
        ),
    )
    device: str = field(default=AUTO, metadata=DEVICE)
    memory: int | None = field(
        default=None,
        metadata=parameter(
            "Bytes for tokens and for members that train; tokens that do not fit are streamed.",
            "--memory",
            form=SIZE,
            default="about half of what is free",
        ),
    )
    out: Path = field(  # type: ignore[assignment]  # the default is converted too
        default=RESULTS,
        converter=as_path,
        metadata=parameter(
            "Folder of the results; what it holds is not trained again.", "--out", form=FOLDER
        ),
    )
    force: bool = field(
        default=False,
        metadata=parameter("Train again what the results already hold.", "--force"),
    )

    def __attrs_post_init__(self) -> None:
        self._check_table()
        for name in self.baselines or ():
            if name not in BASELINES:
                raise UnknownNameError("baseline", name, (*BASELINES, NONE))
        names = {row.head.name for row in self.rows}
        self._check_settings()
        if self.penalty != L2 and self.solver != EXACT and SOLVED_HEAD not in names:
            raise RequestError(
                f"the penalty {self.penalty} is for heads that are solved exactly; add --solver exact"
            )
        if self.text_weights is not None and ZERO_SHOT not in {row.head.fitting for row in self.rows}:
            raise RequestError("--weights is for the head zero-shot, which is not asked for; leave it out")
        if self.solver == EXACT and not names <= {"linear", SOLVED_HEAD}:
            raise RequestError(
                "the exact solver is for linear heads alone; leave --solver out for the others"
            )
        if not names or not self.seeds:
            raise RequestError(
                "a probe needs a head (--head auto, say; `featcache heads` lists them) or a table, and a seed"
            )
        if self.num_heads is not None and not any("num_heads" in row.head.options for row in self.rows):
            raise RequestError("num-heads is for heads with attention, such as attentive; none is asked for")

    def settings(self) -> Protocol:
        """The protocol, with what the request changes of it for the baseline too: everything but the input transform."""
        protocol = self.protocol
        if self.folds is not None:
            protocol = replace(protocol, folds=self.folds, folds_below=None)
        return protocol if self.halving is None else replace(protocol, halving=self.halving)

    def _check_settings(self) -> None:
        if self.draws > 1 and not self.shots:
            raise RequestError("draws are for few-shot runs; say how many samples of each class with shots")
        self._check_numbers()
        heads = {row.head.name: row.head for row in self.rows}
        known = {option for head in heads.values() for option in head.options}
        for option, number in self.options.items():
            if option not in known:
                raise UnknownNameError("option", option, known, f"(of {', '.join(sorted(heads))})")
            if not 1 <= number <= MAX_OPTION:
                raise RequestError(f"--option {option} must be from 1 to {MAX_OPTION:,}, got {number}")
        if self.num_heads is not None and not 1 <= self.num_heads <= MAX_OPTION:
            raise RequestError(f"--num-heads must be from 1 to {MAX_OPTION:,}, got {self.num_heads}")
        if self.num_heads is not None and self.options.get("num_heads", self.num_heads) != self.num_heads:
            raise RequestError(
                f"num-heads is {self.num_heads}, the option num_heads {self.options['num_heads']}: say it once"
            )

    def _check_numbers(self) -> None:
        """Check that the numbers are in ranges that all files and generators accept."""
        for seed in self.seeds:
            check_seed(seed)
        for what, number, most in (
            ("folds", self.folds, MAX_REPEATS),
            ("halving", self.halving, MAX_REPEATS),
            ("draws", self.draws, MAX_REPEATS),
            *(("shots", shots, MAX_SHOTS) for shots in self.shots),
        ):
            if number is not None and number < 1:
                words = "shots are samples of every class," if what == "shots" else f"{what} must be"
                raise RequestError(f"{words} at least 1, not {number}")
            if number is not None and number > most:
                raise RequestError(f"{what} must be at most {most:,}; choose a smaller number")
        if self.memory is not None and self.memory < 1:
            raise RequestError(
                f"memory must be at least 1 byte, got {self.memory}; leave it out for the default"
            )

    @cached_property
    def rows(self) -> tuple[HeadRequest, ...]:
        """What is asked for, head by head; layers and tokens that are not given are the head's own."""
        if self.table is None:
            return tuple(HeadRequest(head, self.layers, self.tokens) for head in self.heads)
        return tuple(
            HeadRequest(get_head(row.head), as_optional_layers(row.layers), as_token_kinds(row.tokens))
            for row in TABLES[self.table]
        )

    def _check_table(self) -> None:
        for what, given in (("heads", self.heads), ("layers", self.layers), ("tokens", self.tokens)):
            if self.table is not None and given:
                raise RequestError(f"the table {self.table} says which {what} it has; leave them out")
