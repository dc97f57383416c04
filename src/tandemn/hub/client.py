"""Small files of a model: from the hub's cache on this machine, or over HTTPS.

The hub's own client is not needed for that: one GET of `ENDPOINT/OWNER/NAME/resolve/main/FILE` each, with the token as a
bearer. Weights are fetched by engines.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp

from tandemn.errors import NotFound, Retryable
from tandemn.hub.cache import MODEL_ID, beginning, cached_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import SecretStr

#: How long one file may take, in seconds.
FILE_S = 20.0
#: How long a connection to it may take.
CONNECT_S = 5.0
_BLOCK = 1 << 16


class Hub:
    """Reads files of models.

    Args:
        endpoint: URL of the hub, or of a mirror that speaks as it does.
        token: for models that ask for a licence; sent to the endpoint only, not to where it redirects.
        is_offline: nothing may be asked over the network.
    """

    def __init__(self, *, endpoint: str, cache: Path, token: SecretStr | None, is_offline: bool) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._cache = cache
        self._token = token
        self._is_offline = is_offline

    async def texts(self, model: str, names: Mapping[str, int]) -> dict[str, str | None]:
        """Read some files of a model.

        Args:
            model: `OWNER/NAME`.
            names: of the files, and how many bytes of each are read at most. The first one decides whether the model
                is there; each of the others may be missing.

        Returns:
            The texts by name, cut where they are longer; None: the model has no such file.

        Raises:
            NotFound: there is no such model or first file, it may not be read, or the hub may not be asked
                (`unknown_model`).
            Retryable: the hub does not answer as it should (`hub_unavailable`).
        """
        first, *others = names
        here = await asyncio.to_thread(self._cached, model, names)
        if here is not None:
            return here
        if not MODEL_ID.fullmatch(model):
            raise _unknown(model, "it is no name of a model on the hub (OWNER/NAME)")
        if self._is_offline:
            raise _unknown(model, "the hub may not be asked (HF_HUB_OFFLINE)")
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=FILE_S, sock_connect=CONNECT_S),
            trust_env=True,
            headers=self._headers(),
        ) as session:
            text = await self._get(session, model, first, names[first])
            if text is None:
                raise _unknown(model, f"it has no {first} on {self.endpoint}")
            rest = await asyncio.gather(
                *(self._optional(session, model, name, names[name]) for name in others)
            )
        return {first: text, **dict(zip(others, rest, strict=True))}

    def _cached(self, model: str, names: Mapping[str, int]) -> dict[str, str | None] | None:
        found = {name: cached_file(model, name, self._cache) for name in names}
        if found[next(iter(names))] is None:
            return None
        try:
            return {
                name: None if file is None else beginning(file, names[name]) for name, file in found.items()
            }
        except OSError:  # removed meanwhile
            return None

    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token.get_secret_value()}"}

    async def _optional(
        self, session: aiohttp.ClientSession, model: str, name: str, limit: int
    ) -> str | None:
        try:
            return await self._get(session, model, name, limit)
        except (NotFound, Retryable):
            return None

    async def _get(self, session: aiohttp.ClientSession, model: str, name: str, limit: int) -> str | None:
        try:
            async with session.get(f"{self.endpoint}/{model}/resolve/main/{name}") as response:
                if response.status == 200:
                    return await _beginning(response, limit)
                if (refusal := self._refusal(response, model)) is not None:
                    raise refusal
                if response.status == 404:
                    return None
                problem = f"{response.status} {response.reason}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            problem = str(exc) or f"no answer within {FILE_S:g} s"
        raise Retryable(
            f"the sizes of model {model!r} are not known, and the hub ({self.endpoint}) cannot be asked: {problem}",
            code="hub_unavailable",
            next_step="again; or give a folder with its config.json; without a network, set HF_HUB_OFFLINE=1",
        )

    def _refusal(self, response: aiohttp.ClientResponse, model: str) -> NotFound | None:
        """Why it may not be read: without a token the hub says 401 of what is not there, too, and tells them apart here."""
        kind = response.headers.get("X-Error-Code", "")
        if kind == "RepoNotFound":
            return _unknown(model, f"{self.endpoint} has no such model, or not for this HF_TOKEN")
        if kind == "GatedRepo" or response.status in {401, 403}:
            return _unknown(
                model,
                "it may not be read",
                next_step=f"accept its licence on {self.endpoint}/{model}, and set HF_TOKEN where the control plane runs",
            )
        return None


async def _beginning(response: aiohttp.ClientResponse, limit: int) -> str:
    content = bytearray()
    async for block in response.content.iter_chunked(_BLOCK):
        content += block
        if len(content) >= limit:
            response.close()  # the rest is not waited for
            break
    return content[:limit].decode("utf-8", "replace")


def _unknown(model: str, why: str, *, next_step: str | None = None) -> NotFound:
    return NotFound(
        f"the sizes of model {model!r} are not known: {why}",
        code="unknown_model",
        next_step=next_step or "give a folder with its config.json, or a GGUF file",
        param="model",
    )
