from decimal import Decimal

from tandemn.protocol.replicas import Market
from tandemn.serving.local.lifetimes import LifetimeLog


def test_seconds_and_prices_add_up_by_market(tmp_path):
    log = LifetimeLog(tmp_path / "lifetimes.jsonl")
    assert log.total(Market.SPOT, 0, 100) == (0.0, Decimal(0))
    log.begin("a", Market.SPOT, Decimal("3.6"), 10)
    log.begin("b", Market.SERVERLESS, Decimal(36), 10)
    log.end("a", 30, "idle")
    assert log.total(Market.SPOT, 0, 100) == (20, Decimal("0.02"))
    assert log.total(Market.SPOT, 20, 25) == (5, Decimal("0.005"))
    assert log.total(Market.SPOT, 40, 100) == (0.0, Decimal(0))
    assert log.total(Market.SERVERLESS, 0, 100) == (90, Decimal("0.9")), "it lives"


def test_what_a_killed_process_left_open_is_closed_at_its_last_sign_of_life(tmp_path):
    log = LifetimeLog(tmp_path / "lifetimes.jsonl")
    log.begin("a", Market.SPOT, Decimal(0), 10)
    log.begin("b", Market.SPOT, Decimal(0), 50)
    log.close_open(40, "died")
    assert {each.replica_id: each.ended for each in log.read()} == {"a": 40, "b": 50}
    log.close_open(90, "again")
    assert [each.why for each in log.read()] == ["died", "died"]


def test_a_line_that_was_cut_short_costs_only_itself(tmp_path):
    log = LifetimeLog(tmp_path / "lifetimes.jsonl")
    log.begin("a", Market.SPOT, Decimal(0), 10)
    with log.path.open("ab") as file:
        file.write(b'{"type":"ended","repl')
    log.end("a", 20, "idle")
    log.begin("c", Market.SPOT, Decimal(0), 30)
    assert [each.replica_id for each in log.read()] == ["a", "c"]
    assert log.total(Market.SPOT, 0, 20)[0] == 10
