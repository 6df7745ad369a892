"""How fast everything is, beside a plain eager version of the same in the same run.

    python -m bench [ROW…] [--device cpu|cuda] [--quick] [--json FILE] [--list] [--peers]
    python -m bench growth [--device …] [--quick] [--json FILE]
    python -m bench profile ROW… [--device …] [--quick] [--top N]

Every row runs in a process of its own, ours and plain in turns after a warm-up. The table: medians
with their spread, how many times as fast as plain, the floor (what the device would take at its
peak FLOP/s or full bandwidth, whichever is more) and our share of it, memory beyond what was there
before a call, and how far the two results are apart. A row name may be a pattern: 'sample-ar-*'.
Exit codes: 0; 1 where a row failed or the results of its two versions differ; 2 for a mistake.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from bench import growth, profile
from bench.case import Row, Setting
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
    options = parse(words)
    if options.list:
        list_rows()
        return 0
    known = (*ROWS, *PEERS)
    unknown = [n for n in options.rows if not any(fnmatchcase(row.name, n) for row in known)]
    if unknown:
        print(
            f"bench: expected rows that --list names, found {', '.join(unknown)}", file=sys.stderr
        )
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench: expected a CUDA device, found none; give --device cpu", file=sys.stderr)
        return 2
    setting = Setting.of(options.device, options.quick)
    facts = run(chosen(options.rows, options.peers), setting, options.seconds, options.json)
    print_table(facts)
    bad = [row["name"] for row in facts["rows"] if "error" in row or row.get("agrees") is False]
    if bad:
        print(f"failed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser("python -m bench", description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("rows", nargs="*", metavar="ROW", help="names or patterns; all if left out")
    p.add_argument("--device", choices=("cpu", "cuda"), help="CUDA where there is one")
    p.add_argument("--quick", action="store_true", help="smaller, and fewer repeats")
    p.add_argument("--seconds", type=float, help=f"of timing per row ({SECONDS:g}, quick less)")
    p.add_argument("--json", type=Path, metavar="FILE", help="written anew after every row")
    p.add_argument("--list", action="store_true", help="the rows, and what peers need")
    p.add_argument("--peers", action="store_true", help="other packages too, where installed")
    options = p.parse_args(words)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    return options


def list_rows() -> None:
    """A line for each."""
    for row in (*ROWS, *PEERS):
        needs = "" if is_there(row) else f"  (not installed: {row.install})"
        print(f"{row.name:24} {row.unit:9} {row.about}{needs}")


def chosen(names: list[str], peers: bool) -> list[Row]:
    """The rows of these names (all of ours, and the peers if told), less absent peers."""
    if names:
        rows = [r for r in (*ROWS, *PEERS) if any(fnmatchcase(r.name, n) for n in names)]
    else:
        rows = [*ROWS, *(PEERS if peers else ())]
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
