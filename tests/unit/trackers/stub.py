"""A W&B server on the loopback address: as much of it as a run needs, and the ways it can fail."""

import base64
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """`rows` holds the history lines received; `fails` and `stall` (seconds before an answer) can change."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.bodies: list[bytes] = []
        self.fails = False
        self.stall = 0.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no fault."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.bodies.append(body)
        time.sleep(self.server.stall)
        if self.server.fails:
            return self.answer({}, 500)
        if self.path.endswith("/graphql"):
            return self.answer({"data": self.query(json.loads(body))})
        if "file_stream" in self.path:
            self.stream(json.loads(body))
        return self.answer({})

    do_GET = do_PUT = do_POST

    def query(self, request: dict[str, Any]) -> dict[str, Any]:
        text, given = request["query"], request.get("variables") or {}
        if "upsertBucket" in text:
            self.server.names.append(str(given.get("name")))
            project = {"name": "p", "entity": {"name": "e"}}
            bucket = {
                "id": base64.b64encode(b"Run:v1:x").decode(),
                "name": given.get("name"),
                "displayName": given.get("displayName") or "run",
                "historyLineCount": 0,
                "config": "{}",
                "project": project,
                "sweepName": None,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in text:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/put"} for name in given.get("files", [])]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in text:
            return {
                "model": {
                    "id": "m",
                    "name": "p",
                    "entity": {"id": "i", "name": "e"},
                    "bucket": self.earlier(),
                }
            }
        if "viewer" in text:
            return {"viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if "ArtifactType(" in text:
            return {"project": {"artifact": None}}
        return {}

    def earlier(self) -> dict[str, Any] | None:
        """What the server holds of a run that is resumed; nothing for a new one."""
        rows = self.server.rows
        if not rows:
            return None
        return {
            "id": "x",
            "name": self.server.names[-1],
            "displayName": "run",
            "summaryMetrics": json.dumps(rows[-1]),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(rows[-1])]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": {}}),
        }

    def stream(self, body: dict[str, Any]) -> None:
        for name, part in body.get("files", {}).items() if body.get("files") else ():
            if name == "wandb-history.jsonl":
                self.server.rows += [json.loads(line) for line in part["content"]]

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
