"""`cuvee check`: what it says about good, doubtful and wrong blend files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import cluster.models.machine
from cluster.cli.check import check
from cluster.models.facts import PROCESS_BYTES

Check = Callable[..., tuple[int, str]]


def make_model(
    folder: Path,
    *,
    extra_token: str = "",
    chat: bool = True,
    lowercase: bool = False,
    dtype: str = "float32",
) -> None:
    """A tiny random Llama with a byte-level tokenizer; `extra_token` makes another vocabulary."""
    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [extra_token] if extra_token else []
    bpe = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    if lowercase:
        bpe.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    if chat:
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: `a` and `b` share a vocabulary, `c` has another and no chat template."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "a")
    make_model(folder / "b")
    make_model(folder / "c", extra_token="the", chat=False)
    make_model(folder / "small", extra_token="a", lowercase=True)
    make_model(folder / "half", dtype="bfloat16")
    return folder


@pytest.fixture
def run(folder: Path) -> Check:
    """Check a file with these members and blends; gives the exit code and what was printed."""

    def run(members: str, blends: str, *, as_json: bool = False) -> tuple[int, Any]:
        file = folder / "blend.yaml"
        file.write_text(f"version: 1\nmembers: {{{members}}}\nblends: {{{blends}}}\n")
        out = io.StringIO()
        code = check(file, as_json, Console(file=out, width=80))
        return code, json.loads(out.getvalue()) if as_json else out.getvalue()

    return run


A = "a: {model: ./a, kv_memory: 1MiB, resources: {num_cpus: 0.1}}"
B = "b: {model: ./b, kv_memory: 1MiB, resources: {num_cpus: 0.1}}"
C = "c: {model: ./c, kv_memory: 1MiB, resources: {num_cpus: 0.1}}"
AB = "mix: {method: mixture, members: {a: 1, b: 3}}"


def test_a_good_file_passes_without_a_warning(run: Check) -> None:
    code, out = run(f"{A}, {B}", AB)
    assert code == 0
    assert "✓" in out.splitlines()[-1]
    assert "1 blend of 2 members" in out.splitlines()[-1]
    assert "!" not in out


def test_shares_spans_and_vocabularies_are_resolved(run: Check) -> None:
    _, same = run(f"{A}, {B}", AB)
    assert "span token (by default)" in same
    assert "a   25.0%" in same
    assert "one vocabulary: token ids are exchanged, exactly" in same
    _, different = run(f"{A}, {C}", "mix: {method: mixture, members: {a: 1, c: 3}}")
    assert "span word (by default)" in different
    assert "2 vocabularies (a; c): bytes are exchanged" in different


def test_memory_and_generations_are_counted_per_replica_and_in_all(run: Check) -> None:
    members = "a: {model: ./a, dtype: float32, kv_memory: 1MiB, autoscaling: {max_replicas: 3}}"
    code, report = run(members, "mix: {method: mixture, members: {a: 1}}", as_json=True)
    assert code == 0
    a = report["members"]["a"]
    assert a["weights_bytes"] == 4 * a["num_parameters"]
    assert a["total_bytes"] == a["weights_bytes"] + (1 << 20) + (400 << 20)
    per_token = 2 * 2 * 32 * 4  # keys and values, layers, numbers, bytes
    assert a["num_full_generations"] == (1 << 20) // (256 * per_token)
    assert (a["min_replicas"], a["max_replicas"]) == (1, 3)
    _, out = run(members, "mix: {method: mixture, members: {a: 1}}")
    assert "cluster: 1 to 3 replicas, 401 MiB to 1.18 GiB of memory, 1 to 3 CPUs" in out


def test_an_unset_kv_memory_is_marked_as_an_estimate(run: Check) -> None:
    _, out = run("a: {model: ./a}", "mix: {method: mixture, members: {a: 1}}")
    assert "~4 MiB" in out  # room for 32 full contexts
    assert "decided at load" in out


def test_json_says_the_same_as_the_tables(run: Check) -> None:
    code, report = run(f"{A}, {C}", "mix: {method: mixture, members: {a: 1, c: 3}}", as_json=True)
    assert (code, report["ok"], report["errors"]) == (0, True, [])
    mix = report["blends"]["mix"]
    assert mix["weights"] == {"a": 0.25, "c": 0.75}
    assert (mix["span"], mix["one_vocabulary"]) == ("word", False)
    assert len(mix["revision"]) == 12
    vocabularies = {name: m["vocabulary"] for name, m in report["members"].items()}
    assert vocabularies == {"a": "A", "c": "B"}


@pytest.mark.parametrize(
    ("members", "blend", "said"),
    [
        (f"{A}, {C}", "members: {a: 1, c: 1}", "members.c: no chat template"),
        (f"{A}, {B}", "members: {a: 1, b: 0}", "members.b: weight 0, so it never speaks"),
        (f"{A}, {B}", "members: {a: 1}", "members.b: no blend uses it"),
        (f"{A}, small: {{model: ./small}}", "members: {a: 1, small: 1}", "changes text (case"),
        (f"{A}, {C}", "span: 2, members: {a: 1, c: 1}", "word reads better"),
        ("a: {model: ./a, max_context: 999}", "members: {a: 1}", "more than the model's own 256"),
        ("a: {model: ./a, kv_memory: 64KiB}", "members: {a: 1}", "holds 128 tokens, less than"),
        ("a: {model: ./a, resources: {num_cpus: 999}}", "members: {a: 1}", "ask for 999 CPUs"),
        ("a: {model: ./a, kv_memory: 99TiB}", "members: {a: 1}", "replicas need 99 TiB"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(
    run: Check, members: str, blend: str, said: str
) -> None:
    code, out = run(members, f"mix: {{method: mixture, {blend}}}")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("! ") and said in line]


@pytest.mark.parametrize(
    ("member", "flags", "is_told"),
    [
        ("model: ./half", "fpu avx2 f16c", True),
        ("model: ./half, dtype: bfloat16", "fpu avx2 f16c", True),
        ("model: ./half", "fpu avx512_bf16", False),
        ("model: ./half", "fp asimd bf16", False),
        ("model: ./half, dtype: float32", "fpu avx2 f16c", False),
        ("model: ./half, resources: {num_gpus: 1}", "fpu avx2 f16c", False),
        ("model: ./a", "fpu avx2 f16c", False),
        ("model: ./a, dtype: bfloat16", "fpu avx2 f16c", False),
    ],
)
def test_float32_is_advised_where_the_processor_knows_no_bfloat16(
    run: Check,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    member: str,
    flags: str,
    is_told: bool,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags} sse\n")
    monkeypatch.setattr(cluster.models.machine, "_CPUINFO", tmp_path / "cpuinfo")
    _, report = run(f"a: {{{member}}}", "mix: {method: mixture, members: {a: 1}}", as_json=True)
    told = [line for line in report["warnings"] if line.startswith("members.a.dtype: ")]
    assert bool(told) == is_told
    assert all("float32 is faster here" in line for line in told)


def test_members_that_cannot_be_read_fail_the_check_and_hide_nothing_else(run: Check) -> None:
    members = f"{A}, gone: {{model: ./gone}}, hub: {{model: org/never-fetched-model}}"
    code, out = run(members, "mix: {method: mixture, members: {a: 1, gone: 1}}")
    assert code == 1
    assert "✗ members.gone:" in out
    assert "run: cuvee models fetch org/never-fetched-model" in out
    assert "./a" in out
    assert "2 problems" in out.splitlines()[-1]


def test_an_exact_blend_refuses_members_of_different_vocabularies(run: Check) -> None:
    blend = "mix: {method: mixture, exact: true, members: {a: 1, b: 1, c: 1}}"
    code, out = run(f"{A}, {B}, {C}", blend)
    assert code == 1
    assert "✗ blends.mix: blend 'mix' wants one vocabulary" in out
    assert "2 vocabularies (a, b; c)" in " ".join(out.split())
    code, answer = run(f"{A}, {B}, {C}", blend, as_json=True)
    assert (code, answer["ok"]) == (1, False)
    assert run(f"{A}, {B}", "mix: {method: mixture, exact: true, members: {a: 1, b: 1}}")[0] == 0


def test_problems_of_the_file_come_one_a_line(run: Check) -> None:
    members, blend = "a: {model: ./a, dtype: fp8}", "mix: {method: mixture, members: {b: 1}}"
    code, out = run(members, blend)
    assert code == 1
    first, second, verdict = out.splitlines()
    assert "blend.yaml:2: members.a.dtype: got 'fp8'; expected one of auto" in first
    assert "blend.yaml:3: blends.mix.members.b: there is no member 'b'" in second
    assert verdict.endswith("2 problems")
    code, report = run(members, blend, as_json=True)
    assert (code, report["ok"], report["errors"]) == (1, False, [first, second])


def test_nothing_is_cut_and_nothing_coloured_in_a_pipe(run: Check) -> None:
    long = "m" + "x" * 39
    _, out = run(
        A.replace("a:", f"{long}:", 1), f"mix: {{method: mixture, members: {{{long}: 1}}}}"
    )
    assert "…" not in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) > 80


def test_blends_by_bytes_are_named_so_and_not_warned_of_their_tokens(run: Check) -> None:
    code, out = run(f"{A}, {C}", "mix: {method: ensemble, unit: byte, members: {a: 1, c: 1}}")
    assert code == 0
    assert "ensemble, mean, by bytes" in out
    assert "2 vocabularies (a; c): each byte is drawn by all" in out
    assert "word reads better" not in out
    code, out = run(f"{A}, {C}", "mix: {method: ensemble, members: {a: 1, c: 1}}")
    assert code == 1
    assert "expected one, or unit: byte, or method mixture" in out


def test_a_split_over_devices_is_checked_and_counted(run: Check) -> None:
    members = "a: {model: ./a, kv_memory: 1MiB, tensor_parallel: 2, resources: {num_cpus: 0.1}}"
    code, split = run(f"{members}, {B}", AB, as_json=True)
    assert code == 0
    assert [split["members"][name]["num_shards"] for name in "ab"] == [2, 1]
    difference = split["members"]["a"]["total_bytes"] - split["members"]["b"]["total_bytes"]
    assert difference == PROCESS_BYTES  # and neither weights nor cache twice
    code, printed = run(f"{members.replace('parallel: 2', 'parallel: 3')}, {B}", AB)
    assert code == 1
    assert "its 4 key-value heads cannot be shared out to 3 devices" in " ".join(printed.split())
