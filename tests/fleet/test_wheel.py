"""The wheel that travels: whole, the same each time, and installable with nothing but what a runner needs."""

import ast
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

import tandemn
from tandemn.fleet.launchers import wheel

ROOT = Path(tandemn.__file__).parent
#: Names of modules that are not those of their distributions.
DISTRIBUTIONS = {"pydantic_settings": "pydantic-settings", "pydantic_core": "pydantic"}


def test_the_same_package_gives_the_same_wheel(tmp_path):
    one, two = wheel.build(tmp_path / "a", "vllm"), wheel.build(tmp_path / "b", "vllm")
    assert one.read_bytes() == two.read_bytes()
    assert wheel.build(tmp_path / "a", "vllm") == one
    assert wheel.build(tmp_path / "a", "llamacpp") != one


def test_it_holds_the_package_and_a_true_record(tmp_path):
    with zipfile.ZipFile(wheel.build(tmp_path, "vllm")) as archive:
        names = set(archive.namelist())
        assert "tandemn/runner/__main__.py" in names
        assert "tandemn/placement/catalog/gpus.toml" in names
        assert not any("__pycache__" in name for name in names)
        info = next(name for name in names if name.endswith("/RECORD"))
        recorded = {line.split(",")[0] for line in archive.read(info).decode().splitlines()}
        assert recorded == names
        data = archive.read(f"{info.removesuffix('RECORD')}METADATA").decode()
    assert "Requires-Dist: aiohttp" in data
    assert "sqlalchemy" not in data
    assert "xllamacpp" not in data


def test_it_asks_for_what_runners_engines_and_routers_import(tmp_path):
    wanted = {
        engine: wheel.RUNNER_NEEDS | wheel.ENGINE_NEEDS.get(engine, frozenset())
        for engine in ("vllm", "simulated", "llamacpp")
    }
    assert needs("runner/__main__.py") == wanted["vllm"]
    assert needs("runner/__main__.py", "fleet/engines/simulated_server.py") == wanted["simulated"]
    assert (
        needs("runner/__main__.py", "fleet/engines/llamacpp_server.py", "fleet/engines/demo_model.py")
        == wanted["llamacpp"]
    )
    assert needs("router/__main__.py") == wheel.ROUTER_NEEDS
    assert wheel.build_for_router(tmp_path) != wheel.build(tmp_path, "vllm")


def needs(*entries: str) -> set[str]:
    """Distributions that these modules need, all that they import of ours included."""
    seen: set[Path] = set()
    found: set[str] = set()
    left = [ROOT / entry for entry in entries]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(ast.parse(path.read_text())):
            top = name.split(".")[0]
            if top == "tandemn":
                left += [each for each in modules(name) if each not in seen]
            elif top not in sys.stdlib_module_names:
                found.add(DISTRIBUTIONS.get(top, top))
    return found


def imports(tree: ast.AST) -> set[str]:
    """What a module imports at run time, inside functions too."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            names |= imports(node)
    return names


def modules(name: str) -> list[Path]:
    parts = name.split(".")[1:]
    base = ROOT.joinpath(*parts)
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if parts and path.exists()]


@pytest.mark.parametrize("engine", ["vllm", "simulated"])
def test_its_name_is_of_its_content(tmp_path, engine):
    path = wheel.build(tmp_path, engine)
    assert path.name == f"tandemn-{tandemn.__version__}-py3-none-any.whl"
    assert len(path.parent.name) == len(hashlib.sha256().hexdigest()) // 4
