"""A replica made from a member's spec: a model folder as people find them."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.engine.types import SamplingParams
from cluster.members.base import Draw, Step
from cluster.members.build import build_replica
from cluster.spec import MemberSpec
from cluster.text.member import MemberText
from tests.engine.factories import make_model
from tests.members.factories import member_text, run, seated, start_of, stopping
from tests.text.tokenizer_factory import MAKES


def save_member(folder: Path, *, num_rows: int) -> MemberSpec:
    """A random model whose embedding has so many rows, and a tokenizer of 578 ids."""
    make_model("llama", vocab_size=num_rows).save_pretrained(folder)
    MAKES["gpt2"]().save_pretrained(folder)
    return MemberSpec.model_validate(
        {"model": str(folder), "dtype": "float32", "kv_memory": "1MiB"}
    )


async def test_a_padded_model_draws_nothing_but_tokens(tmp_path: Path) -> None:
    num_ids = member_text("gpt2").vocabulary.size
    replica = await build_replica("padded", save_member(tmp_path, num_rows=2 * num_ids))
    start = start_of(sampling=SamplingParams(temperature=1.5), num_top=20, end_allowed_from=1000)
    with stopping(replica):
        async with seated(replica, start) as seat:
            said = await run(seat, Step(0, Draw(0, 150)))
    ids = [*said.ids, *(candidate.id for token in said.tokens for candidate in token.top)]
    assert max(ids) < num_ids
    assert replica.info.vocabulary == member_text("gpt2").vocabulary.fingerprint


def test_the_turn_ends_with_any_of_the_configured_ids_that_are_tokens(tmp_path: Path) -> None:
    save_member(tmp_path, num_rows=600)
    own = member_text("gpt2").end_ids
    config = tmp_path / "generation_config.json"
    for given, expected in [(5, (*own, 5)), ([6, 4, 599], (*own, 4, 6)), (None, own)]:
        config.write_text(json.dumps({"eos_token_id": given}))
        assert MemberText.load(tmp_path).end_ids == expected
    config.unlink()
    assert MemberText.load(tmp_path).end_ids == own
