"""What the docs point at is there: linked files, and names of featcache's modules, classes and functions."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

import featcache

REPO = Path(__file__).parent.parent
PAGES = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")]
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_NAME = re.compile(r"\bfeatcache(?:\.[A-Za-z_]\w*)+")
_QUOTED = re.compile(r"`[^`\n]+`")


def docstrings(path: Path) -> str:
    """All docstrings of a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented))
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


OLD_NAMES = ("featcache.probe.estimators",)
"""Names of version 0.1.0, of which the docs say that they are."""


def resolve(name: str) -> object:
    """Return what a dotted name stands for: an attribute, else a module."""
    value: object = featcache
    for part in name.split(".")[1:]:
        if not hasattr(value, part):
            return pkgutil.resolve_name(name)
        value = getattr(value, part)
    return value


def test_names_can_be_imported():
    texts = {page: page.read_text() for page in PAGES}
    texts |= {path: docstrings(path) for path in (REPO / "front").rglob("*.py")}
    found = {
        (name, path.name)
        for path, text in texts.items()
        for quoted in _QUOTED.findall(text)
        for name in _NAME.findall(quoted)
    }
    assert len(found) > 10
    for name, page in sorted(found):
        if name in OLD_NAMES:
            continue
        try:
            resolve(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page} names {name}: {error}")


FOR_DEVELOPERS = ("CHANGELOG.md", "CONTRIBUTING.md", "design.md", "format.md", "benchmarks.md")
"""Pages that may name private modules."""
_IMPORT = re.compile(r"^ *from (featcache[\w.]*) import (.+?)(?: *#.*)?$", re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in FOR_DEVELOPERS], ids=lambda page: page.name
)
def test_docs_for_users_name_public_names_alone(page):
    text = page.read_text()
    for name in {*_NAME.findall(text)}.difference(OLD_NAMES):
        _, public, *attributes = name.split(".")
        if name == "featcache.__all__":
            continue
        assert public in featcache.__all__, name
        value = getattr(featcache, public)
        assert not attributes or hasattr(value, attributes[0]), name
    for module, names in _IMPORT.findall(text):
        assert module in ("featcache", "featcache.errors"), module
        for name in names.split(","):
            assert hasattr(featcache, name.strip()), name


def test_docstrings_of_public_names_name_no_private_module():
    for name in featcache.__all__:
        value = getattr(featcache, name)
        documented = [value, *vars(value).values()] if isinstance(value, type) else [value]
        for one in documented:
            for found in _NAME.findall(getattr(one, "__doc__", None) or ""):
                assert found.split(".")[1] in featcache.__all__, f"{name}: {found}"
