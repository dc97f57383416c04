"""GPU specifications, from the package's own table; what they rent for is in `offers`."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from tandemn.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. Compute in dense TFLOPS, bandwidths in GB/s (10^9)."""

    name: str
    arch: str
    sm: int
    """CUDA compute capability, times ten."""
    bf16_tflops: float
    """Of 16-bit matrix products; on Turing and Volta those are float16."""
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    memory_gb: int
    """As it is sold."""
    memory_gib: float
    """As CUDA reports it."""
    bandwidth_gb_s: float
    nvlink_gb_s: float
    """Both directions together; 0: the GPUs of an instance talk over PCIe."""
    source: str
    checked: str
    """The second sources."""
    unconfirmed: tuple[str, ...] = ()
    """Figures (by field) that no second source was found for, or that sources disagree on."""

    @property
    def is_supported(self) -> bool:
        """Whether vLLM's V1 engine runs on it (compute capability 7.5 and up)."""
        return self.sm >= 75

    def tflops(self, bits: float) -> float:
        """Dense TFLOPS of matrix products of `bits`-wide operands."""
        if bits <= 4 and self.fp4_tflops:
            return self.fp4_tflops
        return self.fp8_tflops if bits <= 8 and self.fp8_tflops else self.bf16_tflops


@cache
def gpus() -> Mapping[str, Gpu]:
    """Every known GPU by its name, in the table's order."""
    return {gpu.name: gpu for gpu, _ in _table()}


@cache
def _table() -> tuple[tuple[Gpu, tuple[str, ...]], ...]:
    text = resources.files("tandemn.placement.catalog").joinpath("gpus.toml").read_text("utf-8")
    rows = []
    for row in tomllib.loads(text)["gpu"]:
        aliases = tuple(row.pop("aliases", ()))
        unconfirmed = tuple(row.pop("unconfirmed", ()))
        rows.append((Gpu(**row, unconfirmed=unconfirmed), aliases))
    return tuple(rows)


@cache
def _by_any_name() -> Mapping[str, Gpu]:
    return {_plain(name): gpu for gpu, aliases in _table() for name in (gpu.name, *aliases)}


def gpu_named(name: str) -> Gpu:
    """Find a GPU by a name that people, SkyPilot or a cloud use for it.

    Raises:
        NotFound: there is none; near names are suggested.
    """
    known = _by_any_name()
    gpu = known.get(_plain(name)) or _of_size(name)
    if gpu is not None:
        return gpu
    near = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.5)
    names = list(dict.fromkeys(known[match].name for match in near))
    raise NotFound(
        f"no GPU is called {name!r}",
        code="unknown_gpu",
        next_step=f"did you mean {', '.join(names)}?" if names else "`tandemn show-gpus` lists them",
        param="gpu",
    )


#: What drivers and tables add to a name without meaning another GPU: not PCIe and NVL, which are slower ones.
_FORM = re.compile(r"nvidia|tesla|geforce|sxm\d?|hbm\d?e?|gddr\d")
_SIZE = re.compile(r"(\d+)(?:gb?|gib)")


def _of_size(name: str) -> Gpu | None:
    """Find what a driver calls by its form and memory, `NVIDIA A100-SXM4-80GB`; None where the memory is another's."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and not _FORM.fullmatch(word)]
    sizes = [int(match[1]) for word in words if (match := _SIZE.fullmatch(word))]
    base = "".join(word for word in words if not _SIZE.fullmatch(word))
    gpu = _by_any_name().get(base)
    if gpu is None or len(sizes) > 1:
        return None
    same = [each for each in gpus().values() if _plain(each.name).removesuffix(f"{each.memory_gb}gb") == base]
    kinds = same or [gpu]
    return next((each for each in kinds if not sizes or each.memory_gb == sizes[0]), None)


def _plain(name: str) -> str:
    return "".join(char for char in name.lower().removeprefix("nvidia") if char.isalnum())
