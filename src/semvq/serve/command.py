"""The command `semvq serve`: runs on a page of this machine's own server."""

import logging
import socket
import sys
from argparse import Namespace

from semvq.command_parts import import_code
from semvq.compare_command import open_entrants
from semvq.files import one_line
from semvq.training.runs import resolve_device

SECONDS_TO_END = 3  # for answers under way, after Ctrl-C
MAX_CONNECTIONS = 200


def serve(options: Namespace) -> None:
    """`semvq serve`: answers until Ctrl-C."""
    _check_packages()
    from semvq.serve.app import make_app  # inside: the packages are an extra
    from semvq.serve.guard import allowed_hosts
    from semvq.serve.studio import Studio

    import_code(options)
    with _listener(options.host, options.port) as listener:
        studio = Studio(open_entrants(options.runs, resolve_device(options.device)))
        app = make_app(studio, allowed_hosts(options.host, listener.getsockname()[0]))
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"http://{host}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        _run(app, listener)


def _check_packages() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"expected starlette and uvicorn for a live page, found {error}; "
            "install them with: pip install 'semvq[serve]'"
        ) from None


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket; ValueError where there can be none, before runs are opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected a free port at {host}, found {port}: {reason}; "
            "give others with --host and --port (0 takes any)"
        ) from None


def _run(app: object, listener: socket.socket) -> None:
    import uvicorn

    logging.getLogger("uvicorn.error").addHandler(_OneLine())
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # no type of an extra's package in a signature here
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # raised again when all is closed
        print("stopped", flush=True)


class _OneLine(logging.Handler):
    """The server's own complaints, without their tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        print(f"semvq: {one_line(record.getMessage(), 300)}", file=sys.stderr, flush=True)
