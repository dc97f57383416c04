"""What local jobs cost when this machine has a price, and budgets that are kept."""

from __future__ import annotations

import json

from tests.process.house import House, chat_lines, read_lines


def priced(house: House, usd_per_hour: str) -> House:
    return House(house.home, TANDEMN_LOCAL_USD_PER_HOUR=usd_per_hour)


def test_a_finished_job_costs_what_its_replicas_lived(house):
    house = priced(house, "36")
    (house.home / "in.jsonl").write_text(chat_lines(20))
    done = house.run("deploy", "demo/tiny", "in.jsonl", "--slo", "1h", "--replicas", "2", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    logged = house.run("events", status["job_id"], "--json").stdout.splitlines()
    events = [json.loads(line) for line in logged]
    launched = {each["replica_id"]: each for each in events if each["kind"] == "replica_launched"}
    ended = {each["replica_id"]: each for each in events if each["kind"] == "replica_ended"}
    assert len(launched) == 2
    assert {each["data"]["price_usd_per_hour"] for each in launched.values()} == {"36"}
    assert {each["data"]["price_source"] for each in launched.values()} == {"TANDEMN_LOCAL_USD_PER_HOUR"}
    lived_s = sum(ended[name]["at"] - launched[name]["at"] for name in launched)
    assert abs(status["cost_usd"] - lived_s * 0.01) < 1e-6
    assert status["cost"]["label"] == "metered"
    assert status["cost"]["usd_per_hour"] == 0
    assert status["cost"]["planned_usd"] > 0
    assert status["cost"]["usd_per_million_tokens"] > 0

    everything = house.json("cost")
    assert [row["job_id"] for row in everything["jobs"]] == [status["job_id"]]
    assert everything["total"]["usd"] == status["cost_usd"]
    assert "total     $" in house.run("cost").stdout
    assert "local" in house.run("cost", status["job_id"]).stdout


def test_a_budget_ends_the_job_and_keeps_what_is_finished(house):
    # Long simulated answers take a minute: the money is gone first. A cent a second: 22 of the 44 cents are
    # kept for ending, the others are time enough for loading and for the short answers.
    house = priced(house, "36")
    short, long = chat_lines(3, max_tokens=4), chat_lines(60, max_tokens=3000, prefix="slow")
    (house.home / "in.jsonl").write_text(short + long)
    deploy = ["deploy", "any/model", "in.jsonl", "--slo", "1h", "--engine", "simulated", "--force"]
    done = house.run(
        *deploy,
        "--budget",
        "0.44",
        "--chunk-size",
        "3",
        "-o",
        "out.jsonl",
        "--json",
        "--",
        "--decode-step-s",
        "0.02",
    )
    assert done.returncode == 3, done.stderr
    status = json.loads(done.stdout)
    assert (status["state"], status["code"]) == ("over_budget", "over_budget")
    assert "the budget of $0.4400 is reached" in status["reason"]
    assert 0.2 < status["cost_usd"] <= 0.44
    assert status["cost"]["budget_usd"] == 0.44
    kinds = [
        json.loads(line)["kind"]
        for line in house.run("events", status["job_id"], "--json").stdout.splitlines()
    ]
    assert kinds.count("budget_reached") == 1

    answered = {line["custom_id"] for line in read_lines(house.home / "out.jsonl")}
    refused = read_lines(house.home / "out.jsonl.errors.jsonl")
    assert {"r0", "r1", "r2"} <= answered
    assert {line["error"]["code"] for line in refused} == {"over_budget"}
    assert len(answered) + len(refused) == 63


def test_a_plan_above_its_budget_is_refused_before_anything_is_launched(house):
    house = priced(house, "3600")
    (house.home / "in.jsonl").write_text(chat_lines(5))
    done = house.run("deploy", "demo/tiny", "in.jsonl", "--slo", "1h", "--budget", "0.5", "--wait", "--json")
    assert done.returncode == 3, done.stderr
    status = json.loads(done.stdout)
    assert (status["state"], status["code"], status["replicas"]) == ("failed", "infeasible", [])
    assert "more than the budget of $0.5000" in status["reason"]
