"""What members cannot do together is refused before it costs anything. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.blending.adaptive import AdaptiveMean
from cluster.blending.base import Method, Together
from cluster.errors import Unavailable, Unsupported
from cluster.members.base import Form, MemberInfo, Prompt
from cluster.router.blends import ServedBlend, form_of
from cluster.router.resumption import Resumption


def check_format_holds(
    method: Method | Together, infos: list[MemberInfo], *, by_bytes: bool
) -> None:
    """Refuse a format that the members cannot keep to alike."""
    if by_bytes:
        raise Unsupported(
            "FORMAT_NEEDS_TOKENS",
            "got a format for a blend by bytes; expected one by tokens, or one member pinned with "
            "overrides.member",
            field="format",
        )
    if form_of(infos) is Form.TEXT:
        names = ", ".join(info.member for info in infos)
        raise Unsupported(
            "FORMAT_NEEDS_ONE_VOCABULARY",
            f"got a format for {names}, whose vocabularies differ; expected members of one "
            "vocabulary, or one member pinned with overrides.member",
            field="format",
        )
    if isinstance(method, Together) and isinstance(method.rule, AdaptiveMean):
        raise Unsupported(
            "FORMAT_HIDES_EVIDENCE",
            "got a format for a mean with adapt; expected a mixture with adapt, or a mean without: "
            "its weights follow the models' own likelihoods, which a format masks",
            field="format",
        )


def check_prompt_is_shared(digests: Mapping[str, int], prompt: Prompt) -> None:
    """Refuse to weigh members by a prompt that is not the same tokens for all of them.

    Likelihoods compare members only as far as they are of one text. Of two chat templates, one is
    merely longer or more usual than the other, which says nothing about what the user wrote.
    """
    if len(set(digests.values())) > 1:
        raise Unsupported(
            "PROMPTS_DIFFER",
            f"members {', '.join(digests)} read different tokens where this prompt is, so their "
            "likelihoods of it do not compare; expected members that render prompts alike, or a "
            "blend with adapt.evidence: reply",
            field="prompt" if prompt.messages is None else "chat",
        )


def check_revision(blend: ServedBlend, resumption: Resumption) -> None:
    """Refuse to go on with a reply under another blend than it began with, unless that is asked."""
    if resumption.revision and resumption.revision != blend.revision:
        raise Unsupported(
            "REVISION_CHANGED",
            f"got {resumption.revision!r}, and blend {blend.name!r} has become {blend.revision!r}; "
            "expected the same, or none to go on under what the blend is now",
            field="resumption.blend_revision",
        )


def check_same_member(known: MemberInfo, leased: MemberInfo) -> None:
    """Refuse a replica whose token ids mean something else than those of the plan."""
    if leased.vocabulary != known.vocabulary:
        raise Unavailable(
            "MEMBER_CHANGED", f"member {known.member!r} has become {leased.model}; try again"
        )


def check_prompt_renders(prompt: Prompt, infos: list[MemberInfo]) -> None:
    """Refuse a chat that a member has no template for, before anything is leased."""
    if prompt.messages is None:
        return
    for info in infos:
        if not info.has_chat_template:
            raise Unsupported(
                "NO_CHAT_TEMPLATE",
                f"member {info.member!r} has no chat template; send a prompt instead",
                field="chat",
            )
