"""A table computed by hand. Where no price is named it is 1 USD a second, so that sums read as seconds."""

from __future__ import annotations

from decimal import Decimal

import pytest
from tests.ledger.log import begin, end, reprice, serverless

from tandemn.ledger.entries import Billed, Fact, Label, Part, RuleName
from tandemn.ledger.fold import combine, fold
from tandemn.ledger.spending import spending

HOUR = 3600.0


def billed(at: float, start: float, until: float, usd: str) -> Billed:
    return Billed(
        at=at, owner="job", account="acme", part=Part.SERVERLESS, start=start, end=until, usd=Decimal(usd)
    )


METERED, ESTIMATED, BILLED = Label.METERED, Label.ESTIMATED, Label.BILLED
#: name -> facts, now, USD spent (None: unknown), USD an hour at that moment, weakest label.
TIMELINES: dict[str, tuple[list[Fact], float, str | None, str | None, Label | None]] = {
    "nothing": ([], 100, "0", "0", None),
    "not yet begun": ([begin(200, "a")], 100, "0", "0", None),
    # 100 s of loading cost as much as 50 s of work.
    "cold start": ([begin(0, "a"), end(150, "a")], 200, "150", "0", METERED),
    "under way": ([begin(10, "a")], 70, "60", "3600", METERED),
    # a: 0-100, b: 50-120 at half the price; 100 + 35.
    "overlap": (
        [begin(0, "a"), begin(50, "b", "1800"), end(100, "a"), end(120, "b")],
        500,
        "135",
        "0",
        METERED,
    ),
    # Taken away at 60, replaced at 90 at another price: 60 + 60 * 2.
    "preemption": (
        [begin(0, "r0"), end(60, "r0"), begin(90, "r1", "7200"), end(150, "r1")],
        150,
        "180",
        "0",
        METERED,
    ),
    # Two bursts; between 40 and 500 nothing runs: 40 + 25.
    "scale to zero": (
        [
            serverless(0, "c0", RuleName.MODAL),
            end(40, "c0"),
            serverless(500, "c1", RuleName.MODAL),
            end(525, "c1"),
        ],
        1000,
        "65",
        "0",
        METERED,
    ),
    # 100 s at 1, then 100 s at 0.5.
    "price change": ([begin(0, "a"), reprice(100, "a", "1800")], 200, "150", "1800", METERED),
    # The price of others changes nothing for one that runs.
    "dearer replacement": (
        [begin(0, "a"), begin(100, "b", "36000"), end(110, "b")],
        200,
        "300",
        "3600",
        METERED,
    ),
    "free on this machine": ([begin(0, "a", "0", Part.LOCAL)], HOUR, "0", "0", METERED),
    "price unknown": ([begin(0, "a", None), begin(0, "b"), end(10, "b")], 60, None, None, METERED),
    "unknown for a while": ([begin(0, "a"), reprice(30, "a", None), end(60, "a")], 60, None, "0", METERED),
    # The catalog answered after the launch: its price holds from the beginning.
    "price learned later": (
        [begin(0, "a", None), reprice(0, "a", "3600"), end(60, "a")],
        60,
        "60",
        "0",
        METERED,
    ),
    # A machine of 2.2 s is billed as 60; one of 60.01 s as 61.
    "minimum of a minute": (
        [
            begin(0, "a", rule=RuleName.EC2),
            end(2.2, "a"),
            begin(0, "b", rule=RuleName.EC2),
            end(60.01, "b"),
        ],
        900,
        "121",
        "0",
        METERED,
    ),
    "rounded to the second": ([serverless(0, "a", RuleName.RUNPOD), end(3.2, "a")], 90, "4", "0", METERED),
    "rounded to 100 ms": (
        [serverless(0, "a", RuleName.CLOUD_RUN), end(70.01, "a")],
        90,
        "70.1",
        "0",
        METERED,
    ),
    # The router's machine goes on while the router restarts; the spot replica is untouched: 300 * 0.1 + 200.
    "restart of the router": (
        [begin(0, "vm", "360", Part.ROUTER), begin(100, "spot"), end(300, "spot")],
        300,
        "230",
        "360",
        METERED,
    ),
    # The router's machine itself is lost at 120 and launched again at 150: 120 * 0.1 + 150 * 0.1.
    "router machine lost": (
        [begin(0, "vm", "360", Part.ROUTER), end(120, "vm"), begin(150, "vm2", "360", Part.ROUTER)],
        300,
        "27",
        "360",
        METERED,
    ),
    "worked out, not seen": (
        [begin(0, "a"), end(10, "a"), begin(0, "b", label=ESTIMATED), end(5, "b")],
        10,
        "15",
        "0",
        ESTIMATED,
    ),
    # The bill stands for 0-100; from 100 to 130 it is still metered.
    "bill so far": (
        [serverless(0, "a", RuleName.MODAL, account="acme"), end(130, "a"), billed(140, 0, 100, "97.5")],
        140,
        "127.5",
        "0",
        METERED,
    ),
    "bill in full": (
        [serverless(0, "a", RuleName.MODAL, account="acme"), end(100, "a"), billed(140, 0, 200, "97.5")],
        140,
        "97.5",
        "0",
        BILLED,
    ),
    "bill makes an unknown price known": (
        [begin(0, "a", None, Part.SERVERLESS, account="acme"), end(100, "a"), billed(140, 0, 200, "12")],
        140,
        "12",
        "0",
        BILLED,
    ),
    "bill read again": (
        [
            serverless(0, "a", RuleName.MODAL, account="acme"),
            billed(60, 0, 50, "49"),
            billed(120, 0, 100, "99"),
            end(100, "a"),
        ],
        140,
        "99",
        "0",
        BILLED,
    ),
    # Said to be gone at 50, seen again, gone at 80.
    "gone, seen again": ([begin(0, "a"), end(50, "a"), end(80, "a")], 100, "80", "0", METERED),
    "clock set back": ([begin(100, "a"), end(90, "a")], 200, "0", "0", METERED),
    "end without a beginning": ([end(90, "a")], 200, "0", "0", None),
}


@pytest.mark.parametrize("name", list(TIMELINES))
def test_table(name):
    facts, now, usd, rate, label = TIMELINES[name]
    spent = spending(fold(facts), "job", now)
    assert spent.spent.usd == (None if usd is None else Decimal(usd))
    assert spent.usd_per_hour.usd == (None if rate is None else Decimal(rate))
    assert spent.spent.label == label


@pytest.mark.parametrize("name", list(TIMELINES))
def test_table_split_anywhere(name):
    facts, now, *_ = TIMELINES[name]
    whole = spending(fold(facts), "job", now)
    for cut in range(len(facts) + 1):
        assert spending(combine(fold(facts[:cut]), fold(facts[cut:])), "job", now) == whole


def test_parts_and_since():
    log: list[Fact] = [
        begin(10, "vm", "360", Part.ROUTER),
        begin(20, "s", "3600"),
        begin(30, "c", "7200", Part.SERVERLESS),
        end(40, "c"),
        begin(0, "x", owner="somebody else"),
    ]
    spent = spending(fold(log), "job", 60)
    assert {each.part: (each.spent.at_least, each.running, each.seconds) for each in spent.parts} == {
        Part.SPOT: (Decimal(40), 1, Decimal(40)),
        Part.SERVERLESS: (Decimal(20), 0, Decimal(10)),
        Part.ROUTER: (Decimal(5), 1, Decimal(50)),
    }
    assert spent.since == 10
    assert spent.usd_per_hour.usd == 3960


@pytest.mark.parametrize(("bill", "shown"), [("100", False), ("105", False), ("105.01", True), ("94", True)])
def test_a_bill_that_is_off_by_more_than_a_twentieth_is_shown(bill, shown):
    log: list[Fact] = [
        serverless(0, "a", RuleName.MODAL, account="acme"),
        end(100, "a"),
        billed(200, 0, 150, bill),
    ]
    differences = spending(fold(log), "job", 200).differences
    assert bool(differences) == shown
    if shown:
        assert differences[0].metered.usd == 100
        assert differences[0].share == (Decimal(bill) - 100) / 100


def test_a_bill_for_what_nobody_saw_is_shown():
    spent = spending(fold([billed(200, 0, 150, "3")]), "job", 200)
    assert spent.spent.usd == 3
    assert [each.share for each in spent.differences] == [None]


def test_an_unknown_price_still_tells_what_the_rest_costs():
    spent = spending(fold([begin(0, "a", None), begin(0, "b"), end(10, "b")]), "job", 60).spent
    assert (spent.usd, spent.at_least, spent.unknown) == (None, Decimal(10), 1)
