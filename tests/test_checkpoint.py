import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semvq import cli, commands
from semvq.files import replace_atomically, write_atomically
from semvq.training.checkpoint import (
    CheckpointError,
    checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from tests.forks import Spoken

TENSORS = {"a": torch.arange(1000.0), "b.c": torch.ones(3, dtype=torch.int64)}


def test_round_trip_and_pruning(tmp_path):
    for seen in (4, 8, 12):
        save_checkpoint(tmp_path, seen, TENSORS, {"step": seen}, keep=2)
    tensors, scalars, refused = load_newest(tmp_path)
    assert scalars == {"step": 12} and not refused
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert [p.name for p in checkpoints(tmp_path)] == ["000000000008", "000000000012"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "scalars.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "not text", "truncate", "delete"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_older_one_used(tmp_path, file, damage):
    save_checkpoint(tmp_path, 4, TENSORS, {"step": 4}, keep=2)
    newest = save_checkpoint(tmp_path, 8, TENSORS, {"step": 8}, keep=2)
    data = bytearray((newest / file).read_bytes())
    if damage == "flip":
        # inside a hexadecimal digest for the manifest, anywhere for the others
        at = data.rindex(b"sha256 ") + 9 if file == "manifest.json" else len(data) // 2
        data[at] ^= 1
        (newest / file).write_bytes(data)
    elif damage == "not text":
        (newest / file).write_bytes(bytes([data[0] ^ 0x80]) + data[1:])
    elif damage == "truncate":
        (newest / file).write_bytes(data[:-5])
    else:
        (newest / file).unlink()
    with pytest.raises(CheckpointError, match="000000000008"):
        load_checkpoint(newest)
    _, scalars, refused = load_newest(tmp_path)
    assert scalars == {"step": 4}
    assert len(refused) == 1 and "000000000008" in refused[0]


def test_nothing_whole_left_is_an_error_and_nothing_at_all_is_none(tmp_path):
    assert load_newest(tmp_path / "absent") is None
    only = save_checkpoint(tmp_path, 4, TENSORS, {}, keep=2)
    (only / "scalars.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        load_newest(tmp_path)


def save_for_ever(command: list[str]) -> None:
    """In a process of its own: one save after another, each said when it is done."""
    big = torch.ones(2_000_000)
    for seen in range(1, 10_000):
        save_checkpoint(Path(command[0]), seen, {"x": big * seen}, {"step": seen}, keep=2)
        print(seen, flush=True)


@pytest.mark.slow
def test_kill_inside_a_save_leaves_a_whole_checkpoint(tmp_path):
    rng = torch.Generator().manual_seed(0)
    for trial in range(5):
        folder = tmp_path / f"checkpoints{trial}"
        saving = Spoken([str(folder)], tmp_path, save_for_ever)
        while not (said := saving.files[0].exists() and saving.files[0].read_text()):
            assert saving.process.is_alive()
            time.sleep(0.02)
        time.sleep(0.05 + 0.15 * float(torch.rand((), generator=rng)))
        saving.process.kill()
        saving.process.join()
        tensors, scalars, _ = load_newest(folder)
        assert scalars["step"] >= int(said.split()[0])
        assert torch.equal(tensors["x"], torch.ones(2_000_000) * scalars["step"])


def damage_newest(folder, file="scalars.json"):
    path = checkpoints(folder)[-1] / file
    path.write_bytes(path.read_bytes()[:-1])


def names(folder):
    return [int(p.name) for p in checkpoints(folder)]


@pytest.mark.parametrize("file", ["tensors.safetensors", "scalars.json", "manifest.json"])
@pytest.mark.parametrize("keep", [1, 2])
def test_broken_checkpoints_do_not_count_as_kept(tmp_path, file, keep):
    save_checkpoint(tmp_path, 4, TENSORS, {"step": 4}, keep)
    for seen in (8, 12):
        save_checkpoint(tmp_path, seen, TENSORS, {"step": seen}, keep=3)
        damage_newest(tmp_path, file)
    save_checkpoint(tmp_path, 16, TENSORS, {"step": 16}, keep)
    assert names(tmp_path) == ([16] if keep == 1 else [4, 8, 12, 16])  # 4 is the second whole one
    save_checkpoint(tmp_path, 20, TENSORS, {"step": 20}, keep)
    assert names(tmp_path) == ([20] if keep == 1 else [16, 20])


def test_a_run_that_went_back_keeps_what_it_saves_and_replaces_the_broken(tmp_path):
    for seen in (4, 12):
        save_checkpoint(tmp_path, seen, TENSORS, {"step": seen}, keep=2)
    flipped = tmp_path / f"{12:012d}" / "scalars.json"
    flipped.write_bytes(flipped.read_bytes().replace(b"12", b"13"))  # as long as before
    save_checkpoint(tmp_path, 8, TENSORS, {"step": 8}, keep=1)
    assert names(tmp_path) == [8, 12]
    assert load_newest(tmp_path)[1] == {"step": 8}
    save_checkpoint(tmp_path, 12, TENSORS, {"step": 12}, keep=1)
    assert names(tmp_path) == [12] and load_newest(tmp_path)[1] == {"step": 12}
    assert [p.name for p in tmp_path.iterdir()] == [f"{12:012d}"]


def test_random_flips_and_cuts_are_refused_by_name_and_the_older_one_used(tmp_path):
    chance = random.Random(0)
    save_checkpoint(tmp_path, 4, TENSORS, {"step": 4}, keep=2)
    newest = save_checkpoint(tmp_path, 8, TENSORS, {"step": 8, "identity": {"data": "x"}}, keep=2)
    for file in ("tensors.safetensors", "scalars.json", "manifest.json"):
        whole = (newest / file).read_bytes()
        for trial in range(60):
            at = chance.randrange(len(whole))
            flipped = bytearray(whole)
            flipped[at] ^= 1 << chance.randrange(8)
            (newest / file).write_bytes(flipped if trial % 2 else whole[:at])
            with pytest.raises(CheckpointError) as refused:
                load_checkpoint(newest)
            # a damaged manifest may accuse the file it describes: the folder is named either way
            assert str(newest) in str(refused.value) and "\n" not in str(refused.value)
            assert file == "manifest.json" or str(newest / file) in str(refused.value)
            _, scalars, lines = load_newest(tmp_path)
            assert scalars == {"step": 4} and len(lines) == 1
        (newest / file).write_bytes(whole)
    assert load_newest(tmp_path)[1]["step"] == 8


def save_on_a_small_disk(command: list[str]) -> None:
    """In a process of its own: a save where no file may become longer than so many bytes."""
    folder, what, limit = Path(command[0]), command[1], int(command[2])
    big = {"a": torch.ones(100_000)}

    def save(options) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            if what == "checkpoint":
                save_checkpoint(folder, 8, big, {"step": 8}, keep=1)
            else:
                replace_atomically(folder / "model.safetensors", lambda path: save_file(big, path))
        finally:  # what it says goes into a file too
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    commands.recipes = save  # any command: what the user sees of an error is the same
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cli.main(["recipes"])


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 10_000, 399_000])
@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_full_disk_is_one_line_and_the_older_files_stay(tmp_path, what, limit):
    folder = tmp_path / "run"
    save_checkpoint(folder, 4, TENSORS, {"step": 4}, keep=1)
    (folder / "model.safetensors").write_text("old")
    done = Spoken([str(folder), what, str(limit)], tmp_path, save_on_a_small_disk).end()
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    name = f"{8:012d}" if what == "checkpoint" else "model.safetensors"
    assert line.startswith(f"semvq: error: {folder / name}: expected room and permission")
    assert "File too large" in line
    assert load_newest(folder)[1:] == ({"step": 4}, [])
    assert (folder / "model.safetensors").read_text() == "old"
    assert sorted(p.name for p in folder.iterdir()) == [f"{4:012d}", "model.safetensors"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(OSError, match="checkpoints/000000000004: expected room and permission"):
        save_checkpoint(tmp_path / "checkpoints", 4, TENSORS, {}, keep=1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


# The tests may run as root, whom no mode of a folder stops: the rename that fails stands in for a
# folder that became read-only.
def test_a_read_only_folder_is_one_line_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 4, TENSORS, {"step": 4}, keep=1)
    (tmp_path / "model.safetensors").write_text("old")

    def refuse(source, target):
        raise OSError(errno.EROFS, "Read-only file system", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="expected room and permission.*Read-only") as refused:
        save_checkpoint(tmp_path, 8, TENSORS, {"step": 8}, keep=1)
    assert "\n" not in str(refused.value) and f"{8:012d}" in str(refused.value)
    with pytest.raises(OSError, match="model.safetensors: expected room and permission"):
        write_atomically(tmp_path / "model.safetensors", "new")
    assert (tmp_path / "model.safetensors").read_text() == "old"
    assert load_newest(tmp_path)[1:] == ({"step": 4}, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{4:012d}", "model.safetensors"]
