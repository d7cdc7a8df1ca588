"""From a folder with a model to an engine: the fastest way to run it, checked, and its pool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from cluster.engine.base import Runner
from cluster.engine.cached import CachedRunner
from cluster.engine.check import check_graphs, check_runner, num_check_pages
from cluster.engine.engine import Engine
from cluster.engine.fused import FusedDecoder
from cluster.engine.graphs import Capture, CudaCapture
from cluster.engine.memory import default_memory, keep_freed_memory, require_room
from cluster.engine.reading import Loaded, read_model
from cluster.engine.runner import PagedRunner, use_paged_attention
from cluster.engine.shards import Loading
from cluster.engine.split import share_of, split_runner
from cluster.errors import InvalidRequest, Unsupported

_log = logging.getLogger(__name__)

_PAGE_SIZE = {"cpu": 16, "cuda": 256}  # the flash kernel's paged keys want multiples of 256
_MAX_BATCH_TOKENS = {"cpu": 128, "cuda": 4096}  # how long a prefill's chunk may hold up the others
_KV_DTYPES = {"auto": None, "bfloat16": torch.bfloat16}
_MAX_POOL_TOKENS = 1 << 20  # unless memory is asked for


def load_engine(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    kv_memory_bytes: int | None = None,
    kv_dtype: str = "auto",
    max_context: int | None = None,
    num_threads: int | None = None,
    page_size: int | None = None,
    max_batch_tokens: int | None = None,
    num_ids: int | None = None,
    num_shards: int = 1,
    cuda_graphs: bool = True,
    on_lost: Callable[[], None] = lambda: None,
) -> Engine:
    """An engine for the model in a local folder: configuration and safetensors, nothing else.

    `num_ids` is how many ids the tokenizer knows; without it, all that the model can read. With
    `num_shards` above 1, the model and `kv_memory_bytes` are split over so many devices, and
    `on_lost` is called when one of them fails, on any thread. `cuda_graphs` lets short passes be
    captured where they can be: on one GPU, in half precision.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    place = find_device(device)
    if kv_dtype not in _KV_DTYPES:
        words = f"{kv_dtype}: use {' or '.join(_KV_DTYPES)}"
        raise InvalidRequest("KV_DTYPE", words, field="kv_dtype")
    if place.type == "cpu":
        keep_freed_memory()
    runner: Runner
    if num_shards > 1:
        loading = Loading(
            folder=folder,
            dtype=dtype,
            device=place.type,
            kv_memory_bytes=share_of(kv_memory_bytes, num_shards),
            kv_dtype=kv_dtype,
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
            kv_dtype=kv_dtype,
            max_context=max_context,
            page_size=page_size,
            cuda_graphs=cuda_graphs,
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
        kv_dtype=loading.kv_dtype,
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
    kv_dtype: str = "auto",
    num_shards: int = 1,
    cuda_graphs: bool = True,
) -> Runner:
    """The fastest runner that gives this model's own logits; refuses a model that none fits.

    With `num_shards` above 1 this process loads its part, and the others must do so as well.
    """
    loaded = read_model(folder, dtype, device, max_context, num_shards)
    size = page_size or _PAGE_SIZE[device.type]
    kept = _KV_DTYPES[kv_dtype]

    def paged(*, varlen: bool, fused: bool) -> Callable[[], Runner]:
        is_captured = varlen and cuda_graphs and num_shards == 1  # shards wait for each other
        return lambda: paged_runner(
            loaded,
            size,
            kv_memory_bytes,
            varlen=varlen,
            fused=fused,
            kv_dtype=kept,
            capture=CudaCapture() if is_captured else None,
        )

    attempts: dict[str, Callable[[], Runner]] = {}
    for varlen in (True, False) if device.type == "cuda" else (False,):
        how = "flash" if varlen else "paged attention"
        if num_shards == 1:  # matrices of several parts are not joined
            attempts[f"fused, {how}"] = paged(varlen=varlen, fused=True)
        attempts[how] = paged(varlen=varlen, fused=False)
    if num_shards == 1 and kept is None:  # how a model caches by itself is not for us to say
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


def paged_runner(
    loaded: Loaded,
    page_size: int,
    kv_memory_bytes: int | None,
    *,
    varlen: bool,
    fused: bool,
    kv_dtype: torch.dtype | None = None,
    capture: Capture | None = None,
) -> PagedRunner:
    """A runner over pages, checked in a small pool before the real one is made.

    With a `kv_dtype` other than the model's own it is checked as half precision is. Short passes
    are captured with `capture`, if there is one, and checked in the real pool.
    """
    model, device = loaded.model, loaded.model.device
    config = model.config.get_text_config()
    chunk = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()) and chunk:
        raise Unsupported("ATTENTION_NOT_PAGED", "chunked attention")
    shape = use_paged_attention(model)
    if kv_dtype is not None:
        shape = shape.kept_as(kv_dtype)
    if varlen and not shape.suits_varlen():
        raise Unsupported("ATTENTION_NOT_PAGED", "needs half precision and plain heads up to 256")
    decoder = FusedDecoder(model, shape.calls) if fused else None
    is_single = shape.is_exact and loaded.expected[0].dtype == torch.float32
    num_pages = num_check_pages(len(loaded.sequences[0]), page_size)
    for is_real in (False, True):
        if is_real:
            memory = kv_memory_bytes or default_memory(device)
            num_pages = memory // shape.page_bytes(page_size)
            if kv_memory_bytes is None:
                num_pages = min(num_pages, _MAX_POOL_TOKENS // page_size)
            require_room(num_pages, shape.page_bytes(page_size))
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
            try:
                check_runner(runner, loaded.sequences, loaded.expected, is_single=is_single)
            except Exception:
                if decoder is not None:
                    decoder.restore()
                raise
    if capture is not None:
        _use_graphs(runner, capture, loaded, is_single=is_single)
    return runner


def _use_graphs(runner: PagedRunner, capture: Capture, loaded: Loaded, *, is_single: bool) -> None:
    """Have short passes replayed, if they can be captured and then say the same."""
    try:
        sizes = runner.use_graphs(capture)
        check_graphs(runner, sizes, loaded.sequences, loaded.expected, is_single=is_single)
    except Exception as problem:  # such as a model that waits for the device within its pass
        runner.drop_graphs()
        kind, error = loaded.model.config.model_type, f"{type(problem).__name__}: {problem}"
        _log.warning("%s runs without CUDA graphs, its short passes take longer: %s", kind, error)


def _cached_runner(loaded: Loaded, kv_memory_bytes: int | None) -> CachedRunner:
    loaded.model.set_attn_implementation(loaded.attention)
    memory = kv_memory_bytes or default_memory(loaded.model.device)
    runner = CachedRunner(loaded.model, kv_memory_bytes=memory, max_context=loaded.max_context)
    require_room(runner.num_pages, runner.page_bytes)
    is_single = loaded.expected[0].dtype == torch.float32
    check_runner(runner, loaded.sequences, loaded.expected, is_single=is_single)
    return runner


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type not in _PAGE_SIZE:
        raise InvalidRequest("DEVICE", f"{name}: use auto, cpu or cuda", field="device")
    return device
