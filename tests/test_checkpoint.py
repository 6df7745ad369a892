import os
import signal
import subprocess
import sys
import time

import pytest
import torch

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
