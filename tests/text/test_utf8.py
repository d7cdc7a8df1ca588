from hypothesis import given
from hypothesis import strategies as st

from cluster.text.utf8 import Utf8Stream, is_complete

# whole characters, cut ones, and bytes that are never right, all mixed
pieces = st.one_of(
    st.text(max_size=5).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from([b"\xf0\x9f", b"\xe4\xbd", b"\xc3", b"\xed\xa0\x80", b"\xf5", b"\x80"]),
)


@given(st.lists(pieces))
def test_chunks_give_what_one_decode_of_the_whole_gives(chunks: list[bytes]) -> None:
    stream = Utf8Stream()
    text = "".join(stream.push(chunk) for chunk in chunks)
    assert text + stream.flush() == b"".join(chunks).decode("utf-8", "replace")
    assert stream.pending == b""


@given(st.text(), st.integers(1, 3))
def test_a_character_comes_out_only_when_it_is_whole(text: str, size: int) -> None:
    data = text.encode()
    stream = Utf8Stream()
    out = ""
    for start in range(0, len(data), size):
        out += stream.push(data[start : start + size])
        done = data[: start + size]
        assert out == done.decode("utf-8", "ignore")
        assert stream.pending == done[len(out.encode()) :]
        assert is_complete(done) == (not stream.pending)


@given(st.lists(pieces).map(b"".join))
def test_only_a_cut_end_makes_bytes_incomplete(data: bytes) -> None:
    stream = Utf8Stream()
    stream.push(data)
    assert is_complete(data) == (stream.pending == b"")


def test_flush_says_that_a_character_was_cut_short() -> None:
    stream = Utf8Stream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push("é".encode()) == "é"
