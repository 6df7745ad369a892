"""Checkpoints of strangers: what is in them does not run, and what is read of them is checked."""

import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semvq.interop import inert, opening
from semvq.tokenizer.files import load_tokenizer, tokenizer_extra
from tests.foreign import Taming
from tests.test_convert import SIDE, convert, narrow, refused

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"  # in a pickle, what makes a tensor


class Payload:
    """Unpickled, it leaves a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.marker), "w")


class Callback:
    """An object of a training, with a state, in a pickle of Lightning's."""

    def __init__(self) -> None:
        self.best = {"score": 1.0}


def test_the_payload_is_live(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


@torch.no_grad()
def test_lightning_files_are_read_without_their_objects(tmp_path, capsys):
    oracle, marker = narrow(Taming)(), tmp_path / "marker"
    weights = OrderedDict((k, torch.nn.Parameter(v)) for k, v in oracle.weights.items())
    weights["loss.share"] = torch.zeros(2)
    checkpoint = {
        "epoch": 3, "state_dict": weights, "callbacks": {Callback: Callback(), "x": [Callback()]},
        "optimizer_states": [{"state": {0: {"step": torch.ones(3)}}}], "evil": Payload(marker),
    }  # fmt: skip
    torch.save(checkpoint, path := tmp_path / "last.ckpt")
    assert convert(oracle, path, tmp_path / "run") == 0
    captured = capsys.readouterr()
    opened = f"{open.__module__}.open"  # `io.open` or `_io.open`, by the version of Python
    assert captured.err.splitlines() == [
        f"warning: the file asked to run {opened}; it was not run",
        "read in a child process, without its objects of tests.test_convert_files.Callback",
    ]
    assert not marker.exists()
    origin = tokenizer_extra(tmp_path / "run")["converted"]
    assert origin["left_out"] == sorted(["tests.test_convert_files.Callback", opened])
    assert origin["asked_to_run"] == [opened]
    images = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    tokenizer = load_tokenizer(tmp_path / "run")
    assert torch.equal(tokenizer.encode(images), oracle.encode(images))


@pytest.mark.parametrize(
    ("pickled", "called"),
    [
        (pickle.dumps({"x": Callback(), Callback: {1}, "y": Counter("a")}, 2), []),
        (b"cos\nsystem\n(S'true'\ntR.", ["os.system"]),
        (b"(S'true'\nios\nsystem\n.", ["os.system"]),  # two opcodes of old pickles
        (b"(cos\nabort\no.", ["os.abort"]),
        (b"c__builtin__\nset\n(]tR.", []),
    ],
)
def test_what_a_pickle_calls_is_told_from_what_it_names(pickled, called):
    unpickler = inert.TensorsOnly(pickled)
    unpickler.load()
    assert sorted(unpickler.called) == called and unpickler.unknown


def rewritten(
    path: Path, name: str, change: Callable[[str, bytes], bytes], packing: int = 0
) -> Path:
    """A copy of a torch file, called `name`, with other members."""
    found = path.with_name(name)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(found, "w", packing) as new:
        for member in old.namelist():
            new.writestr(member, change(member.partition("/")[2], old.read(member)))
    return found


def hostile_files(folder: Path) -> list[Path]:
    """Files that are no tokenizer's, most of which would leave a marker in `folder`."""
    payload = Payload(folder / "marker")
    weights = narrow(Taming)().weights
    torch.save({"state_dict": {"encoder.conv_in.weight": payload}}, folder / "only.ckpt")
    torch.save(payload, folder / "bare.pt")
    torch.save({"state_dict": weights, "x": Callback()}, whole := folder / "whole.ckpt")
    (folder / "pickle.bin").write_bytes(pickle.dumps({"state_dict": payload}))
    (folder / "renamed.safetensors").write_bytes(pickle.dumps(payload))
    torch.save({"state_dict": {"\x1b[2J": torch.ones(2)}}, folder / "name.ckpt")
    (folder / "noise.ckpt").write_bytes(bytes(range(256)) * 9)
    (folder / "nothing.ckpt").write_bytes(b"")

    def pickled(data: bytes) -> Callable[[str, bytes], bytes]:
        return lambda name, old: data if name == "data.pkl" else old

    rewritten(whole, "cut.ckpt", lambda n, d: d[:-8] if n == "data/3" else d)
    rewritten(whole, "compressed.ckpt", lambda n, d: d, zipfile.ZIP_DEFLATED)
    cases = {
        "own class as function": b"ccollections\nOrderedDict\n}sb.",
        "attributes of a function": REBUILD + b"}X\x01\x00\x00\x00aK\x01sb.",
        "no storage": REBUILD + b"(K\x01K\x01K\x01K\x01tR.",
        "escape": b"c\x1b[2J\nx\n.",
        "escape in an error": b"\x1b[2J.",
        "endless": b"\x80\x02" + b"]" * 10 + b"(" * 100_000,
        "cycle": b"}q\x00X\x01\x00\x00\x00ah\x00s.",
        "memory": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
        "extension": b"\x80\x02\x82\x01.",
        "getattr": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x0dopen('x', 'w')\x85R.",
    }
    for name, data in cases.items():
        rewritten(whole, f"{name}.ckpt", pickled(data))
    whole.unlink()
    return sorted(folder.iterdir())


def test_hostile_files_run_nothing_and_end_in_one_line(tmp_path, capsys):
    taming = narrow(Taming)()
    for path in hostile_files(tmp_path):
        line = refused(capsys, taming, path, tmp_path / "run")
        assert str(path) in line and len(line) < 1000 and line.isprintable(), path
        assert not (tmp_path / "marker").exists(), path


def test_views_beyond_their_storage_are_refused(tmp_path):
    torch.save({"a": torch.arange(6.0)[2:4], "x": Callback()}, path := tmp_path / "a.pt")
    assert opening.open_weights(path).tensors["a"].tolist() == [2, 3]
    for offset, size in ((5, 2), (2, 255)):  # of six numbers

        def moved(name: str, data: bytes, offset: int = offset, size: int = size) -> bytes:
            old, new = (b"K%cK%c\x85" % pair for pair in ((2, 2), (offset, size)))
            assert name != "data.pkl" or data.count(old) == 1
            return data.replace(old, new)

        with pytest.raises(ValueError, match="within the file"):
            opening.open_weights(rewritten(path, "b.pt", moved))


def test_a_few_numbers_that_stand_for_many_are_refused_by_name(tmp_path):
    torch.save({"few": torch.zeros(1).expand(1000, 1000)}, path := tmp_path / "a.pt")
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="found few with numbers that are not there"):
        opening.open_weights(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_the_child_has_no_rights_left():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import inert; inert.give_up_rights()\n"
        "for act in (lambda: open('/dev/null'), lambda: bytearray(2**31), lambda: "
        "__import__('socket').socket()):\n"
        "    try: act()\n"
        "    except (OSError, MemoryError, ImportError): print('refused')\n"
    )
    folder = Path(opening.__file__).parent
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout.split() == ["refused"] * 3, done.stderr
