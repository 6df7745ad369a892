"""Who may ask and what a browser may do with the answers, around the whole application."""

import sys
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semvq.files import one_line

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    # pictures come inside the answers, as data: addresses; nothing is from elsewhere
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def allowed_hosts(host: str, address: str) -> frozenset[str] | None:
    """Names that requests may use for a server on `host`, which is `address`; None is any.

    On loopback only its own: a stranger's page may have its name resolved to 127.0.0.1 and would
    then be of our origin (DNS rebinding). Elsewhere our names are not known.
    """
    own = ip_address(address).is_loopback  # whatever it is called: localhost, 127.1, a name
    return LOOPBACK | {host.lower()} if own else None


class Guard:
    """ASGI middleware: refuses other hosts' and other sites' requests, and adds `HEADERS`."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        stranger = self._stranger(Headers(scope=scope))
        answer = self.app if stranger is None else refusal(scope, *stranger)
        await answer(scope, receive, send_with_headers)

    def _stranger(self, headers: Headers) -> tuple[int, str] | None:
        """Status and words for a request that is not of our own page; None where it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _name(host) not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            return 421, f"host: expected one of {known}, found '{host}'"
        if origin is not None and _place(origin) != host.lower():
            return 403, f"expected a request of this page itself, found one of {origin}"
        return None


def refusal(scope: Scope, status: int, words: str) -> JSONResponse:
    """One line for the page, and for the terminal."""
    line, path = one_line(words, 300), one_line(scope["path"], 100)
    print(f"semvq: {status} {scope['method']} {path}: {line}", file=sys.stderr, flush=True)
    return JSONResponse({"error": line}, status)


def _name(host: str) -> str:
    """The name in a Host header, without the port; "" where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Host and port of an Origin header."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
