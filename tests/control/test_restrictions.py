"""What a user may not ask for, tried as an attacker would."""

import pytest

from tandemn.control.access.restrictions import (
    check_engine_args,
    check_input_url,
    check_model,
    check_priority,
)
from tandemn.errors import Forbidden, InvalidInput
from tandemn.protocol.jobs import Priority
from tandemn.protocol.keys import Role

STORE = "s3://tandemn-store/prod"


@pytest.mark.parametrize(
    "model", ["demo/tiny", "Qwen/Qwen3-0.6B", "gpt2", "meta-llama/Llama-3.1-8B-Instruct"]
)
@pytest.mark.parametrize("role", list(Role))
def test_models_on_a_hub(model, role):
    check_model(model, role)


@pytest.mark.parametrize(
    "model",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "a/../b",
        "~/models/x",
        "./x",
        ".hidden/x",
        "models/x.gguf",
        "X.GGUF",
        "a/b/c",
        "s3://bucket/model",
        "http://169.254.169.254/latest",
        "a\\b",
        "a\nb",
        "a/b\n",
        "",
        "x" * 97,
    ],
)
def test_a_users_model_is_no_file(model):
    with pytest.raises(Forbidden) as refused:
        check_model(model, Role.USER)
    assert refused.value.code == "model_not_allowed"
    check_model(model, Role.ADMIN)


@pytest.mark.parametrize("role", list(Role))
def test_no_model_is_an_argument(role):
    with pytest.raises(InvalidInput) as refused:
        check_model("--config=/etc/passwd", role)
    assert refused.value.code == "invalid_model"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--journal", "/root/.bashrc"],
        ["--trust-remote-code"],
        ["--chat-template=/etc/shadow"],
        ["--middleware", "os.system"],
        ["--slots", "4", "-c", "/etc/passwd"],
        ["--max-model-len=10", "--config=/x"],
        ["--download-dir", "/"],
    ],
)
def test_arguments_of_engines_on_the_servers_own_machine(arguments):
    with pytest.raises(Forbidden) as refused:
        check_engine_args(arguments, Role.USER, runs_here=True)
    assert refused.value.code == "engine_argument_not_allowed"
    check_engine_args(arguments, Role.ADMIN, runs_here=True)
    check_engine_args(arguments, Role.USER, runs_here=False)


def test_harmless_arguments():
    check_engine_args(["--slots", "4", "--max-model-len=4096", "--embeddings"], Role.USER, runs_here=True)


def allowed(url, role=Role.USER, prefixes=("s3://team/in", "gs://data/")):
    try:
        check_input_url(url, role, allowed=prefixes, store_url=STORE)
    except Forbidden as refused:
        return refused.code != "input_url_not_allowed"
    return True


def test_inputs_below_what_users_may_read():
    assert allowed("s3://team/in/a.jsonl")
    assert allowed("s3://team/in/deep/er/a b.jsonl")
    assert allowed("gs://data/x.jsonl")


@pytest.mark.parametrize(
    "url",
    [
        "s3://team/in",
        "s3://team/input/a.jsonl",
        "s3://team/in/../out/a.jsonl",
        "s3://team/in/%2e%2e/out/a.jsonl",
        "s3://team/in//a.jsonl",
        "s3://team/in/./a.jsonl",
        "s3://team/in/a.jsonl?endpoint=http://169.254.169.254",
        "s3://team/in/a.jsonl#x",
        "s3://other@team/in/a.jsonl",
        "s3://TEAM/in/a.jsonl",
        "s3://other/a.jsonl",
        "http://team/in/a.jsonl",
        "file:///etc/passwd",
        "/etc/passwd",
        "s3:///in/a.jsonl",
        "s3://team/in/a.jsonl\n",
        "s3://team/in/a\r\nHost: x",
    ],
)
def test_inputs_that_users_may_not_read(url):
    assert not allowed(url)
    assert allowed(url, Role.ADMIN)


def test_the_servers_own_store_is_never_read_by_url():
    theirs = f"{STORE}/jobs/job-1/output.jsonl"
    assert not allowed(theirs, prefixes=("s3://tandemn-store",))
    assert allowed("s3://tandemn-store/other/a.jsonl", prefixes=("s3://tandemn-store",))


def test_nothing_is_allowed_where_nothing_is_said():
    assert not allowed("s3://team/in/a.jsonl", prefixes=())


@pytest.mark.parametrize("priority", list(Priority))
def test_only_an_administrator_may_take_more_than_an_equal_share(priority):
    check_priority(priority, Role.ADMIN)
    if priority is Priority.HIGH:
        with pytest.raises(Forbidden) as refused:
            check_priority(priority, Role.USER)
        assert refused.value.code == "priority_not_allowed"
    else:
        check_priority(priority, Role.USER)
