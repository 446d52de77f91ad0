"""As much of a wandb server as a run of numbers needs: python tests/wandb_server.py PORT_FILE [dies].

Writes its port into PORT_FILE. `dies`: it takes a run in, and is gone when the first numbers come.
"""

import gzip
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = {"id": "1", "name": "kedit", "entity": {"id": "us", "name": "us"}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        if self.path.endswith("file_stream"):
            if "dies" in sys.argv:
                os._exit(9)
            self.answer({"exitcode": None, "limits": {}})
        elif self.path.endswith("graphql"):
            asked = json.loads(body)
            self.answer({"data": self.data(asked["query"], asked.get("variables") or {})})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.answer({})

    def data(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            bucket = {"id": given["name"], "name": given["name"], "displayName": given["name"], "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket | {"config": "{}", "historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            home = f"http://127.0.0.1:{self.server.server_port}/files/"  # type: ignore[attr-defined]
            files = [{"name": name, "uploadUrl": home + name} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {}

    def answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(sys.argv[1]).write_text(str(server.server_port))
    server.serve_forever()
