"""Streams: which item stands at a position, and batches of positions from any point on.

Everything random is a function of (seed, epoch, index), so a stream is the same for any number of
workers and can be resumed anywhere.
"""

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

WORKER_TIMEOUT = 60.0  # seconds for one batch
_LOOK_EVERY = 1.0  # seconds after which a waiting process looks whether a worker died
MAX_BAD_SHARE = 0.01

# what the numbers are drawn for; equal seeds then share nothing
ORDER, CROP, VIEW = range(3)


def uniforms(seed: int, purpose: int, epoch: int, index: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), a pure function of the four integers (Philox's counter)."""
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, purpose], np.uint64)
    counter = np.array([0, index, epoch, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)


def spread(num: int, wanted: int) -> Tensor:
    """At most `wanted` of the numbers 0 … num - 1, each once, evenly over all: int64.

    Files stand in the order of their classes, so these are spread over the classes too.
    """
    wanted = min(num, wanted)
    return torch.arange(wanted) * num // wanted


class EpochOrder:
    """Positions 0, 1, 2, … of an endless stream; each epoch of `size` is a new permutation."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, index) of the item at `position`."""
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            draws = uniforms(self.seed, ORDER, epoch, 0, self.size)
            self._epoch, self._order = epoch, np.argsort(draws, kind="stable")
        return epoch, int(self._order[place])


def stream(
    dataset: Dataset, start: int, batch_size: int, num_workers: int = 0, part: tuple = (0, 1)
) -> Iterator[dict[str, Any]]:
    """Endless batches of `dataset` from stream position `start` on; they cross epoch ends.

    With `part` = (rank, count), this process's share: `count` processes together read what one
    with a `count` times larger batch would, in rank order.
    """
    rank, count = part

    def positions() -> Iterator[range]:
        first = start + rank * batch_size
        while True:
            yield range(first, first + batch_size)
            first += count * batch_size

    return batches(dataset, positions(), num_workers)


def chunks(num: int, batch_size: int) -> Iterator[range]:
    """0 … num - 1 in ranges of at most `batch_size`."""
    for first in range(0, num, batch_size):
        yield range(first, min(first + batch_size, num))


def batches(
    dataset: Dataset, positions: Iterable[range], num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """One collated batch per range of positions, in order.

    An item is a dict of tensors and ints, and of `bad`, the files it had to skip; an item with
    `bad` alone is left out. Raises the dataset's own ValueError; ValueError when more than 1 % of
    its files (and more than one) were bad; OSError when a worker died or hung.
    """
    loader = DataLoader(
        _Reporting(dataset),
        batch_sampler=_Ranges(positions),
        num_workers=num_workers,
        collate_fn=_collate,
        timeout=min(_LOOK_EVERY, WORKER_TIMEOUT) if num_workers else 0,
    )
    bad: set[str] = set()
    found = _started(loader)
    for batch in _worker_errors_named(found) if num_workers else found:
        if isinstance(batch, ValueError):
            raise batch
        bad.update(batch["bad"])
        allowed = max(1, int(MAX_BAD_SHARE * len(dataset)))  # type: ignore[arg-type]
        if len(bad) > allowed:
            some = "; ".join(sorted(bad)[:3])
            raise ValueError(
                f"{len(bad)} of {len(dataset)} images cannot be read, "  # type: ignore[arg-type]
                f"more than {MAX_BAD_SHARE:.0%}: {some}; repair or remove them"
            )
        yield batch


def _started(loader: DataLoader) -> Iterator[Any]:
    """The loader's iterator, without the handler by which torch raises a worker's death

    wherever the program happens to be. Here it is raised where a batch is waited for.
    """
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGCHLD, before)
    return iterator


def _worker_errors_named(batches: Iterator[Any]) -> Iterator[Any]:
    began = time.monotonic()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # a batch of a dead worker may be there, but no longer what it was to be fetched from
        except (RuntimeError, ConnectionError, EOFError) as error:
            cause, advice = str(error), "try fewer workers"
            if cause.startswith("Caught "):
                raise  # the dataset's own
            if "timed out" in cause:
                if time.monotonic() - began < WORKER_TIMEOUT:
                    continue  # nobody is dead
                cause = f"timed out after {WORKER_TIMEOUT:g} seconds"
                advice += ", smaller photos, or --workers 0, which waits"
            elif not isinstance(error, RuntimeError):
                cause = "it exited unexpectedly"
            elif "worker" not in cause:
                raise
            raise OSError(
                f"a data worker died or hung ({cause}); it may be short of memory or its disk "
                f"slow: {advice}"
            ) from error
        yield batch
        began = time.monotonic()


class _Ranges:
    """An iterable as a batch sampler."""

    def __init__(self, positions: Iterable[range]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[list[int]]:
        return (list(r) for r in self.positions)


class _Reporting(Dataset):
    """Hands ValueErrors over as items: a worker would wrap them in its traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except ValueError as error:
            return error


def _collate(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, ValueError):
            return item
    bad = tuple(name for item in items for name in item.get("bad", ()))
    good = [item for item in items if "index" in item]
    batch: dict[str, Any] = {"bad": bad}
    for key in (k for k in good[0] if k != "bad") if good else ():
        values = [item[key] for item in good]
        tensors = isinstance(values[0], torch.Tensor)
        batch[key] = torch.stack(values) if tensors else torch.tensor(values)
    return batch
