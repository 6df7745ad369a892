"""How a table's rows differ from one of them, seed by seed:

`python -m scripts.differences results/mini/table1-seed?.csv --baseline baselineVQ`, of files that
`semvq table --csv` wrote, or `… results/mini/figures-seed?.json --baseline mini64_low` of those of
`scripts.cheap_figures`, one a seed. Behind a ± stands half of the 95 % interval of the mean
difference (Student's t over the seeds), which has to leave 0 out for a difference to be told apart
from what another seed changes.
"""

import csv
import json
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

FEWEST = 3  # seeds; of two the interval is 13 times as wide as their spread
# where Student's t has 97.5 % of its mass below, by seeds less one
T = {2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622}
Numbers = dict[tuple[str, str], dict[str, float]]  # (row, column): seed's value


class Number(NamedTuple):
    """One value, and of what."""

    row: str
    column: str
    seed: str
    value: float
    photos: str  # scale and data set
    commit: str


def of_table(file: Path) -> Iterator[Number]:
    """Of a file of `semvq table --csv`."""
    with file.open(newline="") as lines:
        for record in csv.DictReader(lines):
            own = (record[k] for k in ("row", "column", "seed"))
            photos = f"{record['scale']}, {record['dataset']}"
            yield Number(*own, float(record["value"] or "nan"), photos, record["commit"])


def of_figures(file: Path) -> Iterator[Number]:
    """Of a file of `scripts.cheap_figures`, whose name ends with its seed."""
    record, seed = json.loads(file.read_text()), file.stem.rpartition("seed")[2]
    for row, figures in record["figures"].items():
        for column, figure in figures.items():
            yield Number(row, column, seed, float(figure["value"]), "", "")


def numbers(files: Iterable[Path]) -> Numbers:
    """ValueError for what is not to be compared: other photos, two tries of a seed."""
    found: Numbers = {}
    known: dict[str, str] = {}
    for file in files:
        for one in of_figures(file) if file.suffix == ".json" else of_table(file):
            if not isfinite(one.value):
                continue
            facts = {
                "scale and data set": one.photos,
                f"commit of seed {one.seed}": one.commit,
                f"{one.column} of {one.row} for seed {one.seed}": f"{one.value:g}",
            }
            for name, fact in facts.items():
                if known.setdefault(name, fact) != fact:
                    raise ValueError(
                        f"{file}: expected one {name} in all files, found {fact} and "
                        f"{known[name]}; give files of one try (table6-seed?.csv, say), not gone "
                        "on with at another commit"
                    )
            found.setdefault((one.row, one.column), {})[one.seed] = one.value
    return found


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval; ValueError for more than ten."""
    if len(differences) - 1 not in T:
        raise ValueError(f"expected {FEWEST} to {max(T) + 1} seeds, found {len(differences)}")
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), T[len(differences) - 1] * spread


def verdict(mean: float, half: float) -> str:
    """What the interval says."""
    if abs(mean) <= half:
        return "not told apart"
    return "lower" if mean < 0 else "higher"


def differences(found: Numbers, baseline: str) -> list[str]:
    """A line for each row and column that has seeds in common with the baseline's."""
    lines = []
    for (row, column), values in found.items():
        base = found.get((baseline, column), {})
        seeds = [seed for seed in values if seed in base]
        if row == baseline or not seeds:
            continue
        apart = [values[seed] - base[seed] for seed in seeds]
        text = f"{row}, {column}, seeds {' '.join(seeds)}: "
        text += ", ".join(f"{x:+.3g}" for x in apart)
        if len(apart) < FEWEST:
            lines.append(f"{text} (no verdict with fewer than {FEWEST} seeds)")
        else:
            mean, half = interval(apart)
            lines.append(f"{text}; mean {mean:+.3g} ± {half:.3g}, {verdict(mean, half)}")
    return lines


def main() -> None:
    """Exit code 1 where there is nothing to compare."""
    p = ArgumentParser(description=__doc__)
    p.add_argument("files", type=Path, nargs="+", metavar="FILE")
    p.add_argument("--baseline", required=True, metavar="ROW")
    options = p.parse_args()
    try:
        found = numbers(options.files)
        lines = differences(found, options.baseline)
    except KeyError as error:
        sys.exit(f"expected files of semvq table --csv or of scripts.cheap_figures, no {error}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    rows = list(dict.fromkeys(row for row, _ in found))
    if options.baseline not in rows:
        sys.exit(f"--baseline: expected one of {', '.join(rows)}; found '{options.baseline}'")
    print("\n".join(lines) or sys.exit("expected rows with seeds and columns of the baseline's"))


if __name__ == "__main__":
    main()
