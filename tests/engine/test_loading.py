"""What loading accepts, what it refuses and by which name, and which runner it chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cluster.engine import loading
from cluster.engine.base import Chunk
from cluster.engine.cached import CachedRunner
from cluster.engine.check import check_runner, make_sequences
from cluster.engine.fake import FakeRunner
from cluster.engine.reading import read_model
from cluster.engine.runner import PagedRunner
from cluster.engine.types import Prefill, Score, Verdict, Work, WorkEnd
from cluster.errors import InvalidRequest, NotFound, Unsupported

from .factories import (
    ask,
    greedy,
    make_engine,
    make_ids,
    make_model,
    plain_greedy,
    plain_logprobs,
    run,
    save_model,
    stop_after,
)


def test_an_architecture_that_fits_no_runner_is_refused_by_name(tmp_path: Path) -> None:
    save_model("mamba", tmp_path)
    with pytest.raises(Unsupported, match="mamba models cannot be served"):
        make_engine(tmp_path)


def test_recurrent_state_is_caught_by_the_self_check_and_served_from_caches(
    tmp_path: Path,
) -> None:
    model = save_model("lfm2", tmp_path)
    engine = make_engine(tmp_path)
    assert isinstance(engine._runner, CachedRunner)
    prompt = make_ids(20)
    assert ask(engine, engine.open(), 0, prompt, greedy(5)).ids == plain_greedy(model, prompt, 5)


def test_the_self_check_notices_wrong_logits() -> None:
    sequences = make_sequences(64, 20)
    expected = [torch.rand(len(ids), 64) for ids in sequences]
    with pytest.raises(Unsupported, match="off by"):
        check_runner(FakeRunner(page_size=16), sequences, expected, is_single=True)


def test_the_self_check_notices_logits_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model("llama", tmp_path)
    forward = PagedRunner.forward

    def spoilt(self: PagedRunner, chunks: list) -> Tensor:  # type: ignore[type-arg]
        return forward(self, chunks) * float("nan")

    monkeypatch.setattr(PagedRunner, "forward", spoilt)
    assert isinstance(make_engine(tmp_path)._runner, CachedRunner)


def test_a_recurrent_sequence_is_recomputed_when_cut_and_not_for_a_second_draw(
    tmp_path: Path,
) -> None:
    model = save_model("mamba2", tmp_path)
    engine = make_engine(tmp_path)
    sequence = engine.open()
    prompt = make_ids(15)
    dropped = greedy(1, judge=stop_after(1, Verdict.DROP_AND_STOP))
    assert ask(engine, sequence, 0, prompt, dropped).ids == []
    second = ask(engine, sequence, 15, [], greedy(2))
    assert second.ids == plain_greedy(model, prompt, 2)
    assert second.num_processed == 2
    cut = ask(engine, sequence, 9, [4], greedy(3))
    assert cut.ids == plain_greedy(model, [*prompt[:9], 4], 3)
    assert cut.num_processed == 10 + 2


def test_a_sequence_rewound_by_one_may_go_on_with_another_token(tmp_path: Path) -> None:
    model = save_model("bloom", tmp_path)
    engine = make_engine(tmp_path)
    sequence = engine.open()
    prompt = make_ids(15)
    ask(engine, sequence, 0, prompt, Prefill())
    engine.submit(Work(sequence, 15, [], greedy(1)))
    engine.cancel(sequence)  # rewound by then
    engine.step()
    ids = [*prompt[:14], 3]
    assert ask(engine, sequence, 14, [3], greedy(3)).ids == plain_greedy(model, ids, 3)


def test_the_fallback_keeps_to_its_memory(tmp_path: Path) -> None:
    model = save_model("bloom", tmp_path)
    engine = make_engine(tmp_path)
    page_bytes = engine._runner.page_bytes  # type: ignore[attr-defined]
    engine = make_engine(tmp_path, kv_memory_bytes=4 * page_bytes)
    prompts = [make_ids(20, seed=i) for i in range(4)]
    works = [Work(engine.open(), 0, prompt, greedy(4)) for prompt in prompts]
    for prompt, result in zip(prompts, run(engine, works), strict=True):
        assert result.ids == plain_greedy(model, prompt, 4)
    assert len(engine._runner._states) <= 2  # type: ignore[attr-defined]


def test_a_failed_pass_leaves_no_half_fed_cache(tmp_path: Path) -> None:
    model = save_model("bloom", tmp_path)
    engine = make_engine(tmp_path)
    runner = engine._runner
    assert isinstance(runner, CachedRunner)
    works = [Work(engine.open(), 0, make_ids(9, seed=i), greedy(3)) for i in range(2)]
    feed, fed = runner._feed, []

    def broken_for_the_second(chunk: Chunk) -> Tensor:
        fed.append(chunk)
        if len(fed) == 2:
            raise RuntimeError("out of memory")
        return feed(chunk)

    runner._feed = broken_for_the_second  # type: ignore[method-assign]
    assert [result.end for result in run(engine, works)] == [WorkEnd.FAILED] * 2
    for result, work in zip(run(engine, works), works, strict=True):
        assert result.ids == plain_greedy(model, work.tokens, 3)


def rope(model_context: int, **parameters: object) -> dict[str, object]:
    return {
        "max_position_embeddings": model_context,
        "rope_parameters": {"rope_theta": 10000.0, **parameters},
    }


def test_positions_that_depend_on_the_longest_end_the_context_early(tmp_path: Path) -> None:
    dynamic = rope(64, rope_type="dynamic", factor=2.0)
    save_model("llama", tmp_path / "dynamic", **dynamic)
    assert make_engine(tmp_path / "dynamic").max_context == 64
    factors = [1.0] * 4
    longrope = rope(
        128,
        rope_type="longrope",
        short_factor=factors,
        long_factor=[2.0] * 4,
        original_max_position_embeddings=48,
    )
    save_model("llama", tmp_path / "longrope", **longrope)
    engine = make_engine(tmp_path / "longrope")
    assert engine.max_context == 48
    with pytest.raises(InvalidRequest, match="2 to 48"):
        make_engine(tmp_path / "longrope", max_context=49)


def test_chunked_attention_is_not_trusted_to_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"layer_types": ["chunked_attention"] * 2, "attention_chunk_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = read_model(tmp_path, "float32", torch.device("cpu"))
    with pytest.raises(Unsupported, match="chunked"):
        loading.paged_runner(loaded, 16, None, varlen=False, fused=False)


def test_a_shorter_context_can_be_asked_for(llama_folder: Path) -> None:
    assert make_engine(llama_folder, max_context=40).max_context == 40


def test_a_folder_without_a_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no config\.json"):
        make_engine(tmp_path)


def test_weights_in_pickles_are_refused(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidRequest) as refusal:
        make_engine(tmp_path)
    assert refusal.value.field == "folder"


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "novel", "auto_map": {"AutoConfig": "novel.Novel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "novel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InvalidRequest):
        make_engine(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int3"),
        ("device", "meta"),
        ("kv_memory_bytes", 10),
        ("kv_dtype", "int8"),
        ("max_context", 1),
    ],
)
def test_bad_settings_are_refused_by_field(llama_folder: Path, field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        make_engine(llama_folder, **{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "mistral"])
def test_a_cache_in_bfloat16_holds_twice_as_much_and_says_nearly_the_same(
    kind: str, tmp_path: Path
) -> None:
    model = save_model(kind, tmp_path)
    engine, half = make_engine(tmp_path), make_engine(tmp_path, kv_dtype="bfloat16")
    assert half._runner.num_pages == 2 * engine._runner.num_pages
    ids = make_ids(60)
    told = ask(half, half.open(), 0, ids, Score(59)).tokens
    expected = plain_logprobs(model, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    errors = (torch.tensor([token.logprob for token in told]) - expected).abs()
    assert 1e-6 < float(errors.median()) < 0.08  # rounded, to 8 bits


def test_who_keeps_a_cache_of_its_own_is_not_told_how(tmp_path: Path) -> None:
    save_model("bloom", tmp_path)
    with pytest.raises(Unsupported, match="bloom models cannot be served"):
        make_engine(tmp_path, kv_dtype="bfloat16")


def test_the_stored_precision_is_kept_but_for_half_floats_on_processors(tmp_path: Path) -> None:
    kept = {"bfloat16": torch.bfloat16, "float16": torch.float32}
    for name, expected in kept.items():
        model: PreTrainedModel = make_model("llama").to(getattr(torch, name))
        model.save_pretrained(tmp_path / name)
        runner = make_engine(tmp_path / name, dtype="auto")._runner
        assert runner.forward([Chunk(0, 0, [3], [0], num_logits=1)]).dtype == expected
