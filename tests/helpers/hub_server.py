"""A Hugging Face Hub on the loopback: serves folders through the endpoints that the real client calls.

Answers `HEAD` and `GET [/datasets]/{repo}/resolve/{revision}/{file}` with ETag, X-Repo-Commit, Content-Length and
ranges, `/api/models/{repo}[/revision/{revision}]`, `.../tree/{revision}[/{path}]` and `POST
.../paths-info/{revision}`, the same for `/api/datasets`, and 404 with the Hub's own error codes for what is absent.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
KINDS = "revision|tree|paths-info"
API = re.compile(rf"/api/(?:models|datasets)/{REPO}(?:/(?P<kind>{KINDS})/{REVISION}(?:/(?P<path>.+))?)?")
RESOLVE = re.compile(rf"(?:/datasets)?/{REPO}/resolve/{REVISION}/(?P<path>.+)")


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {url}")
        api, resolve = API.fullmatch(url), RESOLVE.fullmatch(url)
        match = api or resolve
        if not match or match["repo"] not in self.server.folders:
            return self.refuse("RepoNotFound")
        if match["revision"] not in (None, "main", COMMIT):
            return self.refuse("RevisionNotFound")
        folder = self.server.folders[match["repo"]]
        if resolve:
            return self.send_file(folder / match["path"])
        if match["kind"] == "tree":
            return self.send_tree(folder, match["path"] or "", "recursive=true" in self.path.lower())
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files_of(folder)]
        about = {
            "_id": COMMIT[:24],
            "id": match["repo"],
            "modelId": match["repo"],
            "sha": COMMIT,
            "siblings": siblings,
        }
        self.send_json({**about, "private": False, "tags": [], "downloads": 0, "likes": 0})

    def do_POST(self):
        url = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append(f"{self.command} {url}")
        match = API.fullmatch(url)
        if not match or match["kind"] != "paths-info" or match["repo"] not in self.server.folders:
            return self.refuse("RepoNotFound")
        folder = self.server.folders[match["repo"]]
        is_json = "json" in self.headers.get("Content-Type", "")
        names = json.loads(body)["paths"] if is_json else parse_qs(body).get("paths", [])
        self.send_json([describe(folder / name, folder) for name in names if (folder / name).exists()])

    do_HEAD = do_GET

    def send_tree(self, folder: Path, path: str, recursive: bool):
        if not (folder / path).is_dir():
            return self.refuse("EntryNotFound")
        below = sorted((folder / path).rglob("*") if recursive else (folder / path).iterdir())
        self.send_json([describe(entry, folder) for entry in below])

    def send_file(self, path: Path):
        if not path.is_file():
            return self.refuse("EntryNotFound")
        body = path.read_bytes()
        headers = {"ETag": f'"{blob_id(body)}"', "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.send(200, body, headers)
        start, end = int(span[1]), int(span[2] or len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        self.send(206, body[start : end + 1], headers)

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str):
        self.send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, body: bytes, headers: dict):
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        """Quiet: the requests are in `server.requests`."""


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def describe(path: Path, folder: Path) -> dict:
    """An entry of the Hub's tree."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": blob_id(name.encode())}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": blob_id(path.read_bytes())}


def blob_id(body: bytes) -> str:
    """Git's name of a file's content, which is the Hub's ETag."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def serve(folders: dict[str, Path]):
    """
    Serve `folders` (repository id -> folder) on a free port of 127.0.0.1.

    Yields:
        The server, with `url`, and `requests`, a list of "METHOD path".
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.folders, server.requests = folders, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
