"""Where a row's time goes: the kernels of one call of ours, the longest first.

    python -m bench profile ROW… [--device cpu|cuda] [--quick] [--precision bf16|fp32] [--top 15]

"busy" is the kernels' time over the wall time of a call without the profiler: where it is below
100 %, kernels waited for launches; kernels that overlap count twice. On a CPU the operators' own
times stand in for kernels, and the profiler lengthens them. Names are cut to one line.
"""

import contextlib
import re
import time
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from bench.case import Row, Setting
from bench.command import Parser, add_setting, one_or_more, rows_named, setting_of
from bench.measure import in_fresh_process, seconds_of, synchronize
from bench.rows import ROWS
from bench.table import wide_console

WARM_UP, WARM_SECONDS = 3, 3.0  # calls before those that are looked at; fewer where they are long
NAME = 100  # characters of a kernel's name


def main(words: list[str]) -> int:
    """See the head of this file."""
    p = Parser("python -m bench profile", __doc__)
    p.add_argument("rows", nargs="+", metavar="ROW", help="names or patterns")
    add_setting(p)
    p.add_argument("--top", type=one_or_more, default=15, help="lines to print (%(default)s)")
    options = p.parse_args(words)
    rows, setting = rows_named(p, options.rows, ROWS), setting_of(p, options)
    for row in rows:
        show(in_fresh_process(look, row, setting), options.top)
    return 0


def look(row: Row, setting: Setting) -> dict[str, Any]:
    """Seconds of a call, and of each kernel in it with how often it ran; one process."""
    torch.manual_seed(0)
    case = row.build(setting)
    on_gpu = setting.device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with contextlib.nullcontext() if case.trains else torch.no_grad():
        began = time.perf_counter()
        for _ in range(WARM_UP):
            if time.perf_counter() - began < WARM_SECONDS:
                seconds_of(case.ours, 1, setting)
        wall = seconds_of(case.ours, 1, setting)
        with profile(activities=kinds) as events:  # slows the launches: not what is timed
            case.ours()
            synchronize(setting)
    kernels = []
    for event in events.key_averages():
        is_kernel = "CUDA" in str(event.device_type)
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds and is_kernel == on_gpu and not event.is_user_annotation:
            kernels.append((event.key, event.count, microseconds / 1e6))
    kernels.sort(key=lambda kernel: -kernel[2])
    return {"name": row.name, "on_gpu": on_gpu, "wall": wall, "kernels": kernels}


def show(facts: dict[str, Any], top: int) -> None:
    """A table for one row."""
    kernels = facts["kernels"]
    busy, count = sum(k[2] for k in kernels), sum(k[1] for k in kernels)
    console = wide_console()
    wall, what = facts["wall"], "kernel" if facts["on_gpu"] else "operator"
    console.print(
        f"{facts['name']}: {wall * 1e3:.2f} ms a call, {busy * 1e3:.2f} ms of {count:,} {what}s"
        + (f", busy {busy / wall:.0%}" if facts["on_gpu"] else " with the profiler running")
    )
    table = Table(what, box=None)
    for column in ("times", "ms", f"of the {what}s' ms"):
        table.add_column(column, justify="right")
    for name, times, seconds in kernels[:top]:
        share = f"{seconds / busy:.1%}"
        table.add_row(escape(short(name)[:NAME]), f"{times:,}", f"{seconds * 1e3:.3f}", share)
    console.print(table)


def short(name: str) -> str:
    """A kernel's name without what all of PyTorch's have in common."""
    name = re.sub(r"\(anonymous namespace\)::|at::native::|at::|c10::|void |std::", "", name)
    return re.sub(r"gpu_kernel_impl(_nocast)?<", "", name)
