"""The documentation is whole: pages and links, names in code, the reference, what an index shows."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import flowknife as fk

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


def leaves(nav):
    """The pages of a navigation."""
    for entry in nav:
        for target in entry.values():
            yield from leaves(target) if isinstance(target, list) else [target]


def links(page):
    """Relative links and images of a page, without anchors and without code."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)", text)
    return [(page.parent / link).resolve() for link in found]


def saved():
    """The figures that the tutorials save."""
    return {name for page in TUTORIALS for name in re.findall(r'savefig\("(.*?)"', page.read_text(encoding="utf-8"))}


def test_every_page_is_in_the_navigation_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(leaves(nav)) == sorted(NAMES)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    made = {DOCS / "figures" / name for name in saved()}
    assert [link for link in links(page) if not link.exists() and link not in made] == []


def test_the_front_page_leads_to_every_page_in_two_clicks():
    reached = {DOCS / "index.md"}
    for _ in range(2):
        reached |= {link for page in reached if page.suffix == ".md" for link in links(page)}
    assert [page for page in PAGES if page not in reached and page.parent.name != "notes"] == []


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_a_tutorial_shows_is_made_by_its_code(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    printing = [block for block in blocks if "print(" in block]
    shown = re.findall(r'--8<-- "figures/(.*)\.txt"', text)
    assert shown == [f"{page.stem}-{i + 1}" for i in range(len(printing))]
    assert set(re.findall(r"figures/(.*?\.png)", text)) == set(re.findall(r'savefig\("(.*?)"', text))


def chains(code):
    """The dotted names below `fk` that code uses."""
    for node in ast.walk(ast.parse(code)):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id == "fk":
            yield parts[::-1]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_names_in_code_exist(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for first, *others in chains(code):
            value = getattr(fk, first)
            for name in others:
                value = getattr(value, name)


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    for name in fk.__all__:
        value = getattr(fk, name)
        path = value.__name__ if hasattr(value, "__file__") else f"{value.__module__}.{name}"
        path = re.sub(r"\._\w+", "", path)  # where a module of a package defines it
        assert any(path == each or path.startswith(f"{each}.") for each in shown), path


def test_the_short_description_names_every_page():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\S+?)\.html\)", text))
    expected = {name.removesuffix(".md") for name in NAMES if not name.startswith("notes")}
    assert linked == expected - {"index", "examples", "columns"}


@pytest.fixture
def for_index(monkeypatch):
    """What makes the README of the package; hatchling, which calls it, need not be installed."""
    hook = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", hook)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.for_index


def test_the_readme_works_on_an_index(for_index):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    alone, linked = for_index(text), for_index(text, "https://example.org/flowknife")
    for shown in (alone, linked):
        assert not re.findall(r"\]\((?!https?://|#)", shown)
    assert "![" not in alone and "[Resume]" not in alone and "Resume" in alone
    assert "](https://example.org/flowknife/raw/main/docs/seven-jobs.svg)" in linked
    assert "[Resume](https://example.org/flowknife/blob/main/docs/resume.md)" in linked
    code = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    assert code.findall(alone) == code.findall(text) == code.findall(linked)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fk.__version__
    assert citation["authors"] == [{"name": "flowknife contributors"}]
    assert f"version = {{{fk.__version__}}}" in (DOCS / "howto" / "citing.md").read_text(encoding="utf-8")
