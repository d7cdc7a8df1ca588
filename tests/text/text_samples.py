"""Texts that tokenizers find hard."""

from hypothesis import strategies as st

from tests.text.tokenizer_factory import CONTROLS

HARD = [
    *CONTROLS,
    *["<|im_start", "|>", "<", "s>", "<0x41>", "<0x0A>", "▁", "▁▁", "<<s>s>", "</s></s>"],
    *[" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\u00a0", "\u3000", "\u200b"],
    *["'s", "'t", "'", '"', ".", ",", "...", "!", "?", "(", ")", "--", "_", "#", "[", "]"],
    *["a", "be", "the", " the", "best", "of", "world", "it's", "I", "x1", "2024", "3.14", "½", "Ⅳ"],
    *["é", "e\u0301", "\u0308", "ß", "İ", "ﬁ", "ñ", "Привет", "мир", "Σας", "שלום", "नमस्ते", "ไทย"],
    *[
        "中",
        "文",
        "你好",
        "。",
        "，",
        "、",
        "！",
        "？",
        "日本",
        "テスト",
        "ひ",
        "한국어",
        "\u1112\u1161",
    ],
    *[
        "😀",
        "👩‍👩‍👧",
        "🏳️‍🌈",
        "\u200d",
        "\ufe0f",
        "\ue123",
        "\ufdd0",
        "𠮷",
        "\U000e0041",
        "\x00",
        "\ufffd",
    ],
    *["def f(x):\n    return x", "<b>", "</b>", "if (a && b) {", "http://x.y/?q=1&r=2"],
]

texts = st.lists(st.one_of(st.sampled_from(HARD), st.text(max_size=4)), max_size=14).map("".join)
