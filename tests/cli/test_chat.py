"""`cuvee chat`, piped: turns, commands, and what is kept of them."""

from __future__ import annotations

from cluster.errors import Unavailable
from cuvee.v1 import generation_pb2 as pb
from tests.cli.conftest import Cuvee
from tests.cli.scripted_server import Script, make_blend


def said(request: pb.StreamGenerateRequest) -> list[tuple[str, str]]:
    """A request's messages, roles in short."""
    return [
        (pb.Role.Name(message.role).removeprefix("ROLE_").lower(), message.content)
        for message in request.chat.messages
    ]


def test_each_line_is_a_turn_and_replies_are_remembered(script: Script, cuvee: Cuvee) -> None:
    result = cuvee("chat", stdin="one\n\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "Hi there\nHi there\n")
    assert said(script.requests[1]) == [
        ("user", "one"),
        ("assistant", "Hi there"),
        ("user", "two"),
    ]


def test_each_reply_says_who_wrote_it(cuvee: Cuvee) -> None:
    assert cuvee("chat", stdin="one\n").stderr.count("⟨a⟩ ann 33%  ⟨b⟩ bob 67%") == 1


def test_system_instructions_come_first(script: Script, cuvee: Cuvee) -> None:
    cuvee("chat", "--system", "Be brief.", stdin="one\n")
    assert said(script.requests[0]) == [("system", "Be brief."), ("user", "one")]


def test_reset_forgets_the_conversation(script: Script, cuvee: Cuvee) -> None:
    cuvee("chat", stdin="one\n/reset\ntwo\n")
    assert said(script.requests[1]) == [("user", "two")]


def test_seed_holds_until_it_is_taken_back(script: Script, cuvee: Cuvee) -> None:
    cuvee("chat", "--seed", "3", stdin="one\n/seed 4\ntwo\n/seed\nthree\n")
    first, second, third = (request.sampling.seed for request in script.requests)
    assert (first, second) == (3, 4)
    assert third not in (3, 4)


def test_unknown_commands_and_bad_seeds_are_refused_and_not_sent(
    script: Script, cuvee: Cuvee
) -> None:
    result = cuvee("chat", stdin="/foo\n/seed x\n/seed 18446744073709551616\n/help\n")
    assert result.exit_code == 0
    assert "there is no command /foo" in result.stderr
    assert result.stderr.count("expected a whole number") == 2
    assert "/reset    forget" in result.stderr
    assert not script.requests


def test_members_without_a_template_continue_one_text(script: Script, cuvee: Cuvee) -> None:
    script.blends = [make_blend(is_chat=False)]
    result = cuvee("chat", stdin="one\ntwo\n")
    assert "No chat template" in result.stderr
    assert script.requests[1].prompt == "one\nHi there\ntwo"


def test_an_unanswered_question_is_forgotten_and_the_chat_goes_on(
    script: Script, cuvee: Cuvee
) -> None:
    script.error = Unavailable("MEMBER_UNAVAILABLE", "gone")
    result = cuvee("chat", stdin="one\ntwo\n")
    assert result.exit_code == 1
    assert result.stderr.count("error: gone") == 2
    assert said(script.requests[1]) == [("user", "two")]


def test_ctrl_c_stops_the_reply_and_not_the_chat(script: Script, cuvee: Cuvee) -> None:
    script.interrupt_after = 2
    result = cuvee("chat", stdin="one\ntwo\n")
    assert script.cancelled.is_set()
    assert (result.exit_code, result.stdout) == (0, "Hi th\nHi there\n")
    assert "stopped" in result.stderr
    assert said(script.requests[1]) == [("user", "one"), ("assistant", "Hi th"), ("user", "two")]


def test_a_reply_cut_short_is_kept_as_far_as_it_came(script: Script, cuvee: Cuvee) -> None:
    script.error, script.error_after = Unavailable("MEMBER_UNAVAILABLE", "gone"), 1
    cuvee("chat", stdin="one\ntwo\n")
    assert said(script.requests[1]) == [("user", "one"), ("assistant", "Hi"), ("user", "two")]
