"""Everything a replica knows about its member's text: vocabulary, canonical tokens, template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import Unsupported
from cluster.text.bytewise import ByteVocabulary
from cluster.text.chat import Message, render_prompt
from cluster.text.grammar import Guide, OutputFormat, make_tokenizer
from cluster.text.retokenize import Canonical
from cluster.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class MemberText:
    """A tokenizer with what is derived from it once."""

    def __init__(self, tokenizer: Any, end_ids: int | Sequence[int] | None = None) -> None:
        """`end_ids` end a turn besides the tokenizer's own."""
        self.vocabulary = Vocabulary.load(tokenizer)
        self.canonical = Canonical(tokenizer, self.vocabulary)
        self.token_bytes = self.vocabulary.token_bytes
        self.end_ids = self.vocabulary.end_ids(end_ids)
        self.has_chat_template = bool(tokenizer.chat_template)
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> MemberText:
        """Read a model folder's tokenizer and the ids that end a turn."""
        from transformers import GenerationConfig

        try:
            end_ids = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:  # no generation_config.json
            end_ids = None
        return cls(load_tokenizer(folder), end_ids)

    @cached_property
    def byte_vocabulary(self) -> ByteVocabulary:
        """The tokens in the order of their bytes, sorted when they are first needed."""
        return ByteVocabulary(self.token_bytes, self.end_ids)

    def render(self, text: str | None, messages: Sequence[Message] | None) -> list[int]:
        """The prompt in this member's own tokens."""
        return render_prompt(self._tokenizer, self.canonical, text=text, messages=messages)

    def guide(self, wanted: OutputFormat) -> Guide:
        """What keeps one reply to a format; raises InvalidRequest or Unsupported."""
        return Guide(self._spelling, wanted)

    @cached_property
    def _spelling(self) -> LLTokenizer:
        return make_tokenizer(self.vocabulary, self.end_ids)


def load_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer of a model folder; raises Unsupported."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each tokenizer checks its files in its own way
        message = f"the tokenizer in {folder} cannot be used: {error}"
        raise Unsupported("TOKENIZER_UNUSABLE", message, field="model") from error
