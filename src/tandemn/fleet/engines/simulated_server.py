"""The process of the engine `simulated`: `python -m tandemn.fleet.engines.simulated_server --model …`.

The HTTP API is vLLM's, as far as jobs and routers use it; every answer carries the system fingerprint
`simulated`, every response the header `x-tandemn-simulated`.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import itertools
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from tandemn import settings
from tandemn.errors import InvalidInput
from tandemn.fleet.engines.simulated import DEFAULT_CONTEXT, Simulation, parse_simulation
from tandemn.fleet.engines.simulated_clockwork import Clockwork
from tandemn.fleet.engines.simulated_model import END_TOKEN, Text, embedding
from tandemn.fleet.engines.simulated_request import Generation, read_fields, read_generation, read_prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FINGERPRINT = "simulated"
HEADERS = {"x-tandemn-simulated": "true"}
#: Bodies above this are refused, as web servers do.
MAX_BODY_BYTES = 64 * 1024 * 1024
EMBEDDING_DIMENSIONS = 64
#: How long running requests may go on after SIGTERM.
SHUTDOWN_S = 0.5


def main() -> None:
    """Serve as the command line says, until SIGTERM."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("extra_args", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    simulation = parse_simulation([a for a in arguments.extra_args if a != "--"])
    time.sleep(simulation.load_s)
    if simulation.fail_load:
        sys.exit("the simulated engine fails to load, as told by --fail-load")
    context = simulation.ctx or arguments.max_model_len or DEFAULT_CONTEXT
    key = settings.load().engine_api_key
    server = SimulatedServer(
        arguments.model, simulation, context=context, api_key=key.get_secret_value() if key else None
    )
    web.run_app(
        server.application(),
        host=arguments.host,
        port=arguments.port,
        print=None,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        handler_cancellation=True,  # as engines do: a request is dropped when its client is gone
    )


class SimulatedServer:
    """Serves one simulated model.

    Args:
        model: the only model name that is accepted.
        simulation: timing and faults.
        context: tokens of one request, prompt and answer together.
        api_key: wanted as a bearer token of `/v1`, where there is one.
    """

    def __init__(self, model: str, simulation: Simulation, *, context: int, api_key: str | None) -> None:
        self._model = model
        self._simulation = simulation
        self._context = context
        self._api_key = api_key
        self._clockwork = Clockwork(simulation)
        self._numbers = itertools.count(1)
        self._journal: int | None = None
        if simulation.journal is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._journal = os.open(simulation.journal, flags, 0o600)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._guarded(self._models))
        app.router.add_post("/v1/chat/completions", self._guarded(self._chat))
        app.router.add_post("/v1/completions", self._guarded(self._completion))
        app.router.add_post("/v1/embeddings", self._guarded(self._embeddings))
        return app

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Check the key, and answer what is wrong as engines do."""
        expected = f"Bearer {self._api_key}".encode()

        async def guarded(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("Authorization", "").encode(errors="replace")
            if self._api_key is not None and not hmac.compare_digest(given, expected):
                return _json({"error": "Unauthorized"}, status=401)
            try:
                return await handler(request)
            except InvalidInput as error:
                status = 404 if error.code == "model_not_found" else 400
                kind = "NotFoundError" if status == 404 else "BadRequestError"
                body = {"message": error.message, "type": kind, "param": error.param, "code": status}
                return _json({"error": body}, status=status)

        return guarded

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(headers=HEADERS)

    async def _metrics(self, _request: web.Request) -> web.Response:
        page = self._clockwork.counts.page(self._model, self._simulation.slots)
        return web.Response(text=page, headers=HEADERS)

    async def _models(self, _request: web.Request) -> web.Response:
        model = {
            "id": self._model,
            "object": "model",
            "owned_by": FINGERPRINT,
            "max_model_len": self._context,
        }
        return _json({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, is_chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, is_chat=False)

    async def _generate(self, request: web.Request, *, is_chat: bool) -> web.StreamResponse:
        body = await request.read()
        generation = read_generation(body, is_chat=is_chat, model=self._model, context=self._context)
        self._refuse(generation.prompt)
        answer = Answer(generation, self._model, next(self._numbers))
        async with self._clockwork.slot(len(generation.prompt)):
            self._crash(generation.prompt)
            tokens = self._tokens(generation)
            if generation.stream:
                return await self._stream(request, answer, tokens)
            ids = list(tokens)
            await self._clockwork.decode(len(ids))
            self._note(generation.prompt)
            return _json(answer.whole(ids))

    def _tokens(self, generation: Generation) -> Iterator[int]:
        tokens = Text(self._simulation.seed, self._model, generation.prompt).tokens()
        if generation.ignore_end:
            # An end that is not wanted becomes a space, and the answer goes on from there.
            tokens = _without_end(self._simulation.seed, self._model, generation.prompt, tokens)
        return itertools.islice(tokens, generation.max_tokens)

    async def _stream(
        self, request: web.Request, answer: Answer, tokens: Iterator[int]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if answer.generation.is_chat:
            await response.write(_event(answer.opening()))
        count, token = 0, None
        for count, token in enumerate(tokens, start=1):
            await self._clockwork.decode(1)
            is_last = token == END_TOKEN or count == answer.generation.max_tokens
            await response.write(_event(answer.piece(token, is_first=count == 1, is_last=is_last)))
        if answer.generation.include_usage:
            await response.write(_event(answer.closing(count)))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        fields = read_fields(await request.read(), model=self._model)
        inputs = fields.get("input")
        if not isinstance(inputs, list) or not inputs or isinstance(inputs[0], int):
            inputs = [inputs]
        texts = [read_prompt({"input": one}, "input") for one in inputs]
        data = []
        for index, text in enumerate(texts):
            self._refuse(text)
            async with self._clockwork.slot(len(text)):
                self._crash(text)
                vector = embedding(self._simulation.seed, self._model, text, EMBEDDING_DIMENSIONS)
                data.append({"object": "embedding", "index": index, "embedding": vector})
        total = sum(len(text) for text in texts)
        usage = {"prompt_tokens": total, "total_tokens": total}
        return _json({"object": "list", "model": self._model, "data": data, "usage": usage})

    def _note(self, prompt: bytes) -> None:
        """Write down that this prompt was computed."""
        if self._journal is not None:
            # One write of a few bytes at the end of the file: many engines may share it.
            os.write(self._journal, hashlib.blake2b(prompt, digest_size=8).hexdigest().encode() + b"\n")

    def _refuse(self, prompt: bytes) -> None:
        text = self._simulation.refuse
        if text is not None and text.encode() in prompt:
            raise InvalidInput(f"refused, as told by --refuse {text}", code="refused", param="prompt")

    def _crash(self, prompt: bytes) -> None:
        text = self._simulation.crash_on
        if text is not None and text.encode() in prompt:
            os.kill(os.getpid(), signal.SIGKILL)


class Answer:
    """Shapes one answer as vLLM does, whole or in pieces."""

    def __init__(self, generation: Generation, model: str, number: int) -> None:
        self.generation = generation
        kind = "chat.completion" if generation.is_chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if generation.is_chat else 'cmpl'}-simulated-{number}",
            "object": f"{kind}.chunk" if generation.is_chat and generation.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def whole(self, ids: list[int]) -> dict[str, Any]:
        choice = self._choice(ids, "stop" if ids[-1:] == [END_TOKEN] else "length")
        ids_of_prompt: dict[str, Any] = {}
        if self.generation.return_token_ids:
            choice["token_ids"] = ids
            prompt_ids = {"prompt_token_ids": list(self.generation.prompt)}
            if self.generation.is_chat:
                ids_of_prompt = prompt_ids
            else:
                choice |= prompt_ids
        return {**self._head, "choices": [choice], "usage": self._usage(len(ids)), **ids_of_prompt}

    def opening(self) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        opening: dict[str, Any] = {**self._head, "choices": [choice]}
        if self.generation.return_token_ids:
            opening["prompt_token_ids"] = list(self.generation.prompt)
        return opening

    def piece(self, token: int, *, is_first: bool, is_last: bool) -> dict[str, Any]:
        finish = None if not is_last else "stop" if token == END_TOKEN else "length"
        choice = self._choice([token], finish)
        if self.generation.return_token_ids:
            choice["token_ids"] = [token]
            if not self.generation.is_chat:
                choice["prompt_token_ids"] = list(self.generation.prompt) if is_first else None
        return {**self._head, "choices": [choice]}

    def closing(self, generated: int) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage(generated)}

    def _choice(self, ids: list[int], finish: str | None) -> dict[str, Any]:
        text = bytes(token for token in ids if token != END_TOKEN).decode("ascii")
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if not self.generation.is_chat:
            choice["text"] = text
        elif self.generation.stream:
            choice["delta"] = {"content": text}
        else:
            choice["message"] = {"role": "assistant", "content": text}
        return choice

    def _usage(self, generated: int) -> dict[str, int]:
        prompt = len(self.generation.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _without_end(seed: int, model: str, prompt: bytes, tokens: Iterator[int]) -> Iterator[int]:
    said = bytearray(prompt)
    while True:
        for token in tokens:
            if token == END_TOKEN:
                break
            said.append(token)
            yield token
        said += b" "
        yield ord(" ")
        tokens = Text(seed, model, bytes(said)).tokens()


def _json(body: dict[str, Any], *, status: int = 200) -> web.Response:
    encoded = msgspec.json.encode(body)
    return web.Response(body=encoded, status=status, content_type="application/json", headers=HEADERS)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


if __name__ == "__main__":
    main()
