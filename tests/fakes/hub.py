"""A hub on loopback: files of models, as huggingface.co serves them (redirects and error headers included)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.fakes.http_service import served

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message

TOKEN = "hf_of_the_tests"
#: The `config.json` of a model as large as Llama 3.1 8B.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


class FakeHub:
    """What it serves may be changed while it runs.

    Args:
        models: by `OWNER/NAME`, files by their names.
    """

    def __init__(self, models: Mapping[str, Mapping[str, str]]) -> None:
        self.models = {model: dict(files) for model, files in models.items()}
        self.gated: set[str] = set()
        """May be read with the token."""
        self.renamed: dict[str, str] = {}
        self.elsewhere: dict[str, str] = {}
        """Models whose files another server has, by its URL."""
        self.status = 200
        """Another one: every answer is that."""
        self.asked: list[tuple[str, str | None]] = []
        """Paths, and the token that came with each."""
        self.url = ""

    def answer(self, path: str, headers: Message, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        key = headers["Authorization"]
        token = key.removeprefix("Bearer ") if key else None
        self.asked.append((path, token))
        if self.status != 200:
            return self.status, {}, b"no"
        model, name = path.strip("/").split("/resolve/main/")
        if model in self.renamed:
            return 307, {"Location": path.replace(model, self.renamed[model])}, b""
        if model in self.elsewhere:
            return 302, {"Location": self.elsewhere[model] + path}, b""
        if model not in self.models:
            # Without a token nobody is told what is private.
            return 404 if token else 401, {"X-Error-Code": "RepoNotFound"}, b""
        if model in self.gated and token is None:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if model in self.gated and token != TOKEN:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if name not in self.models[model]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {}, self.models[model][name].encode()


@contextmanager
def hub(models: Mapping[str, Mapping[str, str]]) -> Iterator[FakeHub]:
    fake = FakeHub(models)
    with served(fake.answer) as fake.url:
        yield fake
