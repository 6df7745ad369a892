"""The live page's server as a process: real sockets, its memory, its files, and Ctrl-C."""

import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image

from semvq.serve.app import MAX_BYTES
from tests.serving import bad_uploads, encoded, noise, serving, toy_runs

pytestmark = pytest.mark.slow

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return toy_runs(tmp_path_factory.mktemp("runs"))


def send(address: str, head: str, body: bytes, ends: bool = False) -> bytes:
    """What the server says to these bytes; it may hang up, or we may when all is sent."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), 30) as link:
        try:
            link.sendall(f"{head}\r\nHost: {place.netloc}\r\n\r\n".encode() + body)
            if ends:
                link.shutdown(socket.SHUT_WR)
            return link.recv(65536)
        except ConnectionError:
            return b""


def ask(address: str, path: str, body: bytes) -> int:
    link = HTTPConnection(urlsplit(address).netloc, timeout=240)
    try:
        link.request("POST", path, body)
        return link.getresponse().status
    except ConnectionError:
        return 0
    finally:
        link.close()


def memory(process_id: int, field: str) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def open_files_in(folder: Path, process_id: int) -> list[str]:
    links = []
    for handle in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            links.append(str(handle.readlink()))
        except FileNotFoundError:
            continue
    return [name for name in links if name.startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_fifty_bad_uploads_at_once_leave_a_server_that_works(runs, tmp_path):
    good = encoded(np.tile(noise(), (20, 20, 1)), "JPEG")
    largest = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (200, 30, 40, 99)).save(largest, "PNG")  # 49 of 50 MP
    kinds = [body for body, _, _ in bad_uploads(noise()).values()]
    kinds += [bytes(3 * MAX_BYTES), largest.getvalue()]
    with serving(runs, tmp_path) as server:
        number = server.process.pid
        assert ask(server.address, "/look", good) == 200
        Path(f"/proc/{number}/clear_refs").write_text("5")  # the peak begins anew
        before = memory(number, "VmRSS")
        found: list[str] = []
        with ThreadPoolExecutor(50) as pool:
            jobs = [pool.submit(ask, server.address, "/look", b) for b in (kinds * 6)[:50]]
            while not all(job.done() for job in jobs):
                found += [*map(str, tmp_path.iterdir()), *open_files_in(tmp_path, number)]
                time.sleep(0.02)
        codes = [job.result() for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            large = list(
                pool.map(lambda _: ask(server.address, "/look", largest.getvalue()), "1234")
            )
        growth = (memory(number, "VmHWM") - before) / MEGABYTE
        rest = (memory(number, "VmRSS") - before) / MEGABYTE
        answers = {code: codes.count(code) for code in sorted(set(codes))}
        print(f"answers {answers}; memory: peak +{growth:.0f} MB, afterwards +{rest:.0f} MB")
        assert set(codes) <= {0, 200, 400, 413, 503} and not found
        assert large == [200] * 4 and growth < 1200
        assert ask(server.address, "/look", good) == 200
        code, out, err = server.stop()
    assert code == 0 and out == "stopped\n"
    assert "Traceback" not in err
    assert all(line.startswith("semvq: ") for line in err.splitlines())
    assert not list(tmp_path.iterdir())


def test_lying_and_broken_requests_leave_a_server_that_works(runs, tmp_path):
    good, most = encoded(noise()), MAX_BYTES
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with serving(runs, tmp_path) as server:
        chunked = "POST /look HTTP/1.1\r\nTransfer-Encoding: chunked"
        assert b"413" in send(server.address, chunked, chunk * (most // 2**20 + 2) + b"0\r\n\r\n")
        send(server.address, chunked, chunk, ends=True)  # in the middle
        send(server.address, chunked, b"zz\r\n")
        few = f"POST /look HTTP/1.1\r\nContent-Length: {len(good) - 200}"
        assert b" 400 " in send(server.address, few, good)
        many = f"POST /look HTTP/1.1\r\nContent-Length: {len(good) + 9}"
        assert b" 200 " not in send(server.address, many, good, ends=True)
        for length in ("-1", "1e3", "9" * 40):
            head = f"POST /look HTTP/1.1\r\nContent-Length: {length}"
            assert b" 200 " not in send(server.address, head, good)
        passwd = send(server.address, "GET /../../etc/passwd HTTP/1.1\r\nConnection: close", b"")
        assert b"404" in passwd and b"root" not in passwd
        assert b"400" in send(server.address, "no request at all", b"")
        assert ask(server.address, "/look", good) == 200
        code, out, err = server.stop()
    assert code == 0 and out == "stopped\n"
    assert "Traceback" not in err
    assert all(line.startswith("semvq: ") for line in err.splitlines())


SLOW = """
import time
from semvq.serve.studio import Studio

def sample(*given):
    print("at work", flush=True)
    time.sleep(60)

Studio.sample = sample
"""


def test_ctrl_c_does_not_wait_for_a_model(runs, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    fields = urlencode({"tokenizer": "toy_phase1", "kind": "NAR"})
    more = ("--code", str(tmp_path / "slow.py"))
    with serving(runs, tmp_path, *more) as server, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, server.address, f"/sample?{fields}", b"") for _ in range(3)]
        assert server.process.stdout.readline() == "at work\n"
        began = time.monotonic()
        code, _, err = server.stop()
        assert time.monotonic() - began < 30  # three seconds are for answers under way
        assert {job.result() for job in asked} <= {0, 503}
    assert code == 0 and "Traceback" not in err
    assert all(line.startswith("semvq: ") for line in err.splitlines())
