"""What gains are measured against: the linear probe on the last class token, solved or trained, or any head, layers and tokens."""

from dataclasses import dataclass

from featcache.probing.heads.info import SOLVED_HEAD
from featcache.probing.protocols.protocol import L2_INPUT
from featcache.probing.report.groups import Group
from featcache.probing.requests.request import ADAMW, BASELINES, BEST_LAYER, LAYER_CHOICE, SOLVED, TRAINED
from featcache.probing.requests.tables import TableRow
from featcache.probing.results.rows import ResultRow
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.store.errors import RequestError
from featcache.store.layers import FINAL
from featcache.store.views import PLAIN_VIEW


@dataclass(frozen=True)
class Reference:
    """Head, layers and tokens that differences are taken from."""

    row: TableRow
    name: str = ""
    """Name of the baseline, one of `BASELINES`; empty for any other reference."""

    def __str__(self) -> str:
        """Such as ``the solved linear probe``, or ``attentive on all, cls+ap``."""
        words = {
            SOLVED: "the solved linear probe",
            TRAINED: "the trained linear probe",
            BEST_LAYER: "the best single layer",
        }
        return words.get(self.name) or str(self.row)

    @property
    def title(self) -> str:
        """Such as ``over solved``, for the head of a column."""
        return f"over {self.name}" if self.name else f"over {self.row.head} {self.row.layers}"

    @property
    def remedy(self) -> str:
        """The command line that adds the reference to results."""
        if self.name:
            return f"--head linear --baselines {self.name}"
        return f"--head {self.row.head} --layers {self.row.layers} --tokens {self.row.tokens}"

    def matches(self, group: Group) -> bool:
        """Return whether a group is the reference, whatever its input transform; see `prefers`."""
        return self.is_row(group.first)

    def is_row(self, row: ResultRow) -> bool:
        """Return whether a row is one of the reference, whatever its input transform."""
        if self.name in (SOLVED, TRAINED):
            head, solvers = "linear", [ADAMW]
            if self.name == SOLVED:
                head = SOLVED_HEAD if row.target_kind == SINGLE_LABEL else "ridge"
                solvers = [row.solver]
            of_last = _layers(row.layers) == _layers("last")
            plain = row.penalty_kind in (None, "l2")
            return row.head == head and row.solver in solvers and of_last and _one_token(row) and plain
        if self.name == BEST_LAYER:
            return row.solver == LAYER_CHOICE and _one_token(row)
        tokens = sorted((self.row.tokens or "").replace("+", ",").split(","))
        # The set "last" and a list of the final layer alone are the same layer.
        return (row.head, sorted(row.tokens), _layers(row.layers)) == (
            self.row.head,
            tokens,
            _layers(self.row.layers or ""),
        )

    def has_usual_input(self, group: Group) -> bool:
        """Return whether a group sees the class token, as a baseline does; a backbone without one has its average instead.

        The best layer is that of all layers, where the cache holds all.
        """
        row = group.first
        every = self.name != BEST_LAYER or _layers(row.layers) == ("all",)
        return not self.name or (tuple(row.tokens) == CLASS_TOKEN and every)

    def prefers(self, group: Group) -> bool:
        """Return whether a group's tokens are those of a baseline: of length 1, as the paper's linear probe takes them, and of the plain
        view."""
        row = group.first
        return not self.name or (row.input == L2_INPUT and tuple(row.views) == (PLAIN_VIEW,))


CLASS_TOKEN, AVERAGE = ("cls",), ("ap",)
_ROWS = {
    SOLVED: TableRow(SOLVED_HEAD, "last", "cls"),
    TRAINED: TableRow("linear", "last", "cls"),
    BEST_LAYER: TableRow(BEST_LAYER, "all", "cls"),
}
SOLVED_PROBE, TRAINED_PROBE = (Reference(_ROWS[name], name) for name in (SOLVED, TRAINED))


def parse_reference(text: str | None) -> Reference:
    """Parse a reference: the name of a baseline, or such as ``attentive:all:cls+ap``; the solved probe if it is not given.

    Raises:
        RequestError: the text is neither.
    """
    if text is None:
        return SOLVED_PROBE
    if text.strip() in _ROWS:
        return Reference(_ROWS[text.strip()], text.strip())
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 3 or not all(parts):
        raise RequestError(
            f"a reference is {', '.join(BASELINES)} or HEAD:LAYERS:TOKENS, such as linear:last:cls, not {text!r}"
        )
    return Reference(TableRow(*parts))


def _one_token(row: ResultRow) -> bool:
    return tuple(row.tokens) in (CLASS_TOKEN, AVERAGE)


def _layers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    return ("last",) if names == (FINAL,) else names
