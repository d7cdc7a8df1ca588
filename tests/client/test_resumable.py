"""What is asked next when a stream breaks, and when nothing is: decided without any I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from cluster.client.patience import Patience
from cluster.client.resumable import Resumable
from cluster.client.status import RichStatus
from cluster.errors import CuveeError, InvalidRequest, NotFound, Overloaded, Unavailable
from cluster.router.status import STATUS_BY_ERROR, rich_status, status_code
from cuvee.v1 import generation_pb2 as pb

DETAILS_KEY = "grpc-status-details-bin"
FULL = Overloaded("TOO_MANY_GENERATIONS", "come back", retry_delay_s=0.75)
AWAY = Unavailable("MEMBER_UNAVAILABLE", "it loads")


class Failure(grpc.RpcError):
    """A failed call: an error that a server told, or a bare code."""

    def __init__(self, error: CuveeError | grpc.StatusCode) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return self._error if isinstance(self._error, grpc.StatusCode) else status_code(self._error)

    def details(self) -> str:
        return rich_status(self._error).message if isinstance(self._error, CuveeError) else "lost"

    def trailing_metadata(self) -> Any:
        if isinstance(self._error, CuveeError):
            return ((DETAILS_KEY, rich_status(self._error).SerializeToString()),)
        return ()


LOST = Failure(grpc.StatusCode.UNAVAILABLE)
START = pb.StreamGenerateResponse(start=pb.Start(seed=5, blend="duo", blend_revision="r1"))


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make(clock: Clock | None = None, *, num_servers: int = 1, **patience: Any) -> Resumable:
    return Resumable(
        pb.StreamGenerateRequest(prompt="go"),
        Patience(**patience),
        num_servers=num_servers,
        now_s=clock or Clock(),
        chance=lambda: 1.0,
    )


def piece(text: str, tokens: Iterable[bytes] = ()) -> pb.StreamGenerateResponse:
    spoken = [pb.Token(member="ann", bytes=data, id=len(data)) for data in tokens]
    return pb.StreamGenerateResponse(text_delta=text, tokens=spoken)


def begun(resumable: Resumable, *pieces: pb.StreamGenerateResponse) -> Resumable:
    resumable.next_request()
    for message in (START, *pieces):
        copy = pb.StreamGenerateResponse()
        copy.CopyFrom(message)
        resumable.take(copy)
    return resumable


def test_a_reply_is_asked_for_with_a_seed_so_that_it_can_be_asked_for_again() -> None:
    first, second = make(), make()
    assert first.next_request().sampling.HasField("seed")
    assert first.seed != second.seed
    given = Resumable(pb.StreamGenerateRequest(prompt="go", sampling=pb.Sampling(seed=0)))
    assert given.next_request().sampling.seed == given.seed == 0


def test_the_rest_is_asked_for_with_all_that_came() -> None:
    resumable = begun(make(), piece("ab", [b"a", b"b"]), piece("c", [b"c"]))
    assert resumable.delay_after(LOST, None) is not None
    request = resumable.next_request()
    assert [token.bytes for token in request.resumption.tokens] == [b"a", b"b", b"c"]
    assert request.resumption.blend_revision == "r1"
    assert (request.blend, request.sampling.seed) == ("duo", resumable.seed)
    assert resumable.num_streams == 2


def test_text_that_ran_ahead_of_its_tokens_is_not_given_twice() -> None:
    """A token whose end may begin a stop string comes after the text of its front."""
    resumable = begun(make(), piece("ab", [b"a"]))  # of a token b"b...", the front
    resumable.delay_after(LOST, None)
    resumable.next_request()
    assert resumable.take(piece("bc", [b"bc"])).text_delta == "c"
    assert resumable.take(piece("d", [b"d"])).text_delta == "d"


def test_a_character_that_was_cut_comes_once() -> None:
    data = "é".encode()
    resumable = begun(make(), piece("", [data[:1]]))
    resumable.delay_after(LOST, None)
    resumable.next_request()
    assert resumable.take(piece("é", [data[1:]])).text_delta == "é"


def test_it_waits_longer_each_time_and_for_less_long_after_progress() -> None:
    resumable = begun(make(max_delay_s=1.0), piece("a", [b"a"]))
    delays = [resumable.delay_after(LOST, None) for _ in range(6)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    begun(resumable, piece("b", [b"b"]))
    assert resumable.delay_after(LOST, None) == pytest.approx(0.1)


def test_it_gives_up_after_so_many_tries_and_so_much_time_without_a_token() -> None:
    resumable = begun(make(max_tries=3), piece("a", [b"a"]))
    assert [resumable.delay_after(LOST, None) is None for _ in range(4)] == [False] * 3 + [True]
    clock = Clock()
    resumable = begun(make(clock, total_s=10), piece("a", [b"a"]))
    assert resumable.delay_after(LOST, None) is not None
    clock.now_s = 10.0
    assert resumable.delay_after(LOST, None) is None


def test_a_server_that_goes_away_is_as_good_as_lost() -> None:
    for failure in (Failure(grpc.StatusCode.CANCELLED), Failure(AWAY)):
        assert begun(make()).delay_after(failure, None) is not None


def test_before_a_reply_has_begun_each_server_is_tried_once() -> None:
    resumable = make(num_servers=3)
    found = []
    for _ in range(3):
        resumable.next_request()
        found.append(resumable.delay_after(LOST, None))
    assert found == [0.0, 0.0, None]


def test_a_full_server_is_asked_again_when_it_says_unless_it_was_speaking() -> None:
    resumable = make()
    resumable.next_request()
    assert resumable.delay_after(Failure(FULL), None) == 0.75
    assert resumable.delay_after(Failure(FULL), 0.5) is None, "the caller's time is up before"
    assert begun(make(), piece("a", [b"a"])).delay_after(Failure(FULL), None) is None
    assert begun(make(waits_for_room=False)).delay_after(Failure(FULL), None) is None
    resumable = begun(make(), piece("a", [b"a"]))
    resumable.delay_after(LOST, None)
    resumable.next_request()
    assert resumable.delay_after(Failure(FULL), None) == 0.75, "the server that is to go on"


@pytest.mark.parametrize(
    "error", [InvalidRequest("NOT_THIS_REPLY", "no", field="resumption.tokens"), NotFound("X", "x")]
)
def test_what_is_refused_is_not_asked_again(error: CuveeError) -> None:
    assert begun(make(), piece("a", [b"a"])).delay_after(Failure(error), None) is None


def test_a_caller_that_declined_tokens_cannot_go_on() -> None:
    assert begun(make(), piece("some text")).delay_after(LOST, None) is None


def test_every_error_of_the_tree_comes_back_as_itself() -> None:
    for kind, code in STATUS_BY_ERROR:
        if kind is Overloaded:
            continue
        error = RichStatus.of(Failure(kind("SOME_REASON", "words", field="blend"))).error()
        assert (type(error), error.reason, error.message, error.field) == (
            kind,
            "SOME_REASON",
            "words",
            "blend",
        ), code
    full = RichStatus.of(Failure(FULL)).error()
    assert isinstance(full, Overloaded)
    assert full.retry_delay_s == 0.75
    bare = RichStatus.of(Failure(grpc.StatusCode.UNIMPLEMENTED)).error()
    assert (type(bare), bare.reason) == (CuveeError, "UNIMPLEMENTED")
