"""Changing the fleet of a running job: add, kill, swap; and what a lost replica costs."""

from __future__ import annotations

import itertools
import signal
import time

from tests.process import watch
from tests.process.house import chat_lines
from tests.process.metadata import metadata_service
from tests.process.scene import begin, end, groups, refused, tell


def test_a_dead_and_a_silent_replica_lose_their_chunks_to_others_within_15_s(house, record_property):
    job = begin(house, 3000, "--replicas", "3", "--chunk-size", "100")
    house.wait_for(lambda: len(watch.computing(house, job)) == 3)
    dead, silent, _ = watch.computing(house, job)

    def held(by: str) -> set[int]:
        return {row["chunk"] for row in watch.chunks(house, job) if row["holder"] == by and not row["done"]}

    def elsewhere(lost: set[int], by: str) -> bool:
        """Whether each is held by, or was done by, another."""
        rows = {row["chunk"]: row for row in watch.chunks(house, job)}
        return all(rows[chunk]["holder"] not in {None, by} for chunk in lost)

    took = {}
    for name, victim in (("dead", dead), ("silent", silent)):
        lost = house.wait_for(lambda victim=victim: held(victim["replica_id"]))
        since = time.time()
        for process in watch.family(victim["pid"]) if name == "silent" else []:
            process.send_signal(signal.SIGSTOP)
        if name == "dead":
            watch.kill(victim["pid"])
        house.wait_for(lambda lost=lost, victim=victim: elsewhere(lost, victim["replica_id"]), timeout=60)
        took[name] = round(time.time() - since, 1)
        record_property(name, took[name])
    # Twice the promise: a machine under load is no proof against it, a lease of minutes would be.
    assert max(took.values()) < 30
    ended = watch.events(house, job, "replica_ended")[0]
    assert (ended["replica_id"], ended["state"]) == (dead["replica_id"], "preempted")
    assert ended["reason_code"] == "spot_preemption"
    # A replacement came for the dead one; the silent one is ended by force with the job, though stopped.
    house.wait_for(lambda: len(watch.replicas(house, job)) == 4)
    end(house, job, 3000)


def test_add_kill_and_swap_say_what_they_did_and_nothing_undoes_them(house):
    job = begin(house, 6000, "--replicas", "2", "--chunk-size", "50")
    house.wait_for(lambda: len(watch.computing(house, job)) == 2)

    added = tell(house, "add", job, "1", "--gpu", "H100", "--tp", "2", "--on-demand")
    assert added["new"] == [f"{job}-r2"]
    assert added["config"] | {"region": None} == {
        "gpu": "H100", "tp": 2, "pp": 1, "dp": 1, "nodes": 1, "market": "on-demand", "region": None, "regions": [],
    }  # fmt: skip
    house.wait_for(lambda: len(watch.computing(house, job)) == 3)
    assert {each["config"]["gpu"] for each in watch.computing(house, job)} == {"L4", "H100"}

    for words in (["r9"], ["r0", "--replica", "r9"]):
        assert "replica_not_found" in refused(house, "kill", job, "--replica", *words)
    assert groups(house, job) == [2, 1], "a mistyped name changes nothing"
    killed = tell(house, "kill", job, "--replica", "r0", "--replica", "r2")
    assert killed["killed"] == [f"{job}-r0", f"{job}-r2"]
    assert killed["chunks_reclaimed"] >= 1
    assert killed["replicas_wanted"] == 1
    house.wait_for(lambda: len(watch.replicas(house, job, "killed")) == 2, timeout=40)
    assert "[killed]" in house.run("status", job).stdout
    again = tell(house, "kill", job, "--replica", "r0")
    assert (again["killed"], list(again["skipped"])) == ([], [f"{job}-r0"])

    # The last one dies: it is replaced, the killed ones are not.
    watch.kill(watch.computing(house, job)[0]["pid"])
    house.wait_for(lambda: len(watch.computing(house, job)) == 1 and watch.replicas(house, job, "preempted"))
    assert len(watch.replicas(house, job)) == 4

    assert "threshold_too_high" in refused(
        house, "swap", job, "--gpu", "L40S", "--replicas", "2", "--ready-threshold", "3"
    )
    assert "no_swap_to_cancel" in refused(house, "swap", job, "--cancel")
    swapped = tell(house, "swap", job, "--gpu", "L40S", "--replicas", "2", "--ready-threshold", "1")
    assert len(swapped["new"]) == 2
    assert swapped["old"] == [f"{job}-r3"]
    assert "swap_under_way" in refused(house, "swap", job, "--gpu", "A100")
    house.wait_for(lambda: watch.replicas(house, job, "swapped_out"))
    house.wait_for(lambda: watch.status(house, job)["swap"]["state"] == "done")
    draining = watch.events(house, job, "swap_draining")[0]
    began = [
        each["at"]
        for each in watch.events(house, job, "replica_began")
        if each["replica_id"] in swapped["new"]
    ]
    assert min(began) <= draining["at"], "the old ones drain only after a new one has begun"
    more = tell(house, "add", job, "1")
    assert more["config"]["gpu"] == "L40S", "after a swap its configuration is the job's"
    assert groups(house, job) == [0, 0, 3]
    end(house, job, 6000)
    for words in (["add", job, "1"], ["kill", job, "--replica", "r0"], ["swap", job, "--gpu", "L4"]):
        assert "job_not_running" in refused(house, *words)
    assert "job_not_found" in refused(house, "add", "job-000000000000", "1")


def test_a_swap_does_not_pause_the_job_and_can_be_cancelled(house, record_property):
    requests = 6000
    job = begin(house, requests, "--replicas", "2", "--chunk-size", "25")
    house.wait_for(lambda: len(watch.computing(house, job)) == 2 and watch.done(house, job) >= 4)
    watch.ask(house, "POST", f"{job}/swap", gpu="H100")
    cancelled = watch.ask(house, "DELETE", f"{job}/swap")
    assert cancelled["swap"]["state"] == "cancelled"
    watch.ask(house, "POST", f"{job}/swap", gpu="L40S")
    house.wait_for(lambda: watch.status(house, job)["swap"]["state"] == "done")
    done = [each["at"] for each in watch.events(house, job, "chunk_completed")]
    gaps = [after - before for before, after in itertools.pairwise(done)]
    # One chunk alone on one replica: what the longest gap is compared with.
    chunk_s = 25 / 8 * 16 * 0.02
    record_property("longest_gap_s", max(gaps))
    record_property("mean_gap_s", sum(gaps) / len(gaps))
    record_property("chunk_s", chunk_s)
    states = {each["replica_id"]: each["state"] for each in watch.replicas(house, job)}
    assert [states[f"{job}-r{number}"] for number in range(4)] == [*["swapped_out"] * 2, *["killed"] * 2]
    end(house, job, requests)


def test_a_swap_whose_replicas_fail_keeps_the_old_and_says_so(house):
    """The model file is gone when the new ones look for it; the old ones have it open."""
    from tandemn.fleet.engines.demo_model import ensure_demo_model

    model = house.home / "model.gguf"
    model.write_bytes(ensure_demo_model(house.home / "made").read_bytes())
    source = house.home / "in.jsonl"
    source.write_text(chat_lines(4000, max_tokens=64))
    job = house.submit(str(model), str(source), "--slo", "4h", "--cloud", "local", "--chunk-size", "40")
    house.wait_for(lambda: watch.computing(house, job))
    model.unlink()
    tell(house, "swap", job, "--gpu", "cpu", "--replicas", "2")
    house.wait_for(lambda: watch.status(house, job)["swap"]["state"] == "failed")
    said = watch.status(house, job)
    assert "the old replicas go on" in said["swap"]["reason"]
    before = watch.done(house, job)
    house.wait_for(lambda: watch.done(house, job) > before)
    assert [each["replica_id"] for each in watch.computing(house, job)] == [f"{job}-r0"]
    # What is added now is of the configuration that works, not of the group that failed.
    assert groups(house, job) == [1, 0]
    tell(house, "add", job, "1")
    assert groups(house, job) == [2, 0]
    end(house, job, 4000)


def test_a_spot_notice_drains_the_replica_and_another_takes_its_place(house):
    with metadata_service() as service:
        house.environment |= {"TANDEMN_METADATA_URL": service.url, "TANDEMN_SPOT_NOTICES": "true"}
        job = begin(house, 4000, "--replicas", "1", "--chunk-size", "40")
        first = house.wait_for(lambda: watch.computing(house, job))[0]
        service.announce(seconds=25)
        house.wait_for(lambda: watch.replicas(house, job, "preempted"))
        service.withdraw()
        ended = watch.events(house, job, "replica_ended")[0]
        assert ended["replica_id"] == first["replica_id"]
        assert "notice" in ended["reason"]
        assert service.tokens_asked >= 1
        assert service.calls_without_token == 0
        house.wait_for(lambda: watch.computing(house, job))
        assert watch.status(house, job)["requests"]["recomputed"] == 0
        end(house, job, 4000)
