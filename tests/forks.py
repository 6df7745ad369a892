"""Processes that run a command without importing torch first: five seconds each.

One clean process imports the package and forks for every call. A child has the modules and nothing
of the tests: no threads, no open files, no random state.
"""

import multiprocessing
from multiprocessing.process import BaseProcess

from semvq.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["semvq.commands", "semvq.losses.perceptual", "tests.toy"])


def start(command: list[str]) -> BaseProcess:
    """A process in which `semvq` runs with these arguments; its exit code is the command's."""
    process = CONTEXT.Process(target=main, args=(command,))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Wait for its end, which must be a good one."""
    process.join()
    assert process.exitcode == 0, "what it said is among the captured output"
