"""The Hugging Face Hub, for weights and datasets: whether it answers, and what to do about what it refuses. No torch here."""

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.store.text import reason

REACH_TIMEOUT_S = 10.0
"""Seconds that the Hub may take to answer at all before the run continues with cached files."""


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Turn the Hub client's offline mode on if the Hub does not answer.

    The client would try every file of a model six times, 25 to 50 s in all, to find that there is no network. Offline,
    it takes what is cached, and says at once what is not.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        # Whatever it answers, it is there.
        get_session().head(constants.ENDPOINT, timeout=REACH_TIMEOUT_S)
    except client_errors():
        return False
    return True


def client_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the Hub's client raises for network failures and bad responses; any other error is a bug here."""
    from huggingface_hub.errors import HfHubHTTPError

    # The client's errors derive from those of its HTTP library, which differs between versions.
    return (HfHubHTTPError.__bases__[0], OSError, ValueError)


def hub_problem(error: Exception, repository: str) -> tuple[str, str]:
    """Return the cause of an error of the Hub's client, and the next step."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The libraries wrap what the client raised.
    chain = list(_chain(error))
    status = next((status for error in chain if (status := _status(error)) is not None), None)
    if any(isinstance(error, GatedRepoError) for error in chain):
        return (
            f"{repository} is gated, status {status}",
            f"accept its license at {constants.ENDPOINT}/{repository} and log in with `hf auth login`",
        )
    if any(isinstance(error, RepositoryNotFoundError) for error in chain) or status in (401, 403):
        return (
            f"no access to {repository}, status {status}",
            "log in with `hf auth login` as a user who may read it",
        )
    if status is not None:
        return (
            f"{constants.ENDPOINT} answered with status {status}",
            f"see whether {constants.ENDPOINT}/{repository} is there, try again later",
        )
    if any(isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) for error in chain):
        return (
            f"no connection to {constants.ENDPOINT}, and {repository} is not in the local cache",
            "check the connection to the Hugging Face Hub (HF_HUB_OFFLINE, HF_ENDPOINT, proxy)",
        )
    return reason(error), "check the connection to the Hugging Face Hub"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
