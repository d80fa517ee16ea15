"""Data flows one way: extract -> store <- probe, and front is the door."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FORBIDDEN = {
    "store": ("featcache.extract", "featcache.probe", "featcache.cli", "torch", "timm", "open_clip", "PIL"),
    "extract": ("featcache.probe", "featcache.cli"),
    "probe": ("featcache.extract", "featcache.cli"),
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_know_its_neighbours(room):
    files = list((REPO / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            assert not name.startswith(FORBIDDEN[room]), f"{file.relative_to(REPO)} imports {name}"


def test_no_folder_shadows_the_installed_package():
    assert not (REPO / "featcache").exists()
