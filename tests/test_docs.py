"""What the docs point at is there: linked files, and names of featcache's modules, classes and functions."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

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
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page} names {name}: {error}")
