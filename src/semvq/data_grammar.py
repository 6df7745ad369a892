"""The grammar of the commands that fetch data or make it; no torch here either."""

import argparse
from pathlib import Path


def add_prepare(commands: argparse._SubParsersAction) -> None:
    """`semvq prepare`."""
    p = commands.add_parser("prepare", help="any image data set into tar shards for training")
    p.add_argument(
        "source",
        help="folder, class folders, tar files, parquet, LMDB folder, .npz, or an URL: "
        "hf://datasets/OWNER/NAME, https://…/train-{000..146}.tar",
    )
    p.add_argument("out", type=Path, help="folder of the shards; the same call again goes on")
    p.add_argument("--size", type=int, required=True, help="side of the centre square, in pixels")
    p.add_argument("--split", metavar="NAME=SOURCE", action="append", default=[],
                   help="a further split, e.g. val=HELD_OUT; repeat for more")  # fmt: skip
    p.add_argument("--val-list", type=Path, metavar="FILE",
                   help="hold out the images it names, one a line, as val")  # fmt: skip
    p.add_argument("--class-names", type=Path, metavar="FILE",
                   help="lines '<class> <name>', as ImageNet's LOC_synset_mapping.txt")  # fmt: skip
    p.add_argument("--quality", type=int, help="JPEG of this quality (default: PNG, lossless)")
    p.add_argument("--keep", action="store_true",
                   help="leave files of a short side up to --size as they are")  # fmt: skip
    p.add_argument("--shard", type=int, default=1000, help="images in a shard (%(default)s)")
    p.add_argument("--workers", type=int, help="processes (default: one for every core)")
    p.add_argument("--image-column", metavar="NAME", help="parquet: which, if there are several")
    p.add_argument("--label-column", metavar="NAME", help="parquet: which, if there are several")


def add_assets(commands: argparse._SubParsersAction) -> None:
    """`semvq assets`."""
    p = commands.add_parser("assets", help="pretrained weights: list them, fetch them")
    p.add_argument("action", choices=["list", "fetch"])
    p.add_argument("names", nargs="*", help="which to fetch (default: those the demo needs)")
