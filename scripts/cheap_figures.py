"""What `semvq table` measured of one seed's tokenizers, as `semvq correlate` reads it:

`python -m scripts.cheap_figures runs/miniature/seed0 results/mini/figures-seed0.json`. Besides the
files of OUT/seed0/measured it needs the logs of the AR runs, for their held-out cross-entropy.
"""

import json
import sys
from math import log
from pathlib import Path
from typing import Any

from semvq.files import write_atomically

# what an evaluation calls it: what a comparison does
RECONSTRUCTION = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "codebook_usage": "codebook usage",
    "perplexity": "perplexity",
}
ALIKE = ("network", "weights", "resize", "precision", "pixels", "side")


def tokenizers(folder: Path) -> dict[str, dict[str, Any]]:
    """Tokenizer: its figures and the facts of both measurements, where its AR run has FID."""
    found = {}
    for file in sorted((folder / "measured").glob("*_ar+own-*.json")):
        name = file.name.split("_ar+own-")[0]
        own = json.loads(next((folder / "measured").glob(f"{name}-*.json")).read_text())
        samples = json.loads(file.read_text())
        figures = {row: own["figures"][key] for key, row in RECONSTRUCTION.items()}
        figures["AR cross-entropy"] = _held_out(folder / f"{name}_ar" / "log.jsonl") / log(2)
        figures["AR FID"] = samples["figures"]["fid"]
        facts = {key: str(own["facts"][key]) for key in (*ALIKE, "device", "torch")}
        facts["photos: fingerprint"] = own["facts"]["images"]["fingerprint"]
        drawn = samples["facts"]["samples"]  # each seed's with its own seed
        facts["samples"] = f"{drawn['count']}, {drawn['sampling']}"
        found[name] = {"figures": figures, "facts": facts, "hash": own["facts"]["tokenizer"]}
    return found


def _held_out(journal: Path) -> float:
    """The last cross-entropy on held-out photos, nats a code."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return float([line for line in lines if "val/cross_entropy" in line][-1]["val/cross_entropy"])


def main() -> None:
    """Write them; exit code 1 where they were not measured alike."""
    folder, out = map(Path, sys.argv[1:])
    found = tokenizers(folder)
    facts = [one["facts"] for one in found.values()]
    if not facts or any(own != facts[0] for own in facts):
        sys.exit(f"{folder}: expected tokenizers with AR runs, all measured alike")
    figures = {
        name: {row: {"value": x, "plus_minus": None} for row, x in one["figures"].items()}
        for name, one in found.items()
    }
    hashes = {name: one["hash"] for name, one in found.items()}
    record = {"figures": figures, "tokenizers": hashes, "facts": facts[0], "warnings": []}
    write_atomically(out, json.dumps(record, indent=1) + "\n")
    print(f"{out}: {', '.join(found)}")


if __name__ == "__main__":
    main()
