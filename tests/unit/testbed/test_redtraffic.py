"""The arithmetic of a stream's receiver, and what the program refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import redtraffic
from testbed.redtraffic import SIZE_MIN, Tally, packet, parse

MS = 1_000_000


def tally(numbers: Sequence[int], *, every_ms: int = 10, delay_ms: int = 3) -> Tally:
    """Return what a receiver counts when these numbers come one after the other."""
    found = Tally()
    for place, number in enumerate(numbers):
        found.add(number, number * every_ms * MS, place * every_ms * MS + delay_ms * MS)
    return found


def test_a_packet_has_the_size_asked_for_and_says_who_it_is() -> None:
    data = packet(7, 123_456, 1_700_000_000_123_456_789, 1300)
    assert len(data) == 1300
    assert parse(data) == (7, 123_456, 1_700_000_000_123_456_789)
    assert len(packet(1, 0, 0, SIZE_MIN)) == SIZE_MIN


@pytest.mark.parametrize("data", [b"", b"idpmike red check 1234567890", packet(1, 1, 1, 24)[:-1]])
def test_what_is_no_packet_of_a_stream_is_none(data: bytes) -> None:
    assert parse(data) is None


def test_a_stream_without_faults() -> None:
    counted = tally([5, 6, 7, 8]).as_json()
    assert counted["received"] == 4
    assert (counted["lost"], counted["duplicated"], counted["reordered"]) == (0, 0, 0)
    assert (counted["first_sequence"], counted["last_sequence"]) == (5, 8)
    assert counted["first_arrival_sequence"] == 5
    assert counted["gaps"] == []


def test_a_gap_names_the_first_missing_packet_and_how_long_nothing_came() -> None:
    found = Tally()
    for number, arrival_ms in ((0, 0), (1, 20), (9, 400), (10, 410), (12, 430)):
        found.add(number, 0, arrival_ms * MS)
    counted = found.as_json()
    assert counted["lost"] == 8
    assert counted["gaps"] == [
        {"first_missing": 2, "missing": 7, "silent_ms": 380.0},
        {"first_missing": 11, "missing": 1, "silent_ms": 20.0},
    ]


def test_a_copy_is_a_duplicate_and_a_latecomer_is_reordered_not_lost() -> None:
    counted = tally([0, 1, 3, 3, 2, 4]).as_json()
    assert counted["received"] == 5
    assert (counted["lost"], counted["duplicated"], counted["reordered"]) == (0, 1, 1)


def test_a_packet_before_the_first_one_seen_widens_the_stream() -> None:
    counted = tally([4, 2, 5]).as_json()
    assert (counted["first_sequence"], counted["lost"]) == (2, 1)
    assert counted["first_arrival_sequence"] == 4


def test_only_so_many_gaps_are_listed_and_all_counted() -> None:
    counted = tally(range(0, 4 * redtraffic.GAPS_MAX, 2)).as_json()
    assert len(counted["gaps"]) == redtraffic.GAPS_MAX
    assert counted["gap_count"] == 2 * redtraffic.GAPS_MAX - 1


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_the_counts_are_those_of_a_set(numbers: list[int]) -> None:
    counted = tally(numbers).as_json()
    different = set(numbers)
    assert counted["received"] == len(different)
    assert counted["duplicated"] == len(numbers) - len(different)
    assert counted["lost"] == max(different) - min(different) + 1 - len(different)
    highest, overtaken, seen = -1, 0, set()
    for number in numbers:
        overtaken += number not in seen and number < highest
        highest = max(highest, number)
        seen.add(number)
    assert counted["reordered"] == overtaken


@pytest.mark.parametrize(
    "options",
    [
        ["send", "--source", "::1", "--interface", "lo", "--size-bytes", "23"],
        ["send", "--source", "::1", "--interface", "lo", "--rate-pps", "0"],
        ["receive", "--own", "nonsense", "--interface", "lo"],
        [],
    ],
)
def test_bad_options_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        redtraffic.main(options)
    assert ended.value.code == 2


def test_an_interface_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert redtraffic.main(["send", "--source", "::1", "--interface", "nosuch0"]) == 1
    assert capsys.readouterr().err.startswith("redtraffic: error: ")
