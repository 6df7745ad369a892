"""What `semvq table` measured of one seed's tokenizers, as `semvq correlate` reads it:

`python -m scripts.cheap_figures runs/miniature/seed0 results/mini/figures-seed0.json [NETWORK]`.
Besides the files of OUT/seed0/measured it needs the logs of the AR runs, for their held-out
cross-entropy.
"""

import json
import sys
from math import log
from pathlib import Path
from typing import Any

from semvq.files import write_atomically
from semvq.training.journal import read_log

# what an evaluation calls it: what a comparison does
RECONSTRUCTION = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "codebook_usage": "codebook usage",
    "perplexity": "perplexity",
}
HELD_OUT = "val/cross_entropy"  # in an AR run's log
ALIKE = ("network", "weights", "resize", "precision", "pixels", "side")


def tokenizers(folder: Path, network: str) -> dict[str, dict[str, Any]]:
    """Tokenizer: its figures and the facts of both measurements, where its AR run has FID.

    ValueError where samples were measured in several numbers.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "measured").glob(f"*_ar+own-*-{network}.json")):
        name = file.name.split("_ar+own-")[0]
        if name in found:
            raise ValueError(f"{file}: expected one FID of {name}_ar, found another number's too")
        own = json.loads((folder / "measured" / f"{name}-{network}.json").read_text())
        samples = json.loads(file.read_text())
        figures = {row: own["figures"][key] for key, row in RECONSTRUCTION.items()}
        figures["AR cross-entropy"] = _held_out(folder / f"{name}_ar") / log(2)
        figures["AR FID"] = samples["figures"]["fid"]
        facts = {key: str(own["facts"][key]) for key in (*ALIKE, "device", "torch")}
        facts["photos: fingerprint"] = own["facts"]["images"]["fingerprint"]
        drawn = samples["facts"]["samples"]  # each seed's with its own seed
        facts["samples"] = f"{drawn['count']}, {drawn['sampling']}"
        found[name] = {"figures": figures, "facts": facts, "hash": own["facts"]["tokenizer"]}
    return found


def _held_out(run: Path) -> float:
    """The last cross-entropy on held-out photos, nats a code."""
    found = [line[HELD_OUT] for line in read_log(run) if HELD_OUT in line]
    return float(found[-1])


def main() -> None:
    """Write them; exit code 1 where they were not measured alike."""
    folder, out, *network = sys.argv[1:]
    try:
        found = tokenizers(Path(folder), *(network or ["inception"]))
    except ValueError as error:
        sys.exit(str(error))
    if not found:
        sys.exit(f"{folder}: expected measured tokenizers with AR runs, found none")
    facts = [one["facts"] for one in found.values()]
    for name, own in zip(found, facts):
        if differs := [key for key in own if own[key] != facts[0][key]]:
            sys.exit(
                f"{name}: expected it measured as {next(iter(found))}, found another {differs[0]}"
            )
    figures = {
        name: {row: {"value": x, "plus_minus": None} for row, x in one["figures"].items()}
        for name, one in found.items()
    }
    hashes = {name: one["hash"] for name, one in found.items()}
    record = {"figures": figures, "tokenizers": hashes, "facts": facts[0], "warnings": []}
    write_atomically(Path(out), json.dumps(record, indent=1) + "\n")
    print(f"{out}: {', '.join(found)}")


if __name__ == "__main__":
    main()
