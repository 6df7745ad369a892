"""What is published: a wheel and a source archive, whole, and working without the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "semvq"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (found,) = folder.glob("semvq-*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    listed = subprocess.run(
        ["git", "ls-files", "src/semvq"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert names == {name.removeprefix("src/") for name in listed}


def test_the_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(wheel)], check=True)
    code = (
        "import semvq, sys\nfrom semvq.photos import fruit\nfrom semvq.cli import main\n"
        "print(semvq.__file__, *fruit())\nmain(['describe', 'fruit_phase1'])"
    )
    elsewhere = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site)}}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, **elsewhere, capture_output=True, text=True, check=True)
    paths, *facts = done.stdout.splitlines()
    assert all(Path(path).is_relative_to(site) for path in paths.split())
    assert any("parameters" in line for line in facts)
    for name in ("fruit-train.tar", "fruit-val.tar"):
        own, installed = (at / "photos" / name for at in (PACKAGE, site / "semvq"))
        assert own.read_bytes() == installed.read_bytes()


def test_the_source_archive_is_enough_for_the_tests(tmp_path):
    code = "import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("semvq-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for folder in ("src", "tests", "bench", "docs", "examples", "scripts", "results"):
        listed = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        assert set(listed) <= names
    assert {"README.md", "EXPERIMENTS.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"} <= names
