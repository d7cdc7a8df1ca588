"""Whatever router and replica say to each other arrives as it was said."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cluster.errors
from cluster.distribution import Distribution
from cluster.engine.types import SamplingParams
from cluster.errors import (
    CuveeError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MemberGone,
    NotFound,
    Overloaded,
    PermissionDenied,
    ReplicaLost,
    SpecError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from cluster.members import news, packed, wire
from cluster.members.base import (
    Draw,
    Failed,
    Form,
    Opened,
    Prompt,
    Rank,
    RunEnd,
    ScoreText,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    Tokens,
    TopCandidate,
)
from cluster.text.borders import Border
from cluster.text.chat import ROLES, Message
from cluster.text.grammar import OutputFormat
from cuvee.v1 import generation_pb2 as pb_gen
from cuvee.v1 import member_pb2 as pb

SEQUENCE = 7
ARRIVES_AS = {
    InvalidRequest: InvalidRequest,
    SpecError: InvalidRequest,
    Unsupported: Unsupported,
    Overloaded: Overloaded,
    ReplicaLost: ReplicaLost,
    InternalError: InternalError,
    NotFound: InternalError,  # from here on: nothing that a replica could mean for the client
    Unavailable: InternalError,
    MemberGone: InternalError,
    DeadlineExceeded: InternalError,
    Unauthenticated: InternalError,
    PermissionDenied: InternalError,
    CuveeError: InternalError,
}

small = st.integers(0, 2**32 - 1)
large = st.integers(0, 2**64 - 1)
numbers = st.floats(allow_nan=False)
texts = st.text()
prompts = st.one_of(
    st.builds(Prompt, text=texts),
    st.builds(
        Prompt,
        messages=st.lists(st.builds(Message, st.sampled_from(ROLES), texts)).map(tuple),
    ),
)
formats = st.builds(OutputFormat, st.just("regex"), st.text("ab|", min_size=1)) | st.builds(
    OutputFormat, st.just("json_schema"), st.sampled_from(["{}", '{"type": "string"}'])
)
starts = st.builds(
    SequenceStart,
    prompt=prompts,
    form=st.sampled_from(Form),
    sampling=st.builds(SamplingParams, numbers, small, numbers, numbers),
    seed=large,
    end_allowed_from=small,
    num_top=small,
    prefill=st.booleans(),
    max_prompt_tokens=small,
    format=st.none() | formats,
    score_prompt=st.booleans(),
)
draws = st.builds(
    Draw,
    position=small,
    max_tokens=small,
    border=st.sampled_from([border for border in Border if border is not Border.NONE]),
    share=st.tuples(numbers, numbers),
    begins_span=st.booleans(),
    retake=st.booleans(),
    whole_characters=st.booleans(),
)
unbordered = st.builds(
    Draw,
    small,
    small,
    begins_span=st.booleans(),
    retake=st.booleans(),
    whole_characters=st.booleans(),
    num_drafted=small,
    checked=st.lists(small).map(tuple),
    by_id=st.booleans(),
)
flags = st.booleans()
ranks = st.builds(Rank, small, small, st.lists(small), flags, flags, small, flags)
steps = st.builds(
    Step,
    base=small,
    want=st.one_of(draws, unbordered, ranks, st.builds(ScoreText, texts, st.booleans())),
    text=st.binary(),
    token_ids=st.lists(small).map(tuple),
)
candidates = st.builds(TopCandidate, small, st.binary(), numbers)
tokens = st.builds(StepToken, small, st.binary(), numbers, st.lists(candidates).map(tuple))
events = st.builds(
    StepEvent, st.lists(tokens), st.sampled_from([None, *RunEnd]), small, small, small
)


def sent(message: Any) -> Any:
    """The message after its way over the wire."""
    return type(message).FromString(message.SerializeToString())


def start_over_the_wire(start: SequenceStart) -> SequenceStart:
    return wire.start_from_proto(sent(wire.start_to_proto(start, SEQUENCE, "lease", b"secret")))


def step_over_the_wire(step: Step) -> Step:
    return wire.step_from_proto(sent(wire.step_to_proto(step, SEQUENCE)))


def response_of(event: Any) -> Any:
    response = pb.ExchangeResponse()
    news.add_event(response, SEQUENCE, event)
    return sent(response)


def error_over_the_wire(error: CuveeError) -> CuveeError:
    (failed,) = response_of(Failed(error)).failed
    assert failed.sequence == SEQUENCE
    return news.failed_from_proto(failed).error


def make_error(kind: type[CuveeError]) -> CuveeError:
    given: dict[str, Any] = {"reason": "THE_REASON", "message": "what happened"}
    parameters = inspect.signature(kind).parameters
    if "field" in parameters:
        given["field"] = "the.field"
    if "retry_delay_s" in parameters:
        given["retry_delay_s"] = 1.0
    if "member" in parameters:
        given["member"] = "austen"
    return kind(**given)


@given(starts)
def test_the_beginning_of_a_sequence_arrives(start: SequenceStart) -> None:
    assert start_over_the_wire(start) == start


@given(steps)
def test_a_step_arrives(step: Step) -> None:
    assert step_over_the_wire(step) == step


@given(st.lists(events, max_size=3))
def test_events_arrive_in_order(given_events: list[StepEvent]) -> None:
    response = pb.ExchangeResponse()
    for number, event in enumerate(given_events):
        news.add_event(response, number, event)
    arrived = sent(response).events
    assert [message.sequence for message in arrived] == list(range(len(given_events)))
    assert [news.step_event_from_proto(message) for message in arrived] == given_events


@given(small, large)
def test_an_opening_arrives(num_tokens: int, digest: int) -> None:
    (opened,) = response_of(Opened(num_tokens, digest)).opened
    assert (opened.prompt_tokens, opened.prompt_digest) == (num_tokens, digest)


logprobs32 = st.floats(max_value=0, allow_nan=False, width=32)


@given(st.dictionaries(small, logprobs32, max_size=30), st.floats(0, 1))
def test_a_distribution_arrives_as_32_bit_floats(told: dict[int, float], rest: float) -> None:
    ids = np.array(sorted(told), dtype=np.int64)
    given_one = Distribution(ids, np.array([told[i] for i in ids.tolist()]), rest)
    (event,) = response_of(StepEvent([], RunEnd.COMPLETE, distribution=given_one)).events
    arrived = news.step_event_from_proto(event).distribution
    assert arrived is not None
    assert np.array_equal(arrived.ids, given_one.ids)
    assert np.array_equal(arrived.logprobs, given_one.logprobs)
    assert arrived.rest == rest


def test_the_ids_of_a_whole_vocabulary_go_without_saying() -> None:
    whole = Distribution(np.arange(500), np.full(500, -6.0))
    message = packed.distribution_to_proto(whole)
    assert message is not None
    assert (len(message.ids), len(message.logprobs)) == (0, 4 * 500)


@given(st.lists(st.binary()), st.frozensets(small))
def test_a_vocabulary_arrives(spelled: list[bytes], end_ids: frozenset[int]) -> None:
    arrived = packed.tokens_from_proto(sent(packed.tokens_to_proto(Tokens(spelled, end_ids))))
    assert (list(arrived.bytes), arrived.end_ids) == (spelled, end_ids)


def test_an_opening_arrives_with_its_sequence_and_lease() -> None:
    (opened,) = response_of(Opened(9)).opened
    assert (opened.sequence, opened.prompt_tokens) == (SEQUENCE, 9)
    start = SequenceStart(Prompt("a"), Form.TEXT, SamplingParams(), 1)
    message = sent(wire.start_to_proto(start, SEQUENCE, "lease", b"secret"))
    assert (message.sequence, message.lease_id, message.lease_secret) == (
        SEQUENCE,
        "lease",
        b"secret",
    )


@pytest.mark.parametrize("form", Form)
def test_every_form_has_a_wire_form(form: Form) -> None:
    start = SequenceStart(Prompt("a"), form, SamplingParams(), 1)
    assert start_over_the_wire(start).form is form


@pytest.mark.parametrize("border", Border)
def test_every_border_has_a_wire_form(border: Border) -> None:
    want = step_over_the_wire(Step(0, Draw(0, 1, border))).want
    assert isinstance(want, Draw)
    assert want.border is border


@pytest.mark.parametrize("end", [None, *RunEnd])
def test_every_end_of_a_run_has_a_wire_form(end: RunEnd | None) -> None:
    (event,) = response_of(StepEvent([], end)).events
    assert news.step_event_from_proto(event).end is end


def test_the_wire_has_no_end_or_form_without_a_meaning() -> None:
    for value in pb.RunEnd.values():
        news.step_event_from_proto(pb.StepEvent(end=value))
    for form in set(pb.ExchangeForm.values()) - {pb.EXCHANGE_FORM_UNSPECIFIED}:
        wire.start_from_proto(pb.OpenSequence(form=form))
    named = {wire.chat_to_proto((Message(role, ""),)).messages[0].role for role in ROLES}
    assert named == set(pb_gen.Role.values()) - {pb_gen.ROLE_UNSPECIFIED}


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InternalError, match="exchange form"):
        wire.start_from_proto(pb.OpenSequence())
    message = pb.OpenSequence(form=pb.EXCHANGE_FORM_TEXT)
    message.chat.messages.add(content="no role")
    with pytest.raises(InvalidRequest) as caught:
        wire.start_from_proto(message)
    assert caught.value.field == "chat.messages[0].role"
    with pytest.raises(InvalidRequest) as caught:
        wire.start_from_proto(pb.OpenSequence(form=pb.EXCHANGE_FORM_TEXT, format={}))
    assert caught.value.field == "format"
    step = pb.Step()
    step.draw.border = pb_gen.SPAN_UNIT_RESPONSE
    with pytest.raises(InternalError, match="border"):
        wire.step_from_proto(step)


def all_errors() -> list[type[CuveeError]]:
    kinds = [kind for kind in vars(cluster.errors).values() if inspect.isclass(kind)]
    return [kind for kind in kinds if issubclass(kind, CuveeError)]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_what_it_is_decided_to_be(kind: type[CuveeError]) -> None:
    error = make_error(kind)
    arrived = error_over_the_wire(error)
    assert type(arrived) is ARRIVES_AS[kind]
    assert (arrived.reason, arrived.message) == (error.reason, error.message)
    if isinstance(arrived, InvalidRequest | Unsupported):
        assert arrived.field == error.field


def test_every_kind_of_error_on_the_wire_is_some_error() -> None:
    kinds = {response_of(Failed(make_error(kind))).failed[0].kind for kind in all_errors()}
    assert kinds == set(pb.ErrorKind.values())
