"""A disk that fills up, turns read-only or rots under a run: one line, the older checkpoint as it

was, and the same command afterwards ends in the same bytes. Kills inside saves: `test_kills.py`;
the files themselves: `test_checkpoint.py`.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semvq.data.pixels import save_png
from semvq.data.tokens import TokenCache
from semvq.training.checkpoint import checkpoints, load_checkpoint, load_newest
from semvq.training.journal import Journal
from semvq.training.lock import only_job
from semvq.training.runs import train_recipe
from tests.forks import Spoken
from tests.test_training import arguments, assert_same_run, forget_the_end, train
from tests.toy import TOYS, photos

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


# --- a disk that fills up or turns read-only ------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB of its own; the kernel, not a stand-in, says that it is full."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> Path:
    """The run that nothing interrupts."""
    place = tmp_path_factory.mktemp("whole")
    assert start(place, data).end().returncode == 0
    return place / "kill_phase1"


def start(place: Path, data: Path) -> Spoken:
    """A training that saves six times; what it says is kept beside its place, which may be full."""
    line = [*arguments("kill_phase1", place, data), "--set", "loop.duration=30 steps"]
    return Spoken(line, place.parent)


def started(place: Path, data: Path) -> Spoken:
    """A training that has just saved for the first time."""
    process = start(place, data)
    end = time.monotonic() + 60
    while not checkpoints(place / "kill_phase1" / "checkpoints"):
        assert time.monotonic() < end and process.process.exitcode is None, process.end(0)
        time.sleep(0.005)
    return process


def one_line(process: Spoken) -> str:
    status, _, error = process.end()
    assert status == 2, error
    assert "Traceback" not in error
    (line,) = (x for x in error.splitlines() if "error: " in x)
    return line


def ends_like(whole: Path, place: Path, data: Path) -> None:
    status, _, error = start(place, data).end()
    assert status == 0, error
    assert_same_run(whole, place / "kill_phase1")


def fill(place: Path, leave: int) -> None:
    """Take all room but `leave` bytes."""
    free = os.statvfs(place)
    (place / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 100_000, 400_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(disk, data, whole, leave):
    process = started(disk, data)
    fill(disk, leave)
    line = one_line(process)
    assert str(disk / "kill_phase1") in line, "which file had no room"
    assert "No space left on device" in line
    before = load_newest(disk / "kill_phase1" / "checkpoints")
    assert before is not None and before[1]["images_seen"] >= 20 and not before[2]
    assert not list(disk.rglob("writing-*")) and not list(disk.rglob(".*")), "room is given back"
    (disk / "filler").unlink()
    ends_like(whole, disk, data)


@pytest.mark.slow
def test_a_folder_that_turns_read_only_is_one_line_and_the_run_goes_on_later(disk, data, whole):
    process = started(disk, data)
    folder = disk / "kill_phase1" / "checkpoints"
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:  # root minds no modes, but it minds this
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        line = one_line(process)
        assert "Read-only file system" in line and str(folder) in line
        assert load_newest(folder)[1]["images_seen"] >= 20
    finally:
        process.process.kill()
        subprocess.run(["umount", "-l", str(folder)], check=True)
    ends_like(whole, disk, data)


def test_a_disk_that_is_full_from_the_start_is_one_line(disk, data):
    fill(disk, 0)
    line = one_line(start(disk, data))
    assert "No space left on device" in line and str(disk) in line


@pytest.mark.parametrize("name", ["checkpoints", "samples", "log.jsonl", "recipe.json"])
def test_something_else_in_the_place_of_a_file_is_one_line(tmp_path, data, name):
    run = tmp_path / "kill_phase1"
    run.mkdir()
    (run / name).mkdir() if "." in name else (run / name).write_text("mine")
    line = one_line(start(tmp_path, data))
    assert str(run / name) in line
    assert (run / name).is_dir() if "." in name else (run / name).read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device without room")
def test_log_picture_and_lock_on_a_full_disk(tmp_path):
    for name in ("log.jsonl", "a.png", "lock"):
        (tmp_path / name).symlink_to("/dev/full")
    journal = Journal(tmp_path, "title", 100, (), tensorboard=False)
    with pytest.raises(OSError, match=r"/log\.jsonl: expected room .*No space left"):
        journal.log(4, {"loss": 1.0})
    with pytest.raises(OSError, match=r"/a\.png: expected room .*No space left"):
        save_png(torch.zeros(3, 8, 8), tmp_path / "a.png")
    with only_job(tmp_path):
        pass  # it is only the owner's name that has no room


ENCODER = """
import sys, torch
from pathlib import Path
from semvq.data.images import DataConfig, ImageSet
from semvq.data.tokens import write_tokens
images = ImageSet.open(sys.argv[1])
try:
    write_tokens(
        Path(sys.argv[2]), lambda x: torch.zeros(len(x), int(sys.argv[3]), 256, dtype=torch.int64),
        images, DataConfig(resolution=16), num_views=1, num_codes=16, code_space_hash="a",
    )
except OSError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize(("height", "fits"), [(16, True), (1024, False)])
def test_a_token_cache_without_room_is_one_line_and_no_crash(disk, data, height, fits):
    """Written through a memory map, where a full disk kills the process that did not ask first."""
    arguments = [str(data), str(disk / "tokens"), str(height)]
    done = subprocess.run(
        [sys.executable, "-c", ENCODER, *arguments], capture_output=True, text=True
    )
    if fits:
        assert done.returncode == 0, done.stderr
        assert len(TokenCache.open(disk / "tokens")) == 24
        return
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stdout.splitlines()
    assert "codes.npy: expected room" in line and "No space left on device" in line
    assert not list(disk.iterdir()), "nothing is left of it"


# --- a disk that rots -----------------------------------------------------------------------


def rot(folder: Path, chance: random.Random) -> Path:
    """Flip a bit or cut a file of the newest checkpoint, at random."""
    newest = checkpoints(folder / "checkpoints")[-1]
    file = newest / chance.choice(("tensors.safetensors", "scalars.json", "manifest.json"))
    content = bytearray(file.read_bytes())
    at = chance.randrange(len(content))
    if chance.random() < 0.5:
        del content[at:]
    else:
        content[at] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return newest


@pytest.mark.parametrize("kind", TOYS)
def test_a_run_whose_newest_checkpoint_rotted_ends_in_the_same_bytes(tmp_path, data, kind, capfd):
    upstream = tmp_path / "upstream"
    if kind in ("phase2", "ar", "nar"):
        train("phase1", upstream, data, upstream)
    changes = {"save_every": "2 steps", "duration": "6 steps"}
    train(kind, tmp_path / "whole", data, upstream, **changes)
    for seed in range(3):
        cut = tmp_path / f"cut-{seed}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / "finished").unlink()
        broken = rot(cut, random.Random(f"{kind} {seed}"))
        capfd.readouterr()
        train(kind, cut, data, upstream, **changes)
        said = [x for x in capfd.readouterr().err.splitlines() if "passed over" in x]
        assert len(said) == 1 and str(broken) in said[0]
        assert_same_run(tmp_path / "whole", cut)


def test_a_rotten_newest_never_costs_the_last_good_one(tmp_path, data):
    """Ten times: the newest rots, the run goes on from the older one and is stopped again."""
    run, chance = tmp_path / "run", random.Random(0)
    recipe = TOYS["phase1"](duration="6 steps", save_every="1 step", keep_checkpoints=1)
    train_recipe(recipe, tmp_path / "whole", data=data)
    recipe = TOYS["phase1"](duration="6 steps", save_every="1 step", keep_checkpoints=2)
    train_recipe(recipe, run, data=data)
    for _ in range(10):
        rot(run, chance)
        forget_the_end(run, images_seen=10_000)
        assert load_newest(run / "checkpoints") is not None
        assert train_recipe(recipe, run, data=data) is None
        assert len(checkpoints(run / "checkpoints")) <= 3
    expected, found = (load_checkpoint(checkpoints(x / "checkpoints")[-1])[0]
                       for x in (tmp_path / "whole", run))  # fmt: skip
    assert all(expected[k].numpy().tobytes() == found[k].numpy().tobytes() for k in expected)
