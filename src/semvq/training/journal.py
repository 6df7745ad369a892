"""What a person and a program can follow while a run trains.

One JSON object per line in `log.jsonl`, optionally TensorBoard, and a progress bar with images/s,
time left and the few numbers that matter; where there is no terminal, a plain line now and then
and one at the end. On resume, lines after the checkpoint are dropped, so the log of an interrupted
run reads like that of an uninterrupted one.
"""

import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from semvq.files import write_atomically, writing

PLAIN_SECONDS = 15.0  # a line this often where there is no terminal to draw a bar on
RECENT = 100  # steps whose median is the speed


class Pace:
    """How fast a run goes, and how long it will take.

    The speed is the median of recent steps, so that a slow start or an evaluation does not move
    it. The time left follows the average since the start: evaluations and saves will come again.
    """

    def __init__(self, images_seen: int) -> None:
        self.began = self.last = time.monotonic()
        self.began_at = self.at = images_seen
        self.steps: deque[float] = deque(maxlen=RECENT)

    def advance(self, images_seen: int) -> None:
        """Note that so many images have been seen by now."""
        now = time.monotonic()
        if images_seen > self.at:
            self.steps.append((now - self.last) / (images_seen - self.at))
        self.last, self.at = now, images_seen

    def speed(self) -> str:
        """ "123/s", with two digits below ten: "0.42/s"."""
        if not self.steps:
            return "–/s"
        rate = 1 / max(1e-9, statistics.median(self.steps))
        return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.2g}/s"

    def left(self, total: int) -> str:
        """The time to `total` images, in words."""
        seen = self.at - self.began_at
        return in_words((self.last - self.began) / seen * (total - self.at)) if seen else "?"


def in_words(seconds: float) -> str:
    """A time to about two digits: "45 s", "12 min", "3.5 hours", "4.0 days"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class Journal:
    """Log file, optional TensorBoard writer and progress bar of one run."""

    def __init__(
        self, folder: Path, title: str, total: int, headline: tuple[str, ...], tensorboard: bool
    ) -> None:
        self.named: set[str] = set()  # unreadable files, each of which is named once
        self.path = folder / "log.jsonl"
        self.title, self.total, self.headline = title, total, headline
        self.console = Console(stderr=True)
        self.writer = _tensorboard(folder) if tensorboard else None
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task(title, total=total, pace="", numbers="")
        self.pace, self.spoken = Pace(0), time.monotonic()
        self.numbers: dict[str, float] = {}  # the newest of every figure in the headline

    def __enter__(self) -> "Journal":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if self.console.is_terminal:  # else rich before 14.3 would print a blank line
            self.progress.stop()
        elif kind is None and self.pace.at >= self.total:
            self._say_where(self.pace.speed())
        if self.writer:
            self.writer.close()

    def resume(self, images_seen: int) -> None:
        """Forget what was logged after `images_seen`; start the clock there."""
        self.pace = Pace(min(images_seen, self.total))
        if not self.path.exists():
            return
        kept = [x for x in read_log(self.path.parent) if x["images_seen"] <= images_seen]
        write_atomically(self.path, "".join(json.dumps(x) + "\n" for x in kept))
        for values in kept:
            self.numbers |= self._shown(values)

    def advance(self, images_seen: int) -> None:
        """Move the bar; cheap enough for every step."""
        self.pace.advance(images_seen)
        pace = f"{self.pace.speed()}, {self.pace.left(self.total)} left"
        self.progress.update(self.bar, completed=images_seen, pace=pace)
        if self.console.is_terminal or images_seen >= self.total:
            return  # the end has a line of its own
        if time.monotonic() - self.spoken > PLAIN_SECONDS:
            self.spoken = time.monotonic()
            self._say_where(pace)

    def log(self, images_seen: int, values: dict[str, float]) -> None:
        """Append one line of figures; `headline` names go to the bar."""
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"images_seen": images_seen, **values}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, images_seen)
        if shown := self._shown(values):
            self.numbers |= shown
            self.progress.update(self.bar, numbers=_joined(shown))

    def _shown(self, values: dict[str, float]) -> dict[str, float]:
        return {k.removeprefix("loss/"): values[k] for k in self.headline if k in values}

    def _say_where(self, pace: str) -> None:
        where = f"{self.title}: {self.pace.at}/{self.total} images, {pace}"
        self.say(f"{where}  {_joined(self.numbers)}".rstrip())

    def warn(self, line: str) -> None:
        """One line on what this process saw of its own part of the data."""
        self.say(line)

    def name_bad(self, files: Iterable[str], words: str) -> None:
        """One line for each of `files` that has not been named before."""
        for file in files:
            if file not in self.named:
                self.named.add(file)
                self.warn(f"{words}: {file} ({len(self.named)} so far)")

    def say(self, line: str) -> None:
        """One line for the person at the terminal, above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class SilentJournal(Journal):
    """The journal of a process that is not the writing one: nothing but its own warnings."""

    def __init__(self, rank: int) -> None:
        self.rank, self.named = rank, set()

    def __enter__(self) -> "SilentJournal":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _nothing(self, *args: Any, **more: Any) -> None:
        """The writing process does and says it."""

    resume = advance = log = say = _nothing

    def warn(self, line: str) -> None:
        """One line on what only this process saw."""
        print(f"process {self.rank}: {line}", file=sys.stderr, flush=True)


def say_progress(title: str, done: int, total: int) -> None:
    """A single moving line on the terminal; nothing elsewhere but the last."""
    moving, last = sys.stderr.isatty(), done >= total
    if moving or last:
        start, end = "\r" if moving else "", "\n" if last else ""
        print(f"{start}{title}: {done}/{total}", end=end, file=sys.stderr, flush=True)


def _joined(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())


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
