"""Text from elsewhere, made fit for a terminal."""

import textwrap


def printable(text: str, keep: str = "") -> str:
    """Return `text` with every character escaped that would move the cursor, clear the screen or not be printed at all.

    Args:
        text: a name or message; file names that are not UTF-8 come with lone surrogates.
        keep: characters that stay nevertheless.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode() for one in text
    )


def reason(error: BaseException) -> str:
    """What a library raised, in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line ends in a colon and says nothing yet.
    line = next((line for line in lines if not line.endswith(":")), "")
    # The text of a KeyError, for one, is just the key.
    return textwrap.shorten(
        line if " " in line else f"{type(error).__name__} {line}".rstrip(), 200, placeholder=" ..."
    )
