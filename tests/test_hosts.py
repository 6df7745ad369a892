"""Two hosts: network namespaces with a cable between them. And SLURM's `srun`, by what it tells."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semvq import cli
from semvq.launch import Launch, find_launch
from tests.forks import Done, Spoken
from tests.test_processes import ROOT, arguments, environment, run
from tests.toy import photos

HOSTS = tuple(f"semvq-{os.getpid()}-{end}" for end in "ab")
CABLE = tuple(f"sv{os.getpid()}{end}" for end in "ab")
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True).returncode


@pytest.fixture
def hosts() -> Iterator[None]:
    """Both, with an address each; skipped where this user may not make any."""
    if shutil.which("ip") is None or ip("netns", "add", HOSTS[0]):
        pytest.skip("no network namespaces here: they need Linux, `ip` and its administrator")
    try:
        assert ip("netns", "add", HOSTS[1]) == 0
        assert ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1]) == 0
        for host, end, address in zip(HOSTS, CABLE, ADDRESSES):
            assert ip("link", "set", end, "netns", host) == 0
            assert ip("-n", host, "addr", "add", f"{address}/24", "dev", end) == 0
            for device in ("lo", end):
                assert ip("-n", host, "link", "set", device, "up") == 0
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def host_command(number: int, line: list[str]) -> list[str]:
    """`torchrun` on one of the two hosts, as docs/many-gpus.md starts it."""
    start = ["ip", "netns", "exec", HOSTS[number], sys.executable, "-m", "torch.distributed.run"]
    meet = ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1"]
    meet += [f"--master-addr={ADDRESSES[0]}", "--master-port=29513"]
    return [*start, *meet, "-m", "semvq", *line]


@pytest.mark.slow
def test_two_hosts_train_what_two_processes_of_one_do(hosts, tmp_path):
    data = photos(tmp_path / "photos")
    assert run(2, "many_autoencoder", tmp_path / "one", data).returncode == 0
    line = arguments("many_autoencoder", tmp_path / "two", data)
    started = [
        subprocess.Popen(
            host_command(number, line), cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment() | {"GLOO_SOCKET_IFNAME": CABLE[number]},
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    same_weights(tmp_path / "one", tmp_path / "two")


def same_weights(a: Path, b: Path) -> None:
    one, two = (load_file(f / "many_autoencoder" / "model.safetensors") for f in (a, b))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def srun(rank: int, count: int = 2) -> dict[str, str]:
    """What `srun --nodes=1 --ntasks-per-node=2` tells a task."""
    return {
        "SLURM_JOB_ID": "1234567", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(count), "SLURM_NNODES": "1",
        "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": "1",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
    }  # fmt: skip


def _as_task(command: list[str]) -> None:
    os.environ |= srun(int(command[0]))
    cli.main(command[1:])


@pytest.mark.slow
def test_tasks_of_srun_are_the_processes_of_a_run(tmp_path):
    data = photos(tmp_path / "photos")
    assert run(2, "many_autoencoder", tmp_path / "torchrun", data).returncode == 0
    line = arguments("many_autoencoder", tmp_path / "srun", data)
    tasks = [Spoken([str(rank), *line], tmp_path, _as_task) for rank in range(2)]
    ends: list[Done] = [task.end(120) for task in tasks]
    assert [end.returncode for end in ends] == [0, 0], ends
    same_weights(tmp_path / "torchrun", tmp_path / "srun")


def test_who_started_a_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert find_launch() == Launch("nobody", 0, 1, 1)
    for name, value in srun(rank=5, count=8).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert find_launch() == Launch("srun", 5, 8, 4)
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))  # torchrun in a step
    assert find_launch() == Launch("torchrun", 1, 2, 2)


def test_a_batch_script_is_alone_whatever_its_job_has(monkeypatch):
    for name, value in srun(rank=0, count=8).items():
        if "STEP" not in name:
            monkeypatch.setenv(name, value)
    assert find_launch() == Launch("nobody", 0, 1, 1)


def test_srun_without_tasks_per_node_is_refused(monkeypatch):
    for name, value in srun(rank=0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="expected --ntasks-per-node, found --ntasks alone"):
        find_launch()
