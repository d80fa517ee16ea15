"""The lowest version of each dependency that pyproject.toml admits, as constraints for pip: ``floors.py pyproject.toml``."""

import re
import sys
import tomllib
from pathlib import Path

TESTING = "dev"
"""The extra whose packages only the tests need: they may be of any version."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def floors(pyproject: Path) -> dict[str, str]:
    """Return the lowest version by package, of what featcache and its extras need.

    Raises:
        ValueError: a requirement states no lowest version.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = (packages for name, packages in project["optional-dependencies"].items() if name != TESTING)
    lowest = {}
    for requirement in (*project["dependencies"], *(package for packages in extras for package in packages)):
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} states no lowest version")
        lowest[match[1]] = match[2]
    return lowest


if __name__ == "__main__":
    for package, version in floors(Path(sys.argv[1])).items():
        print(f"{package}=={version}")
