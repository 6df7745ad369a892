"""The grammar of the commands that show and give runs to others; no torch here either."""

import argparse
from pathlib import Path

from semvq.grammar_parts import device, run


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


def add_serve(commands: argparse._SubParsersAction) -> None:
    """`semvq serve`."""
    p = commands.add_parser("serve", help="a live page: photos through runs, repainting, samples")
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                   help="tokenizer runs, and AR or NAR runs on their codes")  # fmt: skip
    p.add_argument("--code", type=Path, help="Python file with your own classes, if any")
    p.add_argument("--host", default="127.0.0.1",
                   help="address to listen at (%(default)s: this machine alone)")  # fmt: skip
    p.add_argument("--port", type=int, default=8000, help="(%(default)s; 0 takes any)")
    device(p)
