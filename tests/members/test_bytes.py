"""A replica's law over bytes, over a random model and several makes of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cluster.distribution import Distribution
from cluster.engine.thread import EngineThread
from cluster.engine.types import Output
from cluster.errors import InternalError
from cluster.members.base import Draw, Form, MemberInfo, Rank, RunEnd, SequenceStart, Step
from cluster.members.replica import Replica
from cluster.members.seat import Seat
from tests.engine.factories import make_engine, plain_logprobs, save_model
from tests.members.factories import make_replica, member_text, run, seated, start_of, stopping
from tests.text.byte_law import byte_law

TEXTS = (b"", b"t", b" the ", b"it's", "né".encode(), "é中".encode()[:-1])


def start(min_share: float = 0.0, **changes: object) -> SequenceStart:
    return start_of("Once", Form.BYTES, min_share=min_share, **changes)


async def ranked(seat: Seat, text: bytes, base: int = 0) -> Distribution:
    """What the seat's member makes of the symbol after the text, of which it has some bytes."""
    step = Step(base, Rank(len(text)), text[base:])
    (event,) = await seat.answer(step)
    assert event.end is RunEnd.COMPLETE
    assert event.distribution is not None
    return event.distribution


@pytest.mark.parametrize("name", ["gpt2", "llama2", "unigram", "superwords"])
async def test_a_replica_tells_the_sum_over_all_token_sequences(name: str, tmp_path: Path) -> None:
    text = member_text(name)
    model = save_model("llama", tmp_path, vocab_size=text.vocabulary.size, initializer_range=0.15)
    engine = make_engine(tmp_path)
    prompt = text.render("Once", None)

    def started(report: Callable[[list[Output]], None]) -> EngineThread:
        thread = EngineThread(engine, report)
        thread.start()
        return thread

    @cache
    def law(ids: tuple[int, ...]) -> np.ndarray:
        found: np.ndarray = plain_logprobs(model, [*prompt, *ids])[-1].double().numpy()
        return found

    info = MemberInfo(name, f"random:{name}", text.vocabulary.fingerprint, 256, False)
    with stopping(replica := Replica(info, text, started)):
        for said in TEXTS:
            async with seated(replica, start()) as seat:
                found = await ranked(seat, said)
            wanted = byte_law(text.token_bytes, text.end_ids, law, said)
            np.testing.assert_allclose(np.exp(found.logprobs), wanted, atol=1e-5)
            assert found.dropped == 0


async def test_a_fresh_replica_told_all_bytes_knows_what_the_old_one_knew() -> None:
    said = "It's the brown fox, naïve 中文".encode()
    with stopping(replica := make_replica("gpt2", lead=3.0)):
        async with seated(replica, start(0.01)) as seat:
            for length in range(len(said) + 1):
                grown = await ranked(seat, said[:length], max(0, length - 1))
            again = await ranked(seat, said, len(said))
            back = await ranked(seat, said[:9] + b"zq", 9)  # some of it does not stand any more
        for text, found in ((said, grown), (said, again), (said[:9] + b"zq", back)):
            async with seated(replica, start(0.01)) as seat:
                fresh = await ranked(seat, text)
            np.testing.assert_allclose(found.logprobs, fresh.logprobs, atol=1e-9)
            assert found.dropped == pytest.approx(fresh.dropped)


async def test_before_its_time_the_end_of_the_turn_is_excluded() -> None:
    with stopping(replica := make_replica("gpt2")):
        async with seated(replica, start(0.01, end_allowed_from=2)) as seat:
            laws = [await ranked(seat, b"the"[:length], max(0, length - 1)) for length in range(3)]
    assert [law.logprobs[-1] == -np.inf for law in laws] == [True, True, False]
    assert all(np.exp(law.logprobs).sum() == pytest.approx(1) for law in laws)


async def test_bytes_can_only_be_ranked() -> None:
    with stopping(replica := make_replica("gpt2")):
        async with seated(replica, start()) as seat:
            with pytest.raises(InternalError, match="only the distribution"):
                await run(seat, Step(0, Draw(0, 1)))
