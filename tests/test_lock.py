"""One job per run folder: a second refuses, and a killed one leaves nothing in the way."""

import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from semvq.training.lock import only_job
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_phase1

HOLDER = """
import os, sys, time
from pathlib import Path
from semvq.training.lock import only_job
with only_job(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:  # as a data loader's process, which lives on
        time.sleep(60)
        os._exit(0)
    print("in", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "in\n"
    return process


def end(process: subprocess.Popen) -> None:
    """End what is left of a holder: it and its child have a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_the_second_job_refuses_and_names_the_first(tmp_path):
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    process = holder(run)
    try:
        with pytest.raises(ValueError, match="expected no other job") as refused:
            train_recipe(toy_phase1(), run, data=data)
        assert f"pid {process.pid} on {platform.node()}" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (run / "recipe.json").exists()
    finally:
        end(process)
    assert train_recipe(toy_phase1(duration="1 step"), run, data=data) is None
    assert not (run / "lock").exists()


@pytest.mark.parametrize("forks", [(), ("with a child",)])
def test_a_killed_job_does_not_lock_the_next_out(tmp_path, forks):
    process = holder(tmp_path / "run", *forks)
    try:
        process.kill()
        process.wait()
        assert (tmp_path / "run" / "lock").exists()
        with only_job(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / "run" / "lock").read_text()
    finally:
        end(process)


def test_an_empty_folder_goes_only_if_it_was_made_here(tmp_path):
    (tmp_path / "theirs").mkdir()
    for name in ("theirs", "new", "used"):
        with only_job(tmp_path / name):
            if name == "used":
                (tmp_path / name / "log.jsonl").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs", "used"]
    with pytest.raises(ValueError, match="expected --data"):
        train_recipe(toy_phase1(), tmp_path / "mistake")
    assert not (tmp_path / "mistake").exists()
