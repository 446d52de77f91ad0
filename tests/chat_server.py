"""As much of an OpenAI-compatible endpoint as the tests need: it writes wordings by rule, or fails as it is told."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from background_server import running

Reply = str | int | None  # a text; an HTTP status; None: the connection is cut


class Server(ThreadingHTTPServer):
    """`behave(n, prompt)` says what becomes of the n-th request; by default it gets the right answer."""

    daemon_threads = True

    def __init__(self, behave: Callable[[int, str], Reply] | None = None, raw: bytes | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.raw = behave or (lambda n, prompt: right(prompt)), raw
        self.asked: list[dict[str, Any]] = []  # bodies of all requests
        self.keys: set[str | None] = set()
        self.wait_s = 0.0
        self.most = self.now = 0  # requests under way together
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """The client has gone: it waits no longer."""


def serving(
    behave: Callable[[int, str], Reply] | None = None, raw: bytes | None = None
) -> AbstractContextManager[Server]:
    return running(Server(behave, raw))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.counting:
            self.server.asked.append(body)
            self.server.keys.add(self.headers["authorization"])
            n = len(self.server.asked)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(self.server.wait_s)
        with self.server.counting:
            self.server.now -= 1
        self.answer(self.server.behave(n, body["messages"][0]["content"]))

    def answer(self, reply: Reply) -> None:
        if reply is None:
            self.close_connection = True
            return
        message = {"role": "assistant", "content": reply}
        content = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        text = self.server.raw or json.dumps(content).encode()
        self.send_response(reply if isinstance(reply, int) else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def right(prompt: str) -> str:
    """The wording that the last lines of the prompt ask for."""
    said = dict(line.split(": ", 1) for line in prompt.splitlines() if ": " in line)
    query, target = said["Query"], said["Target new"]
    if prompt.endswith("Paraphrased sentences:"):
        return "\n".join(f"{i}. {word} {query} {target}" for i, word in enumerate(("Indeed", "Really", "Surely"), 1))
    return f"Reversed: {target} {query}" if prompt.endswith("Reversed:") else f"Declaration: So {query} {target}"
