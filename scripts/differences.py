"""How a table's rows differ from one of them, seed by seed:

`python -m scripts.differences results/mini/table1-seed*.csv --baseline baselineVQ`, of files that
`semvq table --csv` wrote. Behind a ± stands half of the 95 % interval of the mean difference
(Student's t over the seeds), which has to leave 0 out for a difference to be told apart from what
another seed changes. It needs scipy, which the tests bring.
"""

import csv
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

from scipy.stats import t

FEWEST = 3  # seeds; of two the interval is 13 times as wide as their spread
Numbers = dict[tuple[str, str], dict[str, float]]  # (row, column): seed's value


def numbers(files: Iterable[Path]) -> Numbers:
    """ValueError where the files have two values of a row, column and seed."""
    found: Numbers = {}
    for file in files:
        with file.open(newline="") as text:
            for record in csv.DictReader(text):
                if not record["value"]:
                    continue
                row, column, seed = record["row"], record["column"], record["seed"]
                seeds, value = found.setdefault((row, column), {}), float(record["value"])
                if seeds.setdefault(seed, value) != value:
                    raise ValueError(
                        f"{file}: expected one {column} of {row} for seed {seed}, found "
                        f"{value:g} beside {seeds[seed]:g}; give the files of one try"
                    )
    return found


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), float(t.ppf(0.975, len(differences) - 1)) * spread


def verdict(mean: float, half: float) -> str:
    """What the interval says."""
    if abs(mean) <= half:
        return "not told apart"
    return "lower" if mean < 0 else "higher"


def differences(found: Numbers, baseline: str) -> list[str]:
    """A line for each row and column that has seeds in common with the baseline's."""
    lines = []
    for (row, column), seeds in found.items():
        base = found.get((baseline, column), {})
        pairs = [(seeds[seed], base[seed]) for seed in seeds if seed in base]
        if row == baseline or not pairs:
            continue
        apart = [one - other for one, other in pairs]
        text = f"{row}, {column}: " + ", ".join(f"{x:+.3g}" for x in apart)
        if len(apart) < FEWEST:
            lines.append(f"{text} ({len(apart)} of {FEWEST} seeds: no verdict)")
        else:
            mean, half = interval(apart)
            lines.append(f"{text}: mean {mean:+.3g} ± {half:.2g}, {verdict(mean, half)}")
    return lines


def main() -> None:
    """Exit code 1 where there is nothing to compare."""
    p = ArgumentParser(description=__doc__)
    p.add_argument("files", type=Path, nargs="+", metavar="FILE")
    p.add_argument("--baseline", required=True, metavar="ROW")
    options = p.parse_args()
    try:
        found = numbers(options.files)
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"{error if not isinstance(error, KeyError) else f'no column {error}'}")
    rows = list(dict.fromkeys(row for row, _ in found))
    if options.baseline not in rows:
        sys.exit(f"--baseline: expected one of {', '.join(rows)}; found '{options.baseline}'")
    print("\n".join(differences(found, options.baseline)))


if __name__ == "__main__":
    main()
