"""The grammar of the command that gives runs to others; no torch here either."""

import argparse
from pathlib import Path

from semvq.grammar_parts import run


def add_export(commands: argparse._SubParsersAction) -> None:
    """`semvq export`."""
    p = commands.add_parser("export", help="a run for others: ONNX graphs, or a folder for a hub")
    run(p, "a tokenizer run; for a hub also of an AR or NAR run")
    p.add_argument("--to", required=True, choices=["onnx", "hub"],
                   help="graphs for runtimes without torch, or weights with a page")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, help="folder, a new one")
    p.add_argument("--metrics", type=Path, nargs="+", default=[], metavar="FILE",
                   help="hub: figures that `semvq evaluate --json` wrote of this run")  # fmt: skip
    p.add_argument("--licence", metavar="ID", help="hub: of the weights, such as apache-2.0")
    p.add_argument("--decoder", type=Path,
                   help="hub: tokenizer run that draws an AR or NAR run's picture")  # fmt: skip
