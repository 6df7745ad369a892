"""The quick tests with the oldest or the newest packages that pyproject.toml allows, elsewhere.

    python -m scripts.supported_versions oldest [--python python3.11] [--tests "-m 'not slow' -n 2"]
    python -m scripts.supported_versions newest --python python3.13

Oldest: every package at its lower bound, but for the tools of the tests. Gigabytes are installed
where torch's wheels bring CUDA along.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("sources", "onnx", "hub", "tensorboard", "serve", "photos")


def lower_bounds() -> list[str]:
    """`name==version` of what the package and its extras need at least."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *(need for name in EXTRAS for need in extras.get(name, ()))]
    found = [re.fullmatch(r"([\w-]+)>=([\w.]+)", need) for need in needs]
    assert all(found), f"expected name>=version, found {needs}"
    return [f"{match[1]}=={match[2]}" for match in found if match]


def main() -> int:
    """The tests' exit code."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("which", choices=("oldest", "newest"))
    p.add_argument("--python", default=sys.executable, help="the interpreter (this one)")
    p.add_argument("--tests", default="-m 'not slow' -n 2", help="pytest's words (%(default)s)")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run([options.python, "-m", "venv", place], check=True)
        python = str(place / "bin" / "python")
        limits = place / "constraints.txt"
        limits.write_text("\n".join(lower_bounds() if options.which == "oldest" else []) + "\n")
        install = [python, "-m", "pip", "install", "-q", "-c", limits, f"{ROOT}[test]"]
        subprocess.run(install, check=True)
        names = ("torch", "numpy", "lightning-fabric", "pillow", "safetensors")
        versions = "; ".join(f"print('{n}', version('{n}'))" for n in names)
        subprocess.run([python, "-c", f"from importlib.metadata import version; {versions}"])
        tests = [python, "-m", "pytest", "-p", "no:cacheprovider", *shlex.split(options.tests)]
        return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
