"""Valid values in the columns of a split. Digests tell whether bytes are as they were written, not whether they make sense."""

import numpy as np
import numpy.typing as npt


def valid_mismatch(valid: npt.NDArray[np.bool_], first_row: int = 0) -> str | None:
    """Return why ``valid`` ``[N]`` cannot be; None if every byte is 0 or 1, the only ones that numpy computes with."""
    stored = valid.view(np.uint8)
    wrong = np.flatnonzero(stored > 1)
    return (
        f"row {first_row + int(wrong[0])} has byte {stored[wrong[0]]}, must be 0 or 1" if wrong.size else None
    )


def id_mismatch(ids: npt.NDArray[np.uint8], first_row: int = 0) -> str | None:
    """Return why sample ids ``[N, bytes]`` cannot be; None if all are UTF-8."""
    for row, stored in enumerate(ids, first_row):
        try:
            stored.tobytes().rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            return f"row {row} has an id that is not UTF-8 ({error.reason})"
    return None
