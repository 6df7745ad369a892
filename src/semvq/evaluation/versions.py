"""What a number may depend on beside its inputs."""

import platform

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
