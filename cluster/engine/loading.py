"""From a folder with a model to an engine: load it, learn its shape, check it, size its pool."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from cluster.engine.base import Runner, vocab_size_of
from cluster.engine.cached import CachedRunner
from cluster.engine.check import check_runner, make_sequences, num_check_pages, plain_logits
from cluster.engine.engine import Engine
from cluster.engine.fused import FusedDecoder
from cluster.engine.runner import PagedRunner, use_paged_attention
from cluster.engine.shards import Loading
from cluster.engine.split import share_of, split_runner
from cluster.errors import InvalidRequest, NotFound, Unsupported

_PAGE_SIZE = {"cpu": 16, "cuda": 256}  # the flash kernel's paged keys want multiples of 256
_NUM_CHECK_TOKENS = {"cpu": 40, "cuda": 600}
_MAX_BATCH_TOKENS = {"cpu": 128, "cuda": 4096}  # how long a prefill's chunk may hold up the others
_MAX_POOL_TOKENS = 1 << 20  # unless memory is asked for
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CACHE_LINE_BYTES = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_UNKNOWN_CONTEXT = 1 << 15  # where the configuration states no limit


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model, and what it should answer."""

    model: PreTrainedModel
    attention: str  # the model's own implementation
    max_context: int
    sequences: list[list[int]]
    expected: list[Tensor]  # logits of the sequences


def load_engine(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    kv_memory_bytes: int | None = None,
    max_context: int | None = None,
    num_threads: int | None = None,
    page_size: int | None = None,
    max_batch_tokens: int | None = None,
    num_ids: int | None = None,
    num_shards: int = 1,
    on_lost: Callable[[], None] = lambda: None,
) -> Engine:
    """An engine for the model in a local folder: configuration and safetensors, nothing else.

    `num_ids` is how many ids the tokenizer knows; without it, all that the model can read. With
    `num_shards` above 1, the model and `kv_memory_bytes` are split over so many devices, and
    `on_lost` is called when one of them fails, on any thread.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    place = find_device(device)
    if place.type == "cpu":
        _keep_freed_memory()
    runner: Runner
    if num_shards > 1:
        loading = Loading(
            folder=folder,
            dtype=dtype,
            device=place.type,
            kv_memory_bytes=share_of(kv_memory_bytes, num_shards),
            max_context=max_context,
            num_threads=num_threads,
            page_size=page_size,
        )
        runner = split_runner(loading, num_shards, load_shard, on_lost)
    else:
        runner = load_runner(
            folder,
            dtype=dtype,
            device=place,
            kv_memory_bytes=kv_memory_bytes,
            max_context=max_context,
            page_size=page_size,
        )
    return Engine(
        runner,
        num_ids=num_ids,
        max_batch_tokens=max_batch_tokens or _MAX_BATCH_TOKENS[place.type],
    )


def load_shard(loading: Loading, device: torch.device, num_shards: int) -> Runner:
    """This process's part of a split model; all shards load at the same time."""
    return load_runner(
        loading.folder,
        dtype=loading.dtype,
        device=device,
        kv_memory_bytes=loading.kv_memory_bytes,
        max_context=loading.max_context,
        page_size=loading.page_size,
        num_shards=num_shards,
    )


def load_runner(
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    kv_memory_bytes: int | None,
    max_context: int | None,
    page_size: int | None,
    num_shards: int = 1,
) -> Runner:
    """The fastest runner that gives this model's own logits; refuses a model that none fits.

    With `num_shards` above 1 this process loads its part, and the others must do so as well.
    """
    loaded = _load(folder, dtype, device, max_context, num_shards)
    size = page_size or _PAGE_SIZE[device.type]

    def paged(*, varlen: bool, fused: bool) -> Callable[[], Runner]:
        return lambda: _paged_runner(loaded, size, kv_memory_bytes, varlen=varlen, fused=fused)

    attempts: dict[str, Callable[[], Runner]] = {}
    for varlen in (True, False) if device.type == "cuda" else (False,):
        how = "flash" if varlen else "paged attention"
        if num_shards == 1:  # matrices of several parts are not joined
            attempts[f"fused, {how}"] = paged(varlen=varlen, fused=True)
        attempts[how] = paged(varlen=varlen, fused=False)
    if num_shards == 1:  # what a model caches by itself is not known to be split
        attempts["its own cache"] = lambda: _cached_runner(loaded, kv_memory_bytes)
    reasons = []
    for name, attempt in attempts.items():
        try:
            return attempt()
        except (InvalidRequest, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # model code meets what it was not made for: anything goes
            reasons.append(f"{name}: {type(problem).__name__}: {problem}")
    kind = loaded.model.config.model_type
    raise Unsupported("ARCHITECTURE", f"{kind} models cannot be served ({'; '.join(reasons)})")


def _paged_runner(
    loaded: _Loaded, page_size: int, kv_memory_bytes: int | None, *, varlen: bool, fused: bool
) -> PagedRunner:
    """A runner over pages, checked in a small pool before the real one is made."""
    model, device = loaded.model, loaded.model.device
    config = model.config.get_text_config()
    chunk = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()) and chunk:
        raise Unsupported("ATTENTION_NOT_PAGED", "chunked attention")
    shape = use_paged_attention(model)
    if varlen and not shape.suits_varlen():
        raise Unsupported("ATTENTION_NOT_PAGED", "needs half precision and plain heads up to 256")
    decoder = FusedDecoder(model, shape.calls) if fused else None
    num_pages = num_check_pages(len(loaded.sequences[0]), page_size)
    for is_real in (False, True):
        if is_real:
            memory = kv_memory_bytes or _default_memory(device)
            num_pages = memory // shape.page_bytes(page_size)
            if kv_memory_bytes is None:
                num_pages = min(num_pages, _MAX_POOL_TOKENS // page_size)
            _require_room(num_pages, shape.page_bytes(page_size))
        runner = PagedRunner(
            model,
            shape,
            num_pages=num_pages,
            page_size=page_size,
            max_context=loaded.max_context,
            varlen=varlen,
            fused=decoder,
        )
        if not is_real:
            check_runner(runner, loaded.sequences, loaded.expected)
    return runner


def _cached_runner(loaded: _Loaded, kv_memory_bytes: int | None) -> CachedRunner:
    loaded.model.set_attn_implementation(loaded.attention)
    memory = kv_memory_bytes or _default_memory(loaded.model.device)
    runner = CachedRunner(loaded.model, kv_memory_bytes=memory, max_context=loaded.max_context)
    _require_room(runner.num_pages, runner.page_bytes)
    check_runner(runner, loaded.sequences, loaded.expected)
    return runner


def _load(
    folder: Path, dtype: str, device: torch.device, max_context: int | None, num_shards: int
) -> _Loaded:
    """Weights from safetensors only, no code from the folder, nothing from the network."""
    if not (folder / "config.json").is_file():
        raise NotFound("MODEL_FOLDER", f"{folder} is not a model folder: it has no config.json")
    if dtype not in {"auto", *_DTYPES}:
        raise InvalidRequest("DTYPE", f"{dtype}: use auto, {', '.join(_DTYPES)}", field="dtype")
    split = {"distributed_config": DistributedConfig(tp_size=num_shards)} if num_shards > 1 else {}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        wanted = _DTYPES.get(dtype) or _auto_dtype(config, device)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **split,
        )
    except (OSError, ValueError) as problem:
        raise InvalidRequest("MODEL_FOLDER", f"{folder}: {problem}", field="folder") from problem
    if num_shards == 1:  # parts of weights lie where they belong, in memory of their own
        torch.nn.Module.to(model, device)
        _align(model)
    limit = _context_limit(config.get_text_config())
    if max_context is not None and not 1 < max_context <= limit:
        message = f"{max_context}: this model takes 2 to {limit} tokens"
        raise InvalidRequest("MAX_CONTEXT", message, field="max_context")
    context = max_context or limit
    sequences = make_sequences(vocab_size_of(model), min(context, _NUM_CHECK_TOKENS[device.type]))
    attention = str(model.config._attn_implementation)
    try:
        expected = plain_logits(model, sequences)
    except Exception as problem:
        message = f"{config.model_type}: it cannot run as it is stored: {problem}"
        raise Unsupported("ARCHITECTURE", message) from problem
    return _Loaded(model, attention, context, sequences, expected)


def _align(model: PreTrainedModel) -> None:
    """Weights mapped from a file begin anywhere; matrix products on processors want cache lines.

    Measured: a float32 product of 8 rows takes 1.4 times as long on weights not so aligned.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % _CACHE_LINE_BYTES:
            weight.data = weight.data.clone()


def _keep_freed_memory() -> None:
    """Have the C library hand freed blocks of megabytes to the next pass, not to the system.

    Every pass would touch them anew, page by page: at 32 sequences that was half of its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # as much as it takes


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type not in _PAGE_SIZE:
        raise InvalidRequest("DEVICE", f"{name}: use auto, cpu or cuda", field="device")
    return device


def _auto_dtype(config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """What the weights are stored in; processors have no float16 arithmetic to speak of."""
    stored = getattr(config, "dtype", None) or torch.float32
    assert isinstance(stored, torch.dtype)
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored


def _context_limit(config: PreTrainedConfig) -> int:
    """The longest context the model is right for in a batch of unlike lengths.

    `dynamic` and `longrope` positions switch by the longest position of the whole pass, so one long
    sequence would change the short ones: they end where the switch would come.
    """
    limits = [getattr(config, "max_position_embeddings", None) or _UNKNOWN_CONTEXT]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *rope.values()]:
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limits += [int(original)] if original else []
    return int(min(limits))


def _default_memory(device: torch.device) -> int:
    """On a GPU most of what is free; elsewhere a modest share, touched only when used."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.85)
    return min(1 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def _require_room(num_pages: int, page_bytes: int) -> None:
    if num_pages < 1:
        message = f"too little for one page of cache: this model needs at least {page_bytes} bytes"
        raise InvalidRequest("KV_MEMORY", message, field="kv_memory_bytes")
