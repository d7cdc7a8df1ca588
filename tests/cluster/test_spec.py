"""The blend file: what is accepted, what it becomes, and how every mistake is explained."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import SpecError, Unsupported
from cluster.spec import (
    ClusterSpec,
    MetricsSpec,
    RoutersSpec,
    load_spec,
    parse_mapping,
    parse_size,
    parse_spec,
)

MEMBERS = "members: {a: {model: embedded:x}, b: {model: embedded:y}}\n"
BLENDS = "blends: {mix: {method: mixture, members: {a: 1, b: 3}}}\n"
MINIMAL = "version: 1\n" + MEMBERS + BLENDS


def member(text: str) -> str:
    """A whole file around the fields of its one member."""
    return (
        "version: 1\n"
        f"members: {{a: {{model: org/name, {text}}}}}\n"
        "blends: {mix: {method: mixture, members: {a: 1}}}\n"
    )


def blend(text: str) -> str:
    return f"version: 1\n{MEMBERS}blends: {{mix: {{method: mixture, {text}}}}}\n"


def refusal(text: str, base: Path | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, base, "f.yaml")
    return caught.value.message


def test_the_shortest_file_gets_every_default() -> None:
    spec = parse_spec(MINIMAL)
    a = spec.members["a"]
    assert (a.dtype, a.device, a.replicas, a.kv_memory_bytes) == ("auto", "auto", 1, None)
    assert (spec.serving.host, spec.default_blend) == ("127.0.0.1", "mix")
    assert spec.blends["mix"].span is None


def test_the_demo_file_of_the_package_is_valid() -> None:
    demo = load_spec(Path(__file__).parents[2] / "cluster/models/demo.yaml")
    assert list(demo.blends) == ["demo", "demo-replies", "demo-words", "demo-mean", "demo-bytes"]
    assert demo.default_blend == "demo"
    assert demo.members["austen"].kv_memory_bytes == 64 << 20


def test_weights_become_shares_in_the_files_order() -> None:
    text = MINIMAL.replace("{a: 1, b: 3}", "{b: 3, a: 1}")
    assert list(parse_spec(text).blends["mix"].weights.items()) == [("b", 0.75), ("a", 0.25)]


def test_an_open_span_is_token_for_one_vocabulary_and_word_for_several() -> None:
    mix = parse_spec(MINIMAL).blends["mix"]
    assert mix.span_for(one_vocabulary=True) == "token"
    assert mix.span_for(one_vocabulary=False) == "word"
    fixed = parse_spec(blend("span: 4, members: {a: 1}")).blends["mix"]
    assert fixed.span_for(one_vocabulary=False) == 4


def test_routers_are_a_number_or_a_range() -> None:
    assert parse_spec(MINIMAL).serving.routers == RoutersSpec(min=1, max=1)
    two = parse_spec(MINIMAL + "serving: {routers: 2}\n")
    assert (two.serving.routers.min, two.serving.routers.max) == (2, 2)
    some = parse_spec(MINIMAL + "serving: {routers: {max: 4, target_generations: 16}}\n")
    assert some.serving.routers == RoutersSpec(max=4, target_generations=16)
    for spec in (two, some):
        assert ClusterSpec.model_validate(spec.to_mapping()) == spec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0", "serving.routers: got 0; expected a whole number of at least 1, or a range"),
        ("{min: 3, max: 2}", "serving.routers.max: got 2; expected at least min, which is 3"),
        ("{most: 2}", "serving.routers.most: unknown key; expected one of"),
        ("two", "serving.routers: got 'two'; expected router replicas: a whole number"),
        ("{resources: {num_gpus: 1}}", "expected num_gpus: 0, since routers compute nothing"),
    ],
)
def test_wrong_routers_are_explained(given: str, said: str) -> None:
    assert said in refusal(MINIMAL + f"serving: {{routers: {given}}}\n")


def test_only_a_member_that_may_sleep_is_waited_for() -> None:
    def wake_s(fields: str) -> float | None:
        return parse_spec(member(fields)).members["a"].wake_s

    assert wake_s("replicas: 2") is None
    assert wake_s("autoscaling: {max_replicas: 2}") is None
    assert wake_s("autoscaling: {min_replicas: 0, max_replicas: 2}") == 180
    sleeper = "autoscaling: {min_replicas: 0, max_replicas: 2, wake_timeout_s: 20}"
    assert wake_s(sleeper) == 20
    spec = parse_spec(member(sleeper))
    assert ClusterSpec.model_validate(spec.to_mapping()) == spec


def test_a_spec_survives_mapping_yaml_and_pickle() -> None:
    spec = parse_spec(member("kv_memory: 1.5GiB, revision: main, autoscaling: {max_replicas: 3}"))
    mapping = spec.to_mapping()
    assert ClusterSpec.model_validate(mapping) == spec
    assert parse_mapping(mapping) == spec
    assert parse_spec(yaml.safe_dump(mapping, sort_keys=False)) == spec
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert hash(copy) == hash(spec)


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec(MINIMAL)
    with pytest.raises(ValidationError):
        spec.version = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        spec.members["c"] = spec.members["a"]  # type: ignore[index]


def test_relative_folders_start_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "blend.yaml"
    path.write_text(MINIMAL.replace("embedded:x", "../weights").replace("embedded:y", "./own"))
    spec = load_spec(path)
    assert spec.members["a"].model == str(tmp_path / "weights")
    assert spec.members["b"].model == str(tmp_path / "sub" / "own")
    assert (
        load_spec(path).to_mapping() == ClusterSpec.model_validate(spec.to_mapping()).to_mapping()
    )


def test_relative_folders_without_a_file_are_refused() -> None:
    assert "expected an absolute folder" in refusal(MINIMAL.replace("embedded:x", "./weights"))


def test_all_problems_are_reported_at_once_each_with_its_line() -> None:
    message = refusal(
        "version: 1\n"
        "members:\n"
        "  austen:\n"
        "    model: embedded:tiny-austen\n"
        "    dtype: fp8\n"
        "    devise: cuda\n"
        "blends:\n"
        "  demo:\n"
        "    method: mixture\n"
        "    members: {austin: 1}\n"
        "serving: {host: 0.0.0.0}\n"
    )
    lines = message.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("f.yaml:5: members.austen.dtype: got 'fp8'; expected one of auto")
    assert lines[1].startswith("f.yaml:6: members.austen.devise: unknown key; expected one of")
    assert lines[1].endswith("did you mean device?")
    assert lines[2].startswith("f.yaml:10: blends.demo.members.austin: there is no member 'austin'")
    assert lines[2].endswith("did you mean austen?")
    assert lines[3].startswith("f.yaml:11: serving.host: got '0.0.0.0'; expected a loopback")
    assert "auth: {keys: …}" in lines[3]


def test_the_error_carries_field_and_line_of_the_first_problem() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(MINIMAL + "limits: {max_new_tokens: 0}\n")
    error = caught.value
    assert (error.reason, error.field, error.line) == ("SPEC_INVALID", "limits.max_new_tokens", 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("kv_memory: 12 parsecs", "got '12 parsecs'; expected a size such as 256MiB"),
        ("kv_memory: 1GiB, kv_share: 0.5", "expected either kv_memory or kv_share, not both"),
        ("kv_share: 0", "got 0; expected instead of kv_memory, a share"),
        ("kv_dtype: int8", "got 'int8'; expected how keys and values are cached: auto"),
        ("kv_memory: 256", "got 256; expected a size"),
        ("max_context: '12'", "got '12', which is text (write it without quotes)"),
        ("revision: no", "got no, which YAML reads as true or false (put it in quotes"),
        ("revision: 1234", "got 1234, which YAML reads as a number (put it in quotes"),
        ("replicas: 2, autoscaling: {max_replicas: 2}", "either replicas or autoscaling, not both"),
        ("autoscaling: {min_replicas: 3, max_replicas: 2}", "at least min_replicas, which is 3"),
        ("autoscaling: {min_replicas: -1, max_replicas: 2}", "got -1; expected a whole number"),
        ("autoscaling: {max_replicas: 2, by: load}", "got 'load'; expected one of pressure"),
        ("autoscaling: {max_replicas: 2, target_leases: 0}", "got 0; expected leases per replica"),
        ("autoscaling: {max_replicas: 2, wake_timeout_s: 9}", "only with min_replicas: 0"),
        ("replicas: 0", "got 0; expected a whole number of at least 1"),
        ("replicas: true", "expected a whole number"),
        ("device: cuda", "expected num_gpus above 0 with device: cuda"),
        ("device: cpu, resources: {num_gpus: 1}", "expected num_gpus: 0 with device: cpu"),
        ("cuda_graphs: false", "expected num_gpus above 0 and up to 1 with cuda_graphs"),
        (
            "resources: {num_gpus: 2}, cuda_graphs: true",
            "expected num_gpus above 0 and up to 1 with cuda_graphs",
        ),
        ("cuda_graphs: auto", "got 'auto'; expected whether short passes on its GPU"),
        ("resources: {num_gpus: 1.5}", "a share of one GPU between 0 and 1, or a whole number"),
        ("resources: {num_gpus: 2}, tensor_parallel: 3", "expected num_gpus: 3 with it"),
        ("resources: {accelerator_type: L4}", "expected num_gpus above 0 with accelerator_type"),
        ("resources: {custom: {GPU: 1}}", "expected no GPU: num_gpus says that"),
        ("resources: {custom: {disk: 0}}", "expected amounts above 0"),
        ("resources: {max_per_node: 0}", "got 0; expected replicas of it on one node at most"),
        ("resources: {num_cpus: 1e-3}", "before an e, it wants a dot: 1.0e-3"),
    ],
)
def test_a_wrong_member_field_is_explained(fields: str, said: str) -> None:
    assert said in refusal(member(fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("members: {a: 0, b: 0}", "expected weights with a finite sum above 0"),
        ("members: {a: -1}", "got -1; expected weights of at least 0"),
        ("members: {a: .nan}", "expected weights of at least 0"),
        ("members: {a: .inf}", "expected weights of at least 0"),
        ("members: {}", "expected at least one member"),
        ("members: {a: 1}, span: 0", "got 0; expected one of token, word, sentence, response, or"),
        ("members: {a: 1}, span: off", "got off, which YAML reads as true or false"),
        ("members: {a: 1}, sampling: {top_p: 0}", "got 0; expected a number above 0"),
        ("span: token", "blends.mix.members: missing; expected weights"),
    ],
)
def test_a_wrong_blend_field_is_explained(fields: str, said: str) -> None:
    assert said in refusal(blend(fields))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt2", "got 'gpt2'; expected embedded:NAME"),
        ("embedded:../x", "expected a plain name after embedded:"),
        ("a/b/c", "expected embedded:NAME"),
        ("", "expected embedded:NAME"),
    ],
)
def test_a_model_of_no_known_kind_is_explained(model: str, said: str) -> None:
    assert said in refusal(MINIMAL.replace("embedded:x", repr(model)))


def test_a_revision_is_refused_for_anything_but_a_hub_repository() -> None:
    text = MINIMAL.replace("embedded:x", "embedded:x, revision: main")
    assert "only hub repositories have one, not embedded:x" in refusal(text)


@pytest.mark.parametrize("name", ["Big", "1st", "a_b", "tail-", "x" * 41])
def test_names_that_are_no_dns_labels_are_refused(name: str) -> None:
    assert "expected a name of at most 40" in refusal(MINIMAL.replace("mix:", f'"{name}":'))


@pytest.mark.parametrize(
    ("version", "said"),
    [("", "version: missing; expected 1"), ("version: 2", "got 2"), ("version: '1'", "is text")],
)
def test_only_version_1_is_read(version: str, said: str) -> None:
    assert said in refusal(f"{version}\n{MEMBERS}{BLENDS}")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "'::1'"])
def test_loopback_hosts_are_accepted(host: str) -> None:
    assert parse_spec(f"{MINIMAL}serving: {{host: {host}}}\n").serving.host == host.strip("'")


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "10.0.0.1"])
def test_other_hosts_want_callers_known_and_what_they_say_kept_secret(host: str) -> None:
    def given(more: str) -> str:
        return f"{MINIMAL}serving: {{host: {host}, {more}}}\n"

    pair = "certificate: /c, key: /k"
    assert "wants to know who calls" in refusal(given("port: 1"))
    assert "wants to know who calls" in refusal(given(f"tls: {{{pair}}}"))
    assert "keys in clear text" in refusal(given("auth: {keys: /k}"))
    assert "not both" in refusal(given(f"plaintext: true, tls: {{{pair}}}"))
    for more in (
        f"auth: {{keys: /k}}, tls: {{{pair}}}",
        f"tls: {{{pair}, client_ca: /a}}",
        "auth: {keys: /k}, plaintext: true",
    ):
        assert parse_spec(given(more)).serving.host == host.strip("'")


@pytest.mark.parametrize("host", ["example.org", "''"])
def test_a_host_is_an_address(host: str) -> None:
    assert "expected an IP address" in refusal(f"{MINIMAL}serving: {{host: {host}}}\n")


def test_metrics_are_told_on_loopback_or_to_keys_by_whoever_ends_tls() -> None:
    def given(more: str) -> str:
        return f"{MINIMAL}serving: {{metrics: {{port: 1, host: 0.0.0.0}}{more}}}\n"

    assert parse_spec(f"{MINIMAL}serving: {{metrics: {{}}}}\n").serving.metrics == MetricsSpec()
    assert "keys with the scope metrics" in refusal(given(""))
    assert "metrics have no TLS" in refusal(given(", auth: {keys: /k}"))
    told = parse_spec(given(", auth: {keys: /k}, plaintext: true")).serving.metrics
    assert told == MetricsSpec(host="0.0.0.0", port=1)


def test_keys_and_certificates_lie_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text(f"{MINIMAL}serving: {{auth: {{keys: keys.yaml}}, max_request: 1MiB}}\n")
    serving = load_spec(path).serving
    assert serving.auth is not None
    assert (serving.auth.keys, serving.max_request_bytes) == (str(tmp_path / "keys.yaml"), 1 << 20)


def test_a_default_blend_must_exist() -> None:
    message = refusal(MINIMAL + "serving: {default_blend: mxi}\n")
    assert "there is no blend 'mxi'; expected one of mix; did you mean mix?" in message


def test_doubled_keys_are_refused_with_both_lines() -> None:
    message = refusal("version: 1\nmembers:\n  a: {model: embedded:x}\n  a: {model: embedded:y}\n")
    assert "f.yaml:4: members.a: written twice; the first is on line 3" in message


def test_keys_that_yaml_takes_for_something_else_must_be_quoted() -> None:
    message = refusal(MINIMAL.replace("b: {", "no: {"))
    assert "members.no: YAML reads this key as true or false; put it in quotes" in message
    quoted = MINIMAL.replace("b: {", "'no': {").replace("b: 3", "'no': 3")
    assert "no" in parse_spec(quoted).members


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f.yaml: is empty"),
        ("- 1", "expected a mapping of version, members and blends"),
        ("just text", "expected a mapping of version, members and blends"),
        ("a: [", "f.yaml:1:5: not valid YAML"),
        ("a: 1\n\tb: 2", "f.yaml:2:1: not valid YAML"),
        ("a: *x", "f.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: 1\n---\nb: 1", "but found another document"),
        ("a: 2024-99-99", "a value cannot be read"),
        ("a: \x01", "f.yaml:1:4: not valid YAML: the character 0x1 is not allowed"),
        ("[" * 5000, "nested too deeply"),
        ("? [a]\n: 1", "a key must be text"),
        ("x" * (1 << 20) + "x", "longer than"),
    ],
)
def test_what_is_no_readable_yaml_is_refused_with_its_place(text: str, said: str) -> None:
    assert said in refusal(text)


def test_exploding_aliases_are_refused_quickly_and_briefly() -> None:
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert len(refusal("x0: &x0 [1]\n" + levels)) < 20_000


def test_anchors_and_merges_are_understood() -> None:
    text = (
        "version: 1\n"
        "members:\n"
        "  a: &tiny {model: embedded:x, dtype: float32}\n"
        "  b: {<<: *tiny, model: embedded:y}\n" + BLENDS
    )
    spec = parse_spec(text)
    assert (spec.members["b"].model, spec.members["b"].dtype) == ("embedded:y", "float32")


def test_a_missing_or_binary_file_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_spec(tmp_path / "binary.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)


def test_a_mapping_without_a_file_is_explained_without_lines() -> None:
    with pytest.raises(SpecError) as caught:
        parse_mapping({"version": 1, "members": {}, "blends": {"b": {"method": "mixture"}}})
    assert "<mapping>: blends.b.members: missing" in caught.value.message
    with pytest.raises(ValidationError, match="there is no member 'c'"):
        ClusterSpec.model_validate(
            {
                "version": 1,
                "members": {"a": {"model": "embedded:x"}},
                "blends": {"mix": {"method": "mixture", "members": {"c": 1}}},
            }
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a: 1, b: 3", "a: 1, b: 4"),
        ("a: 1, b: 3", "b: 3, a: 1"),
        ("embedded:x", "embedded:z"),
        ("embedded:x", "embedded:x, dtype: float32"),
        ("embedded:x", "embedded:x, kv_dtype: bfloat16"),
        ("method: mixture", "method: mixture, span: word"),
        ("method: mixture", "method: mixture, sampling: {top_k: 5}"),
    ],
)
def test_whatever_changes_the_text_changes_the_revision(old: str, new: str) -> None:
    before, after = parse_spec(MINIMAL), parse_spec(MINIMAL.replace(old, new))
    assert before.revision_of("mix") != after.revision_of("mix")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a: 1, b: 3", "a: 0.25, b: 0.75"),
        ("embedded:x", "embedded:x, replicas: 4, kv_memory: 1GiB"),
        ("embedded:x", "embedded:x, kv_dtype: auto"),
        ("method: mixture", "method: mixture, description: other words"),
        ("blends: {", "blends: {other: {method: mixture, members: {a: 1}}, "),
    ],
)
def test_scaling_and_wording_leave_the_revision_alone(old: str, new: str) -> None:
    before, after = parse_spec(MINIMAL), parse_spec(MINIMAL.replace(old, new))
    assert before.revision_of("mix") == after.revision_of("mix")


@pytest.mark.parametrize(("dtype", "is_rounded"), [("float32", True), ("bfloat16", False)])
def test_a_cache_in_the_models_own_dtype_is_no_change(dtype: str, is_rounded: bool) -> None:
    """Where the checkpoint's dtype is `auto`, only the checkpoint knows: then it counts."""
    plain = MINIMAL.replace("embedded:x", f"embedded:x, dtype: {dtype}")
    kept = plain.replace(f"dtype: {dtype}", f"dtype: {dtype}, kv_dtype: bfloat16")
    before, after = (parse_spec(text).revision_of("mix") for text in (plain, kept))
    assert (before != after) == is_rounded


def test_revisions_are_the_same_on_every_machine_and_day() -> None:
    assert parse_spec(MINIMAL).revision_of("mix") == "9f8f31575cc5"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("64KiB", 65536), ("256Mi", 268435456), ("1.5GiB", 1610612736), ("2 MB", 2000000), ("7", 7)],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@given(st.text(max_size=80))
def test_any_text_is_either_a_spec_or_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


@given(
    st.lists(st.floats(min_value=0, max_value=1e6, allow_subnormal=False), min_size=1, max_size=9)
    .filter(any)
    .filter(lambda weights: sum(weights) > 1e-300)
)
def test_shares_always_sum_to_one_and_survive_the_round_trip(weights: list[float]) -> None:
    names = [f"m{i}" for i in range(len(weights))]
    spec = ClusterSpec.model_validate(
        {
            "version": 1,
            "members": {name: {"model": "embedded:x"} for name in names},
            "blends": {
                "mix": {"method": "mixture", "members": dict(zip(names, weights, strict=True))}
            },
        }
    )
    assert sum(spec.blends["mix"].weights.values()) == pytest.approx(1)
    again = ClusterSpec.model_validate(spec.to_mapping())
    assert again.revision_of("mix") == spec.revision_of("mix")


def test_importing_the_spec_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, cluster.spec; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_exact_blend_refuses_different_vocabularies_by_name() -> None:
    exact = parse_spec(blend("exact: true, members: {a: 1, b: 1}")).blends["mix"]
    exact.check_vocabularies("mix", {"a": "v", "b": "v"})
    with pytest.raises(Unsupported, match=r"2 vocabularies \(a; b\)") as caught:
        exact.check_vocabularies("mix", {"a": "v", "b": "w"})
    assert caught.value.reason == "VOCABULARY_MISMATCH"
    parse_spec(MINIMAL).blends["mix"].check_vocabularies("mix", {"a": "v", "b": "w"})


THREE = MINIMAL[: MINIMAL.index("blends")].replace("b: {", "c: {model: embedded:z}, b: {")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{members: {a: 1}}", "blends.m.method: missing; expected one of mixture, ensemble"),
        ("{method: ensembel, members: {a: 1}}", "got 'ensembel'; expected one of mixture"),
        ("{method: ensembel, members: {a: 1}}", "did you mean ensemble?"),
        ("{method: ensemble, rule: sum, members: {a: 1}}", "blends.m.rule: got 'sum'"),
        ("{method: ensemble, span: word, members: {a: 1}}", "blends.m.span: unknown key"),
        ("{method: ensemble, candidates: 0, members: {a: 1}}", "blends.m.candidates: got 0"),
        ("{method: ensemble, adapt: {}, members: {a: 1}}", "expected rule: mean and exact: true"),
        ("{method: mixture, span: response, adapt: {}, members: {a: 1}}", "shorter than response"),
        ("{method: mixture, span: response, adapt: {evidence: both}, members: {a: 1}}", "shorter"),
        ("{method: mixture, adapt: {evidence: past}, members: {a: 1}}", "reply, prompt or both"),
        ("{method: mixture, adapt: {floor: 0.6}, members: {a: 1, b: 1}}", "a floor of at most 1/2"),
        ("{method: mixture, adapt: {widow: 3}, members: {a: 1}}", "did you mean window?"),
        (
            "{method: mixture, members: {a: 1, b: 1}, speculate: {draft: c}}",
            "blends.m.speculate: got draft: c; expected one of the blend's members: a, b",
        ),
        (
            "{method: mixture, members: {a: 1, b: 0}, speculate: {draft: a}}",
            "got draft: a; expected another member with a weight, to draft for",
        ),
        (
            "{method: mixture, span: word, members: {a: 1, b: 1}, speculate: {draft: a}}",
            "blends.m.speculate: expected span: token with it",
        ),
        (
            "{method: mixture, adapt: {}, members: {a: 1, b: 1}, speculate: {draft: a}}",
            "blends.m.speculate: expected no adapt with it",
        ),
        (
            "{method: mixture, members: {a: 1, b: 1}, speculate: {draft: a, max_tokens: 0}}",
            "blends.m.speculate.max_tokens: got 0; expected a whole number of tokens from 1 to 64",
        ),
        (
            "{method: ensemble, exact: true, adapt: {}, members: {a: 1, b: 1}, "
            "speculate: {draft: a}}",
            "blends.m.adapt: expected no speculate with it",
        ),
        (
            "{method: ensemble, unit: byte, members: {a: 1, b: 1}, speculate: {draft: a}}",
            "blends.m.speculate: expected unit: token with it",
        ),
        (
            "{method: contrast, members: {a: expert, b: amateur}, speculate: {draft: c}}",
            "got draft: c; expected one of the blend's members: a, b",
        ),
        ("{method: proxy, members: {a: base, b: expert}}", "each of base, expert, anti once"),
        ("{method: proxy, members: {a: base, b: expert, c: tutor}}", "members.c: got 'tutor'"),
        ("{method: proxy, members: {a: base, b: expert, d: anti}}", "there is no member 'd'"),
        ("{method: contrast, members: {a: expert, b: expert}}", "each of expert, amateur once"),
        ("{method: contrast, beta: -1, members: {a: expert, b: amateur}}", "blends.m.beta: got -1"),
        (
            "{method: ensemble, unit: bit, members: {a: 1}}",
            "blends.m.unit: got 'bit'; expected token",
        ),
        (
            "{method: ensemble, unit: byte, exact: true, members: {a: 1}}",
            "m.exact: got true; expected",
        ),
        (
            "{method: ensemble, unit: byte, candidates: 9, members: {a: 1}}",
            "m.candidates: got 9; exp",
        ),
        (
            "{method: ensemble, min_share: 0.1, members: {a: 1}}",
            "got 0.1; expected unit: byte with it",
        ),
        ("{method: ensemble, unit: byte, min_share: 1, members: {a: 1}}", "m.min_share: got 1"),
        ("{method: mixture, unit: byte, members: {a: 1}}", "blends.m.unit: unknown key"),
        ("{method: ensemble, unit: byte, rule: product, adapt: {}, members: {a: 1}}", "rule: mean"),
    ],
)
def test_every_mistake_in_a_method_is_explained(text: str, said: str) -> None:
    assert said in refusal(f"{THREE}blends: {{m: {text}}}\n")


def test_methods_with_roles_have_no_weights_and_survive_a_mapping() -> None:
    text = "{method: proxy, alpha: 0.5, members: {a: base, b: expert, c: anti}}"
    spec = parse_spec(f"{THREE}blends: {{m: {text}}}\n")
    proxy = spec.blends["m"]
    assert dict(proxy.roles) == {"a": "base", "b": "expert", "c": "anti"}
    assert (dict(proxy.weights), proxy.parameters) == ({}, {"alpha": 0.5})
    assert ClusterSpec.model_validate(spec.to_mapping()) == spec
    other = text.replace("b: expert, c: anti", "b: anti, c: expert")
    swapped = parse_spec(f"{THREE}blends: {{m: {other}}}\n")
    assert swapped.revision_of("m") != spec.revision_of("m")


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("{method: ensemble, members: {a: 1, b: 1}}", {"candidates": 256}),
        ("{method: ensemble, unit: byte, members: {a: 1, b: 1}}", {"min_share": 1e-3}),
        (
            "{method: proxy, unit: byte, min_share: 0, members: {a: base, b: expert, c: anti}}",
            {"alpha": 1.0, "min_share": 0.0},
        ),
        (
            "{method: contrast, unit: byte, members: {a: expert, b: amateur}}",
            {"beta": 1.0, "plausibility": 0.1, "min_share": 1e-3},
        ),
        (
            "{method: ensemble, unit: byte, adapt: {}, members: {a: 1}}",
            {"min_share": 1e-3, "adapt.strength": 1.0, "adapt.window": 0, "adapt.floor": 0.01},
        ),
    ],
)
def test_blends_by_bytes_need_no_common_vocabulary_and_survive_a_mapping(
    text: str, parameters: dict[str, float]
) -> None:
    spec = parse_spec(f"{THREE}blends: {{m: {text}}}\n")
    blend = spec.blends["m"]
    assert blend.parameters == parameters
    assert blend.needs_one_vocabulary == ("byte" not in text)
    assert ClusterSpec.model_validate(spec.to_mapping()) == spec


def test_who_drafts_changes_no_text_and_so_no_revision() -> None:
    rule = "method: mixture, members: {a: 1, b: 1}"
    head = f"version: 1\n{MEMBERS}blends:\n"
    plain, ahead = (
        parse_spec(f"{head}  m: {{{rule}{more}}}\n") for more in ("", ", speculate: {draft: a}")
    )
    assert plain.revision_of("m") == ahead.revision_of("m")
    drafts = ahead.blends["m"].speculation
    assert drafts is not None
    assert (drafts.draft, drafts.max_tokens, drafts.always) == ("a", 8, False)
    assert plain.blends["m"].speculation is None


def test_who_drafts_needs_the_vocabulary_of_those_it_drafts_for() -> None:
    spec = parse_spec(
        f"version: 1\n{MEMBERS}blends: {{m: {{method: mixture, members: {{a: 1, b: 1}}, "
        "speculate: {draft: a}}}\n"
    )
    with pytest.raises(Unsupported, match="without exact, adapt or speculate"):
        spec.blends["m"].check_vocabularies("m", {"a": "x", "b": "y"})
