"""The pages that list things name every one there is, and no other; their links lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tandemn.batch.line_rules import LineCode
from tandemn.events import EventKind

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What a code looks like.
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def first_cells(page: str) -> list[str]:
    """What stands in backticks in the first column of the page's tables."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def codes_in(tree: ast.AST) -> set[str]:
    """Codes that a file gives: `code="…"` in a call, `code = "…"`, `default_code`, `"code": "…"`."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="code", value=value):
                found.append(value)
            case ast.AnnAssign(target=ast.Name(id="default_code" | "code"), value=value):
                found.append(value)
            case ast.Assign(targets=[ast.Name(id="default_code" | "code")], value=value):
                found.append(value)
            case ast.Assign(
                targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=ast.Tuple(elts=[value, *_])
            ):
                found.append(value)
            case ast.Dict(keys=keys, values=values):
                found += [
                    value
                    for key, value in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant) and key.value == "code"
                ]
    return {text for value in found if value is not None for text in literals(value)}


def literals(value: ast.expr) -> set[str]:
    """The strings that an expression may be: also of `a if b else c`, and of `a or b`."""
    match value:
        case ast.Constant(value=str(text)) if CODE.fullmatch(text):
            return {text}
        case ast.IfExp(body=body, orelse=orelse):
            return literals(body) | literals(orelse)
        case ast.BoolOp(values=values):
            return {text for each in values for text in literals(each)}
    return set()


def codes_given() -> set[str]:
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    found = {code for tree in trees.values() for code in codes_in(tree)}
    found |= {code.value for code in LineCode}
    # Codes of the error lines of a job that was cut off.
    from tandemn.control.reconcilers.assembling import UNANSWERED

    return found | {code for code, _ in UNANSWERED.values()}


def test_every_error_code_is_documented_and_no_other():
    documented = first_cells("errors.md")
    assert len(documented) == len(set(documented))
    assert codes_given() - set(documented) == set(), "not in docs/errors.md"
    assert set(documented) - codes_given() == set(), "in docs/errors.md, and nowhere else"


def test_every_kind_of_event_is_documented_and_no_other():
    documented = first_cells("events.md")
    assert sorted(documented) == sorted(kind.value for kind in EventKind)


def test_every_dependency_is_documented_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    needed, optional = text.split("## Optional")[0], text.split("## Optional")[1].split("## For")[0]

    def names(requirements: list[str]) -> list[str]:
        return [re.split(r"[\[<>=;! ]", each)[0] for each in requirements]

    rows = re.findall(r"^\| ([a-z][\w-]*) \| ", needed, flags=re.MULTILINE)
    assert [row for row in rows if row != "dependency"] == sorted(names(project["dependencies"]))
    rows = re.findall(r"^\| ([a-z][\w-]*) \|([^|]+)\|", optional, flags=re.MULTILINE)
    extras = {
        extra: [each for each in brings.strip().split(", ") if each]
        for extra, brings in rows
        if extra != "extra"
    }
    assert extras == {
        extra: names(requirements) for extra, requirements in project["optional-dependencies"].items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, link


def test_every_page_is_linked():
    pages = {page.name for page in PAGES if page.parent.name == "docs"}
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert pages == linked
