"""Keep credentials out of messages: those of addresses, of their queries, and of the environment."""

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import quote, quote_plus, unquote

_SECRET_VARIABLES = (
    "SECRET",
    "TOKEN",
    "PASSWORD",
    "PASSWD",
    "ACCESS_KEY",
    "ACCOUNT_KEY",
    "API_KEY",
    "STORAGE_KEY",
    "CONNECTION_STRING",
    "SAS",
)
MIN_LOGIN, MIN_VARIABLE = 4, 8
"""Shortest credential to hide; shorter ones would be replaced inside ordinary words."""
HIDDEN = "***"
_logins: set[str] = set()

# Up to the last @, since a password may hold a slash. A revision of the Hub follows an @ too.
_USERINFO = re.compile(r"(?<!hf)(:/{1,2})[^\s\"'<>]*@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?#\"'<>]*)[?#][^\s\"'<>)]*")
_FIELD = re.compile(
    r"(?i)\b((?:x-amz-|x-goog-)?(?:signature|credential|security-token)|sig|token|access_token|password|secret"
    r"|authorization:\s*(?:basic|bearer))(=|\s+)(?=\S)([^\s&\"'<>)]+)"
)


def remember_login(login: str) -> None:
    """Hide ``user:password`` of an address, or a token that stands in its place, in all later messages."""
    _, colon, password = login.partition(":")
    decoded = unquote(login)
    _logins.update(_forms(login), [b64encode(decoded.encode()).decode()])
    if colon:
        _logins.update(_forms(password))


def remember_logins(text: str) -> None:
    """Hide the text between the scheme and the last ``@`` of an address in an argument, even if the address is refused."""
    scheme, mark, rest = text.partition(":/")
    login = rest.lstrip("/").rpartition("@")[0]
    named = scheme.lower().endswith(("ssh", "sftp")) and ":" not in login  # a user name is no secret
    if mark and login and not named and not scheme.lower().endswith(("hf", "file")):
        remember_login(login)


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` with every known credential replaced, percent-encoded or not.

    Args:
        text: a message of any number of lines.
        secrets: further credentials that the caller knows.
    """
    known = {
        form
        for name, value in os.environ.items()
        if len(value) >= MIN_VARIABLE and any(word in name.upper() for word in _SECRET_VARIABLES)
        for form in _forms(value)
    }
    known.update(*(_forms(secret) for secret in secrets), _logins)
    # The longest first: one may contain another.
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= MIN_LOGIN:
            text = text.replace(secret, HIDDEN)
    return text


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` in one line, without logins and queries of addresses, and without known credentials.

    Args:
        text: message of a client library, which may quote whole requests.
        secrets: further credentials that the caller knows.
    """
    return " ".join(redacted_lines(text, secrets).split())


def redacted_lines(text: str, secrets: Sequence[str] = ()) -> str:
    """Return a text of several lines, such as a traceback, redacted in the same way, with its lines kept."""
    text = _QUERY.sub(r"\1", _USERINFO.sub(r"\1", without_secrets(text, secrets)))
    return _FIELD.sub(rf"\1\2{HIDDEN}", text)


def _forms(secret: str) -> set[str]:
    """Return a credential as written, decoded, and encoded in the way of clients."""
    decoded = unquote(secret)
    return {secret, decoded, quote(decoded, safe=""), quote(decoded), quote_plus(decoded)}
