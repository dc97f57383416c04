import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.cli import text
from tandemn.errors import InvalidInput


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("4", 14400),
        ("0.5", 1800),
        (".5", 1800),
        ("4h", 14400),
        ("0.5h", 1800),
        ("30m", 1800),
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172800),
        (" 4H ", 14400),
        ("720", 30 * 86400),
    ],
)
def test_slo_is_read_in_hours_or_with_its_unit(written, seconds):
    assert text.parse_slo(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "0", "0s", "-1", "4x", "nan", "inf", "1e3", "4 h", "h", "\u0661h", "721", "31d", "9" * 400],
)
def test_slo_that_is_no_deadline_is_refused_by_name(written):
    with pytest.raises(InvalidInput) as caught:
        text.parse_slo(written)
    assert caught.value.code == "invalid_slo"
    assert caught.value.param == "slo"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.42, "0.4s"),
        (9.96, "10s"),
        (10, "10s"),
        (59.6, "1m"),
        (87, "1m 27s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (3605, "1h"),
        (90000, "1d 1h"),
        (-5, "-5s"),
    ],
)
def test_durations_show_their_two_greatest_units(seconds, written):
    assert text.duration(seconds) == written


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(count, written):
    assert text.size(count) == written


@given(st.text())
def test_printable_text_stays_on_its_line_and_moves_no_cursor(raw):
    shown = text.printable(raw)
    assert shown.isprintable()
    if raw.isprintable():
        assert shown == raw


def test_tables_are_aligned_and_nothing_is_cut():
    assert text.table(("A", "LONG"), [["x" * 300, "1"], ["y", "2\n3"]]) == [
        "A" + " " * 301 + "LONG",
        "x" * 300 + "  1",
        "y" + " " * 301 + "2\\n3",
    ]
