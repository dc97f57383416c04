"""The package that runs, as a wheel: what a replica or router elsewhere installs is exactly what its control plane is.

Written from the files of the running package, so that it is there however Tandemn was installed. It asks only for what
is imported there: the engine's own environment should not be bent to the control plane's needs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zipfile
from importlib import metadata
from pathlib import Path

import tandemn

#: What runners import, beside the standard library and Tandemn itself; a test holds this against the imports.
RUNNER_NEEDS = frozenset(
    {"aiohttp", "httptools", "msgspec", "psutil", "pydantic", "pydantic-settings", "structlog", "uvloop"}
)
#: What an engine needs beside that. vLLM is installed by its own name, in the version that the task pins.
ENGINE_NEEDS = {"llamacpp": frozenset({"gguf", "numpy", "xllamacpp"})}
#: What routers import.
ROUTER_NEEDS = frozenset({"httptools", "msgspec", "pydantic", "pydantic-settings", "uvloop"})
#: Time of every file in the archive: the same package gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build(folder: Path, engine: str) -> Path:
    """Write the wheel of a runner with this engine into `folder`, if it is not there yet, and return its path."""
    return _build(folder, RUNNER_NEEDS | ENGINE_NEEDS.get(engine, frozenset()))


def build_for_router(folder: Path) -> Path:
    """Write the wheel of a router into `folder`, if it is not there yet, and return its path."""
    return _build(folder, ROUTER_NEEDS)


def _build(folder: Path, wanted: frozenset[str]) -> Path:
    version = tandemn.__version__
    files = dict(_package())
    info = f"tandemn-{version}.dist-info"
    files[f"{info}/METADATA"] = _metadata(version, wanted).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: tandemn\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = _record(files, info).encode()
    digest = hashlib.sha256(
        b"".join(name.encode() + data for name, data in sorted(files.items()))
    ).hexdigest()
    path = folder / digest[:16] / f"tandemn-{version}-py3-none-any.whl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{os.getpid()}.whl")
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
        fresh.rename(path)
    return path


def _package() -> list[tuple[str, bytes]]:
    root = Path(tandemn.__file__).parent
    return [
        (f"tandemn/{path.relative_to(root)}", path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _metadata(version: str, wanted: frozenset[str]) -> str:
    needs = [
        each
        for each in metadata.requires("tandemn") or []
        if "extra ==" not in each and _name(each) in wanted
    ]
    missing = wanted - {_name(each) for each in needs}
    assert not missing, f"no dependencies of the package: {missing}"
    lines = ["Metadata-Version: 2.1", "Name: tandemn", f"Version: {version}", "Requires-Python: >=3.11"]
    return "\n".join([*lines, *(f"Requires-Dist: {each}" for each in sorted(needs))]) + "\n"


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=;! ]", requirement)[0]


def _record(files: dict[str, bytes], info: str) -> str:
    rows = []
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}")
    return "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
