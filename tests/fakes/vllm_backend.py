"""A process that speaks like vLLM's OpenAI server: same fields, same chunks, same hold-backs; the model is a hash.

    python tests/fakes/vllm_backend.py --port 0 [--gap-ms 5] [--max-model-len 4096]

The next token depends on the bytes so far, so the same text goes on alike wherever it is cut. Tokens are bytes,
some longer pieces, and halves of UTF-8 characters. `model: "count"` says consecutive numbers of three digits
with a random letter each, as a sampled answer: whatever is lost or repeated at a seam can be seen.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import json
import random
import re
import sys
import time
import zlib
from typing import Any

PIECES = {256: b"the ", 257: b"ing", 258: b"\n\n", 259: b'"\\', 260: b"data: ", 261: b" and"}
WORDS: list[int] = [*range(97, 123), 32, 32, 32, 256, 257, 258, 259, 260, 261, 0xC3, 0xF0]
FOLLOWS = {0xC3: 0xA9, 0xF0: 0x9F, 0x9F: 0x98, 0x98: 0x80}
EOS = 2
BEGUN = re.compile(rb"(?:\d{1,3}|\d{3}[a-z])?$")
COUNTED = re.compile(rb"(\d{3})[a-z] ")


def piece(token: int) -> bytes:
    return b"" if token == EOS else PIECES.get(token) or bytes([token])


def next_token(model: str, context: bytes, produced: int, min_tokens: int) -> int:
    if model == "count":
        said = list(COUNTED.finditer(context))
        begun = BEGUN.findall(context)[0]
        word: bytes = b"%03d%c " % (int(said[-1][1]) + 1 if said else 1, random.choice(b"abcdefghij"))
        return word[len(begun)]
    if context and context[-1] in FOLLOWS:
        return FOLLOWS[context[-1]]
    mark = zlib.crc32(context)
    if mark % 211 == 7 and produced >= min_tokens:
        return EOS
    token: int = WORDS[mark // 7 % len(WORDS)]
    return token


class Text:
    """vLLM's detokenizer: whole characters only, and with stop strings never their possible beginning."""

    def __init__(self, stops: list[str]) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.stops, self.text, self.told = stops, "", 0
        self.held = max((len(stop) for stop in stops), default=1) - 1

    def add(self, token: int) -> str | None:
        """Take a token in; the stop string that it completed, if any."""
        new = self.decoder.decode(piece(token))
        begin = len(self.text)
        self.text += new
        for stop in self.stops:
            at = self.text.find(stop, max(0, begin - len(stop) + 1))
            if at >= 0 and new:
                self.text = self.text[:at]
                return stop
        return None

    def take(self, *, is_end: bool) -> str:
        upto = len(self.text) - (0 if is_end else self.held)
        new = self.text[self.told : upto] if upto > self.told else ""
        self.told = max(self.told, upto)
        return new


def prompt_of(path: str, body: dict[str, Any]) -> list[int]:
    if path == "/v1/completions":
        prompt = body["prompt"]
        return list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    text = ""
    messages = body["messages"]
    for number, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        is_open = body.get("continue_final_message") and number == len(messages) - 1
        text += f"<{message['role']}>{content}" + ("" if is_open else "\n")
    if body.get("add_generation_prompt", True):
        text += "<assistant>"
    return list(text.encode())


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: list[dict[str, Any]] = []
        self.active = 0
        self.cancelled = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                method, path, _ = first.split(" ")
                fields = {
                    name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines if x)
                }
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                await self.answer(method, path, fields, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(
        self, method: str, path: str, fields: dict[str, Any], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        # SkyServe's balancer writes the mark of an empty query.
        path = path.removesuffix("?")
        if path == "/health":
            self.json(writer, {})
        elif path == "/seen":
            self.json(writer, {"requests": self.seen, "active": self.active, "cancelled": self.cancelled})
        elif method == "POST" and path in {"/v1/completions", "/v1/chat/completions"}:
            request = json.loads(body)
            self.seen.append({"path": path, "body": request, "authorization": fields.get("authorization")})
            await self.complete(path, request, writer)
        else:
            self.json(writer, {"object": "error", "message": "Not Found"}, "404 Not Found")

    def json(self, writer: asyncio.StreamWriter, content: dict[str, Any], status: str = "200 OK") -> None:
        text = json.dumps(content).encode()
        writer.write(f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {len(text)}\r\n".encode())
        writer.write(b"content-type: application/json\r\n\r\n" + text)

    async def complete(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        is_chat = path != "/v1/completions"
        prompt = prompt_of(path, body)
        room = self.options.max_model_len - len(prompt)
        if room <= 0:
            self.json(writer, {"error": {"message": "too long", "code": 400}}, "400 Bad Request")
            return
        asked = body.get("max_completion_tokens") or body.get("max_tokens", None if is_chat else 16)
        limit = room if asked is None else min(room, asked)
        stop = body.get("stop") or []
        text = Text([stop] if isinstance(stop, str) else stop)
        base = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{random.getrandbits(64):x}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": body.get("model", "tiny"),
        }
        if not body.get("stream"):
            tokens, reason = list(prompt), "length"
            for produced in range(limit):
                token = next_token(
                    base["model"], b"".join(map(piece, tokens)), produced, body.get("min_tokens", 0)
                )
                tokens.append(token)
                if token == EOS or text.add(token) is not None:
                    reason = "stop"
                    break
            whole = text.take(is_end=True)
            choice = {"message": {"role": "assistant", "content": whole}} if is_chat else {"text": whole}
            usage = self.usage(len(prompt), len(tokens) - len(prompt))
            self.json(
                writer, {**base, "choices": [{"index": 0, **choice, "finish_reason": reason}], "usage": usage}
            )
            return
        self.active += 1
        try:
            await self.stream(body, base, prompt, limit, text, writer, is_chat=is_chat)
        except ConnectionError:
            self.cancelled += 1
        finally:
            self.active -= 1

    @staticmethod
    def usage(prompt: int, completion: int) -> dict[str, Any]:
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    async def stream(self, body, base, prompt, limit, text, writer, *, is_chat) -> None:
        shows_ids = bool(body.get("return_token_ids"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        )
        writer.write(b"transfer-encoding: chunked\r\n\r\n")

        def send(event: dict[str, Any] | str) -> None:
            told = (
                event
                if isinstance(event, str)
                else json.dumps(event, separators=(",", ":"), ensure_ascii=False)
            )
            content = f"data: {told}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(content), content))

        if is_chat:
            choice = {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            send({**base, "choices": [choice], "prompt_token_ids": prompt if shows_ids else None})
        context, produced, reason = b"".join(map(piece, prompt)), 0, None
        while reason is None:
            token = next_token(base["model"], context, produced, body.get("min_tokens", 0))
            produced += 1
            context += piece(token)
            stopped = text.add(token)
            reason = (
                "stop" if token == EOS or stopped is not None else "length" if produced >= limit else None
            )
            new = text.take(is_end=reason is not None)
            choice = {"index": 0, "delta": {"content": new}} if is_chat else {"index": 0, "text": new}
            choice |= {"logprobs": None, "finish_reason": reason}
            if not is_chat or reason is not None:
                choice["stop_reason"] = stopped
            if not is_chat:
                choice["prompt_token_ids"] = prompt if shows_ids and produced == 1 else None
            choice["token_ids"] = [token] if shows_ids else None
            event = {**base, "choices": [choice]}
            if (body.get("stream_options") or {}).get("continuous_usage_stats"):
                event["usage"] = self.usage(len(prompt), produced)
            send(event)
            await writer.drain()
            if self.options.gap_ms:
                await asyncio.sleep(self.options.gap_ms / 1000)
            if writer.is_closing():
                raise ConnectionError
        if (body.get("stream_options") or {}).get("include_usage"):
            send({**base, "choices": [], "usage": self.usage(len(prompt), produced)})
        send("[DONE]")
        writer.write(b"0\r\n\r\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gap-ms", type=float, default=2.0)
    parser.add_argument("--max-model-len", type=int, default=4096)
    options = parser.parse_args()
    server = await asyncio.start_server(Server(options).serve, "127.0.0.1", options.port, backlog=2048)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
