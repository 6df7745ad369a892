"""Opening a stranger's weights: tensors come out of the file, and nothing in it runs.

Safetensors as they are; torch files by torch's own reader of weights alone; what that refuses
(Lightning's checkpoints hold pickled callbacks) in a child process, by `inert`.
"""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semvq.files import one_line, sha256_of
from semvq.interop.inert import DTYPES

Tensors = dict[str, Tensor]
MAX_PICKLE = 2**26  # bytes of the pickle beside the numbers; a large checkpoint has one or two MB
SECONDS = 120  # for the child
MAX_NAMED = 3  # keys in a message
AGAIN = "get the file again from where it was published"


class LeftOut(NamedTuple):
    """Classes and functions that a file's pickle names and that were not there for it.

    `asked_to_run` are those of them that it calls and that do more than hold values.
    """

    names: list[str] = []
    asked_to_run: list[str] = []


class Opened(NamedTuple):
    """Tensors by name, the file's sha256, and what of its pickle was left out."""

    tensors: Tensors
    sha256: str
    left_out: LeftOut


def open_weights(path: Path, inside: tuple[str, ...] = ()) -> Opened:
    """Every tensor of a weight file, on the CPU, or of the first dict of `inside` it has.

    Raises FileNotFoundError where there is no file, ValueError where it is no weight file, or one
    that holds no tensors there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with weights, found none")
    with path.open("rb") as file:
        start = file.read(9)
    left_out = LeftOut()
    if path.suffix == ".safetensors" or start[8:] == b"{":
        try:
            tree: dict[str, Any] = dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a safetensors file, found {one_line(error)}; {AGAIN}"
            ) from None
    else:
        tree, left_out = _torch_file(path, inside)
    part = next((tree[name] for name in inside if isinstance(tree.get(name), dict)), tree)
    tensors = {str(k): v for k, v in part.items() if isinstance(v, Tensor)}
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            # a few numbers repeated to fill any memory, once the tensor is copied
            raise ValueError(
                f"{path}: expected tensors within the file, found {_printable(path, name)} with "
                f"numbers that are not there; {AGAIN}"
            )
    if not tensors:
        where = f" or in {' or '.join(inside)}" if inside else ""
        keys = ", ".join(one_line(KeyError(key)) for key in list(tree)[:MAX_NAMED])
        raise ValueError(
            f"{path}: expected tensors by name at its top{where}, found none"
            f"{f' (but {keys})' if keys else ''}; is it of another format? see --from"
        )
    for name in tensors:
        _printable(path, name)
    return Opened(tensors, sha256_of(path), left_out)


def _printable(path: Path, name: str) -> str:
    """A name as it is, for messages; ValueError where it would write to the terminal otherwise."""
    if not name.isprintable():
        raise ValueError(f"{path}: expected names of letters, found {ascii(name)[:80]}; {AGAIN}")
    return name


def _torch_file(path: Path, inside: tuple[str, ...]) -> tuple[dict[str, Any], LeftOut]:
    """Nested dicts of a torch file, and what was left out of it."""
    if zipfile.is_zipfile(path):  # before torch unpacks what is small in the file and large outside
        try:
            with zipfile.ZipFile(path) as archive:
                _root(path, {info.filename: info for info in archive.infolist()})
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"{path}: expected a whole torch checkpoint, found {one_line(error)}; {AGAIN}"
            ) from None
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = torch.load(path, map_location="cpu", weights_only=True)
        left_out = LeftOut()
    except Exception:  # of many kinds, by what the file is
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path}: expected safetensors, or a checkpoint of torch 1.6 or later, found "
                "another file, or a pickle of more than weights; it is not opened: save the "
                "weights alone as safetensors and convert these"
            ) from None
        tree, left_out = _in_child(path, inside)
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path}: expected a dict of tensors, found {type(tree).__name__}; {AGAIN}"
        )
    return tree, left_out


def _in_child(path: Path, inside: tuple[str, ...]) -> tuple[dict[str, Any], LeftOut]:
    """The same of a checkpoint with foreign objects: their pickle is read where nothing is.

    Of the numbers, only those of the first dict of `inside` that is there are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            root = _root(path, members)
            pickled = archive.read(members[f"{root}/data.pkl"])
            record = _described(path, pickled)
            rows = [row for row in record["tensors"] if all(type(k) is str for k in row[0])]
            first = next((n for n in inside if any(row[0][:-1] == [n] for row in rows)), None)
            wanted = [] if first is None else [first]
            reader = _Reader(path, archive, root, members)
            found = {keys[-1]: reader.tensor(*v) for keys, v in rows if keys[:-1] == wanted}
    except (zipfile.BadZipFile, KeyError, TypeError, IndexError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a whole torch checkpoint, found {one_line(error)}; {AGAIN}"
        ) from None
    names = ([_printable(path, n) for n in record[of]] for of in ("unknown", "called"))
    return found if first is None else {first: found}, LeftOut(*names)


def _root(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive that holds `data.pkl`, all members stored as they are."""
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/"):
        raise ValueError(f"{path}: expected one pickle in a torch checkpoint, found {len(roots)}")
    packed = [name for name, m in members.items() if m.compress_type != zipfile.ZIP_STORED]
    if packed or members[f"{roots[0]}/data.pkl"].file_size > MAX_PICKLE:
        found = f"{packed[0]} compressed" if packed else "a larger one"
        raise ValueError(
            f"{path}: expected a torch checkpoint with a pickle of at most {MAX_PICKLE} bytes and "
            f"nothing compressed, found {found}; {AGAIN}"
        )
    return roots[0]


def _described(path: Path, pickled: bytes) -> dict[str, Any]:
    """Every tensor that a pickle describes, and the unknown classes it names, by a child."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("inert.py"))]
    # where Python's own libraries lie, if they must be told; nothing else of this process
    environment = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "SYSTEMROOT")}
    try:
        done = subprocess.run(
            command, input=pickled, capture_output=True, timeout=SECONDS, env=environment, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path}: its pickle was not read in {SECONDS} s; {AGAIN}") from None
    if done.returncode:
        words = ascii(" ".join(done.stderr.decode(errors="replace").split())[-300:])[1:-1]
        raise ValueError(
            f"{path}: expected a checkpoint of tensors, found a pickle that makes none "
            f"({words or f'exit {done.returncode}'}); {AGAIN}"
        )
    record: dict[str, Any] = json.loads(done.stdout)
    return record


class _Reader:
    """Reads tensors of an archive by descriptions that are not to be trusted."""

    def __init__(
        self, path: Path, archive: zipfile.ZipFile, root: str, members: dict[str, zipfile.ZipInfo]
    ) -> None:
        self.path, self.archive, self.root, self.members = path, archive, root, members
        self.known: dict[str, Tensor] = {}
        order = f"{root}/byteorder"
        if order in members and archive.read(members[order]) != b"little":
            raise ValueError(f"{path}: expected little-endian numbers, found others")

    def tensor(self, storage: list, offset: int, size: list[int], stride: list[int]) -> Tensor:
        """The view, not a copy: many names may share a storage. ValueError where it leaves it."""
        flat = self._storage(*storage)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if min([offset, *size, *stride]) < 0 or (0 not in size and last >= len(flat)):
            raise ValueError(f"{self.path}: expected tensors within the file, found one beyond it")
        if prod(size) > len(flat):
            raise ValueError(f"{self.path}: expected tensors within the file, found a repeated one")
        return flat.as_strided(size, stride, offset)

    def _storage(self, dtype: str, key: str, numel: int) -> Tensor:
        if dtype not in DTYPES.values():
            raise ValueError(f"{self.path}: expected numbers, found {dtype}")
        kind = getattr(torch, dtype)
        info = self.members[f"{self.root}/data/{key}"]
        if info.file_size != numel * kind.itemsize:
            raise ValueError(
                f"{self.path}: expected {numel} numbers of {dtype} in {info.filename}, found "
                f"{info.file_size} bytes; {AGAIN}"
            )
        if info.filename not in self.known:
            data = bytearray(self.archive.read(info))
            self.known[info.filename] = (
                torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            )
        return self.known[info.filename].view(kind)
