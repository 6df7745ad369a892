"""Processes that run a command without importing torch first, which takes five seconds each.

One clean process imports the package, and forks for every call. A child has the modules and
nothing of the tests: no threads, no open files, no random state. Its environment is that of the
first call.
"""

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from semvq import cli

CONTEXT = multiprocessing.get_context("forkserver")
MODULES = ["semvq.commands", "semvq.sample_commands", "semvq.recipes", "lightning_fabric"]
CONTEXT.set_forkserver_preload(MODULES)


class Done(NamedTuple):
    """What `subprocess.run` gives."""

    returncode: int
    stdout: str
    stderr: str


def start(command: list[str], target: Callable[[list[str]], Any] = cli.main) -> BaseProcess:
    """A process in which `semvq` runs with these arguments; its exit code is the command's."""
    process = CONTEXT.Process(target=target, args=(command,))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Wait for its end, which must be a good one."""
    process.join()
    assert process.exitcode == 0, "what it said is among the captured output"


class Spoken:
    """A process in which `semvq` runs, and what it says, kept in a folder."""

    def __init__(self, command: list[str], folder: Path, target: Any = cli.main) -> None:
        self.files = [folder / f"{name}-{os.urandom(4).hex()}" for name in ("stdout", "stderr")]
        self.process = CONTEXT.Process(target=_spoken, args=(command, self.files, target))
        self.process.start()

    def end(self, seconds: float = 60) -> Done:
        """Wait for its end."""
        self.process.join(seconds)
        found = self.process.exitcode
        self.process.kill()
        assert found is not None, f"not at its end after {seconds} seconds"
        return Done(found, *(file.read_text() for file in self.files))


def _spoken(command: list[str], files: list[Path], target: Callable[[list[str]], Any]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    target(command)


def watched(command: list[str]) -> None:
    """`semvq`, which prints at its end how much its memory grew, in kB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        cli.main(command)
    finally:
        print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def together(count: int, command: list[str], folder: Path) -> Done:
    """`semvq` in `count` processes, told what `torchrun` tells; its worst end, and all they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        Spoken([str(rank), str(count), str(port), *command], folder, _as_rank)
        for rank in range(count)
    ]
    codes, out, err = zip(*(rank.end(280) for rank in ranks))
    return Done(max(codes, key=abs), "".join(out), "".join(err))


def _as_rank(command: list[str]) -> None:
    rank, count, port, *rest = command
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
    cli.main(rest)
