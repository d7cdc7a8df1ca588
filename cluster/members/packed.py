"""Arrays on the data plane: ids and log-probabilities as bytes, not as a field per number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from cluster.distribution import Distribution, Ids
from cluster.members.base import Tokens
from cuvee.v1 import member_pb2 as pb

_IDS, _LOGPROBS = np.dtype("<u4"), np.dtype("<f4")


def ids_to_bytes(ids: Sequence[int] | Ids) -> bytes:
    """Unsigned 32-bit integers, lowest byte first."""
    return np.asarray(ids, dtype=_IDS).tobytes()


def ids_from_bytes(data: bytes) -> Ids:
    """The ids that these bytes are."""
    return np.frombuffer(data, dtype=_IDS).astype(np.int64)


def distribution_to_proto(distribution: Distribution | None) -> pb.Distribution | None:
    """Ids and log-probabilities as packed arrays; the ids of a whole vocabulary go without saying.

    32-bit floats: a relative error of 6e-8, as the model's own numbers have.
    """
    if distribution is None:
        return None
    ids = distribution.ids
    is_whole = len(ids) > 0 and ids[-1] == len(ids) - 1  # ascending and distinct
    return pb.Distribution(
        ids=b"" if is_whole else ids_to_bytes(ids),
        logprobs=distribution.logprobs.astype(_LOGPROBS).tobytes(),
        rest=distribution.rest,
        dropped=distribution.dropped,
    )


def num_bytes(distribution: Distribution) -> int:
    """How long its message is, at most, but for a few bytes."""
    return len(distribution.ids) * (_IDS.itemsize + _LOGPROBS.itemsize)


def distribution_from_proto(event: pb.StepEvent) -> Distribution | None:
    """The distribution that a step's news has, if it has one."""
    if not event.HasField("distribution"):
        return None
    message = event.distribution
    logprobs = np.frombuffer(message.logprobs, dtype=_LOGPROBS).astype(np.float64)
    ids = ids_from_bytes(message.ids) if message.ids else np.arange(len(logprobs))
    return Distribution(ids, logprobs, message.rest, message.dropped)


def tokens_to_proto(tokens: Tokens) -> pb.GetVocabularyResponse:
    """A vocabulary as a message."""
    return pb.GetVocabularyResponse(
        data=b"".join(tokens.bytes), lengths=map(len, tokens.bytes), end_ids=sorted(tokens.end_ids)
    )


def tokens_from_proto(message: pb.GetVocabularyResponse) -> Tokens:
    """A vocabulary from a message."""
    ends = [0, *accumulate(message.lengths)]
    spelled = [message.data[begin:end] for begin, end in pairwise(ends)]
    return Tokens(spelled, frozenset(message.end_ids))
