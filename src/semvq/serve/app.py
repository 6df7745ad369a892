"""The web application: pages, requests and their limits. Nothing of an upload is kept.

An upload is the body of the request, never a form: no parser that spools to disk is involved, and
another site's page cannot send it without asking first, which is refused.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import resources
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from semvq.data.images import png_bytes, to_float
from semvq.data.pixels import crop_resize, decode, to_tensor
from semvq.serve.guard import Guard, refusal
from semvq.serve.studio import Studio

MAX_BYTES = 16_000_000  # of an upload
MAX_DROPPED = 4 * MAX_BYTES  # of a refused one: read on, or a browser never sees the refusal
UPLOAD_SECONDS = 30
PLACES = 6  # requests that are read, wait or run; one runs at a time
MAX_SAMPLES, MAX_STEPS = 8, 64
THUMBNAIL = 72
PAGE = {
    "/": ("semvq.serve", "page/index.html", "text/html"),
    "/page.css": ("semvq.serve", "page/page.css", "text/css"),
    "/page.js": ("semvq.serve", "page/page.js", "text/javascript"),
    "/region.js": ("semvq.serve", "page/region.js", "text/javascript"),
    "/steps.js": ("semvq.serve", "page/steps.js", "text/javascript"),
    "/comparison.css": ("semvq.probe", "comparison.css", "text/css"),
}

SAMPLING = ("class", "seed", "temperature", "guidance", "top_k", "steps")
FIELDS = {  # all that each request may have
    "/look": ("photo", "class"),
    "/repaint": ("photo", "tokenizer", "box", *SAMPLING),
    "/sample": ("tokenizer", "kind", "num", *SAMPLING),
}

Job = Callable[[Studio, "Asked"], dict[str, Any]]


class Asked:
    """The fields of a request, each checked when it is read, and the upload if there is one."""

    def __init__(self, fields: Mapping[str, str], upload: bytes) -> None:
        self.fields, self.upload = fields, upload

    def text(self, name: str) -> str | None:
        """None where the field is missing or empty."""
        return self.fields.get(name) or None

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in [low, high]; None where the field is missing or empty."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(
                f"{name}: expected a number from {_plain(low)} to {_plain(high)}, found '{text}'; "
                "give another"
            )
        return value

    def whole(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number in [low, high]."""
        value = self.number(name, low, high)
        if value is not None and value != int(value):
            raise ValueError(f"{name}: expected a whole number, found {value:g}; round it")
        return default if value is None else int(value)

    def sampling(self) -> dict[str, Any]:
        """The sampling options that were given."""
        found: dict[str, Any] = {}
        for name, high in (("temperature", 10.0), ("guidance", 100.0)):
            if (value := self.number(name, 0, high)) is not None:
                found[name] = value
        for name, most in (("steps", MAX_STEPS), ("top_k", 2**31)):
            if self.text(name):
                found[name] = self.whole(name, 1, most, 1)
        return found

    def pixels(self, studio: Studio) -> np.ndarray:
        """Of the upload, else of the packaged photo; uint8 (H, W, 3)."""
        if self.text("photo"):
            return studio.photo(self.whole("photo", 0, 2**31, 0))
        return decode(self.upload, "the upload")

    @property
    def seed(self) -> int:
        """What `--seed` is."""
        return self.whole("seed", 0, 2**31, 0)


def look(studio: Studio, asked: Asked) -> dict[str, Any]:
    """A photo through every tokenizer."""
    return studio.look(asked.pixels(studio), asked.text("class"))


def repaint(studio: Studio, asked: Asked) -> dict[str, Any]:
    """A region of a photo drawn anew."""
    name, box, label = asked.text("tokenizer") or "", asked.text("box") or "", asked.text("class")
    return studio.repaint(asked.pixels(studio), name, box, label, asked.seed, asked.sampling())


def sample(studio: Studio, asked: Asked) -> dict[str, Any]:
    """New images."""
    name, kind = asked.text("tokenizer") or "", asked.text("kind") or ""
    num = asked.whole("num", 1, MAX_SAMPLES, 1)
    return studio.sample(name, kind, asked.text("class"), asked.seed, num, asked.sampling())


class Queue:
    """One job at a time, and few requests that wait for it."""

    def __init__(self) -> None:
        self.taken = 0
        self.waiting: SimpleQueue[tuple[Callable[[], dict[str, Any]], Future]] = SimpleQueue()
        # always the same thread: each keeps some of the memory that it had for a large photo. A
        # daemon: Ctrl-C does not wait for a model
        Thread(target=self._work, daemon=True).start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Inside, the request is one of `PLACES`; 503 if there is none left."""
        if self.taken >= PLACES:
            raise HTTPException(
                503, f"expected at most {PLACES} requests at once, found one more; try again soon"
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The job's answer, when all before it are done."""
        future: Future[dict[str, Any]] = Future()
        self.waiting.put((job, future))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            job, future = self.waiting.get()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


def make_app(studio: Studio, hosts: Collection[str] | None) -> Starlette:
    """The application; `hosts`: see `guard.allowed_hosts`."""
    queue = Queue()

    def answering(job: Job) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                _check_fields(request)
                with queue.place():
                    asked = Asked(request.query_params, await _body(request))
                    return JSONResponse(await queue.run(lambda: job(studio, asked)))
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is there to read it
            except asyncio.CancelledError:
                words = "expected a running server, found it stopping; start semvq serve again"
                return refusal(request.scope, 503, words)
            except Exception as error:  # a page is answered whatever a model or a file did
                return await _refused(request, error)

        return answer

    overview = studio.overview() | {
        "limits": {"bytes": MAX_BYTES, "samples": MAX_SAMPLES, "steps": MAX_STEPS}
    }
    thumbnails = [_thumbnail(studio.photo(i)) for i in range(len(overview["photos"]))]

    async def show_overview(request: Request) -> Response:
        return JSONResponse(overview)

    async def show_photo(request: Request) -> Response:
        index = request.path_params["index"]
        if index >= len(thumbnails):
            raise HTTPException(404)
        return Response(thumbnails[index], media_type="image/png")

    jobs = {"/look": look, "/repaint": repaint, "/sample": sample}
    return Starlette(
        routes=[
            *(Route(path, _packaged(*file)) for path, file in PAGE.items()),
            Route("/overview", show_overview),
            Route("/photo/{index:int}", show_photo),
            *(Route(path, answering(job), methods=["POST"]) for path, job in jobs.items()),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={404: _nowhere, 405: _nowhere, HTTPException: _refused},
    )


def _check_fields(request: Request) -> None:
    """ValueError for a field that would be passed over in silence."""
    known = FIELDS[request.url.path]
    for name in request.query_params:
        if name not in known:
            raise ValueError(
                f"expected fields among {', '.join(known)}, found '{name}'; leave it out"
            )


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _packaged(package: str, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    data = resources.files(package).joinpath(name).read_bytes()

    async def show(request: Request) -> Response:
        return Response(data, media_type=kind)

    return show


def _thumbnail(pixels: np.ndarray) -> bytes:
    return png_bytes(to_float(to_tensor(crop_resize(pixels, THUMBNAIL))))


async def _body(request: Request) -> bytes:
    """The upload, in memory; 413 as soon as it is too large, 408 if it takes too long."""
    declared = request.headers.get("content-length", "")
    too_large = HTTPException(
        413, f"the upload: expected at most {MAX_BYTES / 1e6:g} MB, found more; send a smaller one"
    )
    if declared.isdecimal() and int(declared) > MAX_BYTES:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BYTES:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise HTTPException(
            408,
            f"the upload: expected it whole within {UPLOAD_SECONDS} s, found {size} bytes; "
            "send a smaller one",
        ) from None
    return b"".join(chunks)


async def _refused(request: Request, error: Exception) -> Response:
    """One line, for the page and for the terminal."""
    if isinstance(error, HTTPException):
        status, words = error.status_code, error.detail
    elif isinstance(error, ValueError):
        status, words = 400, str(error).removeprefix("--")  # what an option is called
    else:
        status, words = 500, f"{type(error).__name__}: {error}"
    answer = refusal(request.scope, status, words)
    await _drop_rest(request)
    return answer


async def _nowhere(request: Request, error: Exception) -> Response:
    """No such address, or not for this method."""
    assert isinstance(error, HTTPException)
    words = "expected an address of this server, found none of this name and method; start at /"
    return await _refused(request, HTTPException(error.status_code, words))


async def _drop_rest(request: Request) -> None:
    """Read what is still sent, without keeping it, so that the answer is read."""
    size = 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_DROPPED:
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):
        return  # RuntimeError: it was read whole before
