"""No dependency may be as old as a version with a known security hole that a file from elsewhere can reach.

That the lowest versions install and that all tests pass with them is `make test-lowest`.
"""

from pathlib import Path

import pytest

from support.floors import floors

REPO = Path(__file__).parent.parent
WITHOUT_KNOWN_HOLES = {
    "pillow": "12.1.1",  # images that write outside of their buffer (CVE-2026-25990)
    "pyarrow": "14.0.1",  # code in the metadata of a file (CVE-2023-47248)
    "requests": "2.33",  # its security release of that number
    "scikit-learn": "1.5",  # CVE-2024-5206
    "torch": "2.10",  # weights that corrupt memory in spite of weights_only (CVE-2026-24747)
}


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("package", WITHOUT_KNOWN_HOLES)
def test_floors_lie_above_known_holes(package):
    assert as_numbers(floors(REPO / "pyproject.toml")[package]) >= as_numbers(WITHOUT_KNOWN_HOLES[package])


def test_floors_are_installed_or_exceeded():
    """What the suite runs with is what pyproject.toml admits."""
    from importlib.metadata import version

    for package, lowest in floors(REPO / "pyproject.toml").items():
        installed = tuple(int(part) for part in version(package).split("+")[0].split(".")[:2])
        assert installed >= as_numbers(lowest)[:2], package


def test_a_requirement_without_a_floor_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\ndev = ["pytest"]\n'
    )
    with pytest.raises(ValueError, match="'numpy' states no lowest version"):
        floors(tmp_path / "pyproject.toml")
