import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from semvq.files import write_atomically
from semvq.training.checkpoint import (
    CheckpointError,
    checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)

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


SAVER = """
import sys, torch
from pathlib import Path
from semvq.training.checkpoint import save_checkpoint
big = {"x": torch.ones(2_000_000)}
for seen in range(1, 10_000):
    save_checkpoint(Path(sys.argv[1]), seen, {"x": big["x"] * seen}, {"step": seen}, keep=2)
    print(seen, flush=True)
"""


@pytest.mark.slow
def test_kill_inside_a_save_leaves_a_whole_checkpoint(tmp_path):
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        time.sleep(0.05 + 0.15 * float(torch.rand((), generator=rng)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        tensors, scalars, _ = load_newest(tmp_path)
        assert scalars["step"] >= first
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


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from semvq import cli, commands
from semvq.files import replace_atomically
from semvq.training.checkpoint import save_checkpoint
from safetensors.torch import save_file
folder, what = Path(sys.argv[1]), sys.argv[2]
big = {"a": torch.ones(100_000)}

def save(options):
    if what == "checkpoint":
        save_checkpoint(folder, 8, big, {"step": 8}, keep=1)
    else:
        replace_atomically(folder / "model.safetensors", lambda path: save_file(big, path))

commands.recipes = save  # any command: what the user sees of an error is the same
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
cli.main(["recipes"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 10_000, 399_000])
@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_full_disk_is_one_line_and_the_older_files_stay(tmp_path, what, limit):
    save_checkpoint(tmp_path, 4, TENSORS, {"step": 4}, keep=1)
    (tmp_path / "model.safetensors").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), what, str(limit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    name = f"{8:012d}" if what == "checkpoint" else "model.safetensors"
    assert line.startswith(f"semvq: error: {tmp_path / name}: expected room and permission")
    assert "File too large" in line
    assert load_newest(tmp_path)[1:] == ({"step": 4}, [])
    assert (tmp_path / "model.safetensors").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{4:012d}", "model.safetensors"]


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
