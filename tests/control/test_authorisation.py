"""The authorisation table against the application's real routes: role x route x own or another's.

A new route without a rule fails here; add its line to `RULES` in tandemn/control/access/rules.py. A path
parameter that is new needs an object of that kind in `Scene.path`.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from fastapi.routing import iter_route_contexts
from starlette.routing import Match, Route
from tests.control.plane import Plane, served

from tandemn.control.access import refusals
from tandemn.control.access.rates import Rate
from tandemn.control.access.rules import RULES, Access, Owned
from tandemn.control.app import create_app
from tandemn.protocol.keys import Role

#: Codes that say that an object is not there.
NOT_THERE = {"job_not_found", "batch_not_found", "file_not_found", "deployment_not_found"}
#: Who calls, and what is to happen by what the rule asks for: `in`, or how it is refused.
EXPECTED = {
    #                     OPEN  READ       CHANGE       ADMIN        REPLICA
    "nobody":            ("in", "no key",    "no key",    "no key",    "bad token"),
    "a wrong key":       ("in", "bad key",   "bad key",   "bad key",   "bad token"),
    "a revoked key":     ("in", "revoked",   "revoked",   "revoked",   "bad token"),
    "viewer":            ("in", "in",        "forbidden", "forbidden", "bad token"),
    "user, own":         ("in", "in",        "in",        "forbidden", "bad token"),
    "user, another's":   ("in", "not there", "not there", "forbidden", "bad token"),
    "admin, another's":  ("in", "in",        "in",        "in",        "bad token"),
    "its replica":       ("in", "bad key",   "bad key",   "bad key",   "in"),
    "a job's other one": ("in", "bad key",   "bad key",   "bad key",   "bad token"),
}  # fmt: skip
COLUMNS = [Access.OPEN, Access.READ, Access.CHANGE, Access.ADMIN, Access.REPLICA]
#: Which parameter of a path names an object that has an owner.
OWNED_PARAMETERS = {each.value for each in Owned}


def real_routes() -> list[tuple[str, str]]:
    """Method and path of every route that the application serves, in its schema or not."""
    app = create_app(None)  # type: ignore[arg-type]  # routes need no services until one is called
    found = set()
    for route in iter_route_contexts(app.router.routes):
        methods = route.methods or set()
        assert methods, f"{route.path} is no plain HTTP route: teach the gate about it first"
        assert route.path is not None
        # A GET of Starlette's own answers HEAD, too; the gate lets nothing but the table's methods in.
        found |= {(method, route.path) for method in methods - ({"HEAD"} if "GET" in methods else set())}
    return sorted(found)


ROUTES = real_routes()


def test_every_route_has_a_rule_and_every_rule_a_route():
    assert sorted(RULES) == ROUTES


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_a_path_names_is_guarded_by_its_owner(method, path):
    named = set(re.findall(r"\{(\w+)", path)) & OWNED_PARAMETERS
    owned = RULES[method, path].owned
    assert named == ({owned.value} if owned else set())


def test_no_two_routes_answer_the_same_request():
    """Else the application and the table might mean different ones."""
    for method, path in ROUTES:
        example = re.sub(r"\{\w+(:path)?\}", "x", path)
        scope: Any = {"type": "http", "method": "GET", "path": example}
        routes = [Route(other, lambda _: None) for its_method, other in ROUTES if its_method == method]
        assert [route.path for route in routes if route.matches(scope)[0] is Match.FULL] == [path]


@dataclass
class Scene:
    """A served control plane with four keys; every call is made on fresh objects."""

    plane: Plane
    keys: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    async def set_up(self) -> None:
        for name, role in (
            ("root", Role.ADMIN),
            ("vera", Role.VIEWER),
            ("alice", Role.USER),
            ("bob", Role.USER),
        ):
            await self.plane.new_key(name, role)
        await self.plane.new_key("gone", Role.ADMIN)
        status, _ = await self.plane.call("POST", "/api/keys/gone/revoke", key=self.plane.keys["root"])
        assert status == 200

    async def path(self, template: str) -> tuple[str, dict[str, str]]:
        """Fill a path with objects of alice's; return it, and the tokens of replicas by whose they are."""
        self._count += 1
        job_id = await self.plane.new_job("alice")
        replica_id, token = await self.plane.new_replica(job_id)
        _, neighbour = await self.plane.new_replica(job_id)
        values = {
            "job_id": job_id,
            "batch_id": job_id,
            "file_id": await self.plane.new_file("alice"),
            "service_name": await self.plane.new_deployment("alice"),
            "replica_id": replica_id,
        }
        if "/api/keys/{name}" in template:
            values["name"] = f"somebody-{self._count}"
            await self.plane.new_key(values["name"], Role.USER)
        else:
            values["name"] = f"jobs/{job_id}/parts/x"
        path = re.sub(r"\{(\w+)(?::path)?\}", lambda found: values[found[1]], template)
        return path, {"its replica": token, "a job's other one": neighbour}

    async def key(self, who: str, tokens: dict[str, str]) -> str | None:
        keys = self.plane.keys
        return {
            "nobody": None,
            "a wrong key": keys["alice"][:-1] + ("A" if keys["alice"][-1] != "A" else "B"),
            "a revoked key": keys["gone"],
            "viewer": keys["vera"],
            "user, own": keys["alice"],
            "user, another's": keys["bob"],
            "admin, another's": keys["root"],
            **tokens,
        }[who]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory):
    # Here one address shows wrong keys by the hundred.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusals, "WRONG_KEYS", Rate(per_s=1e6, burst=1e6))
        async with _scene(tmp_path_factory) as scene:
            yield scene


@asynccontextmanager
async def _scene(tmp_path_factory):
    async with served(tmp_path_factory.mktemp("home")) as plane:
        scene = Scene(plane)
        await scene.set_up()
        yield scene


def what_happened(status: int, answer: Any) -> str:
    code = answer["error"]["code"] if isinstance(answer, dict) and "error" in answer else None
    match status, code:
        case 401, "missing_api_key":
            return "no key"
        case 401, "invalid_api_key":
            return "bad key"
        case 401, "key_revoked":
            return "revoked"
        case 401, "invalid_token":
            return "bad token"
        case 403, "forbidden":
            return "forbidden"
        case 404, _ if code in NOT_THERE:
            return "not there"
        case _ if status in {401, 403} or status >= 500 or code == "unknown_url":
            return f"{status} {code}"
    return "in"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_who_may(scene, monkeypatch, method, path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # /api/quota asks for credentials
    rule = RULES[method, path]
    happened, expected = {}, {}
    for who, columns in EXPECTED.items():
        concrete, replicas = await scene.path(path)
        status, answer = await scene.plane.call(method, concrete, key=await scene.key(who, replicas))
        happened[who] = what_happened(status, answer)
        expected[who] = columns[COLUMNS.index(rule.access)]
        if expected[who] == "not there" and rule.owned is None:
            expected[who] = "in"  # the path names nothing that could be another's
    assert happened == expected
