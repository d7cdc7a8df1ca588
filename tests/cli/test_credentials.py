"""What a client shows to a server, over what, and what it says when that is not enough."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from cluster.cli.credentials import Credentials
from cluster.cli.main import app
from cluster.errors import InvalidRequest, PermissionDenied, Unauthenticated
from tests.certificates import Authority
from tests.cli.conftest import Cuvee
from tests.cli.scripted_server import Script, serving

KEY = "cuvee_ci_secret"


@pytest.mark.parametrize(
    "command", [("blends",), ("generate", "Hello"), ("generate", "Hi", "--json")]
)
def test_the_key_goes_with_every_call(
    script: Script, cuvee: Cuvee, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert cuvee(*command, "--api-key", KEY).exit_code == 0
    assert cuvee(*command, "--api-key-file", str(tmp_path / "key")).exit_code == 0
    assert script.keys == [f"Bearer {KEY}"] * 2
    assert cuvee(*command).exit_code == 0
    assert len(script.keys) == 2


def test_a_key_is_not_sent_over_a_network_in_clear_text() -> None:
    for address in ("10.0.0.1:9000", "cuvee.example:443", "[2001:db8::1]:9000", "0.0.0.0:9000"):
        with pytest.raises(InvalidRequest, match="in clear text"):
            Credentials(api_key=KEY).check(address)
        Credentials(api_key=KEY, is_tls=True).check(address)
        Credentials(api_key=KEY, key_in_clear=True).check(address)
        Credentials().check(address)
    for address in ("127.0.0.1:9000", "localhost:9000", "[::1]:9000"):
        Credentials(api_key=KEY).check(address)


def test_the_refusal_to_send_a_key_in_clear_text_is_told(cuvee: Cuvee) -> None:
    result = cuvee("blends", "--server", "10.255.255.1:9", "--api-key", KEY)
    assert result.exit_code == 1
    assert "KEY_IN_CLEAR" in result.stderr
    assert KEY not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (Unauthenticated("NO_API_KEY", "expected one API key"), "--api-key-file"),
        (Unauthenticated("INVALID_API_KEY", "unknown"), "cuvee keys new"),
        (PermissionDenied("SCOPE_MISSING", "expected a key with"), "--scope"),
    ],
)
def test_who_is_refused_is_told_what_to_do(
    script: Script, cuvee: Cuvee, error: Unauthenticated, hint: str
) -> None:
    script.error = error
    result = cuvee("blends")
    assert result.exit_code == 1
    assert error.reason in result.stderr
    assert hint in result.stderr


def test_over_tls_both_sides_show_certificates(tmp_path: Path) -> None:
    ours, client = Authority("ours"), Authority("clients")
    edge, own = ours.issue("edge"), client.issue("me")
    (tmp_path / "ca.crt").write_bytes(ours.certificate)
    (tmp_path / "other.crt").write_bytes(client.certificate)
    own.write(tmp_path)
    shown = ("--client-cert", f"{tmp_path}/tls.crt", "--client-key", f"{tmp_path}/tls.key")
    credentials = grpc.ssl_server_credentials(
        [(edge.key, edge.certificate)], client.certificate, require_client_auth=True
    )
    with serving(Script(), credentials) as script:

        def blends(*arguments: str) -> tuple[int, str]:
            given = ["blends", "--server", script.address, *arguments]
            result = CliRunner().invoke(app, given, env={"NO_COLOR": "1", "COLUMNS": "200"})
            return result.exit_code, result.stderr

        assert blends("--ca", f"{tmp_path}/ca.crt", *shown, "--api-key", KEY) == (0, "")
        assert script.keys == [f"Bearer {KEY}"]
        for wrong in ((), ("--tls",), ("--ca", f"{tmp_path}/other.crt", *shown)):
            code, words = blends(*wrong)
            assert code == 1
            assert "--ca" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--client-cert", "x"), "give both or none"),
        (("--ca", "/none.crt"), "No such file"),
        (("--api-key-file", "/none"), "No such file"),
        (("--api-key", "no\nkey"), "ASCII"),
    ],
)
def test_wrong_credentials_are_refused_before_any_call(
    script: Script, cuvee: Cuvee, arguments: tuple[str, ...], words: str
) -> None:
    result = cuvee("generate", "Hello", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not script.requests
