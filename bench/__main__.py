"""How fast everything is, beside a plain eager version of the same in the same run.

    python -m bench [ROW…] [--device cpu|cuda] [--quick] [--precision bf16|fp32] [--seconds S]
                    [--json FILE] [--list] [--peers]
    python -m bench growth [--device …] [--quick] [--json FILE]   how cost grows with size
    python -m bench profile ROW… [--device …] [--quick] [--top N] where a row's time goes
    python -m bench.kernels                                       the AR step's kernels, on CUDA
    python -m bench.compiling                                     torch.compile of a tokenizer
    torchrun --nproc-per-node=2 -m bench.split                    a transformer split over GPUs

Every row runs in a process of its own, ours and plain in turns after a warm-up. The table: medians
with their spread, how many times as fast as plain, the floor (what the device would take at its
peak FLOP/s or full bandwidth, whichever is more; not on a CPU) and our share of it, memory beyond
what was there before a call, and how far the two results are apart. A row name may be a pattern:
'sample-ar-*'. `semvq sample` draws in fp32 unless told --bf16: --precision fp32 times that.
Exit codes: 0; 1 where a row failed or the results of its two versions differ; 2 for a mistake.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import growth, profile
from bench.case import Row, Setting
from bench.command import Parser, above_zero, add_setting, rows_named, setting_of
from bench.measure import ceilings, in_fresh_process, run_row
from bench.rows import PEERS, ROWS
from bench.table import print_table, with_floor
from semvq.evaluation.versions import commit

SECONDS, QUICK_SECONDS = 10.0, 0.8  # of timing per row

Runner = Callable[..., Any]


def main(arguments: list[str] | None = None) -> int:
    """See the head of this file."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["growth"]:
        return growth.main(words[1:])
    if words[:1] == ["profile"]:
        return profile.main(words[1:])
    p = parser()
    options = p.parse_args(words)
    if options.list:
        list_rows()
        return 0
    every = (*ROWS, *(PEERS if options.peers else ()))
    rows = rows_named(p, options.rows, (*ROWS, *PEERS)) if options.rows else every
    setting = setting_of(p, options)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    facts = run(installed(rows), setting, seconds, options.json)
    print_table(facts)
    bad = [row["name"] for row in facts["rows"] if "error" in row or row.get("agrees") is False]
    if bad:
        print(f"failed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser("python -m bench", __doc__)
    p.add_argument("rows", nargs="*", metavar="ROW", help="names or patterns; all if left out")
    add_setting(p)
    seconds = f"of timing per row ({SECONDS:g}, with --quick {QUICK_SECONDS:g})"
    p.add_argument("--seconds", type=above_zero, help=seconds)
    p.add_argument("--json", type=Path, metavar="FILE", help="written anew after every row")
    p.add_argument("--list", action="store_true", help="the rows, and what peers need")
    p.add_argument("--peers", action="store_true", help="other packages too, where installed")
    return p


def list_rows() -> None:
    """A line for each."""
    for row in (*ROWS, *PEERS):
        needs = "" if is_there(row) else f"  (not installed: {row.install})"
        print(f"{row.name:24} {row.unit:9} {row.about}{needs}")


def installed(rows: Sequence[Row]) -> list[Row]:
    """The rows less the peers that are absent, which are named."""
    for row in rows:
        if not is_there(row):
            print(f"skipped {row.name}: {row.needs} is not installed ({row.install})")
    return [row for row in rows if is_there(row)]


def is_there(row: Row) -> bool:
    """Whether what the row imports is installed."""
    return row.needs is None or importlib.util.find_spec(row.needs) is not None


def run(
    rows: list[Row],
    setting: Setting,
    seconds: float,
    file: Path | None = None,
    runner: Runner = in_fresh_process,
) -> dict[str, Any]:
    """All figures of these rows, JSON-ready; `file` is written anew after each of them."""
    threads = torch.get_num_threads()
    limits = runner(ceilings, setting)
    facts: dict[str, Any] = {
        "commit": commit(),
        "kind": setting.device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": limits["device_name"],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "threads": threads,
        "cores": os.cpu_count(),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "scale": setting.scale,
        "ceilings": limits["used"],
        "measured_ceilings": limits["measured"],
        "rows": [],
    }
    for row in rows:
        print(f"{row.name} …", file=sys.stderr, flush=True)
        try:
            found = runner(run_row, row, setting, seconds, threads)
        except ValueError as error:
            found = {"name": row.name, "unit": row.unit, "error": str(error)}
        found |= {"about": row.about, "against": row.against}
        facts["rows"].append(with_floor(found, limits["used"]))
        if file is not None:
            save(facts, file)
    if limits["used"] == limits["measured"]:
        # a shared CPU is not always as fast: the better of before and after
        after = runner(ceilings, setting)["measured"]
        better = {name: max(value, after[name]) for name, value in limits["measured"].items()}
        facts["ceilings"] = facts["measured_ceilings"] = better
        facts["rows"] = [with_floor(row, better) for row in facts["rows"]]
        if file is not None:
            save(facts, file)
    return facts


def save(facts: dict[str, Any], file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
