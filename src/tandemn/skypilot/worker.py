"""Runs in SkyPilot's own Python environment, where Tandemn is not installed: calls functions of `sky` by name.

One JSON object a line. First the worker says `{"hello": {"skypilot": "0.14.1", "python": "3.11.7"}}`, or
`{"hello": {"error": "…"}}` and ends. Then it reads calls and writes answers, in whatever order they are ready:

    {"id": 1, "function": "launch", "arguments": {"task": {"$task": {…}}, "cluster_name": "…"}, "answer": "request"}
    {"id": 1, "result": "5f0e…"}
    {"id": 2, "function": "get", "arguments": {"request_id": "5f0e…"}}
    {"id": 2, "error": {"type": "ResourcesUnavailableError", "kinds": […], "message": "…", "history": […]}}

`function` is a name below `sky`, dots allowed (`serve.up`). In arguments, `{"$task": config}` becomes a Task and
`{"$enum": ["StatusRefreshMode", "FORCE"]}` a member of an enumeration. Functions of SkyPilot's SDK give the id of a
request: `"answer": "request"` returns it, otherwise the worker waits for what the request gives. `"capture"` names the
parameter that takes a stream: what was written to it comes back as `output`. The worker ends with its standard input,
and leaves the requests that it made to SkyPilot's API server. Standard library and `sky` only; Python 3.9 or newer.
"""

from __future__ import annotations

import enum
import importlib
import io
import json
import os
import platform
import threading
from typing import IO, Any

#: Characters of a captured stream that are kept, from its end.
CAPTURED = 1_000_000


def main() -> None:
    calls, answers = _own_streams()
    write = _Writer(answers)
    try:
        sky = importlib.import_module("sky")
    except Exception as exc:  # noqa: BLE001 - whatever keeps `sky` from being imported is what the caller must hear
        write({"hello": {"error": f"{type(exc).__name__}: {exc}", "python": platform.python_version()}})
        return
    write({"hello": {"skypilot": sky.__version__, "python": platform.python_version()}})
    worker = _Worker(sky, write)
    for line in calls:
        threading.Thread(target=worker.answer, args=(json.loads(line),), daemon=True).start()
    # What is under way is left behind at once: whoever comes next asks the API server what became of it.
    os._exit(0)


def _own_streams() -> tuple[IO[str], IO[str]]:
    """Keep standard input and output for the calls alone: SkyPilot prints, and starts processes."""
    calls = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return calls, answers


class _Writer:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, value: dict[str, Any]) -> None:
        line = json.dumps(value)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


class _Worker:
    def __init__(self, sky: Any, write: _Writer) -> None:
        self._sky = sky
        self._write = write
        #: SkyPilot's client keeps settings of the call under way in module state: one call at a time. Waiting for
        #: what a request gives does not take part.
        self._one_at_a_time = threading.Lock()

    def answer(self, call: dict[str, Any]) -> None:
        try:
            answer = self._call(call)
        except BaseException as exc:  # noqa: BLE001 - SystemExit of a command line is an answer, too
            answer = {"error": described(exc)}
        try:
            self._write({"id": call["id"], **answer})
        except (TypeError, ValueError) as exc:
            self._write({"id": call["id"], "error": described(exc)})

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = self._named(call["function"])
        arguments = {name: self._argument(value) for name, value in call.get("arguments", {}).items()}
        output = io.StringIO()
        if call.get("capture"):
            result = function(**arguments, **{call["capture"]: output})
            return {"result": plain(result), "output": output.getvalue()[-CAPTURED:]}
        if function is self._sky.get:
            return {"result": plain(function(**arguments))}
        with self._one_at_a_time:
            result = function(**arguments)
        if call.get("answer") != "request" and type(result).__name__ == "RequestId":
            result = self._sky.get(result)
        return {"result": plain(result)}

    def _named(self, name: str) -> Any:
        """Find what stands below `sky` under this name; modules on the way are imported."""
        found, path = self._sky, "sky"
        for part in name.split("."):
            path = f"{path}.{part}"
            if not hasattr(found, part):
                importlib.import_module(path)
            found = getattr(found, part)
        return found

    def _argument(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "$task" in value:
                return self._sky.Task.from_yaml_config(value["$task"])
            if "$enum" in value:
                name, member = value["$enum"]
                return self._named(name)[member]
            return {key: self._argument(each) for key, each in value.items()}
        return [self._argument(each) for each in value] if isinstance(value, list) else value


def described(exc: BaseException) -> dict[str, Any]:
    """Say what an error is: its class and what it derives from, its words, and what was tried before it."""
    history = getattr(exc, "failover_history", None) or []
    return {
        "type": type(exc).__name__,
        "kinds": [each.__name__ for each in type(exc).__mro__ if each not in (object, BaseException)],
        "message": str(exc),
        "detail": str(getattr(exc, "detailed_reason", None) or getattr(exc, "error_msg", None) or ""),
        "history": [{"type": type(each).__name__, "message": str(each)} for each in history],
    }


def plain(value: Any) -> Any:
    """Turn what SkyPilot gives into JSON; of its own objects, what is known to be of use."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, dict):
        return {_key(key): plain(each) for key, each in value.items() if key != "credentials"}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, str) else _object(value)


def _object(value: Any) -> Any:
    fields = getattr(type(value), "model_fields", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields if name != "credentials"}
    if hasattr(value, "launched_resources"):
        return _handle(value)
    if hasattr(value, "to_yaml_config"):
        return plain(value.to_yaml_config())
    return described(value) if isinstance(value, BaseException) else str(value)


def _key(key: Any) -> str:
    return key.name if isinstance(key, enum.Enum) else str(key)


def _handle(handle: Any) -> dict[str, Any]:
    resources = handle.launched_resources
    return {
        "cluster_name": getattr(handle, "cluster_name", None),
        "cluster_name_on_cloud": getattr(handle, "cluster_name_on_cloud", None),
        "nodes": getattr(handle, "launched_nodes", None),
        "head_ip": getattr(handle, "head_ip", None),
        "cloud": str(resources.cloud).lower() if getattr(resources, "cloud", None) else None,
        "region": getattr(resources, "region", None),
        "zone": getattr(resources, "zone", None),
        "instance_type": getattr(resources, "instance_type", None),
        "use_spot": getattr(resources, "use_spot", None),
    }


if __name__ == "__main__":
    main()
