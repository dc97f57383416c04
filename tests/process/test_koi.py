"""Koi, as it should be and as it should not: a job is planned and runs, and says why Koi was not used."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.koi_service import GOOD, FakeKoi
from tests.process import traces, watch
from tests.process.conftest import built
from tests.process.house import House, chat_lines
from tests.process.scene import begin, end

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What Koi may take, in seconds; its default is 5, with which the figures of docs/koi.md were taken.
LIMIT_S = float(os.environ.get("KOI_TEST_LIMIT_S", "4"))
MODEL = "Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def koi(tmp_path_factory) -> Iterator[FakeKoi]:
    with FakeKoi(tmp_path_factory.mktemp("koi")) as koi:
        yield koi


@pytest.fixture(scope="module")
def advised(koi) -> Iterator[House]:
    """A house with an adviser, and a price, so that budgets mean something."""
    with built(
        KOI_SERVICE_URL=koi.url,
        TANDEMN_KOI_TIMEOUT_S=str(LIMIT_S),
        TANDEMN_LOCAL_USD_PER_HOUR="1",
        TANDEMN_LOCAL_SLOTS="16",
    ) as house:
        (house.home / "few.jsonl").write_text(chat_lines(4))
        assert house.run("server", "start").returncode == 0
        yield house


def deployed(here: Any, house: House, *flags: str) -> str:
    done = here(
        *(house, "deploy", MODEL, "few.jsonl", "--slo", "1h", "--engine", "simulated", "--json", *flags),
    )
    assert done.returncode == 0, done.stderr
    job_id: str = json.loads(done.stdout)["job_id"]
    return job_id


def planned(here: Any, house: House, *flags: str) -> dict[str, Any]:
    done = here(house, "plan", MODEL, "few.jsonl", "--slo", "4h", "--json", *flags)
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def planning_s(house: House, job: str) -> float:
    """How long a job was planned, by its own events."""
    states = {each["state"]: each["at"] for each in watch.events(house, job, "job_state")}
    took: float = states["waiting"] - states["planning"]
    return took


def answer(**config: Any) -> dict[str, Any]:
    return {**GOOD, "config": {**GOOD["config"], **config}}  # type: ignore[dict-item]


#: How Koi behaves -> why it is not used.
USELESS: dict[str, tuple[dict[str, Any], str]] = {
    "hanging": ({"decide": "hang"}, "koi_timeout"),
    "slow": ({"decide": "slow"}, "koi_timeout"),
    "500": ({"decide": "500"}, "koi_refused"),
    "HTML": ({"decide": "html"}, "koi_bad_answer"),
    "a redirect": ({"decide": "redirect"}, "koi_refused"),
    "wrong types": ({"answer": answer(tp="1")}, "koi_bad_answer"),
    "unknown GPU": ({"answer": answer(gpu_type="Voodoo2")}, "koi_unknown_gpu"),
    "infeasible": ({"answer": answer(dp=900, tp=64)}, "koi_infeasible"),
    "over budget": ({"answer": answer(dp=16)}, "koi_over_budget"),
}


def test_of_no_use_a_job_runs_as_without_it_and_says_why(advised, koi, here, record_property):
    """Each is asked for with --advisor koi; all jobs run beside each other."""
    jobs = {}
    for name, (behaviour, _) in USELESS.items():
        koi.behave(**behaviour)
        jobs[name] = deployed(here, advised, "--advisor", "koi", "--budget", "0.05")
    koi.stop()
    try:
        jobs["refusing connections"] = deployed(here, advised, "--advisor", "koi", "--budget", "0.05")
    finally:
        koi.start()
    for name, job in jobs.items():
        code = USELESS.get(name, ({}, "koi_unreachable"))[1]
        status = traces.ended(advised, job)
        assert (status["state"], status["requests"]["completed"]) == ("completed", 4), name
        assert len(status["replicas"]) == 1, "as without Koi"
        assert (status["koi"]["code"], status["koi"]["is_followed"]) == (code, False), name
        [event] = watch.events(advised, job, "job_planned")
        assert event["koi"]["code"] == code
        took = planning_s(advised, job)
        record_property(name, round(took, 2))
        # The promise is a second above the limit; a busy machine is given two more.
        assert took < LIMIT_S + 3, name
    said = here(advised, "status", jobs["hanging"]).stdout
    assert f"did not answer within {LIMIT_S:g} s" in said
    assert "[koi_timeout]" in said
    assert not koi.journal("/elsewhere"), "no redirect was followed"
    assert [line["faults"] for line in koi.journal() if line["faults"]] == []


def test_of_no_use_a_plan_is_the_own_one(advised, koi, here):
    koi.behave(decide="500")
    own = planned(here, advised)
    assert own["koi"]["code"] == "koi_refused"
    for behaviour, code in (
        ({"decide": "hang"}, "koi_timeout"),
        ({"answer": answer(gpu_type="T4", tp=1, pp=1, dp=1, market="spot")}, "koi_infeasible"),
        ({"answer": answer(region="mars-1")}, "koi_infeasible"),
        ({"answer": answer(gpu_type="H100", tp=8, dp=40)}, "koi_over_budget"),
        ({"answer": answer(gpu_type="H100")}, "koi_contradicts"),
    ):
        koi.behave(**behaviour)
        flags = ["--gpu", "L4"] if code == "koi_contradicts" else ["--budget", "20"]
        plan = planned(here, advised, "--advisor", "koi", *flags)
        assert plan["koi"]["code"] == code, plan["koi"]
        if code != "koi_contradicts":
            assert plan["plan"] == own["plan"]


def test_a_plan_beside_koi_and_one_that_follows_it(advised, koi, here):
    koi.behave(decide="good")
    beside = planned(here, advised)
    assert (beside["koi"]["is_feasible"], beside["koi"]["is_followed"]) == (True, False)
    assert beside["koi"]["code"] == "koi_not_chosen"
    assert (beside["koi"]["gpu"], beside["koi"]["replicas"]) == ("L4", 2)
    assert beside["koi"]["expected_usd"] > 0
    assert beside["koi"]["expected_tokens"] > 4
    followed = planned(here, advised, "--advisor", "koi")
    [first] = [row for row in followed["plan"] if row["rank"] == 0]
    assert (first["gpu"], first["tp"], first["market"]) == ("L4", 1, "spot")
    assert first["replicas"] >= 2, "a machine may have room for more of them"
    reasons = [row["reason"] for row in followed["plan"]]
    assert "dec-1" in reasons[0]
    assert "Koi's alternative" in reasons
    asked = koi.journal("/decide")[-1]["body"]
    assert asked["job_request"]["num_requests"] == 4
    assert asked["resource_map"]["instances"]
    shown = here(advised, "plan", MODEL, "few.jsonl", "--slo", "4h").stdout
    assert "koi: 2 x L4 tp1 pp1 spot" in shown
    assert "koi says: two small ones are the cheapest" in shown


def test_a_job_that_follows_koi(advised, koi, here):
    koi.behave(decide="good")
    job = deployed(here, advised, "--advisor", "koi")
    status = traces.ended(advised, job)
    assert status["state"] == "completed"
    assert [(each["gpu"], each["market"]) for each in status["replicas"]] == [("L4", "spot")] * 2
    assert status["koi"]["is_followed"]
    assert status["koi"]["decision_id"] == "dec-1"
    beside = traces.ended(advised, deployed(here, advised))
    assert len(beside["replicas"]) == 1
    assert beside["koi"]["code"] == "koi_not_chosen"


def test_the_resources_are_as_the_contract_says(advised):
    from tests.fakes.koi_service import Contract

    found = traces.asked(advised, "/resources")
    assert Contract().faults_of_answer("/resources", "get", found) == []
    kinds = {each["gpu_type"] for each in found["instances"]}
    assert {"L4", "L40S", "H100"} <= kinds
    assert found["quotas"] or found["notes"], "quotas that are not known are said to be"


def test_without_koi_there_is_no_trace_of_it(house, here, record_property):
    (house.home / "few.jsonl").write_text(chat_lines(4))
    job = deployed(here, house)
    status = traces.ended(house, job)
    record_property("unset", round(planning_s(house, job), 2))
    assert "koi" not in json.dumps(status)
    assert "koi" not in json.dumps(planned(here, house))
    assert "koi" not in json.dumps(watch.events(house, job))
    for words in (("status", job), ("plan", MODEL, "few.jsonl", "--slo", "4h")):
        assert "koi" not in here(house, *words).stdout.lower()
    logs = house.home / "logs"
    assert all("koi" not in path.read_text().lower() for path in logs.rglob("*.log"))
    # Asked for all the same: the job runs, and says what is missing.
    wished = traces.ended(house, deployed(here, house, "--advisor", "koi"))
    assert wished["state"] == "completed"
    assert wished["koi"]["code"] == "koi_not_set_up"


def told_of(house: House, job: str) -> list[str]:
    """The ids of what Koi is to be told of the job, by its events, in order; signs of life aside."""
    expected, called = [], set()
    for event in watch.events(house, job):
        replica = event["replica_id"]
        match event["kind"]:
            case "replica_called":
                called.add(replica)
                expected += [f"{replica}:config_attempted", f"{replica}:job_launching"]
            case "replica_ready":
                expected.append(f"{replica}:job_started")
            case "replica_ended" if event["reason_code"] and replica in called:
                expected.append(f"{replica}:replica_failed")
            case "replica_ended" if event["reason_code"] not in {None, "killed"}:
                expected.append(f"{replica}:config_attempted")
            case "job_ended":
                expected.append(f"{job}:job_complete")
    return expected


def test_koi_hears_everything_in_order_whatever_dies(tmp_path, record_property):
    """Preemption, a loss on demand, a kill, a swap; Koi does not take one of three, is down for a while, and so is the
    control plane.
    """
    with (
        FakeKoi(tmp_path / "koi") as koi,
        built(
            KOI_SERVICE_URL=koi.url,
            TANDEMN_KOI_HEARTBEAT_S="0.5",
            TANDEMN_FLUSH_S="0.5",
            TANDEMN_HEARTBEAT_S="1",
        ) as house,
    ):
        koi.behave(refuse_every=3)
        engine = ("--slots", "8", "--decode-step-s", "0.02", "--load-s", "0.7")
        job = begin(house, 4000, "--replicas", "2", "--advisor", "koi", "--chunk-size", "10", engine=engine)
        house.wait_for(lambda: len(watch.computing(house, job)) == 2)
        watch.kill(watch.computing(house, job)[0]["pid"])
        house.wait_for(lambda: watch.replicas(house, job, "preempted"))
        watch.ask(house, "POST", f"{job}/add", replicas=1, on_demand=True)
        lost = house.wait_for(
            lambda: [each for each in watch.computing(house, job) if each["config"]["market"] == "on-demand"]
        )[0]
        koi.stop()
        koi.behave()
        watch.kill(lost["pid"])
        house.wait_for(lambda: watch.replicas(house, job, "failed"))
        watch.ask(house, "POST", f"{job}/swap", gpu="L40S", replicas=1)
        house.wait_for(lambda: watch.status(house, job)["swap"]["state"] == "done")
        waited = watch.query(house, "SELECT event_id, tries FROM outbox ORDER BY seq")
        assert len(waited) > 3, "kept while Koi is down"
        watch.kill_server(house)
        koi.start()
        assert house.run("server", "start").returncode == 0
        house.wait_for(lambda: len(watch.computing(house, job)) >= 1)
        killed = watch.computing(house, job)[0]["replica_id"]
        watch.ask(house, "POST", f"{job}/kill", replicas=[killed])
        house.wait_for(lambda: watch.replicas(house, job, "killed"))
        end(house, job, 4000)
        house.wait_for(lambda: not watch.query(house, "SELECT seq FROM outbox"))

        expected = told_of(house, job)
        got = [line for line in koi.journal() if line["path"] != "/decide"]
        assert [line["faults"] for line in got if line["faults"]] == [], "each is as the contract says"
        first = list(dict.fromkeys(line["body"]["event_id"] for line in got))
        assert [each for each in first if "launch_heartbeat" not in each] == expected, "all, in order"
        assert any("launch_heartbeat" in each for each in first)
        bodies = {json.dumps(line["body"], sort_keys=True) for line in got}
        assert len(bodies) == len(first), "the same words in every try"
        assert len(got) > len(first), "some were tried again"
        failures = [line["body"] for line in koi.journal("/job/replica-failed")]
        assert {each["reason_code"] for each in failures} == {"spot_preemption", "unknown", "killed"}
        assert {each["decision_id"] for each in failures} == {"dec-1"}
        assert not watch.events(house, job, "koi_callback_dropped")
        assert koi.journal("/job/complete")[-1]["body"]["status"] == "cancelled"
        started = {line["body"]["event_id"]: line["body"] for line in koi.journal("/job/started")}
        swapped_in = [each["is_fallback"] for each in started.values() if each["gpu_type"] == "L40S"]
        assert swapped_in, "the swap's; a second one where that was killed, and replaced before the end"
        assert all(swapped_in)
        record_property("told", len(first))
        record_property("received", len(got))
