"""What a process remembers of replicas: how many there are, and who was silent."""

from __future__ import annotations

import pytest

from deployments import routing


def test_how_many_replicas_there_are_is_known_once_serve_has_said_so() -> None:
    assert routing.num_replicas("member-new") is None
    routing.tell_replicas("member-new", 2)
    routing.tell_replicas("member-new", 0)
    assert routing.num_replicas("member-new") == 0


def test_a_silent_replica_is_suspect_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(routing.time, "monotonic", lambda: now_s)
    assert not routing.is_suspect("here:1")
    routing.suspect("here:1")
    assert routing.is_suspect("here:1")
    assert not routing.is_suspect("here:2")
    now_s += 31
    assert not routing.is_suspect("here:1")


def test_those_who_were_silent_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(routing.time, "monotonic", lambda: now_s)
    for port in range(100):
        routing.suspect(f"there:{port}")
        now_s += 10
    assert len(routing._suspect_until_s) <= 4
