"""The engine's promises: who waits, who fails, what is counted. Over the fake model, so exact."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cluster.engine.base import Chunk
from cluster.engine.engine import Engine
from cluster.engine.fake import next_token
from cluster.engine.pool import Copy
from cluster.engine.types import (
    EngineLoad,
    Prefill,
    Sample,
    SamplingParams,
    Score,
    Verdict,
    Work,
    WorkEnd,
)
from cluster.errors import InvalidRequest, NotFound
from cluster.randomness import Purpose

from .factories import Result, ask, greedy, make_fake_engine, run, step, stop_after

VOCAB_SIZE = 64


def expected(ids: Sequence[int], num: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """What the fake model goes on with."""
    ids = list(ids)
    begin = len(ids)
    for _ in range(num):
        ids.append(next_token(ids, vocab_size))
    return ids[begin:]


def test_counts_are_exact_for_a_prompt_and_its_samples() -> None:
    engine = make_fake_engine(max_batch_tokens=8)
    result = ask(engine, engine.open(), 0, range(20), greedy(5))
    assert result.ids == expected(range(20), 5)
    assert result.num_processed == 20 + 5 - 1
    assert result.num_passes == 3 + 4  # chunks of 8, 8 and 4, then one token each
    assert engine.counts.tokens_processed == 24
    assert engine.counts.forward_passes == 7
    assert engine.counts.tokens_sampled == 5


def test_works_of_one_step_ride_in_one_pass() -> None:
    engine = make_fake_engine()
    works = [Work(engine.open(), 0, [i, i + 1], greedy(3)) for i in range(6)]
    for result, work in zip(run(engine, works), works, strict=True):
        assert result.ids == expected(work.tokens, 3)
        assert (result.num_passes, result.num_processed) == (3, 4)
    assert engine.counts.forward_passes == 3


def test_tokens_come_out_one_per_step_as_they_are_drawn() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    engine.submit(Work(sequence, 0, [1], greedy(3)))
    assert [len(engine.step()[0].tokens) for _ in range(3)] == [1, 1, 1]
    assert not engine.has_work()
    assert engine.step() == []


def test_a_dropped_token_is_neither_kept_nor_reported() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    want = greedy(3, judge=stop_after(3, Verdict.DROP_AND_STOP))
    result = ask(engine, sequence, 0, [1, 2], want)
    assert result.ids == expected([1, 2], 2)
    assert engine.ids(sequence) == [1, 2, *result.ids]
    assert engine.counts.tokens_sampled == 3
    again = ask(engine, sequence, 4, [], greedy(1))
    assert again.ids == expected([1, 2], 3)[2:]
    assert again.num_processed == 1  # the last token, for its logits


def test_the_last_sampled_token_is_fed_only_with_the_next_work() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    ask(engine, sequence, 0, [1, 2, 3], greedy(1))
    assert engine.counts.tokens_processed == 3
    assert ask(engine, sequence, 4, [9, 8], greedy(1)).num_processed == 3


def test_cached_tokens_repeated_by_a_work_are_not_fed_again() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    ask(engine, sequence, 0, range(10), greedy(1))
    assert ask(engine, sequence, 2, range(2, 14), greedy(1)).num_processed == 4


def test_a_score_feeds_all_but_the_last_token() -> None:
    engine = make_fake_engine(max_batch_tokens=4)
    sequence = engine.open()
    ids = [5, *expected([5], 9)]
    result = ask(engine, sequence, 0, ids, Score(9))
    assert result.ids == ids[1:]
    assert (result.num_processed, result.num_passes) == (9, 3)
    assert len({round(token.logprob, 5) for token in result.tokens}) == 1  # each the likeliest


def test_a_score_recomputes_targets_that_are_cached() -> None:
    engine = make_fake_engine()
    sequence, other = engine.open(), engine.open()
    ask(engine, sequence, 0, range(12), Prefill())
    assert ask(engine, sequence, 12, [], Score(4)).num_processed == 4
    shared = ask(engine, other, 0, range(12), Score(4))
    assert shared.num_cached == 7
    assert shared.num_processed == 4


def test_a_prefill_of_what_is_cached_ends_without_a_pass() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    ask(engine, sequence, 0, range(9), Prefill())
    assert ask(engine, sequence, 9, [], Prefill()).num_passes == 0


def test_the_first_token_of_a_run_has_a_purpose_of_its_own() -> None:
    engine = make_fake_engine()
    drawn: dict[Purpose, list[list[int]]] = {}
    for purpose in (Purpose.TOKEN, Purpose.RETAKE):
        for seed in range(4):
            want = Sample(
                params=SamplingParams(temperature=50.0),
                seed=seed,
                first_position=7,
                judge=stop_after(2),
                first_purpose=purpose,
            )
            drawn.setdefault(purpose, []).append(ask(engine, engine.open(), 0, [1], want).ids)
    assert [ids[0] for ids in drawn[Purpose.TOKEN]] != [ids[0] for ids in drawn[Purpose.RETAKE]]


def test_banned_tokens_are_not_drawn_before_their_position() -> None:
    engine = make_fake_engine()
    banned = tuple(i for i in range(VOCAB_SIZE) if i != 3)
    want = greedy(3, banned=banned, banned_before=12, first_position=10)
    ids = ask(engine, engine.open(), 0, [1], want).ids
    assert ids[:2] == [3, 3]
    assert ids[2] == expected([1, 3, 3], 1)[0] != 3


def test_the_context_runs_full() -> None:
    engine = make_fake_engine(max_context=10)
    sequence = engine.open()
    result = ask(engine, sequence, 0, range(8), greedy(5))
    assert result.end is WorkEnd.CONTEXT_FULL
    assert result.ids == expected(range(8), 2)
    assert ask(engine, sequence, 10, [], greedy(1)).end is WorkEnd.CONTEXT_FULL
    assert ask(engine, sequence, 10, [], Score(3)).end is WorkEnd.DONE
    assert ask(engine, engine.open(), 0, range(11), Prefill()).end is WorkEnd.CONTEXT_FULL


def test_a_prefix_computed_in_this_very_step_is_waited_for_and_shared() -> None:
    engine = make_fake_engine()
    works = [Work(engine.open(), 0, [*range(20), 30 + i], greedy(2)) for i in range(4)]
    results = run(engine, works)
    for result, work in zip(results, works, strict=True):
        assert result.ids == expected(work.tokens, 2)
    assert [result.num_cached for result in results] == [0, 20, 20, 20]
    assert engine.counts.tokens_shared == 60
    assert engine.counts.tokens_processed == 21 + 3 + 4


def test_a_closed_sequence_still_lends_its_prefix() -> None:
    engine = make_fake_engine()
    first = engine.open()
    ask(engine, first, 0, range(18), greedy(1))
    engine.close(first)
    result = ask(engine, engine.open(), 0, range(18), greedy(2))
    assert result.ids == expected(range(18), 2)
    assert (result.num_cached, result.num_processed) == (17, 2)


def test_evicted_sequences_come_back_by_themselves() -> None:
    engine = make_fake_engine(num_pages=4)
    first, second = engine.open(), engine.open()
    ask(engine, first, 0, range(12), greedy(1))
    ask(engine, second, 0, range(20, 32), greedy(1))
    assert engine.counts.evictions == 1
    again = ask(engine, first, 13, [], greedy(2))
    assert again.ids == expected(range(12), 3)[1:]
    assert again.num_processed == 14


def test_idle_sequences_cost_others_nothing_when_the_pool_is_full_of_them() -> None:
    """The same passes, tokens and order as in an empty pool; only the idle ones pay, later."""
    found = []
    for num_idle in (0, 6):
        engine = make_fake_engine(num_pages=12, page_size=4)
        idle = [engine.open() for _ in range(num_idle)]
        for i, sequence in enumerate(idle):
            ask(engine, sequence, 0, range(10 * i, 10 * i + 7), greedy(1))
        works = [Work(engine.open(), 0, range(61 + i, 51 + i, -1), greedy(5)) for i in range(3)]
        before = engine.counts.forward_passes, engine.counts.tokens_processed
        results = run(engine, works)
        passes = engine.counts.forward_passes - before[0]
        tokens = engine.counts.tokens_processed - before[1]
        found.append((passes, tokens, [(r.ids, r.end, r.num_passes) for r in results]))
        for i, sequence in enumerate(idle):
            again = ask(engine, sequence, 8, [], greedy(1))
            assert again.ids == expected(range(10 * i, 10 * i + 7), 2)[1:]
    assert found[0] == found[1]
    assert engine.counts.evictions >= 5


def test_works_wait_while_the_pool_is_full() -> None:
    engine = make_fake_engine(num_pages=4)
    works = [Work(engine.open(), 0, range(i, i + 10), greedy(4)) for i in range(3)]
    results: dict[int, Result] = {}
    for work in works:
        engine.submit(work)
    step(engine, results)
    assert engine.load() == EngineLoad(3, 1, 2, 4, 1, 3)
    while engine.has_work():
        step(engine, results)
    assert engine.load() == EngineLoad(3, 0, 0, 4, 4, 4)
    for work in works:
        assert results[work.sequence].ids == expected(work.tokens, 4)


def test_the_youngest_gives_way_when_all_are_stuck() -> None:
    engine = make_fake_engine(num_pages=4)
    works = [Work(engine.open(), 0, range(i, i + 7), greedy(8)) for i in range(2)]
    elder, younger = run(engine, works)
    assert elder.ids == expected(works[0].tokens, 8)
    assert younger.ids == expected(works[1].tokens, 8)
    assert elder.num_processed == 7 + 8 - 1
    assert younger.num_processed > 7 + 8 - 1  # it gave up its rows and had them computed again


def test_what_can_never_fit_fails_with_a_reason_and_harms_nobody() -> None:
    engine = make_fake_engine(num_pages=4)
    big, growing, small = (engine.open() for _ in range(3))
    results = run(
        engine,
        [
            Work(big, 0, range(17), greedy(1)),
            Work(growing, 0, range(14), greedy(20)),
            Work(small, 0, [7], greedy(5)),
        ],
    )
    assert [result.end for result in results] == [WorkEnd.FAILED, WorkEnd.FAILED, WorkEnd.DONE]
    assert "17 tokens do not fit the cache of 16" in results[0].error
    assert results[1].ids == expected(range(14), 3)
    assert results[2].ids == expected([7], 5)


def test_a_large_newcomer_is_not_starved_by_small_ones() -> None:
    engine = make_fake_engine(num_pages=8, min_shared_tokens=99)
    large = engine.open()
    results: dict[int, Result] = {}
    smalls = [engine.open() for _ in range(4)]
    for i, sequence in enumerate(smalls):
        engine.submit(Work(sequence, 0, [i], greedy(7)))
    step(engine, results)
    engine.submit(Work(large, 0, range(30), greedy(1)))
    for _ in range(200):
        for sequence, result in list(results.items()):
            if result.end and sequence != large:
                del results[sequence]
                engine.close(sequence)
                fresh = engine.open()
                engine.submit(Work(fresh, 0, [fresh % VOCAB_SIZE], greedy(7)))
        step(engine, results)
        if large in results:
            return
    raise AssertionError("it never got in")


def test_prefills_ride_beside_decodes_when_the_budget_is_short() -> None:
    engine = make_fake_engine(max_batch_tokens=4)
    decodes = [engine.open() for _ in range(6)]
    results: dict[int, Result] = {}
    for i, sequence in enumerate(decodes):
        engine.submit(Work(sequence, 0, [i], greedy(30)))
    step(engine, results, num_steps=4)
    long = engine.open()
    engine.submit(Work(long, 0, range(20), Prefill()))
    step(engine, results, num_steps=25)
    assert results[long].end is WorkEnd.DONE
    lengths = [len(results[sequence].ids) for sequence in decodes]
    assert max(lengths) - min(lengths) <= 1  # turn by turn


def test_cancelling_ends_the_work_and_keeps_what_was_drawn() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    results: dict[int, Result] = {}
    engine.submit(Work(sequence, 0, [1, 2], greedy(50)))
    step(engine, results, num_steps=3)
    engine.cancel(sequence)
    step(engine, results)
    assert results[sequence].end is WorkEnd.CANCELLED
    assert results[sequence].ids == expected([1, 2], 3)
    assert ask(engine, sequence, 5, [], greedy(2)).ids == expected([1, 2], 5)[3:]


def test_cancelling_an_idle_sequence_touches_no_later_work() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    engine.cancel(sequence)
    assert ask(engine, sequence, 0, [1], greedy(1)).end is WorkEnd.DONE
    engine.cancel(sequence)
    assert ask(engine, sequence, 2, [], greedy(1)).end is WorkEnd.DONE


def test_a_work_cancelled_before_its_first_step_ends_cancelled() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    engine.submit(Work(sequence, 0, [1], greedy(1)))
    engine.cancel(sequence)
    assert [output.end for output in engine.step()] == [WorkEnd.CANCELLED]
    assert engine.ids(sequence) == [1]


def test_closing_frees_everything_without_a_word() -> None:
    engine = make_fake_engine(num_pages=4)
    sequence = engine.open()
    engine.submit(Work(sequence, 0, range(10), greedy(50)))
    engine.step()
    engine.close(sequence)
    assert engine.step() == []
    assert engine.load() == EngineLoad(0, 0, 0, 4, 4, 0)
    assert not engine.has_work()
    with pytest.raises(NotFound):
        engine.submit(Work(sequence, 0, [1], Prefill()))


def test_a_failing_pass_fails_its_works_and_the_engine_lives_on() -> None:
    def fail_on_13(chunks: Sequence[Chunk]) -> None:
        if any(13 in chunk.ids for chunk in chunks):
            raise RuntimeError("the device is on fire")

    engine = make_fake_engine(before_pass=fail_on_13)
    unlucky, poisoned, later = (engine.open() for _ in range(3))
    ask(engine, unlucky, 0, range(8), greedy(1))
    failed = run(engine, [Work(unlucky, 9, [], greedy(2)), Work(poisoned, 0, [12, 13], greedy(2))])
    assert [result.end for result in failed] == [WorkEnd.FAILED] * 2
    assert "the device is on fire" in failed[1].error
    assert ask(engine, later, 0, [1], greedy(3)).ids == expected([1], 3)
    assert ask(engine, unlucky, 9, [], greedy(2)).ids == expected(range(8), 3)[1:]


def test_rows_that_a_failed_copy_left_unwritten_are_not_trusted() -> None:
    engine = make_fake_engine()
    ask(engine, engine.open(), 0, range(10), greedy(1))
    runner, sequence = engine._runner, engine.open()
    copy = runner.copy

    def broken_once(copies: Sequence[Copy]) -> None:
        runner.copy = copy  # type: ignore[method-assign]
        raise RuntimeError("out of memory")

    runner.copy = broken_once  # type: ignore[method-assign]
    works = [Work(sequence, 0, range(10), greedy(2))]
    assert [result.end for result in run(engine, works)] == [WorkEnd.FAILED]
    assert run(engine, works)[0].ids == expected(range(10), 2)


def test_a_failing_judge_fails_its_own_work_only() -> None:
    def judge(token: int) -> Verdict:
        raise ValueError("no verdict")

    engine = make_fake_engine()
    works = [
        Work(engine.open(), 0, [1], greedy(1, judge=judge)),
        Work(engine.open(), 0, [2], greedy(2)),
    ]
    bad, good = run(engine, works)
    assert (bad.end, bad.error) == (WorkEnd.FAILED, "ValueError: no verdict")
    assert good.ids == expected([2], 2)


@pytest.mark.parametrize(
    ("start", "tokens", "want", "field"),
    [
        (1, [1], Prefill(), "start"),
        (-1, [1], Prefill(), "start"),
        (0, [64], Prefill(), "tokens"),
        (0, [-1], Prefill(), "tokens"),
        (0, [], greedy(1), "tokens"),
        (0, [1], greedy(1, banned=(64,)), "banned"),
        (0, [1, 2], Score(2), "num_targets"),
        (0, [1, 2], Score(0), "num_targets"),
    ],
)
def test_bad_works_are_refused_by_field(
    start: int, tokens: list[int], want: Sample | Score | Prefill, field: str
) -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    with pytest.raises(InvalidRequest) as refusal:
        engine.submit(Work(sequence, start, tokens, want))
    assert refusal.value.field == field
    assert not engine.has_work()


def test_closing_twice_and_cancelling_what_is_closed_are_no_matter() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    engine.close(sequence)
    engine.close(sequence)
    engine.cancel(sequence)
    with pytest.raises(NotFound):
        engine.close(sequence + 1)


def test_a_score_begun_anew_goes_on_where_it_was() -> None:
    def fail_on_13(chunks: Sequence[Chunk]) -> None:
        if any(13 in chunk.ids for chunk in chunks):
            raise RuntimeError("the device is on fire")

    engine = make_fake_engine(before_pass=fail_on_13, max_batch_tokens=2, page_size=1)
    scored = engine.open()
    ids = [5, *expected([5], 9)]
    assert 13 not in ids
    results: dict[int, Result] = {}
    engine.submit(Work(scored, 0, ids, Score(9)))
    step(engine, results, num_steps=2)
    for _ in range(2):  # they take the whole budget, and its rows are no longer trusted
        engine.submit(Work(engine.open(), 0, [13], Prefill()))
    while engine.has_work():
        step(engine, results)
    assert results[scored].ids == ids[1:]
    assert results[scored].num_processed > 9


def test_a_sequence_takes_one_work_at_a_time() -> None:
    engine = make_fake_engine()
    sequence = engine.open()
    engine.submit(Work(sequence, 0, [1], greedy(2)))
    with pytest.raises(InvalidRequest, match="under way"):
        engine.submit(Work(sequence, 0, [1], greedy(2)))


class Storm:
    """Random requests against a small cache, each answer checked against the fake model."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.engine: Engine = make_fake_engine(
            num_pages=self.rng.randrange(6, 14),
            page_size=self.rng.choice([1, 3, 4]),
            vocab_size=5,
            max_context=40,
            max_batch_tokens=self.rng.choice([1, 5, 32]),
        )
        self.works: dict[int, Work] = {}
        self.ids: dict[int, list[int]] = {}
        self.results: dict[int, Result] = {}

    def submit(self) -> None:
        rng = self.rng
        idle = [sequence for sequence in self.ids if sequence not in self.works]
        if not idle:
            return
        sequence = rng.choice(idle)
        ids = self.ids[sequence]
        start = rng.randrange(max(0, len(ids) - 6), len(ids) + 1)
        tokens = [rng.randrange(5) for _ in range(rng.choice([0, 1, 2, 9]))] or [1]
        num = start + len(tokens)
        want = rng.choice(
            [greedy(rng.randrange(1, 6)), Prefill(), Score(rng.randrange(1, num + 1))]
        )
        if isinstance(want, Score) and want.num_targets == num:
            want = Prefill()
        self.ids[sequence] = ids[:start] + tokens
        self.works[sequence] = Work(sequence, start, tokens, want)
        self.engine.submit(self.works[sequence])

    def act(self) -> None:
        roll = self.rng.random()
        if roll < 0.15 and len(self.ids) < 8:
            self.ids[self.engine.open()] = []
        elif roll < 0.6:
            self.submit()
        elif roll < 0.63 and self.works:
            self.engine.cancel(self.rng.choice(list(self.works)))
        elif roll < 0.66 and self.ids:
            sequence = self.rng.choice(list(self.ids))
            self.engine.close(sequence)
            for table in (self.ids, self.works, self.results):
                table.pop(sequence, None)

    def step(self) -> None:
        step(self.engine, self.results)
        for sequence, result in list(self.results.items()):
            if result.end is None:
                continue
            work = self.works.pop(sequence)
            del self.results[sequence]
            ids = self.ids[sequence]
            assert result.end is not WorkEnd.DONE or result.error == ""
            if isinstance(work.want, Sample):
                assert result.ids == expected(ids, len(result.ids), vocab_size=5)
                ids += result.ids
            elif isinstance(work.want, Score) and result.end is WorkEnd.DONE:
                assert result.ids == ids[-work.want.num_targets :]
                for i, token in enumerate(result.tokens, len(ids) - work.want.num_targets):
                    assert (next_token(ids[:i], 5) == token.token) == (token.logprob > -1.4)
            assert self.engine.ids(sequence) == ids


@pytest.mark.parametrize("seed", range(12))
def test_a_storm_of_requests_leaves_every_answer_right(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(250):
        storm.act()
        if storm.rng.random() < 0.6:
            storm.step()
    for _ in range(2000):
        if not storm.engine.has_work():
            break
        storm.step()
    assert not storm.works
    assert storm.engine.load().num_free_pages == storm.engine.load().num_pages
