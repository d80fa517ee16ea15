"""Types of the arguments of the public functions."""

from pathlib import Path

PathLike = str | Path
