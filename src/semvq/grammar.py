"""The grammar of the command line; no torch here, so that `--help` is quick.

What a command does is in `commands.py`.
"""

import argparse
from pathlib import Path

from semvq.data_grammar import add_assets, add_prepare
from semvq.grammar_parts import device, overrides, run
from semvq.sharing_grammar import add_export, add_serve

EPILOG = """\
start with:
  semvq demo                                        the whole path on packaged photos, on a CPU
  semvq recipes                                     what can be trained
your own photos, on a GPU:
  semvq describe labelled64_phase1 --device rtx4090 what it costs
  semvq train labelled64_autoencoder --data PHOTOS  class folders; then _phase1, _phase2, _ar, _nar
  semvq train photos128_autoencoder --data PHOTOS   no classes; then the same
to try that path on a laptop:
  semvq train fruit_autoencoder --data PHOTOS       48 px; then the same
"""


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    top = argparse.ArgumentParser(
        prog="semvq",
        description="Train SeQ-GAN tokenizers and the transformers that learn their codes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands)
    add_prepare(commands)
    _train(commands)
    _encode(commands)
    _reconstruct(commands)
    _sample(commands)
    _edit(commands)
    _evaluate(commands)
    _compare(commands)
    _correlate(commands)
    _probe(commands)
    _table(commands)
    _recipes(commands)
    add_assets(commands)
    _convert(commands)
    add_export(commands)
    add_serve(commands)
    return top


def _demo(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("demo", help="the whole path on packaged photos, on a CPU")
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (%(default)s)")
    p.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="length of the trainings on a 2-core laptop (%(default)s), and one to three more for "
        "encoding, sampling and figures; below half of the default these show nothing, below "
        "a quarter they are made of fewer photos and samples too",
    )
    p.add_argument("--seed", type=int, default=0)
    device(p)


def _train(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("train", help="train a recipe; run it again to go on where it stopped")
    p.add_argument("recipe", help="a name that `semvq recipes` prints, or FILE.py:FUNCTION")
    p.add_argument("--data", type=Path, help="images: folder, folder of classes, or tar file(s)")
    p.add_argument("--val", type=Path, help="held-out images (default: a share of --data)")
    p.add_argument("--tokens", type=Path, help="token cache that `semvq encode` made")
    p.add_argument("--upstream", type=Path, help="run to start from (default: beside --out)")
    p.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
    overrides(p)
    p.add_argument("--workers", type=int, default=0, help="data loading processes (%(default)s)")
    p.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    device(p)


def _encode(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("encode", help="turn images into a token cache")
    run(p, "a tokenizer run")
    p.add_argument("--data", type=Path, required=True, help="images, as for train")
    p.add_argument("--val", type=Path, help="held-out images (default: a share of --data)")
    p.add_argument(
        "--views", type=int, default=2, help="entries per image: flips and crops (%(default)s)"
    )
    p.add_argument("--out", type=Path, required=True, help="folder of the token cache")
    device(p)


def _reconstruct(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("reconstruct", help="images through a tokenizer and back")
    run(p, "a tokenizer run")
    p.add_argument("images", type=Path, nargs="+", help="image files")
    p.add_argument("--out", type=Path, default=Path("reconstruction.png"), help="(%(default)s)")
    device(p)


def _sample(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("sample", help="generate images with an AR or NAR run")
    run(p, "an AR or NAR run")
    p.add_argument("--num", type=int, default=16, help="how many (%(default)s)")
    p.add_argument("--class", dest="label", help="class name or number (default: all in turn)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--decoder", type=Path, help="tokenizer run whose decoder draws the images")
    p.add_argument("--bf16", action="store_true", help="quicker on a GPU; the samples are others")
    p.add_argument("--keep-best", type=int, metavar="N", help="draw N for each and keep the best")
    p.add_argument(
        "--scorer",
        choices=["efficientnet-lite0", "mobilenet-v2", "likelihood"],
        help="--keep-best: confidence of that classifier (default: the first), or own likelihood",
    )
    _sampling(p)
    _new_set(p, "samples")
    device(p)


def _edit(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("edit", help="repaint a part of an image with a NAR run")
    run(p, "a NAR run")
    p.add_argument("image", type=Path, help="image file; its centre square is used")
    area = p.add_mutually_exclusive_group(required=True)
    area.add_argument("--mask", type=Path, help="image of the same size, white where to repaint")
    area.add_argument("--box", metavar="X0,Y0,X1,Y1", help="box, in shares of the square")
    area.add_argument("--outpaint", metavar="SIDE:SHARE", help="band to repaint, e.g. right:0.5")
    p.add_argument("--num", type=int, default=4, help="how many results (%(default)s)")
    p.add_argument("--class", dest="label", help="class name or number (default: none)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--decoder", type=Path, help="tokenizer run whose decoder draws the images")
    _sampling(p)
    _new_set(p, "edited")
    device(p)


def _new_set(p: argparse.ArgumentParser, folder: str) -> None:
    p.add_argument("--out", type=Path, default=Path(folder), help="folder (%(default)s); what an "
                   "earlier call left there is overwritten, or removed")  # fmt: skip


def _sampling(p: argparse.ArgumentParser) -> None:
    _sampling_choices(p)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--npz", type=Path, metavar="FILE", help="write one array file too, as ADM does")


def _sampling_choices(p: argparse.ArgumentParser) -> None:
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--guidance", type=float, default=1.0, help="classifier-free; 1 is off")
    p.add_argument(
        "--guidance-schedule",
        choices=["constant", "linear", "cosine"],
        help="ramp from 1 up to --guidance over the sampling (default: constant)",
    )
    p.add_argument("--top-k", type=int, help="keep the k likeliest codes")
    p.add_argument("--top-p", type=float, help="keep codes up to this probability mass")
    p.add_argument("--steps", type=int, help="NAR: sampling steps")
    p.add_argument(
        "--order",
        choices=["confidence", "halton"],
        help="NAR: which codes a step fixes, the surest (default) or the next of a Halton sequence",
    )
    p.add_argument("--choice-temperature", type=float, help="NAR: noise on what is kept")


def _evaluate(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("evaluate", help="figures anyone can repeat, by a named protocol")
    p.add_argument("run", type=Path, help="a run; for generation also a folder or .npz of samples")
    p.add_argument("--code", type=Path, help="Python file with your own classes, if any")
    p.add_argument(
        "--protocol",
        required=True,
        choices=["reconstruction", "generation", "likelihood", "probe"],
    )
    p.add_argument("--data", type=Path, help="held-out images; generation: training ones, or .npz")
    p.add_argument("--val", type=Path, help="generation: held-out images, the second control")
    p.add_argument("--statistics", type=Path, metavar="FILE", help="keep those of --data here")
    p.add_argument("--decoder", type=Path, help="tokenizer run whose decoder draws the images")
    p.add_argument("--network", default="inception", help="inception (default), vgg16, …")
    p.add_argument("--weights", type=Path, metavar="FILE", help="other Inception weights")
    # not --num alone: torchrun would take it for an option of its own
    p.add_argument(
        "--num-samples", "--num", dest="num", type=int, default=50_000,
        help="generation: how many (%(default)s)",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--pixel-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
                   help="what float images of an .npz mean")  # fmt: skip
    p.add_argument("--save-images", type=Path, metavar="FOLDER", help="write the samples too")
    p.add_argument("--fast", action="store_true", help="features in bfloat16; says how far off")
    _sampling_choices(p)
    p.add_argument("--batch-size", type=int, default=64, help="images between processes' meetings")
    p.add_argument("--workers", type=int, default=0, help="data loading processes (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write figures and facts as JSON")
    device(p)


def _compare(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("compare", help="tokenizers side by side, on one page")
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                   help="tokenizer runs, and AR or NAR runs on their codes")  # fmt: skip
    p.add_argument("--code", type=Path, help="Python file with your own classes, if any")
    p.add_argument("--data", type=Path, required=True, help="held-out images")
    p.add_argument("--train", type=Path, help="training images: n-grams of codes, FID of samples")
    p.add_argument("--out", type=Path, default=Path("comparison.html"), help="(%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    p.add_argument("--photos", type=int, default=8, help="photos to show (%(default)s)")
    p.add_argument("--num", type=int, default=1000, help="samples per run (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--guidance", type=float, help="classifier-free; of the samples")
    p.add_argument("--top-k", type=int, help="keep the k likeliest codes")
    p.add_argument("--network", default="inception", help="inception (default), vgg16, …")
    p.add_argument("--workers", type=int, default=0, help="data loading processes (%(default)s)")
    device(p)


def _correlate(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("correlate", help="which cheap figure ranks tokenizers as FID does")
    p.add_argument("figures", type=Path, nargs="+", metavar="FIGURES.json",
                   help="what semvq compare --json wrote, of four tokenizers or more")  # fmt: skip
    p.add_argument("--csv", type=Path, metavar="FILE", help="the table as a file too")


def _probe(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("probe", help="what an AR transformer predicts given the true context")
    run(p, "an AR run")
    p.add_argument("--data", type=Path, required=True, help="images, as for train")
    p.add_argument("--num", type=int, default=8, help="images to show (%(default)s)")
    p.add_argument("--decoder", type=Path, help="tokenizer run whose decoder draws the images")
    p.add_argument("--out", type=Path, default=Path("probe.png"), help="(%(default)s)")
    p.add_argument("--json", action="store_true", help="print the figures as JSON")
    device(p)


def _table(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("table", help="make a table of the paper, as far as it is missing")
    p.add_argument("table", choices=["1", "2", "3", "4", "5", "6", "fig6", "fig8"])
    p.add_argument("--scale", choices=["tiny", "mini", "paper"], required=True,
                   help="packaged photos on a CPU, minutes of a GPU, the paper's")  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="cells, recipes, cost; nothing is made")
    p.add_argument("--data", type=Path, help="training images (tiny: the packaged photos)")
    p.add_argument("--val", type=Path, help="held-out images, which go with --data")
    p.add_argument("--dataset", help="cells of this data set alone, where a table has several")
    p.add_argument("--rows", nargs="+", metavar="ROW", help="these rows alone")
    p.add_argument("--columns", nargs="+", metavar="COLUMN", help="these columns alone")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="(%(default)s)")
    p.add_argument("--num", type=int, help="samples per cell (paper 50000, mini 5000, tiny 231)")
    p.add_argument("--network", default="inception", help="inception (default), mobilenet-v2, …")
    p.add_argument("--out", type=Path, help="folder of the runs (default: runs/tables/SCALE)")
    p.add_argument("--csv", type=Path, metavar="FILE", help="a line for every number too")
    p.add_argument("--workers", type=int, default=0, help="data loading processes (%(default)s)")
    p.add_argument("--json", action="store_true", help="--dry-run: as JSON")
    device(p)


def _recipes(commands: argparse._SubParsersAction) -> None:
    commands.add_parser("recipes", help="list the recipes")
    p = commands.add_parser("describe", help="a recipe's parameters, grid, upstream and cost")
    p.add_argument("recipes", nargs="+", metavar="RECIPE",
                   help="a name that `semvq recipes` prints, or FILE.py:FUNCTION; of several, "
                   "the hours in all")  # fmt: skip
    p.add_argument("--device", help="hours and memory on h200 (h100, a100, …) or several: h200x8")
    p.add_argument("--nodes", type=int, default=1, help="machines with such devices (1)")
    p.add_argument("--epoch-size", type=int, help="your training images: what an epoch is")
    overrides(p)
    p.add_argument("--json", action="store_true")


def _convert(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("convert", help="other people's tokenizer as a run of ours")
    p.add_argument("file", type=Path, help="its weights; diffusers: or the folder with config.json")
    p.add_argument("--from", dest="source", required=True,
                   choices=["taming", "llamagen", "maskgit", "diffusers", "taming-transformer"]
                   )  # fmt: skip
    p.add_argument("--out", type=Path, required=True, help="run folder, a new one")
    p.add_argument("--config", type=Path, help="diffusers: config.json, if not beside the file")
    p.add_argument(
        "--resolution", type=int, default=256, help="of the images it is for (%(default)s)"
    )
    p.add_argument("--tokenizer", type=Path, help="transformer: the run of the same file's VQGAN")
    p.add_argument("--heads", type=int, help="transformer: n_head of its configuration")
    p.add_argument("--classes", type=int, help="transformer: number of classes, 0 if it has none")
