"""Three public-domain styles as plain text: from Debian packages to clean paragraphs.

The sources are Debian packages because they are small, signed and keep their history. Fetch them
once, anywhere, into one folder (no root, nothing is installed):

    apt-get download r-cran-janeaustenr bible-kjv bible-kjv-text dict-devil
    python -m cluster.models.corpus --packages . --out corpus

The result is `austen.txt`, `kjv.txt` and `bierce.txt`: UTF-8, one paragraph (a passage of verses, a
dictionary entry) per block, blocks separated by blank lines. Any three files of that form can be
trained on. `dpkg-deb` must be installed; `bible` is run from its package, so Linux on x86-64 it is.
This module knows nothing of tokens or models.
"""

from __future__ import annotations

import argparse
import gzip
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STYLES = ("austen", "kjv", "bierce")
_PACKAGES = ("r-cran-janeaustenr", "bible-kjv", "bible-kjv-text", "dict-devil")
_NOVELS_IN_FILE = 6  # in alphabetical order: Emma, …, Persuasion, Pride, Sense
_PERSUASION = 3
_PASSAGE_CHARS = 420  # about three verses: the length of one reply
_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--"})
_MARKUP = str.maketrans("", "", "_{}")  # emphasis, and the dictionary's links
_HEADING = re.compile(r"(chapter|volume|finis|the end|end of)\b.{0,40}", re.IGNORECASE)
_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)")


@dataclass(frozen=True)
class Split:
    """One style's paragraphs, cut into three runs that do not overlap, in the order of the text."""

    train: tuple[str, ...]
    validation: tuple[str, ...]  # chooses the checkpoint; never reported
    held_out: tuple[str, ...]  # reported; never trained on, and no checkpoint is chosen by it


def read_paragraphs(path: Path) -> list[str]:
    """The blocks of a corpus file; a line break inside a block (verse) is part of it."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [block.strip("\n") for block in blocks if block.strip()]


def write_paragraphs(path: Path, paragraphs: tuple[str, ...] | list[str]) -> None:
    """The inverse of `read_paragraphs`."""
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def split(paragraphs: list[str], held_out_chars: int = 50_000) -> Split:
    """Hold out the end of the text, and validate on half as much just before it.

    A whole stretch, because neighbouring paragraphs share names and phrases: sampling paragraphs
    at random would leak them into training and flatter every number.
    """
    held_out_from = _start_of_last(paragraphs, held_out_chars)
    validation_from = _start_of_last(paragraphs[:held_out_from], held_out_chars // 2)
    return Split(
        train=tuple(paragraphs[:validation_from]),
        validation=tuple(paragraphs[validation_from:held_out_from]),
        held_out=tuple(paragraphs[held_out_from:]),
    )


def _start_of_last(paragraphs: list[str], num_chars: int) -> int:
    start = len(paragraphs)
    while start > 0 and num_chars > 0:
        start -= 1
        num_chars -= len(paragraphs[start]) + 1
    return start


def clean(text: str) -> str:
    """Straight quotes, no markup, one space where there were several."""
    return re.sub(r"[ \t]+", " ", text.translate(_STRAIGHT).translate(_MARKUP)).strip()


def austen_paragraphs(rdb: bytes) -> list[str]:
    """The six novels, *Persuasion* last so that its end is what `split` holds out."""
    novels = [_unwrap_novel(_r_strings(block)) for block in _r_blocks(rdb)]
    if len(novels) != _NOVELS_IN_FILE:
        raise ValueError(f"expected {_NOVELS_IN_FILE} novels in Rdata.rdb, found {len(novels)}")
    novels.append(novels.pop(_PERSUASION))
    return [paragraph for novel in novels for paragraph in novel]


def _r_blocks(rdb: bytes) -> Iterator[bytes]:
    """An R lazy-load database: each block is its unpacked length (4 bytes), then zlib data."""
    offset = 0
    while offset < len(rdb):
        unpacker = zlib.decompressobj()
        yield unpacker.decompress(rdb[offset + 4 :])
        offset = len(rdb) - len(unpacker.unused_data)


def _r_strings(block: bytes) -> list[str]:
    """R's serialised character vector (format 3, XDR), the one shape that this package uses."""
    (encoding_chars,) = struct.unpack_from(">i", block, 14)
    offset = 18 + encoding_chars
    kind, num_strings = struct.unpack_from(">ii", block, offset)
    if not block.startswith(b"X\n") or kind & 0xFF != 16:
        raise ValueError("not a serialised R character vector")
    offset += 8
    strings = []
    for _ in range(num_strings):
        (num_bytes,) = struct.unpack_from(">i", block, offset + 4)
        offset += 8
        strings.append(block[offset : offset + num_bytes].decode("utf-8"))
        offset += num_bytes
    return strings


def _unwrap_novel(lines: list[str]) -> list[str]:
    """Join the lines of each paragraph; drop the title page and the chapter headings."""
    blocks = "\n".join(line.rstrip() for line in lines).split("\n\n")
    paragraphs = [clean(block.replace("\n", " ")) for block in blocks]
    first = next(i for i, text in enumerate(paragraphs) if _HEADING.fullmatch(text))
    has_letters = re.compile("[A-Za-z]").search
    return [
        text for text in paragraphs[first:] if has_letters(text) and not _HEADING.fullmatch(text)
    ]


def kjv_paragraphs(verses: str) -> list[str]:
    """Passages of a few verses, never across a chapter; numbers dropped, as in read-aloud text."""
    passages: list[str] = []
    place = None
    for line in verses.splitlines():
        match = _VERSE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a verse: {line[:60]!r}")
        book, chapter, verse = match.groups()
        if place == (book, chapter) and len(passages[-1]) + len(verse) < _PASSAGE_CHARS:
            passages[-1] += " " + clean(verse)
        else:
            passages.append(clean(verse))
        place = (book, chapter)
    return passages


def bierce_paragraphs(dictionary: bytes, index: str) -> list[str]:
    """One entry per paragraph: prose unwrapped, poems with their line breaks, in book order."""
    spans = set()
    for line in index.splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00database"):
            spans.add((_dict_number(start), _dict_number(length)))
    entries = (dictionary[start : start + size].decode("utf-8") for start, size in sorted(spans))
    cleaned = (_unwrap_entry(entry) for entry in entries)
    return [entry for entry in cleaned if any(letter.islower() for letter in entry)]


def _dict_number(digits: str) -> int:
    """The dictd index writes numbers in base 64, most significant digit first."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    number = 0
    for digit in digits:
        number = number * 64 + alphabet.index(digit)
    return number


def _unwrap_entry(entry: str) -> str:
    """Indented lines are verse (and its author's name) and stay lines; the others are prose."""
    out: list[str] = []
    in_prose = False
    for line in entry.splitlines():
        text = clean(line)
        if not text:
            in_prose = False
            continue
        is_prose = not line.startswith(" ")
        if is_prose and in_prose:
            out[-1] += " " + text
        else:
            out.append(text)
        in_prose = is_prose
    return "\n".join(out)


def extract(packages: Path, out: Path) -> None:
    """Write the three corpus files from a folder that holds the .deb files."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in _PACKAGES:
            deb = next(packages.glob(f"{name}_*.deb"), None)
            if deb is None:
                raise FileNotFoundError(f"no {name}_*.deb in {packages}: apt-get download {name}")
            subprocess.run(["dpkg-deb", "-x", str(deb), scratch], check=True)
        rdb = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
        write_paragraphs(out / "austen.txt", austen_paragraphs(rdb.read_bytes()))
        verses = subprocess.run(
            [root / "usr/bin/bible", "-f", "gen1:1-rev22:21"],
            cwd=root / "usr/lib",  # where it looks for its data first
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        write_paragraphs(out / "kjv.txt", kjv_paragraphs(verses))
        dictd = root / "usr/share/dictd"
        dictionary = gzip.decompress((dictd / "devil.dict.dz").read_bytes())
        index = (dictd / "devil.index").read_text(encoding="utf-8")
        write_paragraphs(out / "bierce.txt", bierce_paragraphs(dictionary, index))


def main() -> None:
    """Command line: `.deb` files in, corpus files out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help="folder with the .deb files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .txt files")
    arguments = parser.parse_args()
    extract(arguments.packages, arguments.out)


if __name__ == "__main__":
    main()
