"""What the user asks when labels are attached: which columns of a table are ids and labels."""

from attrs import field, frozen

from featcache.store.parameters import as_names, one_of, parameter
from featcache.store.requests import AUTO
from featcache.store.targets import TARGET_KINDS, UNLABELED

LABELS = "labels"
"""Field of a dataset's identity: digest of the labels that were attached to a cache, and that the dataset itself does not have."""
LABELED_KINDS = tuple(kind for kind in TARGET_KINDS if kind != UNLABELED)


@frozen(kw_only=True, slots=False)
class LabelRequest:
    """How a table of labels is read.

    Raises:
        UnknownNameError: there is no such target type.
    """

    id_column: str | None = field(
        default=None,
        metadata=parameter(
            "Column of the sample ids.",
            "--id",
            metavar="COLUMN",
            default="id, sample_id, or a usual name for paths",
        ),
    )
    labels: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter(
            "Columns of the labels.", "--label", several=True, metavar="COLUMNS", default="all but the ids"
        ),
    )
    target: str = field(
        default=AUTO,
        validator=one_of("kind of target", (AUTO, *LABELED_KINDS)),
        metadata=parameter(
            f"Target type: {', '.join(LABELED_KINDS)}, or auto: one column is the class, several columns of 0 and 1 are a "
            "class each.",
            "--target",
        ),
    )
    units: str | None = field(
        default=None,
        metadata=parameter(
            "Units of real values, with commas.",
            "--units",
            default="in brackets behind the names, as in weight [kg]",
        ),
    )
    encoding: str | None = field(
        default=None,
        metadata=parameter(
            "Encoding of the table, such as latin-1.", "--encoding", default="UTF-8, or UTF-16 with a mark"
        ),
    )
