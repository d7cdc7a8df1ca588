"""Everything a replica knows about its member's text: vocabulary, canonical tokens, template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.text.chat import Message, render_prompt
from cluster.text.retokenize import Canonical
from cluster.text.vocabulary import Vocabulary


class MemberText:
    """A tokenizer with what is derived from it once."""

    def __init__(self, tokenizer: Any, end_ids: tuple[int, ...], num_model_ids: int) -> None:
        self.vocabulary = Vocabulary.load(tokenizer)
        self.canonical = Canonical(tokenizer, self.vocabulary)
        # Embeddings are often padded; an id that no token has spells nothing.
        spelled = list(self.vocabulary.token_bytes)
        self.token_bytes: Sequence[bytes] = spelled + [b""] * (num_model_ids - len(spelled))
        self.end_ids = end_ids
        self.has_chat_template = bool(tokenizer.chat_template)
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, num_model_ids: int) -> MemberText:
        """Read a model folder's tokenizer and the ids that end a turn."""
        from transformers import AutoTokenizer, GenerationConfig

        tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            given = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:  # no generation_config.json
            given = None
        ends = given if isinstance(given, list) else [given]
        ids = {id for id in [*ends, tokenizer.eos_token_id] if id is not None}
        return cls(tokenizer, tuple(sorted(ids)), num_model_ids)

    def render(self, text: str | None, messages: Sequence[Message] | None) -> list[int]:
        """The prompt in this member's own tokens."""
        return render_prompt(self._tokenizer, self.canonical, text=text, messages=messages)
