import pytest

from cluster.text.borders import Border, starts_span

# before, token, begins a word, begins a sentence
TABLE = [
    # white space belongs to what it precedes
    ("Hello", " world", True, False),
    ("Hello", "world", False, False),
    ("Hello ", "world", False, False),
    ("Hello ", " world", False, False),
    ("Hello", "\tworld", True, False),
    ("Hello", ",", False, False),
    ("Hello", "'s", False, False),
    ("Hello", " ", True, False),
    # nothing before: the first span needs no border
    ("", " Hello", False, False),
    ("", "\n", False, False),
    ("Hello", "", False, False),
    # sentences
    ("Done.", " Next", True, True),
    ("Done!", " Next", True, True),
    ("Done?", "  Next", True, True),
    ("Wait…", " what", True, True),
    ('He said "No."', " Then", True, True),
    ("(It ended.)", " Then", True, True),
    ("**Done.**", " Then", True, True),
    ("Done,", " next", True, False),
    ("Done.", "Next", False, False),
    ("Done. ", "Next", False, False),
    ("Done. ", " Next", False, False),
    ("3.", "14", False, False),
    ("Dr.", " Who", True, True),  # abbreviations count
    ("etc.", ")", False, False),
    ("कहा।", " फिर", True, True),
    # newlines
    ("Title", "\n", True, True),
    ("Title", "\n\nText", True, True),
    ("Title", " \nText", True, True),
    ("Title ", "\nText", False, True),
    ("Title\n", "\nText", False, False),
    ("Title\n", "Text", False, False),
    ("Title\n", "  indented", False, False),
    ("Done. ", "\nText", False, False),  # the space began it
    ("\n", " a", False, False),
    # Chinese and Japanese: each character is a word
    ("你", "好", True, False),
    ("你好", "，", False, False),
    ("你好，", "世界", True, False),
    ("你好。", "世界", True, True),
    ("你好！", "」", False, False),
    ("「你好。」", "他", True, True),
    ("你好。", "！", False, False),
    ("他说", "「", True, False),
    ("他说「", "你", False, False),
    ("用", "GPU", True, False),
    ("GPU", "用", True, False),
    ("テ", "スト", True, False),
    ("ラ", "ーメン", False, False),  # the lengthening mark goes with what it lengthens
    ("き", "ゃ", False, False),
    ("時", "々", False, False),
    ("か", "\u3099", False, False),
    ("你 ", "好", False, False),
    ("𠮷", "野", True, False),
    # Hangul by spaces; Thai whole runs
    ("한국", "어", False, False),
    ("한국어", " 문장", True, False),
    ("สวัส", "ดี", False, False),
    # marks and emoji join what they follow
    ("e", "\u0301", False, False),
    ("👩", "\u200d👧", False, False),
    ("好", "😀", True, False),
]


@pytest.mark.parametrize(("before", "token", "word", "sentence"), TABLE)
def test_borders(before: str, token: str, word: bool, sentence: bool) -> None:
    assert starts_span(Border.WORD, before, token) == word
    assert starts_span(Border.SENTENCE, before, token) == sentence
    assert not starts_span(Border.NONE, before, token)


@pytest.mark.parametrize(("before", "token", "word", "sentence"), TABLE)
def test_only_the_end_of_the_text_before_matters(
    before: str, token: str, word: bool, sentence: bool
) -> None:
    if before:
        assert starts_span(Border.WORD, "x" * 500 + before, token) == word
