"""A small Koi: a real HTTP server in a process of its own, which holds every request against the contract.

`python -m tests.fakes.koi_service --port N --folder F`: what it is asked and told is appended to F/journal.jsonl
before it is answered; how it answers is read from F/behaviour.json each time, so that a test changes it while
it runs. It keeps nothing else: the same folder is the same Koi after a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import jsonschema
import yaml
from aiohttp import web
from tests.ports import free_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "koi.openapi.yaml"

#: A recommendation that fits the jobs of the tests.
GOOD = {
    "decision_id": "dec-1",
    "config": {"gpu_type": "L4", "tp": 1, "pp": 1, "dp": 2, "market": "spot"},
    "predicted_tps": 1200.0,
    "reasoning": "two small ones are the cheapest",
    "alternatives": [{"gpu_type": "L40S", "tp": 1, "pp": 1, "planned_market": "on_demand"}],
}


class Contract:
    """The OpenAPI document as a judge of bodies."""

    def __init__(self) -> None:
        self._document = yaml.safe_load(DOCUMENT.read_text())

    def faults(self, path: str, body: Any) -> list[str]:
        """What is wrong with a request's body."""
        operation = self._document["paths"].get(path, {}).get("post")
        if operation is None:
            return [f"no such operation: POST {path}"]
        return self._faults(operation["requestBody"]["content"]["application/json"]["schema"], body)

    def faults_of_answer(self, path: str, method: str, body: Any) -> list[str]:
        """What is wrong with an answer's body."""
        answer = self._document["paths"][path][method]["responses"]["200"]
        return self._faults(answer["content"]["application/json"]["schema"], body)

    def _faults(self, schema: dict[str, Any], body: Any) -> list[str]:
        whole = {**schema, "components": self._document["components"]}
        judge = jsonschema.Draft202012Validator(whole)
        return [f"{error.json_path}: {error.message}" for error in judge.iter_errors(body)]


class Service:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contract = Contract()
        self._callbacks = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_post("/decide", self._decide)
        app.router.add_post("/elsewhere", self._elsewhere)
        app.router.add_post("/job/{what}", self._told)
        return app

    def _behaviour(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / "behaviour.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    async def _note(self, request: web.Request) -> list[str]:
        raw = await request.read()
        try:
            body = json.loads(raw)
            faults = self._contract.faults(request.path, body)
        except ValueError:
            body, faults = None, ["not JSON"]
        line = {"at": time.time(), "path": request.path, "body": body, "faults": faults}
        with (self._folder / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        return faults

    async def _elsewhere(self, request: web.Request) -> web.Response:
        await self._note(request)
        return web.json_response(GOOD)

    async def _told(self, request: web.Request) -> web.Response:
        faults = await self._note(request)
        if faults:
            return web.json_response({"detail": faults}, status=422)
        self._callbacks += 1
        # Of every so many, one is not taken now.
        if self._callbacks % self._behaviour().get("refuse_every", 1_000_000) == 0:
            return web.json_response({"status": "in_flight"}, status=503)
        return web.json_response({"status": "ok"})

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        faults = await self._note(request)
        if faults:
            return web.json_response({"detail": faults}, status=422)
        behaviour = self._behaviour()
        answer = behaviour.get("answer", GOOD)
        match behaviour.get("decide", "good"):
            case "good":
                return web.json_response(answer)
            case "hang":
                await asyncio.sleep(3600)
            case "slow":
                # The beginning at once, the end never: what counts is the last byte.
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                with suppress(ConnectionError):  # it is not waited for
                    for character in json.dumps(answer):
                        await response.write(character.encode())
                        await asyncio.sleep(0.2)
                return response
            case "500":
                return web.json_response({"detail": "the model is down"}, status=500)
            case "html":
                return web.Response(text="<html>Sign in</html>", content_type="text/html")
            case "redirect":
                return web.Response(status=307, headers={"Location": "/elsewhere"})
            case "raw":
                return web.Response(text=behaviour["text"], content_type="application/json")
            case "huge":
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                with suppress(ConnectionError):
                    for _ in range(64 << 4):
                        await response.write(b" " * (1 << 16))
                return response
            case "bomb":
                packed = gzip.compress(b" " * (8 << 20))
                return web.Response(body=packed, headers={"Content-Encoding": "gzip"})
        raise web.HTTPNotImplemented


class FakeKoi:
    """The process, from a test's side."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fakes.koi_service"),
                *("--port", str(self.port), "--folder", str(self.folder)),
            ],
            cwd=Path(__file__).parents[2],
            # It belongs to no house, wherever it is started.
            env={name: value for name, value in os.environ.items() if not name.startswith("TANDEMN_")},
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError):
                try:
                    urllib.request.urlopen(self.url, timeout=5)
                except urllib.error.HTTPError:
                    return
            time.sleep(0.05)
        raise AssertionError("the fake Koi does not answer")

    def stop(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def behave(self, **how: Any) -> None:
        """Say how it answers from now on."""
        new = self.folder / "behaviour.json.new"
        new.write_text(json.dumps(how))
        new.replace(self.folder / "behaviour.json")

    def journal(self, *paths: str) -> list[dict[str, Any]]:
        """Everything that it received, oldest first; a line that is still being written is left out."""
        try:
            text = (self.folder / "journal.jsonl").read_text()
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        return [line for line in lines if not paths or line["path"] in paths]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    web.run_app(
        Service(arguments.folder).app(), host="127.0.0.1", port=arguments.port, print=None, access_log=None
    )


if __name__ == "__main__":
    main()
