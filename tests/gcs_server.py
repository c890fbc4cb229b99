"""A Google Cloud Storage server (gcp-storage-emulator) that lets nobody in without a token, in a process of its own.

A process of its own, as pyarrow holds Python's lock while it asks for a size; a thread a connection, as it keeps one
connection open while it reads by another.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

BUCKET = "bucket"
SECRET = "s3cr3t"
TOKEN = "s3cr3t-token"


class GcsServer:
    """The running server, and a client of it that knows neither pyarrow nor this package.

    Attributes
    ----------
    uri:
        Its address.
    environment:
        What an operator sets: where the server is, and where the credentials lie.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.uri = f"http://127.0.0.1:{port}"
        credentials = {
            "type": "authorized_user",
            "client_id": "client",
            "client_secret": SECRET,
            "refresh_token": SECRET,
            "token_uri": f"{self.uri}/token",
        }
        path = folder / "credentials.json"
        path.write_text(json.dumps(credentials))
        self.environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": self.uri, "GOOGLE_APPLICATION_CREDENTIALS": str(path)}

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        options = urllib.parse.urlencode({"uploadType": "media", "name": key})
        self._ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?{options}", content)

    def get(self, key: str) -> bytes:
        """Bytes of an object."""
        return self._ask("GET", f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(key, safe='')}?alt=media")

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(key, safe='')}")

    def keys(self, prefix: str) -> set[str]:
        """Keys of the objects below a prefix, relative to it."""
        folder = f"{prefix}/" if prefix else ""
        options = urllib.parse.urlencode({"prefix": folder})
        answer = json.loads(self._ask("GET", f"/storage/v1/b/{BUCKET}/o?{options}"))
        return {entry["name"].removeprefix(folder) for entry in answer.get("items", [])}

    def upload(self, folder: Path, prefix: str) -> None:
        """Put every file of a folder below a prefix."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def _ask(self, method: str, place: str, content: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.uri + place, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


def _serve() -> None:
    """Serve an empty bucket; the port is printed."""
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Handler(RequestHandler):
        """Gives a token to who knows the secret, and everything else to who has the token."""

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            if self.path != "/token" and self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._answer(401, {"error": {"code": 401, "message": "no token"}})
                return False
            return True

        def do_POST(self) -> None:  # noqa: N802  the base class's name
            if self.path != "/token":
                super().do_POST()
                return
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if form["refresh_token"] == [SECRET]:
                self._answer(200, {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600, "id_token": ""})
            else:
                self._answer(400, {"error": "invalid_grant"})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
