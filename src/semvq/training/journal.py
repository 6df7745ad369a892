"""What a person and a program can follow while a run trains.

One JSON object per line in `log.jsonl`, optionally TensorBoard, and a progress bar with images/s,
time left and the few numbers that matter. On resume, lines after the checkpoint are dropped, so
the log of an interrupted run reads like that of an uninterrupted one.
"""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from semvq.files import write_atomically, writing

PLAIN_SECONDS = 15.0  # a line this often where there is no terminal to draw a bar on


class Journal:
    """Log file, optional TensorBoard writer and progress bar of one run."""

    def __init__(
        self, folder: Path, title: str, total: int, headline: tuple[str, ...], tensorboard: bool
    ) -> None:
        self.path = folder / "log.jsonl"
        self.title, self.total, self.headline = title, total, headline
        self.console = Console(stderr=True)
        self.writer = _tensorboard(folder) if tensorboard else None
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TextColumn("{task.fields[speed]:>7}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task(title, total=total, speed="", numbers="")
        self.began, self.began_at, self.spoken = time.monotonic(), 0, time.monotonic()
        self.numbers = ""

    def __enter__(self) -> "Journal":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.progress.stop()
        if self.writer:
            self.writer.close()

    def resume(self, images_seen: int) -> None:
        """Forget what was logged after `images_seen`; start the clock there."""
        self.began, self.began_at = time.monotonic(), images_seen
        if not self.path.exists():
            return
        kept = [x for x in map(_parse, self.path.read_text().splitlines()) if x is not None]
        kept = [x for x in kept if x["images_seen"] <= images_seen]
        write_atomically(self.path, "".join(json.dumps(x) + "\n" for x in kept))

    def advance(self, images_seen: int) -> None:
        """Move the bar; cheap enough for every step."""
        seconds = max(1e-9, time.monotonic() - self.began)
        speed = (images_seen - self.began_at) / seconds
        self.progress.update(self.bar, completed=images_seen, speed=f"{speed:.0f}/s")
        if not self.console.is_terminal and time.monotonic() - self.spoken > PLAIN_SECONDS:
            self.spoken = time.monotonic()
            left = (self.total - images_seen) / max(speed, 1e-9)
            self.say(
                f"{self.title}: {images_seen}/{self.total} images, {speed:.0f}/s, "
                f"{left:.0f} s left  {self.numbers}"
            )

    def log(self, images_seen: int, values: dict[str, float]) -> None:
        """Append one line of figures; `headline` names go to the bar."""
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"images_seen": images_seen, **values}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, images_seen)
        shown = {k.removeprefix("loss/"): values[k] for k in self.headline if k in values}
        if shown:
            self.numbers = "  ".join(f"{k} {v:.3g}" for k, v in shown.items())
            self.progress.update(self.bar, numbers=self.numbers)

    def warn(self, line: str) -> None:
        """One line on what this process saw of its own part of the data."""
        self.say(line)

    def say(self, line: str) -> None:
        """One line for the person at the terminal, above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class SilentJournal:
    """The journal of a process that is not the writing one: nothing but its own warnings."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> "SilentJournal":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def resume(self, images_seen: int) -> None:
        """Nothing."""

    def advance(self, images_seen: int) -> None:
        """Nothing."""

    def log(self, images_seen: int, values: dict[str, float]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing: the writing process says it."""

    def warn(self, line: str) -> None:
        """One line on what only this process saw."""
        print(f"process {self.rank}: {line}", file=sys.stderr, flush=True)


def say_progress(title: str, done: int, total: int) -> None:
    """A single moving line on the terminal; nothing elsewhere but the last."""
    moving, last = sys.stderr.isatty(), done >= total
    if moving or last:
        start, end = "\r" if moving else "", "\n" if last else ""
        print(f"{start}{title}: {done}/{total}", end=end, file=sys.stderr, flush=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's log."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [x for x in map(_parse, lines) if x is not None]


def _parse(line: str) -> dict[str, Any] | None:
    """A log line, or None for one that a kill cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard: expected the package 'tensorboard', found none; "
            "install it with: pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
