"""What a whole reply has to match, and which tokens may come next so that it can.

A mask is a function of the reply's ids so far and of nothing else, so a reply may be cut back, or
go on at another replica. Every spelling counts: an id is allowed if and only if its bytes go on
with the text, whatever a tokenizer would have made of that text (the grammar library would rather
force one spelling; that is switched off, since it would change the members' law).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import CuveeError, InternalError, InvalidRequest, Unsupported
from cluster.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_FORMAT_BYTES = 64 * 1024

# Between the parts of JSON. Small models that may go on with white space are apt to do so for ever.
_JSON_SPACE = " ?"
_EXPECTED = {
    "json_schema": "a JSON schema, which is an object,",
    "regex": "a regular expression in the syntax of Rust's regex crate",
}
_FROM_LIBRARY = re.compile(r"^at \d+\(\d+\): |\n +1 \| .*|\n<non-verbose/>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the whole reply has to match."""

    kind: Literal["json_schema", "regex"]
    text: str

    def __post_init__(self) -> None:
        """Refuse what can be refused without the grammar library."""
        if not self.text:
            raise self.refuse("got no text")
        if (size := len(self.text.encode())) > MAX_FORMAT_BYTES:
            raise self.refuse(f"got {size} bytes")
        if self.kind == "json_schema":
            self.schema()

    @property
    def field(self) -> str:
        """The request's field that has it."""
        return f"format.{self.kind}"

    def schema(self) -> dict[str, Any]:
        """The JSON schema; raises InvalidRequest."""
        try:
            schema = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise self.refuse(f"got no valid JSON: {error}") from None
        if not isinstance(schema, dict):
            raise self.refuse("got JSON that is no object")
        if "x-guidance" in schema:  # the grammar library's own options
            raise self.refuse("got the keyword x-guidance, which has no meaning here")
        return schema

    def refuse(self, problem: str) -> InvalidRequest:
        """What to raise where it is wrong."""
        message = f"{problem}; expected {_EXPECTED[self.kind]} of at most {MAX_FORMAT_BYTES} bytes"
        return InvalidRequest("INVALID_FORMAT", message, field=self.field)


class Guide:
    """Follows one reply. Belongs to one thread at a time."""

    def __init__(self, tokenizer: LLTokenizer, wanted: OutputFormat) -> None:
        """Raises InvalidRequest for what is wrong, Unsupported if no token can even begin it."""
        self._format = wanted
        self._matcher = _compile(tokenizer, wanted)
        self._ids: list[int] = []  # what the matcher has read
        self.allowed([])

    def allowed(self, ids: list[int]) -> bytes:
        """What may follow these ids of the reply: one bit per id, lowest bit first.

        Ends of turn are allowed where the reply may be over. Raises Unsupported where nothing is.
        """
        matcher = self._matcher
        num_read = len(self._ids)
        if ids[:num_read] != self._ids:
            matcher.reset()
            num_read = 0
        matcher.consume_tokens(ids[num_read:])
        self._ids = ids
        mask = matcher.compute_bitmask()  # after an error, of the ends of turn
        if matcher.is_error():
            raise self._stuck()
        return mask

    def _stuck(self) -> CuveeError:
        """Why nothing may follow, not even an end."""
        field, error = self._format.field, _plain(self._matcher.get_error())
        if "doesn't satisfy the grammar" in error:
            return InternalError("FORMAT_LEFT", f"the reply is not in its format: {error}")
        if error == "NoExtensionBias":
            message = "no token of this member goes on as the format demands"
            return Unsupported("FORMAT_DEAD_END", message, field=field)
        message = f"this format is too hard to follow: {error}"
        return Unsupported("FORMAT_TOO_COMPLEX", message, field=field)


def make_tokenizer(vocabulary: Vocabulary, end_ids: Sequence[int]) -> LLTokenizer:
    """A vocabulary as the grammar library wants it; control tokens are no text in it."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if not end_ids:
        message = "no token ends a turn of this member, so no reply could be complete"
        raise Unsupported("NO_END_OF_TURN", message, field="format")
    return LLTokenizer(TokenizerWrapper(_Spelling(vocabulary, end_ids)), eos_token=list(end_ids))


class _Spelling:
    """What the library asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end_ids: Sequence[int]) -> None:
        controls = vocabulary.special.union(end_ids)
        self.eos_token_id = end_ids[0]
        self.special_token_ids = sorted(controls)
        self.tokens = [
            b"" if i in controls else data for i, data in enumerate(vocabulary.token_bytes)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("text is tokenized only to force a spelling, which is off")


def _compile(tokenizer: LLTokenizer, wanted: OutputFormat) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits, regex_to_lark

    if wanted.kind == "json_schema":
        options = {"whitespace_pattern": _JSON_SPACE, "lenient": False}
        start = "%json " + json.dumps(wanted.schema() | {"x-guidance": options})
    elif re.search(r"(?<!\\)(\\\\)*\\\Z", wanted.text):  # what follows would take it for its own
        raise wanted.refuse("got an expression that ends within an escape")
    else:
        start = "/" + regex_to_lark(wanted.text, use_ascii="") + "/"
    grammar = LLMatcher.grammar_from_lark('%llguidance {"no_forcing": true}\nstart: ' + start)
    matcher = LLMatcher(
        tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False)
    )
    problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
    if problems:
        raise wanted.refuse(_plain("; ".join(problems)))
    return matcher


def _plain(error: str) -> str:
    """The library's words without its view of the grammar; long ones without their middle."""
    words = _FROM_LIBRARY.sub("", error).strip()
    return words if len(words) <= 400 else f"{words[:100]} … {words[-300:].lstrip()}"
