"""`cuvee generate`: what is asked, what is printed where, and how failures are told."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cluster.errors import InvalidRequest, Overloaded, Unavailable
from cuvee.v1 import generation_pb2 as pb
from tests.cli.conftest import Cuvee
from tests.cli.scripted_server import Script, make_blend, make_pieces


def test_stdout_has_the_reply_and_stderr_the_account(cuvee: Cuvee) -> None:
    result = cuvee("generate", "Hello")
    assert (result.exit_code, result.stdout) == (0, "Hi there\n")
    assert "⟨a⟩ ann" in result.stderr
    assert "3 tokens in" in result.stderr
    assert "token limit; seed 7; duo" in result.stderr


def test_marks_name_each_change_of_speaker(cuvee: Cuvee) -> None:
    assert cuvee("generate", "Hello", "--marks").stdout == "⟨a⟩Hi⟨b⟩ there\n"


def test_tokens_that_split_a_character_are_put_together(script: Script, cuvee: Cuvee) -> None:
    script.pieces = make_pieces(("ann", "é".encode()[:1]), ("bob", "é".encode()[1:]), text="é")
    assert cuvee("generate", "Hello", "--marks").stdout == "⟨b⟩é\n"


def test_json_has_the_text_the_tokens_and_the_outcome(cuvee: Cuvee) -> None:
    answer = json.loads(cuvee("generate", "Hello", "--json").stdout)
    assert answer["text"] == "Hi there"
    assert [token["position"] for token in answer["tokens"]] == [0, 1, 2]
    assert base64.b64decode(answer["tokens"][1]["bytes"]) == b" th"
    assert answer["outcome"]["usage"]["members"][0]["drawn_tokens"] == 1
    assert answer["outcome"]["finish_reason"] == "FINISH_REASON_MAX_TOKENS"


def test_every_option_reaches_the_server(script: Script, cuvee: Cuvee) -> None:
    options = "--blend duo --max-tokens 9 --temperature 0 --top-p 0.9 --top-k 5 --min-p 0.1"
    options += " --seed 0 --span word --weight ann=0.7 --weight bob=2 --stop END --stop ."
    options += " --logprobs"
    assert cuvee("generate", "Hello", *options.split()).exit_code == 0
    assert script.requests[0] == pb.StreamGenerateRequest(
        blend="duo",
        prompt="Hello",
        sampling=pb.Sampling(temperature=0, top_p=0.9, top_k=5, min_p=0.1, seed=0),
        stopping=pb.Stopping(max_tokens=9, stop=["END", "."]),
        output=pb.OutputOptions(logprobs=True),
        overrides=pb.BlendOverrides(
            weights={"ann": 0.7, "bob": 2}, span=pb.Span(unit=pb.SPAN_UNIT_WORD)
        ),
    )


def test_a_router_lost_on_the_way_leaves_no_trace_in_the_text(script: Script, cuvee: Cuvee) -> None:
    script.pieces = make_pieces(("ann", b"It"), ("bob", b" is"), ("ann", b" so"))
    script.lose_after = 2
    result = cuvee("generate", "Hello", "--seed", "7")
    assert (result.exit_code, result.stdout) == (0, "It is so\n")
    first, second = script.requests
    assert not first.HasField("resumption")
    assert [token.bytes for token in second.resumption.tokens] == [b"It", b" is"]
    assert second.resumption.blend_revision == "abc123"
    assert second.sampling.seed == first.sampling.seed == 7
    assert "over 2 streams" in result.stderr


def test_what_is_not_given_is_left_to_the_server_but_for_the_seed(
    script: Script, cuvee: Cuvee
) -> None:
    cuvee("generate", "Hello")
    request = script.requests[0]
    assert [name.name for name, _ in request.sampling.ListFields()] == ["seed"]
    assert not request.stopping.ListFields()
    assert not request.overrides.ListFields()


@pytest.mark.parametrize(
    ("given", "span"),
    [
        ("token", pb.Span(num_tokens=1)),
        ("16", pb.Span(num_tokens=16)),
        ("sentence", pb.Span(unit=pb.SPAN_UNIT_SENTENCE)),
        ("response", pb.Span(unit=pb.SPAN_UNIT_RESPONSE)),
    ],
)
def test_spans_are_words_or_numbers(
    script: Script, cuvee: Cuvee, given: str, span: pb.Span
) -> None:
    cuvee("generate", "Hello", "--span", given)
    assert script.requests[0].overrides.span == span


def test_chat_asks_by_template(script: Script, cuvee: Cuvee) -> None:
    cuvee("generate", "--chat", "Hello")
    assert [(m.role, m.content) for m in script.requests[0].chat.messages] == [
        (pb.ROLE_USER, "Hello")
    ]


def test_a_format_is_an_expression_or_a_schema_in_text_or_file(
    script: Script, cuvee: Cuvee, tmp_path: Path
) -> None:
    schema = '{"type": "string"}'
    (tmp_path / "schema.json").write_text(schema)
    for command in ("generate", "explain"):
        for option, value in (
            ("--regex", "yes|no"),
            ("--json-schema", schema),
            ("--json-schema", str(tmp_path / "schema.json")),
        ):
            assert cuvee(command, "Hello", option, value).exit_code == 0
    formats = [request.format for request in script.requests]
    expected = [pb.OutputFormat(regex="yes|no"), *[pb.OutputFormat(json_schema=schema)] * 2]
    assert formats == expected * 2
    cuvee("generate", "Hello")
    assert not script.requests[-1].HasField("format")


@pytest.mark.parametrize("arguments", [("generate", "-"), ("generate",)])
def test_the_prompt_comes_from_stdin(
    script: Script, cuvee: Cuvee, arguments: tuple[str, ...]
) -> None:
    cuvee(*arguments, stdin="line one\nline two\n")
    assert script.requests[0].prompt == "line one\nline two"


def test_logprobs_are_listed_by_token(cuvee: Cuvee) -> None:
    listed = cuvee("generate", "Hello", "--logprobs").stderr
    assert "' th'" in listed
    assert "-1.500" in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weight", "ann"), "expected NAME=NUMBER"),
        (("--weight", "ann=much"), "expected NAME=NUMBER"),
        (("--weight", "ann=1", "--weight", "ann=2"), "given twice"),
        (("--span", "line"), "expected token, word"),
        (("--span", "0"), "expected token, word"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--max-tokens", "4294967296"), "4294967296"),
        (("--seed", "-1"), "--seed"),
        (("--regex", "a", "--json-schema", "{}"), "not both"),
        (("--json-schema", "missing.json"), "no file that can be read"),
    ],
)
def test_wrong_usage_is_refused_before_any_call(
    script: Script, cuvee: Cuvee, arguments: tuple[str, ...], words: str
) -> None:
    result = cuvee("generate", "Hello", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not script.requests


def test_a_refusal_names_reason_and_field(script: Script, cuvee: Cuvee) -> None:
    script.error = InvalidRequest("UNKNOWN_MEMBER", "got 'zed'", field="overrides.member")
    result = cuvee("generate", "Hello", "--member", "zed")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: overrides.member: got 'zed'" in result.stderr
    assert "UNKNOWN_MEMBER" in result.stderr
    assert "cuvee blends NAME" in result.stderr


def test_an_overload_says_when_to_come_back(script: Script, cuvee: Cuvee) -> None:
    script.error = Overloaded("TOO_MANY_GENERATIONS", "full", retry_delay_s=1.5)
    assert "try again in 1.5 s" in cuvee("generate", "Hello").stderr


def test_a_refusal_as_json_has_the_same_parts(script: Script, cuvee: Cuvee) -> None:
    script.error = InvalidRequest("INVALID_VALUE", "got 3", field="sampling.top_p")
    result = cuvee("generate", "Hello", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_VALUE",
        "field": "sampling.top_p",
        "error": "sampling.top_p: got 3",
        "hint": "",
    }


def test_what_came_before_a_failure_is_shown(script: Script, cuvee: Cuvee) -> None:
    script.error, script.error_after = Unavailable("MEMBER_UNAVAILABLE", "gone"), 2
    result = cuvee("generate", "Hello")
    assert (result.exit_code, result.stdout) == (1, "Hi th\n")
    assert "error: gone" in result.stderr


def test_ctrl_c_cancels_the_call(script: Script, cuvee: Cuvee) -> None:
    script.interrupt_after = 1
    result = cuvee("generate", "Hello")
    assert script.cancelled.wait(5)
    assert (result.exit_code, result.stdout) == (130, "Hi\n")


def test_an_unknown_blend_fails_before_generating(script: Script, cuvee: Cuvee) -> None:
    result = cuvee("generate", "Hello", "--blend", "solo")
    assert result.exit_code == 1
    assert "`cuvee blends` lists" in result.stderr
    assert not script.requests


def test_no_server_says_how_to_start_one(cuvee: Cuvee) -> None:
    result = cuvee("generate", "Hello", "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in result.stderr
    assert "cuvee up" in result.stderr


def test_members_are_painted_in_the_blends_order(script: Script, cuvee: Cuvee) -> None:
    script.blends = [make_blend(members=("bert", "bob", "ann"))]
    assert "⟨bo⟩ bob" in cuvee("generate", "Hello").stderr
