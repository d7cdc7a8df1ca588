"""One reply over as many streams as it takes: what to ask next, and whether to. No I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc

from cluster.client.patience import Patience
from cluster.client.status import RichStatus
from cluster.errors import Overloaded, Unavailable
from cluster.text.utf8 import Utf8Stream
from cuvee.v1 import generation_pb2 as pb

_NUM_SEEDS = 2**63


class Resumable:
    """A reply under way.

    What is asked first has a seed, so that it can be asked again. Once the reply has begun, a
    stream that breaks is followed by another one that gets the tokens so far and sends the rest.
    """

    def __init__(
        self,
        request: pb.StreamGenerateRequest,
        patience: Patience = Patience(),  # noqa: B008
        *,
        num_servers: int = 1,
        now_s: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.num_streams = 0
        self._request = pb.StreamGenerateRequest()
        self._request.CopyFrom(request)
        if not request.sampling.HasField("seed"):
            self._request.sampling.seed = random.randrange(_NUM_SEEDS)
        self._patience = patience
        self._num_servers = num_servers
        self._now_s = now_s
        self._chance = chance
        self._has_begun = False
        self._is_fresh = True  # nothing has come in the stream under way
        self._num_failures = 0  # in a row
        self._broken_s = 0.0  # since when
        self._whole = Utf8Stream()  # of the tokens so far
        self._num_token_chars = 0
        self._num_chars = 0  # that the caller has
        self._num_again = 0  # of these, what the stream under way will send again

    @property
    def seed(self) -> int:
        """The seed of the reply."""
        return self._request.sampling.seed

    def next_request(self) -> pb.StreamGenerateRequest:
        """What the next stream is asked for."""
        self.num_streams += 1
        self._is_fresh = True
        self._num_again = self._num_chars - self._num_token_chars
        return self._request

    def take(self, piece: pb.StreamGenerateResponse) -> pb.StreamGenerateResponse:
        """Note what has come; gives it without the text that the caller has."""
        if piece.HasField("start"):
            self._has_begun = True
            self._request.blend = piece.start.blend
            self._request.resumption.blend_revision = piece.start.blend_revision
        self._request.resumption.notices.extend(piece.notices)
        for token in piece.tokens:
            self._request.resumption.tokens.add(
                member=token.member, id=token.id, bytes=token.bytes, weights=token.weights
            )
            self._num_token_chars += len(self._whole.push(token.bytes))
        if piece.text_delta or piece.tokens:
            self._is_fresh, self._num_failures = False, 0
        num_again = min(self._num_again, len(piece.text_delta))
        if num_again:
            self._num_again -= num_again
            piece.text_delta = piece.text_delta[num_again:]
        self._num_chars += len(piece.text_delta)
        return piece

    def delay_after(self, failure: grpc.RpcError, left_s: float | None) -> float | None:
        """How long to wait before the next stream; None if there is to be none."""
        error = RichStatus.of(failure).error()
        self._num_failures += 1
        if self._num_failures == 1:
            self._broken_s = self._now_s()
        if isinstance(error, Overloaded):
            delay_s = self._delay_for_room(error)
        elif isinstance(error, Unavailable):
            delay_s = self._delay_for_server()
        else:
            return None
        patience_s = self._broken_s + self._patience.total_s - self._now_s()
        if delay_s is None or delay_s > patience_s or (left_s is not None and delay_s >= left_s):
            return None
        return delay_s

    def _delay_for_room(self, error: Overloaded) -> float | None:
        is_worth_it = self._patience.waits_for_room and self._is_fresh and error.retry_delay_s > 0
        return error.retry_delay_s if is_worth_it else None

    def _delay_for_server(self) -> float | None:
        """Before a reply has begun, each server is tried once: there may just be none."""
        if not self._has_begun:
            return 0.0 if self._num_failures < self._num_servers else None
        has_tokens = not self._num_chars or bool(self._request.resumption.tokens)
        if not has_tokens or self._num_failures > self._patience.max_tries:
            return None
        return self._patience.delay_s(self._num_failures, self._chance())
