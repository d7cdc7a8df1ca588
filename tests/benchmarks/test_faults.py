"""What is read off a reply's arrival times."""

from __future__ import annotations

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.report import as_markdown, spread
from benchmarks.faults.streams import Wait, longest_wait_s, wait_of


def test_waits_count_that_overlap_the_time_asked_for() -> None:
    arrivals_s = (0.0, 5.0, 6.0, 8.0, 11.0)
    assert longest_wait_s(arrivals_s, 0.0, 100.0) == 5
    assert longest_wait_s(arrivals_s, 4.0, 5.5) == 5
    assert longest_wait_s(arrivals_s, 5.0, 100.0) == 3
    assert longest_wait_s(arrivals_s, 5.0, 8.0) == 2


def test_what_was_on_its_way_before_a_fault_was_noticed_is_no_takeover() -> None:
    arrivals_s = (2.0, 2.25, 8.0, 8.5, 20.0)
    assert wait_of(arrivals_s, 2.0, 7.0, 1.0) == Wait(5.0, 6.0, 5.75, 1.0)


def test_a_reply_may_have_nothing_on_its_way() -> None:
    assert wait_of((8.0, 8.5), 2.0, 7.0, 1.0) == Wait(5.0, 6.0, 6.0, 1.0)


def test_of_what_nobody_notices_the_whole_rest_counts() -> None:
    assert wait_of((2.0, 2.5, 4.5), 2.0, None, 1.0) == Wait(None, None, 2.0, 1.0)


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([]) == ""


def test_the_table_has_a_row_for_each_fault_that_was_tried() -> None:
    names = {fault.name: fault for fault in FAULTS}
    waits = {"killed": [Wait(0.1, 0.2, 0.21, 0.05)], "slow": [Wait(None, None, 0.3, 0.05)]}
    lines = as_markdown("A machine", waits).splitlines()
    assert len(lines) == 2 + 2 + len(waits)
    killed, slow = (lines[-2].split("|"), lines[-1].split("|"))
    assert killed[1].strip() == names["killed"].words
    assert killed[3].strip() == "0.10 (0.10 to 0.10)"
    assert [cell.strip() for cell in slow[3:5]] == ["", ""]  # nobody has anything to notice
