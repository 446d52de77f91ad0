"""A web server of one file that misbehaves as it is told."""

from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from background_server import running


class FileServer(ThreadingHTTPServer):
    """Serves `content` at any address, with ranges. `cuts`: after how many bytes the first, second, ... answer ends;
    `status` of every answer if it is no 200; `to`: the address that /moved/... leads to."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.version = content, '"1"'
        self.cuts: list[int] = []
        self.status = 200
        self.with_length = self.with_ranges = True
        self.asked: list[str] = []  # "PATH RANGE" of each request

    def url(self, path: str = "data.json") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, *_: Any) -> None:
        """The client has gone."""


def serving(content: bytes) -> AbstractContextManager[FileServer]:
    return running(FileServer(content))


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(f"{self.path} {asked}".strip())
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.server.url(self.path.removeprefix("/moved/")))
            self.end_headers()
        elif self.server.status != 200:
            self.send_error(self.server.status)
        else:
            fresh = self.headers.get("If-Range") == self.server.version
            self._send(int(asked.removeprefix("bytes=")[:-1]) if asked and fresh and self.server.with_ranges else 0)

    def _send(self, begin: int) -> None:
        content = self.server.content[begin:]
        if begin >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("ETag", self.server.version)
        if begin:
            whole = len(self.server.content)
            self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        if self.server.with_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cuts.pop(0)] if self.server.cuts else content)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
