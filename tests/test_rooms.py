"""Data flows one way: extract -> store <- probe, both use devices, and front is the door; folders within a room import one way as well."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
ROOMS = {
    "front": "featcache",
    "extract": "featcache.extraction",
    "probe": "featcache.probing",
    "store": "featcache.store",
    "devices": "featcache.devices",
}
"""Folders at the top level of the repo, and the packages that they become."""

FORBIDDEN = {
    "store": (
        *("featcache.extraction", "featcache.probing", "featcache.devices", "featcache.cli", "featcache.api"),
        *("torch", "timm", "open_clip", "PIL"),
    ),
    "devices": ("featcache.extraction", "featcache.probing", "featcache.cli", "featcache.api"),
    "extract": ("featcache.probing", "featcache.cli", "featcache.api"),
    "probe": ("featcache.extraction", "featcache.cli", "featcache.api"),
}


def package_of(file: Path) -> str:
    """The package that holds a module: each folder is one, and so are the files directly in a room."""
    room, *folders = file.relative_to(REPO).parent.parts
    return ".".join([ROOMS[room], *folders])


def module_of(file: Path) -> str:
    return package_of(file) if file.name == "__init__.py" else f"{package_of(file)}.{file.stem}"


def nodes(path: Path, *, types: bool) -> Iterator[ast.AST]:
    """Every node of a file, inside functions too; without `types`, not those that only a type checker runs."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def imports(path: Path, *, types: bool = True) -> set[str]:
    """Every module that a file imports."""
    names = set()
    for node in nodes(path, types=types):
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


@pytest.mark.parametrize("room", ROOMS)
def test_the_folders_of_a_room_import_one_way(room):
    """No folder imports another that imports it, by however many steps."""
    files = list((REPO / room).rglob("*.py"))
    packages = {module_of(file): package_of(file) for file in files}
    graph: dict[str, set[str]] = {package: set() for package in packages.values()}
    reasons: dict[tuple[str, str], str] = {}
    for file in files:
        if file.name == "__main__.py":
            continue  # the interpreter's way in, which nothing imports
        for name in imports(file, types=False):
            package = packages.get(name)
            if package is not None and package != package_of(file):
                graph[package_of(file)].add(package)
                reasons[package_of(file), package] = f"{file.relative_to(REPO)} imports {name}"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists the circle from the imported to the importing package.
        circle = error.args[1]
        steps = [reasons[importing, imported] for imported, importing in pairwise(circle)]
        pytest.fail("; ".join(steps))


def test_no_folder_shadows_the_installed_package():
    assert not (REPO / "featcache").exists()
