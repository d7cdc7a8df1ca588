"""A folder that is there whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import InvalidRequest, Unavailable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, beside `out`; becomes `out` in one move at the end, or is removed.

    Raises InvalidRequest where `out` exists, Unavailable where it cannot be written or is full.
    """
    out = out.absolute()
    if out.exists() or out.is_symlink():
        message = f"{out} exists; expected the name of a folder that does not"
        raise InvalidRequest("MERGE_OUT_EXISTS", message, field="out")
    building = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        building.chmod(0o755)  # other users' replicas read it; mkdtemp makes it private
        yield building
        building.rename(out)
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"{out.parent} has no room for {out.name}: {error.strerror}; nothing is left"
            raise Unavailable("DISK_FULL", message, field="out") from error
        message = f"{out} cannot be written: {error}"
        raise Unavailable("MERGE_UNWRITABLE", message, field="out") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse at once what would fill the disk later; raises Unavailable."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        message = f"{folder.parent} has {free:,} bytes left; the result needs {num_bytes:,}"
        raise Unavailable("DISK_FULL", message, field="out")
