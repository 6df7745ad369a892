"""Images to what a shard holds: decoded, cut to a square, encoded again; in several processes.

Order and bytes are the same for any number of processes.
"""

import errno
import io
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import parent_process
from typing import NamedTuple

import numpy as np
from PIL import Image

from semvq.data.pixels import BadImageError, crop_resize, decode
from semvq.sources.items import Content, Item, Place

CHUNK, CHUNK_BYTES = 32, 4_000_000  # images, and bytes of them, that a process gets at once
AHEAD = 2  # chunks that wait, beyond one for every process
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # links to nothing
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # else the format's name


@dataclass(frozen=True)
class Cut:
    """How an image is stored: its centre square at `size` pixels, as PNG or as JPEG of `quality`.

    With `keep`, encoded images whose short side is at most `size` stay as they are, byte for byte.
    """

    size: int
    quality: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ValueError(f"--size: expected 8 to 4096 pixels, found {self.size}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality: expected 1 to 100, found {self.quality}")


class Stored(NamedTuple):
    """An image as a shard holds it, and what its pixels are: equal pixels have equal digests."""

    data: bytes
    extension: str
    digest: str


class Done(NamedTuple):
    """An item's name and place, and what became of it: `Stored`, or why it is bad."""

    name: str
    after: Place
    result: Stored | str


def cut(content: Content, where: str, how: Cut) -> Stored | str:
    """One image, or the reason why it is none, which begins with `where`."""
    try:
        pixels = decode(content, where) if isinstance(content, bytes) else content
    except BadImageError as error:
        return str(error)
    if how.keep and isinstance(content, bytes) and min(pixels.shape[:2]) <= how.size:
        kind = str(Image.open(io.BytesIO(content)).format)
        return Stored(content, _EXTENSIONS.get(kind, kind.lower()), _digest(pixels))
    square = np.ascontiguousarray(crop_resize(pixels, how.size))
    buffer = io.BytesIO()
    if how.quality is None:
        Image.fromarray(square).save(buffer, "PNG", compress_level=6)
    else:
        Image.fromarray(square).save(buffer, "JPEG", quality=how.quality, subsampling=0)
    return Stored(buffer.getvalue(), "png" if how.quality is None else "jpg", _digest(square))


def _digest(pixels: np.ndarray) -> str:
    """32 hexadecimal digits for uint8 pixels (H, W, 3)."""
    shape = f"{pixels.shape[0]}x{pixels.shape[1]}:".encode()
    return sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def cut_all(items: Iterator[Item], how: Cut, pool: Executor | None) -> Iterator[Done]:
    """What becomes of every item, in order; a few chunks of them are in memory at a time.

    OSError where a process dies.
    """
    waiting: deque = deque()
    most = AHEAD + (getattr(pool, "_max_workers", 1) if pool else -AHEAD)
    try:
        for chunk in _chunks(items):
            work = [(content, item.where) for item, content in chunk]
            results = pool.submit(_cut_chunk, work, how) if pool else _cut_chunk(work, how)
            waiting.append(([(item.name, item.after) for item, _ in chunk], results))
            if len(waiting) > most:
                yield from _finished(*waiting.popleft())
        while waiting:
            yield from _finished(*waiting.popleft())
    except BrokenProcessPool as error:
        raise OSError(
            "a process that cuts images died; it may be short of memory: run the same command "
            "again with fewer --workers"
        ) from error


def _finished(names: list, results: list | object) -> Iterator[Done]:
    found = results if isinstance(results, list) else results.result()  # type: ignore[attr-defined]
    return (Done(name, after, result) for (name, after), result in zip(names, found))


def _cut_chunk(work: list[tuple[Content | str, str]], how: Cut) -> list[Stored | str]:
    # an image that could not be read comes as the reason
    return [x if isinstance(x, str) else cut(x, where, how) for x, where in work]


def _chunks(items: Iterator[Item]) -> Iterator[list[tuple[Item, Content | str]]]:
    chunk: list[tuple[Item, Content | str]] = []
    size = 0
    for item in items:
        content: Content | str
        try:
            content = item.read()
        except BadImageError as error:
            content = str(error)
        except OSError as error:
            if error.errno not in _GONE:  # a disk or a network that may be well again
                raise OSError(
                    f"{item.where}: {error.strerror or error}; see to it and run the same command "
                    "again"
                ) from error
            content = f"{item.where}: {error.strerror or error}"
        chunk.append((item, content))
        size += content.nbytes if isinstance(content, np.ndarray) else len(content)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextmanager
def processes(num: int) -> Iterator[Executor | None]:
    """A pool of `num` processes, already running; None for 0. They end with this process."""
    if num < 0:
        raise ValueError(f"--workers: expected 0 or more, found {num}")
    if not num:
        yield None
        return
    pool = ProcessPoolExecutor(num, initializer=_begin)
    try:
        # now: later there may be threads, of which a forked process gets none
        list(pool.map(abs, range(num)))
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what Ctrl-C does
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its processes, which would wait for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)
