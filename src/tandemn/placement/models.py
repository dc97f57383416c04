"""Find a model's shape by its name: a folder, a GGUF file, the table of well-known models, or a hub id.

It does not ask the hub: its caller does, and gives what it said. It leaves to `memory` what the sizes weigh on a GPU and to
`throughput` how fast they go.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput, NotFound
from tandemn.placement.model_config import shape_from_folder, shape_from_gguf, shape_from_texts
from tandemn.placement.model_shape import FOUR_BIT_FLOATS, QUANTISED_BITS, ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_on_hub(model: str, *, may_be_file: bool = True) -> bool:
    """Say whether only the hub can tell the sizes: no file, no folder, no row of the table, and a name as the hub's are."""
    if may_be_file:
        path = Path(model).expanduser()
        if path.suffix.lower() == ".gguf" or path.is_dir():
            return False
    return "/" in model and _plain_name(model) not in known_models()


def shape_of(
    model: str, *, texts: Mapping[str, str | None] | None = None, may_be_file: bool = True
) -> ModelShape:
    """Find the shape of `model`: a folder, a GGUF file, a name of the table, or a hub id.

    Args:
        model: as the user named it.
        texts: files of the hub's (`shape_from_texts`), where the caller read them; they are believed before a
            quantised copy is guessed from its name.
        may_be_file: whether it may name a file or folder of this machine's: not where another one's user named it.

    Raises:
        NotFound: no such folder, and the table has no such name (near names are suggested).
        InvalidInput: the config or header cannot be read.
    """
    if may_be_file:
        path = Path(model).expanduser()
        if path.suffix.lower() == ".gguf":
            return shape_from_gguf(path)
        if path.is_dir():
            return shape_from_folder(path)
    known = known_models()
    name = _plain_name(model)
    if name in known:
        return replace(known[name], name=model)
    if texts is not None:
        return shape_from_texts(texts, name=model)
    copied = _quantised_copy(name)
    if copied is not None:
        return replace(copied, name=model)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(known[name].name for name in near)}?" if near else None
    raise NotFound(
        f"the sizes of model {model!r} are not known",
        code="unknown_model",
        next_step=hint or "give a folder with its config.json, or a GGUF file",
        param="model",
    )


#: Endings of names under which quantised copies of a model are published.
_SUFFIXES = {
    "-fp8": "fp8",
    "-fp8-dynamic": "fp8",
    "-awq": "awq",
    "-gptq": "gptq",
    "-gptq-int4": "gptq",
    "-int4": "awq",
    "-nvfp4": "nvfp4",
    "-bnb-4bit": "bitsandbytes",
}


def _quantised_copy(name: str) -> ModelShape | None:
    known = known_models()
    for suffix, precision in _SUFFIXES.items():
        base = known.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if base is not None:
            return with_precision(base, precision)
    return None


@cache
def known_models() -> Mapping[str, ModelShape]:
    """The table of well-known models, by plain lower-case name."""
    text = resources.files("tandemn.placement").joinpath("known_models.toml").read_text("utf-8")
    known: dict[str, ModelShape] = {}
    for row in tomllib.loads(text)["model"]:
        names = [row["name"], *row.pop("aliases", [])]
        bits = row.pop("bits", None) or 16.0
        quantised = row.get("quantisation")
        weight_bits = row.pop("weight_bits", None) or (QUANTISED_BITS[quantised] if quantised else bits)
        shape = ModelShape(**row, bits=bits, weight_bits=weight_bits, source="table")
        known |= {_plain_name(name): shape for name in names}
    return known


#: Names that people and benchmarks give a precision, and the quantisation each one means.
_PRECISIONS = {
    "fp8": "fp8",
    "w8a8": "fp8",
    "int8": "int8",
    "w8a16": "int8",
    "awq": "awq",
    "gptq": "gptq",
    "int4": "awq",
    "w4a16": "awq",
    "mxfp4": "mxfp4",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "bitsandbytes": "bitsandbytes",
    "nf4": "bitsandbytes",
}
_PLAIN_PRECISIONS = {"", "auto", "none", "bf16", "bfloat16", "fp16", "float16", "half"}


def with_precision(shape: ModelShape, precision: str) -> ModelShape:
    """Return the shape as it is when served at `precision`.

    A shape that is quantised already keeps its own format where that is as wide, and where a plain precision is asked for.

    Raises:
        InvalidInput: the precision is not known.
    """
    name = precision.strip().lower()
    if name in _PLAIN_PRECISIONS:
        return shape
    quantisation = _PRECISIONS.get(name)
    if quantisation is None:
        raise InvalidInput(
            f"precision {precision!r} is not known",
            code="unknown_quantisation",
            next_step=f"known are {', '.join(sorted(_PRECISIONS))}",
            param="quantization",
        )
    bits = QUANTISED_BITS[quantisation]
    own = shape.quantisation
    is_as_wide = own is not None and abs(bits - shape.weight_bits) < 1
    if is_as_wide and (bits >= 8 or (own in FOUR_BIT_FLOATS) == (quantisation in FOUR_BIT_FLOATS)):
        return shape
    return replace(
        shape,
        quantisation=quantisation,
        weight_bits=bits,
        # Published four-bit copies of mixtures of experts leave the attention alone.
        only_experts_quantised=shape.experts > 0 and bits < 8,
        stored_bytes=None,
    )


def canonical_name(model: str) -> str:
    """The name under which a model's measurements are kept: the table's, else the plain lower-case one."""
    known = known_models().get(_plain_name(model))
    return _plain_name(known.name) if known else _plain_name(model)


def _plain_name(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
