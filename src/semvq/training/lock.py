"""One job per run folder: a lock that the kernel takes back when its process dies, however."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

NAME = "lock"


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Inside, no other process is in here for `folder`, which is made if absent.

    Raises ValueError naming the process that is. A folder made here and left empty goes again.
    """
    is_new = not folder.exists()
    file = _acquire(folder)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        file.close()
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it. ValueError where none can be, as in /proc."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: expected a place to write, found: {error.strerror}") from error


def _acquire(folder: Path) -> TextIO:
    while True:
        make_folder(folder)
        file = (folder / NAME).open("a+")
        try:
            # lockf, not flock: a forked data loader would hold the latter after its parent's death
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = _owner(file)
            file.close()
            raise ValueError(
                f"{folder}: expected no other job in this run folder, found {owner} at work; wait "
                "for it, stop it, or give another --out"
            ) from None
        except OSError:
            return file  # a file system without locks: better to train without one
        if _is_current(file, folder / NAME):
            break
        file.close()  # the owner before us removed it between our opening and locking it
    with suppress(OSError):  # a full disk; the lock holds without the name of its owner
        file.truncate(0)
        os.write(file.fileno(), f"pid {os.getpid()} on {platform.node()}\n".encode())
    return file


def _owner(file: TextIO) -> str:
    file.seek(0)
    return file.readline().strip() or "another process"


def _is_current(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
