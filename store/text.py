"""Text from elsewhere, made fit for a terminal."""


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
