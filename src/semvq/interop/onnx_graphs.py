"""A tokenizer as two ONNX graphs, images to codes and codes to images, for runtimes without torch.

The graphs are fp32, of one image size and any batch size. They are run before anybody else does:
`agreement` compares them with torch on the packaged photos.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semvq.files import one_line, replace_atomically, write_atomically
from semvq.interop.onnx_rules import nearest_in_graph, rule_of
from semvq.interop.packaged import packaged_photos
from semvq.interop.shared_files import all_or_nothing
from semvq.tokenizer import regional
from semvq.tokenizer.model import Tokenizer
from semvq.tokenizer.nearest import nearest_code

ENCODE, DECODE, FACTS = "encode.onnx", "decode.onnx", "onnx.json"
OPSET = 18  # of 2022-12; the newest that torch's exporter writes without converting
MAX_BYTES = 2**31 - 2**20  # of an ONNX file, which is one protobuf message
TIE = 1e-4  # two codes are nearly equally near: of (|z| + |e|)^2, both about the codes' mean
PIXELS = 1e-4  # of pixels in [-1, 1], or of the largest value where that is more


class Agreement(NamedTuple):
    """How the graphs compare with torch: codes in all, those that differ, and why.

    `ties` are places that differ where both codes are equally near within TIE; `others` differ
    without that. `pixels` is the largest difference of images from the same codes.
    """

    codes: int
    ties: int
    others: int
    pixels: float


class _Encoding(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.rule = tokenizer, rule_of(tokenizer.quantizer)

    def forward(self, images: Tensor) -> Tensor:
        latents = self.tokenizer.latents(images)
        return self.rule(self.tokenizer.quantizer, latents, nearest_in_graph)


class _Decoding(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode(codes)


def export_onnx(tokenizer: Tokenizer, folder: Path) -> Agreement:
    """Write encode.onnx, decode.onnx and onnx.json (what they take and give) into `folder`.

    `tokenizer` is on the CPU, in evaluation mode. ValueError for one that makes no graph, or whose
    graphs disagree with torch on the packaged photos, and where a package of the extra `onnx` is
    missing.
    """
    runtime = _packages()
    side, size = tokenizer.config.resolution, sum(p.nbytes for p in tokenizer.parameters())
    if size > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes of weights for ONNX, found {size}")
    encoding = _Encoding(tokenizer)
    images = torch.zeros(2, 3, side, side)  # two: an example of one would fix the batch
    codes = torch.zeros(2, *tokenizer.grid, dtype=torch.int64)
    with all_or_nothing(folder) as made:  # half of a pair would be taken for a whole
        _write(encoding, images, ("images", "codes"), made / ENCODE)
        _write(_Decoding(tokenizer), codes, ("codes", "images"), made / DECODE)
        found = _tried(tokenizer, runtime, made, folder)
        write_atomically(made / FACTS, json.dumps(_facts(tokenizer, found), indent=1) + "\n")
    return found


def _tried(tokenizer: Tokenizer, runtime: Any, made: Path, folder: Path) -> Agreement:
    """How the two graphs in `made` agree with torch; ValueError, of `folder`, where they do not."""
    encode, decode = (_runner(runtime, made / name) for name in (ENCODE, DECODE))
    found = agreement(tokenizer, encode, decode)
    if found.others or found.pixels > PIXELS:
        raise ValueError(
            f"{folder}: expected graphs that agree with torch, found {found.others} of "
            f"{found.codes} codes that differ at no near tie, and pixels that differ by "
            f"{found.pixels:.1e}; nothing is written, report it with the versions of torch, onnx "
            "and onnxruntime"
        )
    return found


@torch.no_grad()
def agreement(
    tokenizer: Tokenizer,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    images: Tensor | None = None,
) -> Agreement:
    """How two functions compare with `tokenizer.encode` and `.decode`.

    `images` (B, 3, H, W) in [-1, 1], on the CPU; None means packaged photos of its resolution.
    """
    images = packaged_photos(tokenizer.config.resolution) if images is None else images
    theirs = encode(images)
    ties, others = _differences(tokenizer, tokenizer.latents(images), theirs)
    codes = tokenizer.encode(images)
    ours = tokenizer.decode(codes)
    pixels = (decode(codes) - ours).abs().max() / ours.abs().max().clamp_min(1)
    return Agreement(codes.numel(), ties, others, float(pixels))


def _differences(tokenizer: Tokenizer, latents: Tensor, theirs: Tensor) -> tuple[int, int]:
    """Places where codes differ first: those at near ties, and others.

    Where a rule goes on from the code it found, what follows a difference is no difference.
    """
    row, ties, others = 0, 0, 0
    differs: Tensor | bool = False  # places where an earlier search did

    def search(rows: Tensor, codebook: Tensor) -> Tensor:
        nonlocal row, ties, others, differs
        ours = nearest_code(rows, codebook)
        num = len(rows) // (len(theirs) * theirs.shape[2])
        found = theirs[:, row : row + num].flatten()
        row += num
        new = (found != ours) & ~torch.as_tensor(differs)
        near = _nearly_tied(rows[new], codebook, ours[new], found[new])
        ties, others = ties + int(near.sum()), others + int((~near).sum())
        differs = new | differs
        return ours

    rule_of(tokenizer.quantizer)(tokenizer.quantizer, latents, search)
    return ties, others


def _nearly_tied(rows: Tensor, codebook: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether two codes (N,) each are equally near to rows (N, C), but for rounding: bool (N,)."""
    rows, codebook = rows.double(), codebook.double()
    gap = (rows - codebook[second]).square().sum(1) - (rows - codebook[first]).square().sum(1)
    centre = codebook.mean(0)
    size = (rows - centre).norm(dim=1) + (codebook - centre).norm(dim=1).max()
    return gap.abs() <= TIE * size.square()


def _packages() -> Any:
    """onnxruntime; ValueError unless it and what torch's exporter needs are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"expected onnx, onnxscript and onnxruntime for an export to ONNX, found {error}; "
            "install them with: pip install 'semvq[onnx]'"
        ) from None
    return onnxruntime


def _write(module: nn.Module, example: Tensor, names: tuple[str, str], path: Path) -> None:
    """Write the graph of a module of one input, (B, …) with any B, to `path`."""
    try:
        with _quiet(), _uncut(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                input_names=names[:1],
                output_names=names[1:],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None, "an export by torch.export gives a program"
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path.name}: expected networks that make a graph, found {one_line(error)}; use the "
            "tokenizer from Python"
        ) from error
    replace_atomically(path, lambda temporary: program.save(temporary, external_data=False))


@contextmanager
def _uncut() -> Iterator[None]:
    """Attention in one call: the cuts are for CUDA, and a graph would keep those of the example."""
    limit = regional._MAX_SEQUENCES
    regional._MAX_SEQUENCES = 2**40
    try:
        yield
    finally:
        regional._MAX_SEQUENCES = limit


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about packages that it could use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _runner(runtime: Any, path: Path) -> Callable[[Tensor], Tensor]:
    """A graph of one input and one output as a function of tensors, on the CPU."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _facts(tokenizer: Tokenizer, found: Agreement) -> dict[str, Any]:
    """What a user of the graphs has to know, JSON-ready."""
    side = tokenizer.config.resolution
    images = {"shape": ["batch", 3, side, side], "type": "float32", "range": "[-1, 1], RGB"}
    codes = {"shape": ["batch", *tokenizer.grid], "type": "int64", "below": tokenizer.num_codes}
    return {
        "encode": {"file": ENCODE, "images": images, "codes": codes},
        "decode": {"file": DECODE, "codes": codes, "images": images | {"clamped": False}},
        "opset": OPSET,
        "code_space_hash": tokenizer.code_space_hash(),
        "search": "fp32 distances; torch decides near ties again in float64, the graph does not",
        "tried_on_packaged_photos": found._asdict(),
    }
