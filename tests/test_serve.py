"""The live page's server: the library's own codes, what it refuses, and what it withstands."""

import asyncio
import base64
import io
import re
import socket
import threading
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from semvq.cli import main
from semvq.compare_command import open_entrants
from semvq.data.images import to_float, to_uint8
from semvq.data.pixels import crop_resize, to_tensor
from semvq.edit import box_mask, edit, masked_cells
from semvq.evaluation.side_by_side import Entrant
from semvq.generators.ar import ARConfig
from semvq.generators.nar import NARConfig
from semvq.generators.sampling_nar import mask_counts
from semvq.probe.teacher_forcing import predict
from semvq.rivals.multichannel import MultichannelQuantizerConfig
from semvq.serve import app as application
from semvq.serve.guard import allowed_hosts
from semvq.serve.steps import watched
from semvq.serve.studio import Studio
from tests.absent import hide
from tests.serving import bad_uploads, encoded, noise, toy_runs
from tests.toy import toy_phase1

LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return toy_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def entrant(runs):
    (found,) = open_entrants(runs, torch.device("cpu"))
    return found


@pytest.fixture(scope="module")
def client(entrant):
    return TestClient(
        application.make_app(Studio([entrant]), allowed_hosts("127.0.0.1", "127.0.0.1")), LOCAL
    )


@pytest.fixture(scope="module")
def pixels():
    return noise()


def square(pixels: np.ndarray) -> torch.Tensor:
    return to_float(to_tensor(crop_resize(pixels, 16)))


def shown(address: str) -> np.ndarray:
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def as_shown(image: torch.Tensor) -> np.ndarray:
    return to_uint8(image).permute(1, 2, 0).numpy()


def post(client, path: str, body: bytes = b"", **fields: object):
    return client.post(path, params={k: str(v) for k, v in fields.items()}, content=body)


def line_of(response, status: int) -> str:
    assert response.status_code == status, response.text
    line = response.json()["error"]
    assert line and "\n" not in line and len(line) < 400
    return line


def test_a_look_has_the_codes_pictures_and_figures_of_the_library(client, entrant, pixels):
    (found,) = post(client, "/look", encoded(pixels), **{"class": "red"}).json()["tokenizers"]
    image, tokenizer, ar = square(pixels), entrant.tokenizer, entrant.generators["AR"]
    with torch.no_grad():
        codes = tokenizer.encode(image[None])
        predicted = predict(ar, codes, torch.tensor([2]))
        pictures = {
            "photo": image,
            "reconstruction": tokenizer.decode(codes)[0],
            "prediction": tokenizer.decode(predicted.codes)[0],
        }
    assert found["numbers"] == codes[0].tolist()
    for name, picture in pictures.items():
        assert np.array_equal(shown(found[name]), as_shown(picture)), name
    assert shown(found["codes"]).shape == shown(found["surprise"]).shape == (4, 4, 3)
    figures = dict(found["figures"])
    assert figures["AR top-1 accuracy"] == f"{float(predicted.correct.float().mean()):.3f}"
    assert figures["cross-entropy"].startswith(f"{float(predicted.cross_entropy.mean()):.2f} nats")


def test_alike_codes_have_one_colour(client, pixels):
    (found,) = post(client, "/look", encoded(pixels)).json()["tokenizers"]
    codes, colours = np.array(found["numbers"]), shown(found["codes"])
    for code in np.unique(codes):
        assert len(np.unique(colours[codes == code], axis=0)) == 1


def test_packaged_photos_can_be_chosen(client):
    overview = client.get("/overview").json()
    assert len(overview["photos"]) == 28
    assert client.get("/photo/3").content.startswith(b"\x89PNG")
    assert post(client, "/look", photo=3).status_code == 200
    assert "a number below 28, found 28" in line_of(post(client, "/look", photo=28), 400)
    assert "start at /" in line_of(client.get("/photo/28"), 404)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ar", {"class": "green", "temperature": 0.8, "top_k": 5}),
        ("nar", {"class": "green", "guidance": 2.0, "steps": 5}),
        ("nar", {}),
    ],
)
def test_samples_are_those_of_the_command(client, runs, tmp_path, kind, options):
    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    run = runs[0].parent / f"toy_{kind}"
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run), "--num", "4", "--seed", "7", "--out", str(tmp_path), *flags])
    assert stop.value.code == 0
    fields = {"tokenizer": "toy_phase1", "kind": kind.upper(), "num": 4, "seed": 7, **options}
    found = post(client, "/sample", **fields).json()
    assert len(found["steps"]) == {"ar": 1, "nar": options.get("steps", 12) + 1}[kind]
    for index, picture in enumerate(found["steps"][-1]["pictures"]):
        expected = np.asarray(Image.open(tmp_path / f"{index:06d}.png"))
        assert np.array_equal(shown(picture), expected)


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, {"num": 1}])
def test_steps_fix_what_the_schedule_says_and_keep_it(client, options):
    fields = {"tokenizer": "toy_phase1", "kind": "NAR", "num": 3, "steps": 6, **options}
    steps = post(client, "/sample", **fields).json()["steps"]
    still_open = torch.tensor([step["open"] for step in steps]).bool()
    assert still_open.flatten(2).sum(2).T.tolist() == [[16, *mask_counts(16, 6)]] * (
        options.get("num", 3)
    )
    assert not (still_open[1:] & ~still_open[:-1]).any()  # what is fixed stays
    assert shown(steps[2]["pictures"][0]).shape == (16, 16, 3)


def test_repainting_is_the_library_s_and_keeps_the_codes_outside(client, entrant, pixels):
    box = "0.5,0.25,1,0.75"
    fields = {"tokenizer": "toy_phase1", "box": box, "class": "blue", "seed": 3, "steps": 4}
    found = post(client, "/repaint", encoded(pixels), **fields).json()
    mask, tokenizer = box_mask(box, 16), entrant.tokenizer
    generator, image = entrant.generators["NAR"], square(pixels)
    expected = edit(generator, tokenizer, image, mask, 1, torch.tensor([0]), 3, steps=4)
    assert found["codes"] == expected.codes.tolist()
    cells, codes = masked_cells(mask, (4, 4), 1), torch.tensor(found["codes"])
    assert torch.equal(codes[0][~cells], tokenizer.encode(image[None])[0][~cells])
    assert np.array_equal(shown(found["steps"][-1]["pictures"][0]), as_shown(expected.blended[0]))
    assert found["steps"][0]["open"] == [cells.int().tolist()]
    assert not generator._forward_pre_hooks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_watching_changes_no_code_where_passes_are_recorded_else(entrant, guidance):
    generator, classes = deepcopy(entrant.generators["NAR"]).cuda(), torch.arange(3, device="cuda")
    recorded = generator.sample(3, classes, 5, guidance=guidance)
    for _ in range(2):
        with watched(generator) as passes:
            codes = generator.sample(3, classes, 5, guidance=guidance)
        assert torch.equal(codes, recorded) and len(passes) == 12
    assert torch.equal(generator.sample(3, classes, 5, guidance=guidance), recorded)


def test_several_codes_per_place_and_no_classes_are_shown_too(pixels):
    torch.manual_seed(0)
    codes = MultichannelQuantizerConfig(num_codes=16, code_dim=8, channels=2)
    tokenizer = replace(toy_phase1().task.tokenizer, quantizer=codes).build().eval()
    size = {"num_layers": 2, "width": 16, "num_heads": 2, "num_codes": 16}
    generators = {
        kind: config(**size, grid_height=8, grid_width=4).build().eval()
        for kind, config in (("AR", ARConfig), ("NAR", NARConfig))
    }
    for generator in generators.values():
        generator.extra["classes"] = []
    studio = Studio([Entrant("two", "", tokenizer, generators)])
    (found,) = studio.look(pixels, None)["tokenizers"]
    assert np.shape(found["numbers"]) == (8, 4) and shown(found["codes"]).shape == (4, 4, 3)
    drawn = studio.sample("two", "NAR", None, 0, 2, {"steps": 3})
    assert [np.shape(step["open"]) for step in drawn["steps"]] == [(2, 4, 4)] * 4
    repainted = studio.repaint(pixels, "two", "0,0,0.5,1", None, 0, {})
    assert np.sum(repainted["steps"][0]["open"]) == 8 and not np.sum(repainted["steps"][-1]["open"])


def test_a_turned_photo_is_set_upright(client, pixels):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    image = pixels[:20, :20]
    sideways = encoded(np.rot90(image).copy(), exif=turned)
    upright, found = (post(client, "/look", b).json() for b in (encoded(image), sideways))
    assert found == upright


TOKENIZER = {"tokenizer": "toy_phase1"}
FIELDS = {**TOKENIZER, "kind": "NAR"}


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/look", {}, "the upload: the file is empty"),
        ("/look", {"photo": "two"}, "photo: expected a number from 0"),
        (
            "/look",
            {"photo": 1, "class": "pink"},
            "class: expected a name among 'blue', 'green', 'red'",
        ),
        ("/sample", {"kind": "NAR"}, "expected one with NAR codes (toy_phase1), found ''"),
        ("/sample", {**FIELDS, "kind": "RNN"}, "none: no such run was given"),
        ("/sample", {**FIELDS, "num": 9}, "num: expected a number from 1 to 8, found '9'"),
        ("/sample", {**FIELDS, "num": 1.5}, "num: expected a whole number, found 1.5"),
        ("/sample", {**FIELDS, "seed": -1}, "seed: expected a number from 0"),
        ("/sample", {**FIELDS, "temperature": "nan"}, "temperature: expected a number from 0"),
        ("/sample", {**FIELDS, "temperature": "9e999"}, "temperature: expected a number from 0"),
        ("/sample", {**FIELDS, "steps": 0}, "steps: expected a number from 1 to 64"),
        ("/sample", {**FIELDS, "kind": "AR", "steps": 4}, "expected a sampling option among"),
        ("/repaint", {**TOKENIZER, "photo": 1}, "box: expected x0,y0,x1,y1"),
        ("/repaint", {**TOKENIZER, "photo": 1, "box": "0,0,nan,1"}, "box: expected x0,y0,x1,y1"),
        ("/look", {"photo": 1, "seed": 2}, "expected fields among photo, class, found 'seed'"),
        ("/repaint", {**TOKENIZER, "photo": 1, "x0": 0}, "steps, found 'x0'; leave it out"),
        (
            "/sample",
            {**FIELDS, "images": 100_000},
            "expected fields among tokenizer, kind, num, class, seed, temperature, guidance, "
            "top_k, steps, found 'images'; leave it out",
        ),
    ],
)
def test_mistakes_get_one_line(client, capsys, path, fields, words):
    line = line_of(post(client, path, **fields), 400)
    assert words in line
    assert capsys.readouterr().err == f"semvq: 400 POST {path}: {line}\n"


@pytest.fixture(scope="module")
def bad(pixels):
    return bad_uploads(pixels)


@pytest.mark.parametrize("name", ["empty", "text", "truncated", "bomb", "strip", "dot", "huge"])
def test_uploads_that_are_no_photo_get_one_line(client, bad, name):
    body, status, words = bad[name]
    line = line_of(post(client, "/look", body), status)
    assert words in line and line.isprintable()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"])
def test_another_host_s_name_is_refused(client, capsys, host):
    line = line_of(client.get("/", headers={"host": host}), 421)
    assert "host: expected one of" in line
    assert capsys.readouterr().err == f"semvq: 421 GET /: {line}\n"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "localhost:1", "[::1]:8000"])
def test_our_own_names_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://["]
)
def test_another_site_s_page_is_refused(client, origin):
    answer = client.post("/look?photo=1", headers={"origin": origin})
    assert "a request of this page itself" in line_of(answer, 403)
    assert client.post("/look?photo=1", headers={"origin": LOCAL}).status_code == 200


def test_elsewhere_than_on_loopback_any_name_is_answered():
    for host in ("0.0.0.0", "192.168.0.7"):
        assert allowed_hosts(host, host) is None
    for host in ("::1", "127.0.0.9"):
        assert host in (allowed_hosts(host, host) or ())


def test_a_class_that_another_run_knows_leaves_one_prediction_out(entrant, pixels):
    other = deepcopy(entrant.generators["AR"])
    other.extra["classes"] = ["x", "y", "z"]
    studio = Studio([entrant, replace(entrant, name="other", generators={"AR": other})])
    known, foreign = studio.look(pixels, "red")["tokenizers"]
    assert "prediction" in known and "prediction" not in foreign
    assert ["AR", "its classes have no 'red'"] in foreign["figures"]
    with pytest.raises(ValueError, match="expected a name among"):
        studio.look(pixels, "nobody's")


@pytest.mark.parametrize("name", ["127.1", "LOCALHOST", "own-name"])
def test_a_loopback_of_another_name_is_one_too(name):
    known = allowed_hosts(name, "127.0.0.1") or ()
    assert name.lower() in known and "evil.example" not in known


@pytest.mark.parametrize("path", ["/", "/page.css", "/overview", "/photo/0", "/nowhere"])
def test_browsers_are_told_to_trust_nothing_else(client, path):
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control")]


def test_the_guide_names_every_field():
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    for path, fields in application.FIELDS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `POST {path}` |")]
        named = re.findall(r"`(\w+)`", row.split(" | ")[1])
        assert named == list(fields), path


def test_the_page_names_no_other_place():
    folder = Path(application.__file__).parent / "page"
    for file in folder.iterdir():
        text = file.read_text()
        assert "//" not in text.replace("// ", "").replace("http://www.w3", ""), file
        assert " style=" not in text and " onclick=" not in text, file


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page/..%2f..%2fapp.py", "/app.py"]
)
def test_no_other_file_is_served(client, path):
    assert "expected an address of this server, found none" in line_of(client.get(path), 404)
    assert "start at /" in line_of(client.get("/look"), 405)


def test_one_job_at_a_time_and_few_that_wait():
    at_once, most, go = 0, 0, threading.Event()

    def sample(*_: object) -> dict:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        assert go.wait(30)
        time.sleep(0.01)
        at_once -= 1
        return {}

    stub = SimpleNamespace(overview=lambda: {"photos": []}, sample=sample)
    transport = httpx2.ASGITransport(application.make_app(stub, None))

    async def ask_ten() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=transport, base_url=LOCAL) as client:
            asked = [asyncio.create_task(client.post("/sample?kind=AR")) for _ in range(10)]
            while sum(task.done() for task in asked) < 10 - application.PLACES:
                await asyncio.sleep(0.01)
            go.set()
            answers = await asyncio.gather(*asked)
            assert (await client.post("/sample?kind=AR")).status_code == 200  # places are free
            return answers

    answers = asyncio.run(asyncio.wait_for(ask_ten(), 60))
    refused = [a for a in answers if a.status_code == 503]
    assert most == 1 and len(refused) == 10 - application.PLACES
    assert "at most 6 requests at once, found one more; try again" in line_of(refused[0], 503)


def test_a_model_that_fails_is_one_line_and_the_next_request_is_answered(client, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 3 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(Studio, "look", fail)
        line = line_of(post(client, "/look", photo=1), 500)
    assert line == "RuntimeError: CUDA out of memory. Tried to allocate 3 GiB"
    assert post(client, "/look", photo=1).status_code == 200


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


def test_a_port_in_use_is_one_line(capsys, runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, *runs, "--port", port)
    assert f"expected a free port at 127.0.0.1, found {port}: Address already in use" in line
    assert "give others with --host and --port" in line


def test_other_mistakes_of_the_command_are_one_line(capsys, runs):
    assert "expected a free port" in refused(capsys, *runs, "--port", 99_999)
    assert "expected a free port at 300.1.1.1" in refused(capsys, *runs, "--host", "300.1.1.1")
    assert "nowhere" in refused(capsys, "nowhere", "--port", 0)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named(capsys, runs, monkeypatch, package):
    hide(monkeypatch, package)
    line = refused(capsys, *runs)
    assert f"{package}'; install them with: pip install 'semvq[serve]'" in line
