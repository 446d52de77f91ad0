"""As much of the Hugging Face hub as downloads need, over HTTP on this machine: a folder of models and datasets."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from background_server import running

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Server(ThreadingHTTPServer):
    """`repositories`: "owner/name", of a dataset "datasets/owner/name" -> its folder."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Path]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.sent: list[str] = []  # files whose bytes were asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def serving(repositories: Mapping[str, Path]) -> AbstractContextManager[Server]:
    return running(Server(repositories))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            kind = "datasets/" * (parts[1] == "datasets")
            return self._describe(kind + "/".join(parts[2:4]), parts[4:])
        n = 3 if parts[0] == "datasets" else 2
        repository, file = "/".join(parts[:n]), "/".join(parts[n + 2 :])
        path = self.server.repositories.get(repository, Path("none")) / file
        if parts[n : n + 1] != ["resolve"] or not path.is_file():
            return self._refuse(repository in self.server.repositories)
        content = path.read_bytes()
        if with_body:
            self.server.sent.append(f"{repository}/{file}")
        self._send(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, with_body)

    def _describe(self, repository: str, view: list[str]) -> None:
        """/revision/main: all about a repository; /tree/main: its files with sizes."""
        folder = self.server.repositories.get(repository)
        if folder is None:
            return self._refuse(known=False)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if view[:1] == ["tree"]:
            told: object = [
                {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, path in files.items()
            ]
        else:
            siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in files.items()]
            told = {"id": repository.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings}
        self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, True)

    def _refuse(self, known: bool) -> None:
        code = "EntryNotFound" if known else "RepoNotFound"
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"}, True, 404)

    def _send(self, content: bytes, headers: Mapping[str, str], with_body: bool, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
