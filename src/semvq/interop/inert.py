"""Run in a child process: the pickle of a torch checkpoint in, a list of its tensors out.

Of what a pickle may name, only what makes tensors and dicts is known here. Every other class or
function is `Inert`, whose instances take anything and do nothing. Standard library alone; before
the pickle is looked at, the process gives up opening files, starting processes and memory.
"""

import codecs
import contextlib
import io
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

MEMORY = 2**30  # bytes, of the whole process
SECONDS = 60  # of a processor
MAX_TENSORS = 100_000
MAX_NAMES = 50  # unknown ones that are reported

DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


# what files ask to run that only holds or describes values; nobody need be told of it
HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": "bytearray complex frozenset list object range set slice",
        "collections": "Counter defaultdict deque",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
        "datetime": "date datetime time timedelta timezone",
        "_codecs": "encode",
        "numpy": "dtype ndarray",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "torch": "Size device",
    }.items()
    for name in names.split()
)


class Noting(type):
    """The class of `Inert`: tells a name that a file calls from one that it only mentions."""

    note: Callable[[], object] | None = None

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """An instance, as of any class; a pickle makes objects of its classes without this."""
        if cls.note:
            cls.note()
        return super().__call__(*args, **kwargs)


class Inert(metaclass=Noting):
    """Stands for an object of an unknown class, or for the class: any use of it does nothing."""

    __getinitargs__ = None  # opcodes of old pickles that call a function now call this too

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """One more of them."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        """Itself."""
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Nothing."""

    def extend(self, items: Any) -> None:
        """Nothing."""

    def add(self, item: Any) -> None:
        """Nothing."""


class Table(dict):
    """An ordered dict without attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(NamedTuple):
    """Where a tensor's numbers lie: `numel` of them in the archive's member `key`."""

    dtype: str
    key: str
    numel: int


class View(NamedTuple):
    """A tensor: a view of a storage, by elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Kind(str):
    """The element type that a storage's class stands for."""


def view(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> View:
    """What torch makes a tensor with; a TypeError for anything but a storage and numbers."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int for n in numbers):
        raise TypeError("a tensor of something else than numbers")
    return View(storage, offset, tuple(size), tuple(stride))


def parameter(data: Any, *more: Any) -> Any:
    """A parameter's tensor."""
    return data


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Table,
    ("torch._utils", "_rebuild_tensor_v2"): view,
    ("torch._utils", "_rebuild_parameter"): parameter,
    **{("torch", name): Kind(dtype) for name, dtype in DTYPES.items()},
}


class TensorsOnly(pickle.Unpickler):
    """Makes views and dicts, and nothing of anything else.

    `unknown` collects the other names, `called` those of them that the file asked to run.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.unknown: set[str] = set()
        self.called: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """The known function of that exact name, or `Inert`; nothing is imported."""
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        full = f"{module}.{name}"[:200]
        if len(self.unknown) < MAX_NAMES:
            self.unknown.add(full)
        if len(self.called) >= MAX_NAMES or full.replace("__builtin__", "builtins") in HARMLESS:
            return Inert
        return Noting("Inert", (Inert,), {"note": partial(self.called.add, full)})

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that torch wrote beside the pickle."""
        word, kind, key, _, numel = pid
        if word != "storage" or not isinstance(kind, Kind) or type(numel) is not int:
            raise TypeError("a storage of an unknown kind")
        return Storage(str(kind), str(key), numel)


def tensors_in(tree: dict[Any, Any], path: tuple[str, ...] = ()) -> list[tuple]:
    """(path of keys, view) of every tensor in nested dicts; everything else is left out."""
    found: list[tuple] = []
    for key, value in tree.items():
        if isinstance(value, View) and isinstance(key, str):
            found.append(((*path, key), value))
        elif isinstance(value, dict) and isinstance(key, str):
            found += tensors_in(value, (*path, key))
        if len(found) > MAX_TENSORS:
            raise ValueError(f"more than {MAX_TENSORS} tensors")
    return found


def give_up_rights() -> None:
    """No more files, sockets, processes, and bounded memory and time, from here on.

    Where a system knows no such limit, the unpickler is the guard that remains.
    """
    for encoding in ("ascii", "latin-1", "utf-8"):
        codecs.lookup(encoding)  # which may open a file
    with contextlib.suppress(ImportError):
        import resource

        limits = {
            resource.RLIMIT_AS: MEMORY,
            resource.RLIMIT_CPU: SECONDS,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_NOFILE: 0,
        }
        for limit, value in limits.items():
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(limit, (value, value))


def main() -> None:
    """Pickle on standard input, JSON on standard output."""
    data = sys.stdin.buffer.read()
    give_up_rights()
    unpickler = TensorsOnly(data)
    try:
        tree = unpickler.load()
        found = tensors_in(tree) if isinstance(tree, dict) else []
    except Exception as error:  # whatever a stranger's pickle breaks
        print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
        sys.exit(1)
    unknown = unpickler.unknown | unpickler.called  # the latter too where there are too many
    record = {"tensors": found, "unknown": sorted(unknown), "called": sorted(unpickler.called)}
    sys.stdout.write(json.dumps(record))


if __name__ == "__main__":
    main()
