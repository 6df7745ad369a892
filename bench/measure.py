"""Timing ours against plain in turns, the memory of either, and what the device could do at most.

Every row runs in a process of its own: memory is then the row's, and a crash ends that row alone.
"""

import contextlib
import ctypes
import math
import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.case import Case, Row, Setting, difference

MIN_PAIRS, MAX_PAIRS = 3, 50
LEAST_SECONDS = 0.01  # shorter calls are repeated within one measurement
PATIENCE = 5  # times the budget after which fewer than MIN_PAIRS will do
LONG_SECONDS = 1.0  # one call of this length is warm-up enough

# FLOP/s by precision, and bytes/s. H200: taken over as somebody's measurement, by no command here;
# strict fp32 is a sixth of TF32. H100 SXM: the data sheet, dense.
CEILINGS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 790e12, "tf32": 395e12, "fp32": 66e12, "bandwidth": 4.3e12},
    "H100": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12, "bandwidth": 3.35e12},
}


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)` where nothing has run before; ValueError where the process died.

    Forked, where that is possible, from a server that has imported torch and done nothing else:
    as fresh as a new interpreter, seconds sooner. Not with CUDA, which does not survive a fork.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    method = "forkserver" if forks and not torch.cuda.is_available() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["bench.rows"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ValueError("its process died; was it out of memory?") from None


def run_row(row: Row, setting: Setting, budget: float, threads: int) -> dict[str, Any]:
    """Everything measured of a row, JSON-ready; `error` alone where it failed.

    `budget` is in seconds of timing, warm-up and first calls not counted.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        case = row.build(setting)
        with contextlib.nullcontext() if case.trains else torch.no_grad():
            return {"name": row.name, "unit": row.unit, **measured(case, setting, budget)}
    except Exception as error:  # whatever it is, the other rows go on
        where = traceback.format_exc()
        facts = {"error": _in_words(error), "traceback": where}
        return {"name": row.name, "unit": row.unit, **facts}


def measured(case: Case, setting: Setting, budget: float) -> dict[str, Any]:
    """First calls, whose memory and results are looked at, then times in turns."""
    facts: dict[str, Any] = {"shapes": case.shapes, "work": case.work}
    facts["flop"], facts["bytes"], facts["rate"] = case.flop, case.bytes, case.rate
    calls, first = {"ours": case.ours, "plain": case.plain}, {}
    ours, facts["memory"], first["ours"] = with_peak_memory(case.ours, setting)
    try:
        plain, facts["plain_memory"], first["plain"] = with_peak_memory(case.plain, setting)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        facts["plain_error"] = "out of memory"
        del calls["plain"]
    if case.tolerance is not None and (case.check or "plain" in calls):
        pair = case.check() if case.check else (ours, plain)
        facts["difference"] = difference(*pair)
        facts["tolerance"] = case.tolerance
        exact = setting.precision == case.rate == "fp32"
        facts["agrees"] = facts["difference"] <= case.tolerance or not exact
    del ours
    found = in_turns(calls, first, setting, budget)
    return facts | {f"{who}_seconds": summary(seconds) for who, seconds in found.items()}


def in_turns(
    calls: dict[str, Callable[[], Any]], first: dict[str, float], setting: Setting, budget: float
) -> dict[str, list[float]]:
    """Seconds per call of each, who begins alternating, until the budget is spent.

    `first` holds the seconds of each first call.
    """
    repeats = {}
    for who, call in calls.items():
        seconds = first[who]
        if seconds < LONG_SECONDS:  # a second warm-up says how often to repeat
            seconds = seconds_of(call, 1, setting)
        repeats[who] = max(1, math.ceil(LEAST_SECONDS / max(seconds, 1e-6)))
    found: dict[str, list[float]] = {who: [] for who in calls}
    began = time.perf_counter()
    for pair in range(MAX_PAIRS):
        spent = time.perf_counter() - began
        if spent > budget and (pair >= MIN_PAIRS or spent > PATIENCE * budget):
            break
        order = list(calls) if pair % 2 == 0 else list(calls)[::-1]
        for who in order:
            found[who].append(seconds_of(calls[who], repeats[who], setting))
    return found


def seconds_of(call: Callable[[], Any], repeats: int, setting: Setting) -> float:
    """Seconds per call, the device's work included."""
    synchronize(setting)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(setting)
    return (time.perf_counter() - began) / repeats


def summary(seconds: list[float]) -> dict[str, float | int]:
    """Median, least and most."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "count": len(seconds),
    }


def synchronize(setting: Setting) -> None:
    """Wait for the device."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


def with_peak_memory(call: Callable[[], Any], setting: Setting) -> tuple[Any, int | None, float]:
    """The result, the bytes that the call took at its peak beyond what was there, and its seconds.

    CUDA: of PyTorch's allocator. CPU: resident memory; None where its peak cannot be set back, as
    for every call but a process's first outside Linux.
    """
    if setting.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return result, torch.cuda.max_memory_allocated() - before, seconds
    can_tell = reset_peak_memory()
    before, began = resident_peak(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    return result, resident_peak() - before if can_tell else None, seconds


_state = {"called": False}


def reset_peak_memory() -> bool:
    """Set the kernel's note of this process's peak back to now; True where the next is known."""
    first, _state["called"] = not _state["called"], True
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide what the call takes
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return first
    return True


def resident_peak() -> int:
    """Bytes that this process had resident at most since the last reset."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ceilings(setting: Setting) -> dict[str, Any]:
    """FLOP/s by precision and bytes/s: `used` for floors, and `measured` here and now.

    Known GPUs go by `CEILINGS`; a CPU, and others, by a large product and a large copy.
    """
    name = device_name(setting)
    found: dict[str, float] = {}
    side = 8192 if setting.device == "cuda" else 2048
    for precision in ("bf16", "tf32", "fp32") if setting.device == "cuda" else ("fp32",):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=setting.device, dtype=kind) for _ in range(2))
        found[precision] = 2 * side**3 / _best(partial(torch.matmul, a, b), setting)
    torch.backends.cuda.matmul.allow_tf32 = False
    large = torch.zeros(2**28 if setting.device == "cuda" else 2**25, device=setting.device)
    other = torch.empty_like(large)
    found["bandwidth"] = 2 * 4 * large.numel() / _best(lambda: other.copy_(large), setting)
    for precision in ("bf16", "tf32"):
        found.setdefault(precision, found["fp32"])
    known = next((c for kind, c in CEILINGS.items() if kind in name), None)
    return {"device_name": name, "used": known or found, "measured": found}


def _best(call: Callable[[], Any], setting: Setting) -> float:
    return min(seconds_of(call, 1, setting) for _ in range(8))


def device_name(setting: Setting) -> str:
    """What the GPU, or the CPU, calls itself."""
    if setting.device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def floor_seconds(facts: dict[str, Any], used: dict[str, float]) -> float:
    """The least a call can take: FLOPs at the peak or bytes at full bandwidth; 0 is not known."""
    return max(facts["flop"] / used[facts["rate"]], facts["bytes"] / used["bandwidth"])


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text


def _in_words(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}"[:300]
