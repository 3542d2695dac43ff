"""Runs a page in headless Chromium: files come from a server in this process, and the page posts its result to it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "command", "result_of"]

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}


def command() -> str | None:
    """Return the command of Chromium; None if it is not installed."""
    return next((name for name in COMMANDS if shutil.which(name)), None)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    folders: Mapping[str, Path]
    answer: dict[str, Any] | None = None
    answered: threading.Event


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        first, _, rest = self.path.split("?")[0].lstrip("/").partition("/")
        folder = self.server.folders.get(first)
        path = None if folder is None else (folder / rest).resolve()
        if folder is None or path is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.server.answer = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.answered.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def _served(folders: Mapping[str, Path]) -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.folders, server.answered = folders, threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def result_of(page: str, folders: Mapping[str, Path], *flags: str, seconds: float = 60) -> dict[str, Any]:
    """Return the JSON that a page posts to its server.

    Args:
        page: its path at the server, such as "test/page.html".
        folders: served under their names.
        flags: of Chromium.
        seconds: how long to wait.

    Raises:
        TimeoutError: nothing was posted.
    """
    chromium = command()
    assert chromium is not None
    with _served(folders) as server, tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}"
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
        process = subprocess.Popen(
            [chromium, *options, f"--user-data-dir={profile}", *flags, address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if not server.answered.wait(seconds):
                raise TimeoutError(f"{page} posted nothing in {seconds} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert server.answer is not None
        return server.answer
