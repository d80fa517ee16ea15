"""`featcache.load_head`."""

from typing import TYPE_CHECKING

from featcache.api.types import PathLike
from featcache.store.errors import HeadNotFoundError

if TYPE_CHECKING:
    from featcache.probing.trained import TrainedHead


def load_head(folder: PathLike) -> "TrainedHead":
    """Load a head that `probe` saved, to score new features with; no cache is needed.

    Args:
        folder: of the head, under the results' ``heads/``: `ResultRow.folder`.

    Raises:
        HeadNotFoundError: there is no head; also a `FileNotFoundError`.
        CacheError: its files are damaged or do not fit each other.

    Example:
        >>> head = featcache.load_head("featcache-results/heads/...")                       # doctest: +SKIP
        >>> head.predict_proba(features, layers=head.layers)  # [N, L, K, D] -> [N, C]      # doctest: +SKIP
    """
    from featcache.probing.trained import TrainedHead

    try:
        return TrainedHead.load(folder)
    except FileNotFoundError:
        raise HeadNotFoundError(
            f"{folder} holds no head; give OUT/FOLDER, where OUT is what `probe` wrote its results to "
            "(featcache-results if not said) and FOLDER is the `folder` of a row that it returned"
        ) from None
