"""`cuvee keys`: a key shown once, listed without its secret, revoked by its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.access.keyring import Keyring
from cluster.access.keys import split_key
from cluster.cli.main import app
from cluster.errors import Unauthenticated


def keys(file: Path, *arguments: str) -> Any:
    given = ["keys", *arguments, "--file", str(file)]
    return CliRunner().invoke(app, given, env={"NO_COLOR": "1", "COLUMNS": "200"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_new_key_is_shown_once_and_works_until_it_is_revoked(file: Path) -> None:
    made = keys(file, "new", "ci", "--max-concurrent", "4", "--note", "tests")
    assert made.exit_code == 0
    text = made.stdout.strip()
    assert Keyring(file).caller_of(text).limits.max_concurrent == 4
    listed = keys(file, "list")
    assert "ci" in listed.stdout
    assert "never" in listed.stdout
    assert split_key(text)[1] not in listed.stdout
    assert keys(file, "revoke", "ci").exit_code == 0
    with pytest.raises(Unauthenticated):
        Keyring(file).caller_of(text)


def test_for_machines(file: Path) -> None:
    made = keys(file, "new", "ops", "--scope", "admin", "--scope", "metrics", "--expires", "2w")
    made = json.loads(keys(file, "new", "x", "--expires", "12h", "--weight", "2", "--json").stdout)
    assert made["ok"]
    assert Keyring(file).caller_of(made["key"]).key_id == "x"
    (ops, x) = json.loads(keys(file, "list", "--json").stdout)["keys"]
    assert ops["scopes"] == ["admin", "metrics"]
    assert x["limits"]["weight"] == 2
    assert x["expires"] > x["created"]
    assert not {"salt", "hash"} & x.keys()
    assert json.loads(keys(file, "revoke", "nope", "--json").stdout)["reason"] == "UNKNOWN_KEY"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("new", "Bad Name"), 1, "expected a name"),
        (("new", "x", "--scope", "all"), 2, "expected one of generate, admin, metrics"),
        (("new", "x", "--expires", "soon"), 2, "such as 12h, 90d or 4w"),
        (("new", "x", "--weight", "0"), 2, "expected more than 0"),
        (("new", "x", "--cost-per-minute", "nan"), 2, "expected more than 0"),
        (("list",), 1, "no such key file"),
        (("revoke", "x"), 1, "no such key file"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(
    file: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = keys(file, *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert not file.exists()


def test_a_folder_that_is_not_there_is_told(file: Path) -> None:
    result = keys(file / "deeper" / "keys.yaml", "new", "x")
    assert result.exit_code == 1
    assert "No such file" in result.stderr
