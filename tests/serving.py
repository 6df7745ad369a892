"""A live page's server in a process of its own, and toy runs for it."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from semvq.serve.app import MAX_BYTES
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_generator, toy_phase1


def toy_runs(folder: Path) -> list[Path]:
    """A tokenizer, an AR and a NAR run, all but untrained."""
    data = photos(folder / "photos")
    recipes = (toy_phase1(), toy_generator("ar"), toy_generator("nar"))
    for recipe in recipes:
        assert train_recipe(recipe, folder / recipe.name, data=data) is None
    return [folder / recipe.name for recipe in recipes]


def noise() -> np.ndarray:
    """A photo of soft noise, uint8 (20, 24, 3)."""
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((24, 20)))


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def bad_uploads(pixels: np.ndarray) -> dict[str, tuple[bytes, int, str]]:
    """What is no photo, with the status and words of its refusal."""
    flat = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(flat, "PNG")
    jpeg = encoded(np.tile(pixels, (8, 8, 1)), "JPEG")
    return {
        "empty": (b"", 400, "the file is empty"),
        "text": (b"<svg onload=alert(1)>\x1b[2J", 400, "the upload: expected JPEG, PNG"),
        "truncated": (jpeg[: len(jpeg) // 2], 400, "truncated"),
        "bomb": (flat.getvalue(), 400, "at most 50000000 pixels, found 10000x10000"),
        "strip": (encoded(np.zeros((8, 200, 3), np.uint8)), 400, "an aspect of at most 10"),
        "dot": (encoded(np.zeros((2, 2, 3), np.uint8)), 400, "sides of at least 8"),
        "huge": (bytes(MAX_BYTES + 1), 413, "at most 16 MB, found more"),
    }


@dataclass
class Server:
    """`semvq serve` at work."""

    process: subprocess.Popen
    address: str

    def stop(self) -> tuple[int, str, str]:
        """Ctrl-C; exit code and what it printed since the address."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def serving(runs: list[Path], folder: Path, *more: str) -> Iterator[Server]:
    """Answers inside; works in `folder`, where its temporary files would lie too."""
    command = [sys.executable, "-m", "semvq", "serve", *map(str, runs), "--port", "0", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), process.communicate()
        yield Server(process, line.split()[0])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
