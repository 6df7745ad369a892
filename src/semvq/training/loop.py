"""The one training loop: resume, accumulate, guard, step, average, report, save.

It counts images seen, knows players and turns, and never asks which training it runs.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from semvq.config import Config, check_duration, duration_in_images
from semvq.data.images import save_png, stream
from semvq.kernels.compiling import Compile, compile_parts, eager
from semvq.training.checkpoint import load_newest, save_checkpoint
from semvq.training.distributed import World
from semvq.training.gradients import Means, means_of
from semvq.training.journal import Journal, SilentJournal
from semvq.training.optim import learning_rate
from semvq.training.state import TrainingState, seed_step
from semvq.training.task import Logs, Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class LoopConfig(Config):
    """How long and how often; durations carry units ("500k steps", "300 epochs", "12M images").

    `batch_size` images per optimiser step, over all processes, are worked off in `accumulate`
    equal parts.
    """

    duration: str
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    ema_decay: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False  # on CUDA: bitwise repeatable kernels, slower
    split: bool = False  # a transformer's weights and all that goes with them, over processes
    # see `compile_parts`: what lies between two matrix products becomes one kernel. A transformer's
    # step gained a fifth on one H200, by trials whose script was not kept
    compile: Compile = "auto"
    log_every: str = "50 steps"
    evaluate_every: str = "5k steps"
    save_every: str = "5k steps"
    keep_checkpoints: int = 2
    max_skipped_in_a_row: int = 10

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "keep_checkpoints", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("duration", "log_every", "evaluate_every", "save_every"):
            check_duration(getattr(self, name), name)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"expected a batch size divisible by accumulate {self.accumulate}, "
                f"found {self.batch_size}"
            )


class NonFiniteError(ValueError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def train(
    fabric: "Fabric",
    world: World,
    task: Task,
    config: LoopConfig,
    folder: Path,
    *,
    title: str,
    headline: tuple[str, ...],
    num_workers: int = 0,
    tensorboard: bool = False,
) -> int | None:
    """Train `task` to the end of `config.duration`, going on from `folder/checkpoints`.

    Returns None when done, or the number of the signal that stopped it (a checkpoint is saved).
    Raises NonFiniteError, CheckpointError, and ValueError for a checkpoint of another run.
    """

    total = duration_in_images(config.duration, config.batch_size, task.epoch_size)

    def images(duration: str) -> int:
        return duration_in_images(duration, config.batch_size, task.epoch_size, total)

    log_every = images(config.log_every)
    evaluate_every, save_every = images(config.evaluate_every), images(config.save_every)
    warmups = {p.name: images(p.optim.warmup) for p in task.players}
    _check_parts(config, world)
    means = [means_of(world, p, config.split) for p in task.players]
    state = TrainingState(task, config.ema_decay, world)
    diary: Journal = SilentJournal(world.rank)
    if world.is_writer:
        diary = Journal(folder, title, total, headline, tensorboard)

    with diary as journal, _signals() as signals:
        # resume, or initialise from data
        found = load_newest(folder / "checkpoints")
        if found:
            tensors, scalars, refused = found
            for line in refused:
                journal.say(f"passed over {line}")
            state.load(tensors, scalars)
            del found, tensors, scalars  # gigabytes
            journal.say(f"{title}: going on after {state.images_seen} images")
        else:
            seed_step(config.seed, -1)
            with fabric.autocast():
                task.start(_batches(task, 0, config, fabric, world, num_workers))
            state.equalize()
        journal.resume(state.images_seen)
        compile_parts(
            task.to_compile(), config.compile, fabric.device, journal.warn,
            deterministic=config.deterministic,
        )  # fmt: skip

        if total % config.batch_size:
            whole = -(-total // config.batch_size) * config.batch_size
            journal.say(f"{title}: {total} images, rounded up to {whole} by whole batches")

        batches = _batches(task, state.images_seen, config, fabric, world, num_workers)

        while state.images_seen < total:
            # accumulate gradients of every player; nothing moves yet
            losses: list[Tensor] = []
            logs: list[Logs] = []
            ids: list[int] = []
            for part in range(config.accumulate):
                batch = next(batches)
                # after the batch was fetched: starting a loader draws random numbers too
                seed_step(config.seed, state.step * config.accumulate + part, world.rank)
                ids += batch["ids"]
                journal.name_bad(batch.get("bad", ()), "skipped an unreadable image")
                if part == config.accumulate - 1:
                    for mean in means:
                        mean.expect()
                with fabric.autocast():
                    for turn in task.turns(batch, state.images_seen):
                        fabric.backward(turn.loss / config.accumulate)
                        losses.append(turn.loss.detach())
                        logs.append(turn.logs)

            # gradients (under way already), losses and logs become means over processes
            own_losses = losses
            for mean in means:
                mean.finish()
            losses, logs, asked = world.agree(losses, logs, signals[0] if signals else 0)

            # guard: one look at all losses and gradient norms; then everybody steps, or nobody
            norms = state.gradient_norms(fabric.device)
            finite = bool(torch.isfinite(torch.stack([*losses, *norms.values()])).all())
            if finite:
                seen = state.images_seen
                rates = {
                    p.name: learning_rate(p.optim, seen, warmups[p.name], total)
                    for p in task.players
                }
                state.move(norms, rates)
                for entry in logs:
                    state.note(entry)
                state.skipped_in_a_row = 0
            else:
                state.skipped += 1
                state.skipped_in_a_row += 1
                journal.say(f"step {state.step}: loss or gradient not finite; nothing was updated")
                if world.count == 1 or not torch.isfinite(torch.stack(own_losses)).all():
                    journal.warn(f"step {state.step}: it came from images {_some(ids)}")
            for player in task.players:
                player.module.zero_grad(set_to_none=True)
            if state.skipped_in_a_row >= config.max_skipped_in_a_row:
                raise NonFiniteError(
                    f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not "
                    f"finite, the last on images {_some(ids)}; the weights are those before them. "
                    "Lower the learning rate or the GAN weight, or look at these images"
                )

            # the clock
            before = state.images_seen
            state.step += 1
            state.images_seen += config.batch_size
            last = state.images_seen >= total
            journal.advance(min(state.images_seen, total))

            # report and save when due
            if last or _due(before, state.images_seen, log_every):
                values = state.close_window() | task.gauges()
                values |= {f"norm/{k}": float(v) for k, v in norms.items()}
                journal.log(state.images_seen, values | {"skipped": float(state.skipped)})
            if last or _due(before, state.images_seen, evaluate_every):
                _report(task, state, means, journal, folder, fabric)
            if last or asked or _due(before, state.images_seen, save_every):
                # the export first: a kill between the two repeats the last steps, no more
                tensors = state.tensors()
                with _averaged(state, means):
                    if world.is_writer:
                        task.export(folder)
                if world.is_writer:
                    scalars, keep = state.scalars(), config.keep_checkpoints
                    save_checkpoint(
                        folder / "checkpoints", state.images_seen, tensors, scalars, keep
                    )
                del tensors
                world.wait()
            if asked:
                journal.say(f"{title}: stopped and saved after {state.images_seen} images; "
                            "run the same command again to go on")  # fmt: skip
                return asked
    return None


def _check_parts(config: LoopConfig, world: World) -> None:
    parts = config.accumulate * world.count
    if config.batch_size % parts:
        raise ValueError(
            f"expected a batch size that {world.count} processes x accumulate {config.accumulate} "
            f"divide, found {config.batch_size}; give --set loop.batch_size="
            f"{max(1, config.batch_size // parts) * parts} or another number of processes"
        )


def _batches(
    task: Task, start: int, config: LoopConfig, fabric: "Fabric", world: World, num_workers: int
) -> Iterator[dict[str, Any]]:
    """This process's micro-batches on the device, from stream position `start` on."""
    size = config.batch_size // (config.accumulate * world.count)
    for batch in stream(task.dataset, start, size, num_workers, (world.rank, world.count)):
        # image numbers for messages are read before the batch leaves the CPU: no wait in the step
        yield fabric.to_device(batch) | {"ids": batch["index"].tolist()}


def _report(
    task: Task, state: TrainingState, means: Means, journal: Journal, folder: Path, fabric: "Fabric"
) -> None:
    """Held-out figures and a picture, with the averaged weights."""
    with _averaged(state, means), torch.no_grad(), fabric.autocast(), eager():
        values = {f"val/{k}": v for k, v in task.evaluate()}
        grid = task.pictures() if state.world.is_writer else None
    journal.name_bad(task.unreadable, "left out an unreadable image")
    journal.log(state.images_seen, values)
    if grid is not None:
        (folder / "samples").mkdir(exist_ok=True)
        save_png(grid, folder / "samples" / f"{state.images_seen:012d}.png")


@contextmanager
def _averaged(state: TrainingState, means: Means) -> Iterator[None]:
    """Inside, every process has all of the averaged weights."""
    with ExitStack() as stack:
        for average in state.averages.values():
            stack.enter_context(average.applied())
        for mean in means:
            stack.enter_context(mean.gathered())
        yield


def _due(before: int, now: int, every: int) -> bool:
    return now // max(1, every) > before // max(1, every)


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (" …" if len(ids) > 8 else "")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list fills when SIGINT or SIGTERM asks to stop; a second one acts as usual."""
    asked: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for asked_for, handler in previous.items():
            signal.signal(asked_for, handler)
