"""The tensors of a step: against the emulated flash kernel, and one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.engine import attention
from cluster.engine.base import Chunk
from cluster.engine.batch import build_batch, num_padded_keys
from cluster.engine.check import check_runner, make_sequences, num_check_pages, plain_logits
from cluster.engine.engine import Engine
from cluster.engine.runner import PagedRunner, use_paged_attention
from cluster.engine.types import Work

from .factories import VOCAB_SIZE, greedy, make_ids, make_model, plain_greedy, run
from .varlen_emulator import varlen_attn

CPU = torch.device("cpu")


def make_chunks(rng: random.Random, page_size: int, num_chunks: int) -> list[Chunk]:
    """Ragged chunks over pages of their own, one page more than needed."""
    chunks, num_pages = [], 0
    for i in range(num_chunks):
        start, num = rng.randrange(0, 90), rng.choice([1, 1, 1, 2, 7, 30])
        needed = (start + num) // page_size + 1
        pages = list(range(num_pages, num_pages + needed))
        rng.shuffle(pages)
        num_pages += needed
        ids = [rng.randrange(50) for _ in range(num)]
        chunks.append(Chunk(i, start, ids, pages, num_logits=rng.randrange(0, num + 1)))
    return chunks


@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_every_token_is_packed_once_with_its_position_slot_and_logits(
    seed: int, varlen: bool
) -> None:
    rng = random.Random(seed)
    chunks = make_chunks(rng, 4, 7)
    batch = build_batch(chunks, 4, CPU, varlen=varlen)
    packed = list(
        zip(batch.ids[0].tolist(), batch.positions[0].tolist(), batch.slots.tolist(), strict=True)
    )
    wanted, expected = [], []
    for chunk in chunks:
        tokens = [
            (token, position, chunk.pages[position // 4] * 4 + position % 4)
            for position, token in enumerate(chunk.ids, chunk.start)
        ]
        expected += tokens
        wanted += tokens[len(tokens) - chunk.num_logits :]
    assert sorted(packed) == sorted(expected)
    assert [packed[i] for i in batch.logit_tokens.tolist()] == wanted


@pytest.mark.parametrize("seed", range(8))
def test_groups_cover_all_tokens_and_read_their_own_pages_only(seed: int) -> None:
    chunks = make_chunks(random.Random(seed), 4, 9)
    batch = build_batch(chunks, 4, CPU, varlen=False)
    by_page = {page: chunk for chunk in chunks for page in chunk.pages}
    end = 0
    for group in batch.groups:
        assert group.begin == end
        end = group.end
        num_queries = group.positions.shape[1]
        assert num_queries in (1, 4, 16) or len(group.pages) == 1
        packed = list(range(group.begin, group.end))
        places = packed if group.spread is None else [packed[i] for i in group.spread.tolist()]
        assert batch.positions[0, places].tolist() == group.positions.flatten().tolist()
        if group.kept is not None:
            assert [places[i] for i in group.kept.tolist()] == packed
        for i, pages in enumerate(group.pages.tolist()):
            chunk = by_page[pages[0]]
            num_tokens = len(chunk.ids)
            num_pages = -(-(chunk.start + num_tokens) // 4)
            assert pages[:num_pages] == chunk.pages[:num_pages]
            assert {by_page[page].sequence for page in pages} == {chunk.sequence}
            expected = [*range(chunk.start, chunk.start + num_tokens)]
            expected += expected[-1:] * (num_queries - num_tokens)  # repeats its own last token
            assert group.positions[i].tolist() == expected
    assert end == batch.ids.shape[1]


def test_padded_lengths_are_few_and_waste_at_most_half() -> None:
    sizes = [num_padded_keys(num) for num in range(1, 5000)]
    assert all(num <= size for num, size in enumerate(sizes, 1))
    assert all(size <= max(64, num * 3 // 2) for num, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 14
    assert sizes == sorted(sizes)


def make_runner(kind: str, page_size: int, *, varlen: bool, num_pages: int = 0) -> PagedRunner:
    """A runner whose attention goes the way of CUDA, if asked."""
    model = make_model(kind)
    return PagedRunner(
        model,
        use_paged_attention(model),
        num_pages=num_pages or num_check_pages(40, page_size),
        page_size=page_size,
        max_context=256,
        varlen=varlen,
    )


@pytest.mark.parametrize("page_size", [1, 4, 16, 256])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_the_flash_kernel_gets_what_it_needs(
    kind: str, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    sequences = make_sequences(VOCAB_SIZE, 40)
    expected = plain_logits(make_model(kind), sequences)
    check_runner(make_runner(kind, page_size, varlen=True), sequences, expected, is_single=True)


@pytest.mark.parametrize("page_size", [1, 4, 256])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
def test_gathered_attention_takes_any_page_size(kind: str, page_size: int) -> None:
    sequences = make_sequences(VOCAB_SIZE, 40)
    expected = plain_logits(make_model(kind), sequences)
    check_runner(make_runner(kind, page_size, varlen=False), sequences, expected, is_single=True)


def test_greedy_equals_generate_through_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    model = make_model("mistral")
    runner = make_runner("mistral", 4, varlen=True, num_pages=20)
    engine = Engine(runner, max_batch_tokens=16, min_shared_tokens=1)
    prompts = [make_ids(num, seed=num) for num in (30, 3, 17)]
    works = [Work(engine.open(), 0, prompt, greedy(6)) for prompt in prompts]
    for prompt, result in zip(prompts, run(engine, works), strict=True):
        assert result.ids == plain_greedy(model, prompt, 6)


def test_a_token_gets_the_same_logits_alone_and_in_company() -> None:
    """Up to the linear layers' rounding: attention itself sees equal shapes."""
    runner = make_runner("llama", 4, varlen=False, num_pages=60)
    rng = random.Random(0)
    ids = [[rng.randrange(VOCAB_SIZE) for _ in range(num)] for num in (20, 33, 70)]
    pages = [list(range(20 * i, 20 * i + 20)) for i in range(3)]
    runner.forward([Chunk(i, 0, ids[i], pages[i], 0) for i in range(3)])
    decodes = [Chunk(i, len(ids[i]), [5], pages[i], 1) for i in range(3)]
    together = runner.forward(decodes)
    for i in range(3):
        alone = runner.forward([decodes[i]])
        assert torch.allclose(alone[0], together[i], atol=1e-5)


class Calls(TorchDispatchMode):
    """Counts the calls of attention."""

    num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += "attention" in str(func)
        return func(*args, **(kwargs or {}))


def num_attention_calls(runner: PagedRunner, lengths: list[int]) -> int:
    """In a pass that adds so many tokens to each of some sequences of 30."""
    pages = [list(range(13 * i, 13 * i + 13)) for i in range(len(lengths))]
    runner.forward([Chunk(i, 0, make_ids(30, seed=i), pages[i], 0) for i in range(len(lengths))])
    with Calls() as calls:
        runner.forward([Chunk(i, 30, make_ids(num), pages[i], 1) for i, num in enumerate(lengths)])
    return calls.num_calls


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_catching_up_takes_as_many_calls_of_attention_as_decoding(kind: str) -> None:
    """Two layers: one call each for two to four tokens apiece, one more beside single tokens."""
    runner = make_runner(kind, 4, varlen=False, num_pages=104)
    assert num_attention_calls(runner, [1] * 8) == 2
    assert num_attention_calls(runner, [2, 3, 4, 2, 4, 3, 2, 2]) == 2
    assert num_attention_calls(runner, [1, 2, 1, 4, 3, 1, 1, 2]) == 2 * 2
    assert num_attention_calls(runner, [5, 16, 1, 2]) == 2 * 3
    assert num_attention_calls(runner, [17, 20]) == 2 * 2  # long ones stay alone


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss", "gemma2"])
def test_short_extends_side_by_side_give_what_each_gives_alone(kind: str) -> None:
    """Windows, sinks and softcaps too; up to the linear layers' rounding."""
    runner = make_runner(kind, 4, varlen=False, num_pages=120)
    lengths, starts = [1, 2, 3, 4, 6, 16], [20, 33, 70, 5, 41, 12]
    pages = [list(range(20 * i, 20 * i + 20)) for i in range(6)]
    runner.forward([Chunk(i, 0, make_ids(starts[i], seed=i), pages[i], 0) for i in range(6)])
    extends = [
        Chunk(i, starts[i], make_ids(lengths[i], seed=9 + i), pages[i], lengths[i])
        for i in range(6)
    ]
    together = runner.forward(extends).split(lengths)
    for i in range(6):
        one_by_one = torch.cat(
            [
                runner.forward([Chunk(i, starts[i] + j, [token], pages[i], 1)])
                for j, token in enumerate(extends[i].ids)
            ]
        )
        torch.testing.assert_close(together[i], one_by_one, rtol=1e-4, atol=1e-5)
