"""What a number may depend on beside its inputs."""

import platform
import subprocess
from pathlib import Path

import PIL
import torch

import semvq


def versions(device: torch.device) -> dict[str, str]:
    """The machine, and versions of what computes on it and of what reads and resizes images."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "semvq": semvq.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """Of the working tree that this code runs from, with a + where it was changed.

    "unknown" where it was installed from elsewhere.
    """
    here = Path(__file__).parent
    commands = ["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"]
    try:
        found, changed = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + "+" * bool(changed)
