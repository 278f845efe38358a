"""A small Hub on loopback: what huggingface_hub's client asks of the real one for pushing and loading."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"


@dataclass
class Repo:
    """A repo's commits, oldest first: sha and files. `commits` are those of main, `branches` those of all branches."""

    private: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=lambda: {"main": [("0" * 40, {})]})

    @property
    def commits(self) -> list[tuple[str, dict[str, bytes]]]:
        return self.branches["main"]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = "main" if revision == "HEAD" else revision
        if revision in self.branches:
            return self.branches[revision][-1]
        every_commit = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every_commit if commit[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub: hub.endpoint …`. `hub.fault = (method, part of the path, "drop" or a status, times)`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.fault: list | None = None
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        """Quiet."""

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        fault = self._fault(path)
        if fault == "drop":
            # In the middle of the body: part of it is read, then the line is cut.
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None:
            self._send(fault, {"error": "the loopback server was told to fail"})
            return
        for method, pattern, action in ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                with self.server.lock:
                    action(self, **match.groupdict())
                return
        self._send(404, {"error": f"no route {path}"})

    def _fault(self, path: str):
        fault = self.server.fault
        if fault is None or fault[0] != self.command or fault[1] not in path or fault[3] <= 0:
            return None
        fault[3] -= 1
        return fault[2]

    def _send(self, status: int, content: dict | list | bytes | None = None, **headers: str):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.server.repos.get((kind.rstrip("s"), name))
        allowed = repo is not None and (not repo.private or self.headers.get("Authorization") == f"Bearer {TOKEN}")
        if not allowed:
            self._send(401 if repo else 404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def create(self):
        request = json.loads(self.body)
        kind = request.get("type") or "model"
        name = "/".join(filter(None, (request.get("organization"), request["name"])))
        if (kind, name) in self.server.repos:
            self._send(409, {"error": "You already created this repo", "url": f"{self.server.endpoint}/{name}"})
            return
        self.server.repos[kind, name] = Repo(private=bool(request.get("private") or request.get("visibility") == "private"))
        prefix = "datasets/" if kind == "dataset" else ""
        self._send(200, {"url": f"{self.server.endpoint}/{prefix}{name}", "name": name, "id": name})

    def branch(self, kind: str, name: str, branch: str):
        repo = self._repo(kind, name)
        if repo is None:
            return
        if branch in repo.branches:
            self._send(409, {"error": "Reference already exists"})
            return
        repo.branches[branch] = list(repo.commits)
        self._send(200, {})

    def preupload(self, kind: str, name: str, branch: str):
        if self._repo(kind, name):
            files = json.loads(self.body)["files"]
            large = (".safetensors", ".parquet", ".png")
            answer = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            self._send(200, {"files": answer})

    def batch(self, name: str):
        objects = json.loads(self.body)["objects"]
        href = f"{self.server.endpoint}/lfs/"
        answer = [
            {"oid": item["oid"], "size": item["size"]}
            | ({} if item["oid"] in self.server.blobs else {"actions": {"upload": {"href": href + item["oid"]}}})
            for item in objects
        ]
        self._send(200, {"transfer": "basic", "objects": answer})

    def put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send(400, {"error": "wrong hash"})
            return
        self.server.blobs[oid] = self.body
        self._send(200, {})

    def commit(self, kind: str, name: str, branch: str):
        repo = self._repo(kind, name)
        if repo is None:
            return
        commits = repo.branches[branch]
        files = dict(commits[-1][1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.server.messages.append(value["summary"])
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = hashlib.sha1(repr((name, branch, len(commits), sorted(files))).encode()).hexdigest()
        commits.append((sha, files))
        url = f"{self.server.endpoint}/{name}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, kind: str, name: str, revision: str | None = None):
        repo = self._repo(kind, name)
        if repo is None:
            return
        commit = repo.at(revision or "main")
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, **{"X-Error-Code": "RevisionNotFound"})
            return
        sha, files = commit
        siblings = [{"rfilename": path, "size": len(content)} for path, content in sorted(files.items())]
        answer = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
        self._send(200, answer | {"downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def tree(self, kind: str, name: str, revision: str, path: str | None = None):
        repo = self._repo(kind, name)
        if repo is None:
            return
        commit = repo.at(revision)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        files = {file: content for file, content in (commit or ("", {}))[1].items() if file.startswith(prefix)}
        if commit is None or (prefix and not files):
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            self._send(404, {"error": code}, **{"X-Error-Code": code})
            return
        recursive = "recursive=true" in self.path.lower()
        answer, folders = [], set()
        for file, content in sorted(files.items()):
            rest = file.removeprefix(prefix)
            if "/" in rest and not recursive:
                folders.add(prefix + rest.split("/")[0])
                continue
            oid = hashlib.sha1(content).hexdigest()
            answer.append({"type": "file", "path": file, "size": len(content), "oid": oid})
        answer += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]
        self._send(200, answer)

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None):
        repo = self._repo(kind or "model", name)
        if repo is None:
            return
        commit = repo.at(revision)
        if commit is None or path not in commit[1]:
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            self._send(404, {"error": code}, **{"X-Error-Code": code})
            return
        sha, files = commit
        content = files[path]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if byte_range:
            first, last = int(byte_range[1]), min(int(byte_range[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], **headers)
            return
        headers["Content-Length"] = str(len(content))
        self._send(200, content, **headers)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", lambda self: self._send(200, {"errors": [], "warnings": []})),
    ("GET", "/api/whoami-v2", lambda self: self._send(200, {"name": "user", "type": "user", "orgs": [], "auth": {}})),
    ("POST", rf"{_API}/branch/(?P<branch>[\w.-]+)", _Handler.branch),
    ("POST", rf"{_API}/preupload/(?P<branch>[\w.-]+)", _Handler.preupload),
    ("POST", rf"(?:/datasets)?/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.put),
    ("POST", rf"{_API}/commit/(?P<branch>[\w.-]+)", _Handler.commit),
    ("GET", rf"{_API}(?:/revision/(?P<revision>[\w.-]+))?", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[\w.-]+)(?:/(?P<path>.*))?", _Handler.tree),
    ("GET HEAD", rf"(?:/(?P<kind>datasets))?/{_NAME}/resolve/(?P<revision>[\w.-]+)/(?P<path>.+)", _Handler.resolve),
]
