"""Kills at random moments inside a save, with the states of real trainings."""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semvq.files import flush
from semvq.training.checkpoint import checkpoints, load_checkpoint, load_newest, save_checkpoint
from semvq.training.runs import train_recipe
from tests.forks import start
from tests.toy import TOYS, photos

pytestmark = pytest.mark.slow

KILLS, KEEP = 25, 2
LATEST = 1.2  # of the time that a save takes, after the line that one begins


def save_on_and_on(arguments: list[str]) -> None:
    """Save the tensors of one file over and over, with the number of the save in each scalar."""
    file, folder, first, pipe = arguments
    state = load_file(file)
    with open(pipe, "w") as out:
        for seen in range(int(first), int(first) + 100_000):
            state["number"].fill_(seen)
            print("in", seen, file=out, flush=True)
            save_checkpoint(Path(folder), seen, state, {"number": seen}, keep=KEEP)
            print("out", seen, file=out, flush=True)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What `TrainingState.tensors` gave at the end of each toy training."""
    place = tmp_path_factory.mktemp("states")
    data = photos(place / "photos", per_class=4)
    found = {}
    for kind in ("autoencoder", "phase1", "phase2", "ar", "nar"):
        upstream = None if kind in ("autoencoder", "phase1") else place / "phase1"
        recipe = TOYS[kind](duration="2 steps")
        assert train_recipe(recipe, place / kind, data=data, upstream=upstream) is None
        found[kind], _ = load_checkpoint(checkpoints(place / kind / "checkpoints")[-1])
        assert any(name.startswith("optim.") for name in found[kind])
    return found


class Saver:
    """A process that saves without end, and how far it says it has come."""

    def __init__(self, state: Path, folder: Path, first: int) -> None:
        pipe = folder.with_name(f"pipe-{first}")
        os.mkfifo(pipe)
        self.process = start([str(state), str(folder), str(first), str(pipe)], save_on_and_on)
        self.lines = os.open(pipe, os.O_RDONLY)
        self.rest = b""

    def wait_for(self, line: bytes) -> None:
        while line not in self.rest.splitlines():
            ready, _, _ = select.select([self.lines], [], [], 60)
            assert ready, f"no line {line!r} in a minute"
            data = os.read(self.lines, 65536)
            assert data, f"the saver ended before {line!r}"
            self.rest += data

    def pace(self, lines: int) -> float:
        """Seconds that a save takes, over the next `lines` of output (two for each)."""
        start, before = time.monotonic(), self.rest.count(b"\n")
        while (count := self.rest.count(b"\n") - before) < lines:
            self.rest += os.read(self.lines, 65536)
        return 2 * (time.monotonic() - start) / count

    def kill(self) -> tuple[int, int]:
        """The last save begun and the last one done (0 if none), as the lines say."""
        self.process.kill()
        self.process.join()
        while data := os.read(self.lines, 65536):
            self.rest += data
        os.close(self.lines)
        words = [line.split() for line in self.rest.splitlines()]
        last = {b"in": 0, b"out": 0} | {word: int(number) for word, number in words}
        return last[b"in"], last[b"out"]


def assert_whole(folder: Path, state: dict[str, torch.Tensor], allowed: set[int]) -> None:
    tensors, scalars, refused = load_newest(folder)
    assert scalars["number"] in allowed and not refused
    expected = state | {"number": torch.tensor(scalars["number"])}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.slow
def test_kills_inside_saves_leave_the_last_or_the_new_checkpoint(tmp_path, states):
    chance = random.Random(0)
    inside = stale = renamed = 0
    for kill in range(KILLS):
        kind = list(states)[kill % len(states)]
        state, folder = states[kind], tmp_path / kind
        file = tmp_path / f"{kind}.safetensors"
        save_file(state | {"number": torch.tensor(0)}, file)
        flush(file)
        first = 1000 * (kill + 1)
        saver = Saver(file, folder, first)
        saver.wait_for(b"in %d" % first)
        seconds = saver.pace(4)
        saver.wait_for(b"in %d" % (first + chance.randrange(3, 5)))
        time.sleep(chance.uniform(0, LATEST * seconds))
        begun, done = saver.kill()

        assert done in (begun, begun - 1) and done >= first
        assert_whole(folder, state, {done, begun})
        renamed += begun != done and f"{begun:012d}" in [p.name for p in checkpoints(folder)]
        inside += begun != done
        left = list(folder.glob("writing-*"))
        stale += bool(left)
        assert len(left) <= 1 and len(checkpoints(folder)) <= KEEP + 1

        # the next save cleans up and prunes
        after = begun + 1
        save_checkpoint(folder, after, state | {"number": torch.tensor(after)},
                        {"number": after}, KEEP)  # fmt: skip
        assert not list(folder.glob("writing-*"))
        assert len(checkpoints(folder)) == KEEP
        assert_whole(folder, state, {after})
    print(f"{KILLS} kills, {inside} in a save: {stale} half-written, {renamed} after the rename")
    assert inside > KILLS // 2 and stale > KILLS // 4, "the kills missed the saves"


# --- every step of a save, one after the other ---

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # audit events of Python


def save_and_die(folder: Path, seen: int, tensors: dict[str, torch.Tensor], step: int) -> bool:
    """Save in a child that kills itself right before its `step`-th file operation.

    False if there are not so many.
    """
    child = os.fork()
    if not child:
        count = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal count
            if event in STEPS and str(folder) in str(arguments[0]):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            save_checkpoint(folder, seen, tensors, {"number": seen}, keep=1)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the save failed"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("over_a_broken_one", [False, True])
def test_a_kill_before_every_file_operation_of_a_save(tmp_path, over_a_broken_one):
    found = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        state = {"a": torch.arange(100.0), "number": torch.tensor(4)}
        save_checkpoint(folder, 4, state, {"number": 4}, keep=1)
        new = state | {"number": torch.tensor(8)}
        if over_a_broken_one:
            broken = save_checkpoint(folder, 8, new, {"number": 8}, keep=2)
            (broken / "scalars.json").unlink()
        killed = save_and_die(folder, 8, new, step)
        tensors, scalars, refused = load_newest(folder)
        assert over_a_broken_one or not refused, "a half-written one has a checkpoint's name"
        assert scalars["number"] in (4, 8) and torch.equal(tensors["a"], state["a"])
        assert int(tensors["number"]) == scalars["number"]
        found.append(scalars["number"])
        save_checkpoint(folder, 12, state, {"number": 12}, keep=1)
        assert [p.name for p in folder.iterdir()] == [f"{12:012d}"]
        if not killed:
            break
    assert not killed and found == sorted(found), "once there, the new one stays"
    assert found.count(4) > 10 and found.count(8) > 3
