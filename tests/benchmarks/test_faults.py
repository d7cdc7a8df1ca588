"""What is read off a reply's arrival times."""

from __future__ import annotations

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.report import as_markdown, spread
from benchmarks.faults.streams import Wait, longest_wait


def test_the_longest_wait_is_one_that_ends_after_the_fault() -> None:
    arrivals_s = (0.0, 5.0, 5.1, 5.2, 7.2, 7.3)
    assert longest_wait(arrivals_s, 0.0) == (0.0, 5.0)
    assert longest_wait(arrivals_s, 5.15) == (5.2, 7.2)


def test_a_wait_that_the_fault_falls_into_counts() -> None:
    assert longest_wait((0.0, 1.0, 4.0, 4.5), 2.0) == (1.0, 4.0)


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([]) == ""


def test_the_table_has_a_row_for_each_fault_that_was_tried() -> None:
    names = {fault.name: fault for fault in FAULTS}
    waits = {"killed": [Wait(0.1, 0.2, 0.21, 0.05)], "slow": [Wait(None, 0.4, 0.3, 0.05)]}
    lines = as_markdown("A machine", waits).splitlines()
    assert len(lines) == 2 + 2 + len(waits)
    killed, slow = (lines[-2].split("|"), lines[-1].split("|"))
    assert killed[1].strip() == names["killed"].words
    assert killed[3].strip() == "0.10 (0.10 to 0.10)"
    assert [cell.strip() for cell in slow[3:5]] == ["", ""]  # nobody has anything to notice
