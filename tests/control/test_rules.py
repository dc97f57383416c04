"""The table as a function: routes are found as the application finds them, and nothing else is."""

import pytest

from tandemn.control.access.rules import RULES, Access, Caller, Rule, allows, find, is_known
from tandemn.protocol.keys import Role


def test_a_path_is_found_with_what_it_names():
    found = find("DELETE", "/v1/files/file-1")
    assert found is not None
    assert (found.path, dict(found.params)) == ("/v1/files/{file_id}", {"file_id": "file-1"})
    deep = find("PUT", "/api/replicas/job-1-r0/objects/jobs/job-1/parts/a b\nc")
    assert deep is not None
    assert deep.params["name"] == "jobs/job-1/parts/a b\nc"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/jobs/",
        "/api/jobs/x/",
        "//api/jobs",
        "/api/jobs\n",
        "/API/jobs",
        "/openapi_json",
        "/v1/files/a/b",
    ],
)
def test_what_is_not_in_the_table_is_not_found(path):
    assert find("GET", path) is None
    assert not is_known(path)


def test_another_method_is_known_and_not_found():
    assert find("PATCH", "/api/jobs") is None
    assert is_known("/api/jobs")
    assert find("HEAD", "/api/jobs") is None


@pytest.mark.parametrize(
    ("access", "roles"),
    [
        (Access.OPEN, {Role.VIEWER, Role.USER, Role.ADMIN}),
        (Access.READ, {Role.VIEWER, Role.USER, Role.ADMIN}),
        (Access.CHANGE, {Role.USER, Role.ADMIN}),
        (Access.ADMIN, {Role.ADMIN}),
        (Access.REPLICA, set()),
    ],
)
def test_which_roles_may(access, roles):
    assert {role for role in Role if allows(Rule(access=access), role)} == roles


def test_users_see_their_own_and_the_others_everything():
    assert {role: Caller(name="me", role=role).sees for role in Role} == {
        Role.VIEWER: None,
        Role.USER: "me",
        Role.ADMIN: None,
    }


def test_only_replicas_come_without_a_key():
    open_ones = {each for each, rule in RULES.items() if rule.access is Access.OPEN}
    assert open_ones == set()
