"""`cuvee blends`: the list, one of them, and both as JSON."""

from __future__ import annotations

import json

from cuvee.v1 import blend_pb2
from tests.cli.conftest import Cuvee
from tests.cli.scripted_server import Script, make_blend


def test_the_list_marks_the_default(script: Script, cuvee: Cuvee) -> None:
    script.blends.append(make_blend("solo", ["ann"]))
    lines = cuvee("blends").stdout.splitlines()
    assert lines[1].split()[:4] == ["duo", "(default)", "mixture", "span"]
    assert "ann=0.5 bob=0.5" in lines[1]
    assert "(default)" not in lines[2]


def test_one_blend_shows_weights_models_and_limits(cuvee: Cuvee) -> None:
    shown = cuvee("blends", "duo").stdout
    for words in ("revision abc123", "50.0%", "scripted:ann", "2,048", "token ids", "1,024 tokens"):
        assert words in shown
    assert "temperature 0.8" in shown


def test_members_with_roles_show_these_and_the_parameters(script: Script, cuvee: Cuvee) -> None:
    proxy = make_blend("tuned", ["ann", "bob", "cid"])
    proxy.method = "proxy"
    proxy.parameters["alpha"] = 0.8
    for member, role in zip(proxy.members, ("base", "expert", "anti"), strict=True):
        member.role, member.weight = role, 0
    script.blends.append(proxy)
    listed = cuvee("blends").stdout
    assert "ann=base bob=expert cid=anti" in listed
    assert "alpha 0.8" in listed
    shown = cuvee("blends", "tuned").stdout
    assert "proxy, alpha 0.8" in shown
    assert "expert" in shown
    assert "0.0%" not in shown


def test_json_keeps_the_names_of_the_proto_files(cuvee: Cuvee) -> None:
    listed = json.loads(cuvee("blends", "--json").stdout)
    assert listed["default_blend"] == "duo"
    assert listed["blends"][0]["members"][0]["has_chat_template"] is True
    assert json.loads(cuvee("blends", "duo", "--json").stdout)["exchange_kind"].endswith("IDS")


def test_an_unknown_blend_is_an_error(cuvee: Cuvee) -> None:
    result = cuvee("blends", "dua")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "UNKNOWN_BLEND" in result.stderr


def test_a_server_without_ready_blends_says_so(script: Script, cuvee: Cuvee) -> None:
    script.blends.clear()
    result = cuvee("blends")
    assert result.exit_code == 0
    assert "No blend is ready yet" in result.stdout


def test_blends_by_bytes_say_so(script: Script, cuvee: Cuvee) -> None:
    both = make_blend("both", ["ann", "bob"])
    both.method, both.rule = "ensemble", "mean"
    both.exchange_kind = blend_pb2.EXCHANGE_KIND_BYTES
    both.parameters["min_share"] = 0.001
    script.blends.append(both)
    assert "mean, by bytes, min_share 0.001" in cuvee("blends").stdout
    assert "each byte is drawn by all" in cuvee("blends", "both").stdout
