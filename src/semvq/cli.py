"""The command `semvq`: what was asked for is done, or one line says why not.

A user's mistake ends with exit code 2. What a command does is imported when it runs.
"""

import errno
import os
import sys
from collections.abc import Sequence

from semvq.grammar import parser
from semvq.launch import find_launch

AT_WORK = ("demo", "prepare", "train", "encode", "table")  # not at an end when the reader leaves


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `semvq`."""
    options = parser().parse_args(arguments)
    try:
        from semvq import commands  # inside: its imports take seconds in which Ctrl-C may come

        status = getattr(commands, options.command)(options)
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what it prints, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if options.command in AT_WORK:
            print("semvq: stopped, for nothing reads what it prints any more", file=sys.stderr)
        sys.exit(141)  # as for any program that ends of SIGPIPE
    except (ValueError, OSError) as error:
        print(f"semvq{_process()}: error: {_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("semvq: stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def _line(error: Exception) -> str:
    """The error's words on one line; a full disk also says what to do."""
    from semvq.files import one_line  # inside, like the commands

    words = one_line(error, 20_000)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{words}; free some space and run the same command again, what was saved is whole"
    return words


def _process() -> str:
    """Which of several processes speaks; nothing where there is one."""
    try:
        _, rank, count, _ = find_launch()
    except ValueError:
        return ""
    return "" if count == 1 else f" (process {rank} of {count})"
