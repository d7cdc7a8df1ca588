"""Key files: what is written, what is refused, and how a running router follows them."""

from __future__ import annotations

import logging
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.access.caller import KeyLimits, Scope
from cluster.access.keyring import CHECK_INTERVAL_S, Keyring
from cluster.access.keys import LimitsEntry, add_key, new_key, read_keys, remove_key, split_key
from cluster.errors import CuveeError, InvalidRequest, NotFound, SpecError, Unauthenticated


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def make(file: Path, key_id: str = "ci", *scopes: str, lifetime: timedelta | None = None) -> str:
    limits = LimitsEntry(max_concurrent=2, cost_per_minute=100.0, weight=0.5)
    made = new_key(key_id, scopes or ("generate",), limits, lifetime=lifetime, note="of a test")
    add_key(file, key_id, made.entry)
    return made.text


def reason_of(keyring: Keyring, text: str) -> tuple[str, str]:
    with pytest.raises(Unauthenticated) as caught:
        keyring.caller_of(text)
    return caught.value.reason, caught.value.message


def test_a_key_names_its_caller_scopes_and_limits(file: Path) -> None:
    text = make(file, "ci", "generate", "metrics")
    caller = Keyring(file).caller_of(text)
    assert caller.key_id == "ci"
    assert caller.scopes == {Scope.GENERATE, Scope.METRICS}
    assert caller.limits == KeyLimits(max_concurrent=2, cost_per_minute=100.0, weight=0.5)


def test_the_file_is_its_owners_and_has_no_secret(file: Path) -> None:
    text = make(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert split_key(text)[1] not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]  # nothing left behind


def test_two_keys_differ_in_everything(file: Path) -> None:
    texts = {make(file, "a"), make(file, "b")}
    entries = read_keys(file)
    assert len(texts) == 2
    assert len({entries["a"].salt, entries["b"].salt, entries["a"].hash, entries["b"].hash}) == 4


def test_whatever_is_wrong_with_a_key_the_words_are_the_same(file: Path) -> None:
    clock = Clock()
    text, short = make(file, "ci"), make(file, "short", lifetime=timedelta(days=1))
    keyring = Keyring(file, now_s=clock)
    assert keyring.caller_of(short).key_id == "short"
    clock.s = 1e11
    _, secret = split_key(text)
    wrong = [
        short,
        text[:-1] + ("a" if text[-1] != "a" else "b"),
        f"cuvee_nobody_{secret}",
        f"cuvee_short_{secret}",
        secret,
        "",
        "cuvee__",
        f"other_ci_{secret}",
        "cuvee_ci_" + "é" * 5000,
        "\ud800",
    ]
    assert len({reason_of(keyring, each) for each in wrong}) == 1
    assert keyring.caller_of(text).key_id == "ci"


def test_a_router_follows_its_file_within_a_second(file: Path) -> None:
    ticks = Clock()
    first = make(file, "first")
    keyring = Keyring(file, ticks_s=ticks)
    second = make(file, "second")
    assert reason_of(keyring, second)  # it has just looked
    ticks.s += CHECK_INTERVAL_S
    assert keyring.caller_of(second).key_id == "second"
    remove_key(file, "first")
    ticks.s += CHECK_INTERVAL_S
    assert reason_of(keyring, first)
    assert keyring.caller_of(second)


@pytest.mark.parametrize("harm", ["text", "mode", "gone"])
def test_a_broken_file_keeps_the_last_good_keys(
    file: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = Clock()
    text = make(file)
    keyring = Keyring(file, ticks_s=ticks)
    if harm == "text":
        file.write_text("version: 1\nkeys: [")
    elif harm == "mode":
        file.chmod(0o666)
    else:
        file.unlink()
    ticks.s += CHECK_INTERVAL_S
    with caplog.at_level(logging.DEBUG):
        assert keyring.caller_of(text)
        ticks.s += CHECK_INTERVAL_S
        assert keyring.caller_of(text)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # said once
    assert split_key(text)[1] not in caplog.text


def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    make(file)
    file.chmod(0o620)
    with pytest.raises(SpecError, match="chmod 600"):
        read_keys(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "version: got 2; expected 1"),
        ("- generate", "- everything", "keys.ci.scopes.0: got 'everything'; expected a list of"),
        ("weight: 0.5", "weight: 0", "keys.ci.limits.weight: got 0; expected a number above 0"),
        ("note:", "notes:", "keys.ci.notes: unknown key"),
        ("  ci:", "  C I:", "expected a name of at most 40"),
        ("+00:00", "", "expected a time with its zone"),
        ("    salt: ", "    salt: [", "YAML"),
        ("keys:", "keys: []\nothers:", "keys: got a list"),
    ],
)
def test_a_wrong_file_is_explained_by_line(file: Path, old: str, new: str, said: str) -> None:
    make(file)
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        read_keys(file)
    assert said in caught.value.message
    assert f"{file}:" in caught.value.message


def test_what_stands_for_a_hash_is_never_shown(file: Path) -> None:
    make(file)
    text = file.read_text()
    file.write_text(text.replace(read_keys(file)["ci"].hash, "[the-secret-itself]"))
    with pytest.raises(SpecError) as caught:
        read_keys(file)
    assert "keys.ci.hash" in caught.value.message
    assert "the-secret-itself" not in caught.value.message


def test_names_are_taken_once_and_must_be_names(file: Path) -> None:
    make(file)
    with pytest.raises(InvalidRequest, match="has already"):
        make(file)
    for name in ("Big", "a_b", "", "x" * 41, "../x"):
        with pytest.raises(InvalidRequest, match="expected a name"):
            make(file, name)
    assert list(read_keys(file)) == ["ci"]


def test_what_is_not_there_cannot_be_revoked(file: Path) -> None:
    with pytest.raises(CuveeError):
        remove_key(file, "ci")
    make(file)
    with pytest.raises(NotFound, match="it has: ci"):
        remove_key(file, "other")
    remove_key(file, "ci")
    assert not read_keys(file)


def test_of_keys_made_at_once_none_is_lost(file: Path) -> None:
    names = [f"key-{i}" for i in range(12)]
    threads = [threading.Thread(target=make, args=(file, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_keys(file)) == sorted(names)
