"""The miniature of the paper's claims on the GPUs of one machine, several trainings at once:

`python -m scripts.miniature --data TRAIN --val VAL.tar --out runs/miniature --gpus 0 1 2 3`

Each job is a command of `semvq`. Two calls may share a folder, say on GPUs that become free later:
a job belongs to whoever claims it first. Small networks leave a GPU waiting for its next kernel,
hence `--at-once`; the machine's cores are shared out among the jobs of one call. After a stop
remove OUT/jobs and call again: what is done is not done twice.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

# usage is measured with rFID; a NAR transformer has learnt next to nothing after so few images
COLUMNS = ["rFID", "AR"]
# variant: its row in each table that has it
CLAIMS = {
    "low": {"6": "L_low", "1": "baselineVQ", "5": "+H(D)", "fig6": "alpha 0"},
    "sem": {"6": "L_sem", "fig6": "alpha 1"},
    "attention2": {"1": "+Attention x2"},
    "no_entropy": {"5": "VQGAN"},
}
ONE_SEED = {
    "alpha40": {"fig6": "alpha 0.4"},
    "factorized": {"5": "+F&N"},
    "alpha80": {"fig6": "alpha 0.8"},
    "kmeans": {"5": "+K-means"},
    "alpha20": {"fig6": "alpha 0.2"},
    "alpha60": {"fig6": "alpha 0.6"},
    "conv2": {"1": "+Conv x2"},
}
COMPARED = 2  # tokenizers a page: each takes minutes
SECOND_PHASE = ["AR, 1st phase", "AR, 2nd phase"]


@dataclass(frozen=True)
class Job:
    """A command of `semvq`, and the jobs that have to be done before."""

    name: str
    words: list[str]
    after: tuple[str, ...] = ()


def jobs(options: Namespace) -> list[Job]:
    """All, in the order in which they are wanted."""
    photos = ["--data", str(options.data), "--val", str(options.val)]
    workers = ["--workers", str(options.workers)]
    found = [_statistics(options, workers)]
    for seed in options.seeds:
        words = ["train", "mini64_autoencoder", *photos, *workers, "--set", f"loop.seed={seed}"]
        out = ["--out", str(options.out / f"seed{seed}" / "mini64_autoencoder")]
        found.append(Job(f"autoencoder-{seed}", [*words, *out]))
    for seed in options.seeds:  # one after another: a machine may be taken away
        found += [_row(options, variant, seed) for variant in _variants(options, seed)]
        found.append(_second_phase(options, seed))
        found += _numbers(options, seed)
        if seed == options.seeds[0] and not options.claims:
            found += _pages(options, workers)
    return found


def _variants(options: Namespace, seed: int) -> dict[str, dict[str, str]]:
    alone = seed != options.seeds[0] or options.claims
    return CLAIMS if alone else CLAIMS | ONE_SEED


def _statistics(options: Namespace, workers: list[str]) -> Job:
    """Of the training images, by which all are judged; and the held-out photos against them."""
    words = ["evaluate", str(options.out / "held-out"), "--protocol", "generation"]
    words += ["--data", str(options.data)]
    files = ["--statistics", str(options.out / "mini64-inception.npz")]
    record = ["--json", str(options.out / "held-out.json")]
    return Job("statistics", [*words, *files, *record, *workers])


def _table(options: Namespace, table: str, rows: list[str], seed: int) -> list[str]:
    """Those rows of a table."""
    words = ["table", table, "--scale", "mini", "--rows", *rows, "--seeds", str(seed)]
    words += ["--data", str(options.data), "--val", str(options.val), "--out", str(options.out)]
    return [*words, "--dataset", "mini64", "--workers", str(options.workers)]


def _row(options: Namespace, variant: str, seed: int) -> Job:
    table, row = next(iter((CLAIMS | ONE_SEED)[variant].items()))
    words = [*_table(options, table, [row], seed), "--columns", *COLUMNS]
    return Job(f"{variant}-{seed}", words, ("statistics", f"autoencoder-{seed}"))


def _second_phase(options: Namespace, seed: int) -> Job:
    words = _table(options, "fig8", SECOND_PHASE, seed)
    file = ["--csv", str(options.out / f"fig8-seed{seed}.csv")]
    return Job(f"fig8-{seed}", [*words, *file], (f"sem-{seed}",))


def _numbers(options: Namespace, seed: int) -> list[Job]:
    """A file of numbers for every table, of what is measured by then."""
    found = []
    for table in ("1", "5", "6", "fig6"):
        variants = _variants(options, seed)
        rows = {variant: place[table] for variant, place in variants.items() if table in place}
        columns = ["--columns", *COLUMNS, *["usage"] * (table == "5")]
        name = f"table{table}" if table.isdigit() else table
        # apart, for another call in the same folder may have more rows
        name += "-claims" * (variants is CLAIMS)
        file = ["--csv", str(options.out / f"{name}-seed{seed}.csv")]
        words = [*_table(options, table, list(rows.values()), seed), *columns, *file]
        made = tuple(f"{variant}-{seed}" for variant in rows)
        found.append(Job(f"numbers-{name}-{seed}", words, made))
    return found


def _pages(options: Namespace, workers: list[str]) -> list[Job]:
    """Tokenizers of one seed with their transformers: cheap figures, and those of samples."""
    seed = options.seeds[0]
    variants, found = list(_variants(options, seed)), []
    for start in range(0, len(variants), COMPARED):
        some = variants[start : start + COMPARED]
        runs = [
            str(options.out / f"seed{seed}" / f"mini64_{variant}{kind}")
            for variant in some
            for kind in ("", "_ar")
        ]
        page = options.out / f"compare-{'-'.join(some)}"
        words = ["compare", *runs, "--data", str(options.val), "--train", str(options.data)]
        words += ["--num", "2500", "--out", f"{page}.html", "--json", f"{page}.json", *workers]
        found.append(Job(page.name, words, tuple(f"{v}-{seed}" for v in some)))
    return found


def work(options: Namespace, gpu: str) -> None:
    """Jobs one after another on a GPU, until none is left that can be done."""
    waiting = everything = jobs(options)
    while waiting:
        states = {job.name: _state(options, job.name) for job in everything}
        for job in everything:  # in order: what it waits for stands before it
            if any(states[name] == "failed" for name in job.after):
                states[job.name] = "failed"
        waiting = [j for j in waiting if states[j.name] == "new"]
        ready = (j for j in waiting if all(states[name] == "done" for name in j.after))
        job = next(ready, None)
        if job is None and waiting:  # for what others do
            time.sleep(1)
        elif job is not None and _claim(options, job):
            _do(options, job, gpu)


def _state(options: Namespace, name: str) -> str:
    for state in ("done", "failed", "claimed"):
        if (options.out / "jobs" / f"{name}.{state}").exists():
            return state
    return "new"


def _claim(options: Namespace, job: Job) -> bool:
    try:
        (options.out / "jobs" / f"{job.name}.claimed").open("x").close()
    except FileExistsError:
        return False
    return True


def _do(options: Namespace, job: Job, gpu: str) -> None:
    start, place = time.monotonic(), options.out / "jobs" / job.name
    # more threads than cores wait for each other: one evaluation took minutes instead of seconds
    cores = len(os.sched_getaffinity(0)) // (len(options.gpus) * options.at_once)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": str(max(1, cores))}
    with place.with_name(f"{job.name}.log").open("w") as log:
        command = [sys.executable, "-m", "semvq", *job.words]
        code = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    place.with_name(f"{job.name}.{'failed' if code else 'done'}").touch()
    print(f"{job.name}: exit code {code}, {time.monotonic() - start:.0f} s, GPU {gpu}", flush=True)


def _unpack(photos: Path, folder: Path) -> None:
    """All of a tar file or nothing; another call may do the same at the same time."""
    if folder.exists():
        return
    part = Path(mkdtemp(dir=folder.parent))
    try:
        with tarfile.open(photos) as file:
            file.extractall(part, filter="data")
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else the other call was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    """Exit code 1 where a job failed or could not be done."""
    p = ArgumentParser(description=__doc__)
    p.add_argument("--data", type=Path, required=True, help="training images: class folders, tars")
    p.add_argument("--val", type=Path, required=True, help="one tar file of held-out images")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    p.add_argument("--claims", action="store_true",
                   help="the claims' tokenizers alone, not more and pages with the first seed"
                   )  # fmt: skip
    p.add_argument("--gpus", nargs="+", default=["0"], help='(0); "" is the CPU')
    p.add_argument("--at-once", type=int, default=3, help="jobs on a GPU (%(default)s)")
    p.add_argument("--workers", type=int, default=3, help="loading processes a job (%(default)s)")
    options = p.parse_args()
    folder = options.out / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    _unpack(options.val, options.out / "held-out")
    threads = [
        threading.Thread(target=work, args=(options, gpu))
        for _ in range(options.at_once)
        for gpu in options.gpus
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [job.name for job in jobs(options) if _state(options, job.name) != "done"]
    if left:
        sys.exit(f"not done: {', '.join(left)}; their logs are in {folder}")


if __name__ == "__main__":
    main()
