"""The figures as a table, and what is derived from them: rates, ratios and shares of the floor."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import floor_seconds

WIDTH = 150  # columns where no terminal says how many it has
LEGEND = (
    "ours, plain: the library and plain eager PyTorch, median and range in the row's unit (n = 1: "
    "one pair). x plain: times as fast.",
    "memory: of a first call, beyond what was there. differ: how far the two results are apart; "
    "0 is equal.",
)
GPU_LEGEND = (
    "floor: the best the device could do by arithmetic and bandwidth, in the row's unit. "
    "of floor: how near ours comes."
)
CPU_LEGEND = (
    "On a CPU only x plain means anything, and little where n = 1 or other work runs beside it."
)


def with_floor(row: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    """The row with `times_plain`, `floor_seconds` and `share_of_floor` where they are known."""
    if "error" in row:
        return row
    ours, plain = row["ours_seconds"]["median"], row.get("plain_seconds")
    row["times_plain"] = plain["median"] / ours if plain else None
    floor = floor_seconds(row, limits)
    row["floor_seconds"] = floor or None
    row["share_of_floor"] = floor / ours if floor else None
    return row


def wide_console() -> Console:
    """As wide as the terminal, or wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_table(facts: dict[str, Any]) -> None:
    """All rows, with where they were measured above them and what failed below."""
    console = wide_console()
    console.print(
        f"{facts['device']}, {facts['dtype']}, {facts['scale']} sizes, {facts['threads']} "
        f"thread(s), torch {facts['torch']}, commit {facts['commit']}, {facts['date']}"
    )
    on_gpu = facts["kind"] == "cuda"
    table = Table("row", "unit", box=None)
    floor = ("floor", "of floor") if on_gpu else ()
    names = ("ours (min–max)", "plain (min–max)", "x plain", *floor)
    for name in (*names, "memory", "plain memory", "differ"):
        table.add_column(name, justify="right")
    for row in facts["rows"]:
        if "error" not in row:
            table.add_row(*cells(row, on_gpu))
    console.print(table)
    for line in (*LEGEND, GPU_LEGEND if on_gpu else CPU_LEGEND):
        console.print(line, highlight=False)
    for row in facts["rows"]:
        if "error" in row:
            console.print(f"{row['name']}: {row['error']}", markup=False)
        elif not row.get("agrees", True):
            words = f"differs from plain by {row['difference']:.2g}"
            console.print(f"{row['name']}: {words}, more than {row['tolerance']:g}", markup=False)


def cells(row: dict[str, Any], on_gpu: bool = True) -> list[str]:
    """One row's texts; the floor is a GPU's."""
    name = row["name"] if row["against"] == "plain" else f"{row['name']} ({row['against']})"
    floor, share = row["floor_seconds"], row["share_of_floor"]
    times = row["times_plain"]
    limits = (
        digits(in_unit(row, floor)) if floor else "–",
        f"{share:.1%}" if share else "–",
    )
    return [
        name,
        row["unit"],
        spread(row, "ours_seconds"),
        spread(row, "plain_seconds") if times else row.get("plain_error", "–"),
        f"{times:.2f}" if times else "–",
        *(limits if on_gpu else ()),
        megabytes(row["memory"]),
        megabytes(row.get("plain_memory")),
        f"{row['difference']:.1g}" if "difference" in row else "–",
    ]


def in_unit(row: dict[str, Any], seconds: float) -> float:
    """Seconds per call in the row's unit."""
    return seconds * 1e3 / row["work"] if row["unit"] == "ms" else row["work"] / seconds


def spread(row: dict[str, Any], key: str) -> str:
    """Median (least–most) in the row's unit; of one measurement, that it is one."""
    if row[key]["count"] == 1:
        return f"{digits(in_unit(row, row[key]['median']))} (n = 1)"
    ends = sorted(in_unit(row, row[key][k]) for k in ("min", "max"))
    return f"{digits(in_unit(row, row[key]['median']))} ({'–'.join(map(digits, ends))})"


def digits(value: float) -> str:
    """Three digits that count, thousands with a comma."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    """Memory in MB; – where it is not known."""
    return "–" if count is None else f"{count / 1e6:,.0f} MB"
