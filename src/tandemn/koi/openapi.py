"""The contract as an OpenAPI document: `python -m tandemn.koi.openapi > docs/koi.openapi.yaml`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import yaml
from pydantic.json_schema import models_json_schema

from tandemn.koi import contract

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

#: Path -> the body that is posted there. Answers to callbacks are not read, but for their status.
CALLBACKS: dict[str, type[BaseModel]] = {
    "/job/config-attempted": contract.ConfigAttempted,
    "/job/launching": contract.Launching,
    "/job/launch-heartbeat": contract.LaunchHeartbeat,
    "/job/started": contract.Started,
    "/job/launch-failed": contract.LaunchFailed,
    "/job/replica-failed": contract.ReplicaFailed,
    "/job/complete": contract.JobComplete,
}
_REFERENCE = "#/components/schemas/{model}"


def document() -> dict[str, Any]:
    """Make the document."""
    sent: list[type[BaseModel]] = [contract.DecideRequest, contract.Resources, *CALLBACKS.values()]
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "serialization") for model in sent]
    models.append((contract.Decision, "validation"))
    _, schemas = models_json_schema(models, ref_template=_REFERENCE)
    paths: dict[str, Any] = {
        "/decide": {
            "post": {
                "summary": "Recommend what a job should run on",
                "description": "Answered within 5 s, or it is not waited for. Every other answer means: no advice.",
                "operationId": "decide",
                "requestBody": _body(contract.DecideRequest),
                "responses": {
                    "200": {"description": "A recommendation", "content": _content(contract.Decision)}
                },
            }
        }
    }
    for path, model in CALLBACKS.items():
        paths[path] = {
            "post": {
                "summary": _summary(model),
                "operationId": path.rpartition("/")[2].replace("-", "_"),
                "requestBody": _body(model),
                "responses": {
                    "2XX": {"description": "Taken; it is not sent again"},
                    "4XX": {
                        "description": "Refused for good, but 408, 425 and 429; dropped after a few tries"
                    },
                    "5XX": {"description": "Sent again, later, with the same event_id"},
                },
            }
        }
    paths["/resources"] = {
        "get": {
            "summary": "What can be rented, and how much of it: served by the control plane, for Koi to read",
            "operationId": "resources",
            "servers": [{"url": "http://127.0.0.1:26336", "description": "The control plane"}],
            "responses": {"200": {"description": "As of now", "content": _content(contract.Resources)}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Koi, as Tandemn speaks to it",
            "version": "1",
            "description": "What Tandemn posts to KOI_SERVICE_URL, and what it reads of the answers.",
        },
        "servers": [{"url": "http://koi:8090", "description": "KOI_SERVICE_URL"}],
        "paths": paths,
        "components": {"schemas": _untitled(dict(sorted(schemas["$defs"].items())))},
    }


def _summary(model: type[BaseModel]) -> str:
    said = (model.__doc__ or "").partition(": ")[2].rstrip(".")
    return said[:1].upper() + said[1:]


def _untitled(schema: Any) -> Any:
    """Drop the titles that pydantic makes of names: they say nothing more."""
    if isinstance(schema, dict):
        return {key: _untitled(value) for key, value in schema.items() if key != "title"}
    return [_untitled(each) for each in schema] if isinstance(schema, list) else schema


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"required": True, "content": _content(model)}


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}


def text() -> str:
    """Render the document as it stands in docs/koi.openapi.yaml."""
    return yaml.safe_dump(document(), sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(text())
