"""A small Hugging Face Hub on 127.0.0.1, enough for huggingface_hub's real client: repos, branches, tags, LFS, PRs, Spaces.

    hub = use_local_hub()                   # before huggingface_hub is imported
    hub.start()
    hub.fail("POST", "/commit/", "drop")    # the next such request goes wrong: see `fail`

Everything is kept in memory and survives `stop` and `start`. It answers as the real Hub does where the client looks
(status, X-Error-Code, ETag, X-Repo-Commit), and checks what the real one checks: tokens and their role, the owner, the
parent commit, sha256 and size of LFS objects.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from hub_repos import Commit, Repo, is_lfs, oid


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.message, self.code, self.body = status, message, code, body


class LocalHub:
    def __init__(self, port: int = 0):
        self.port = port or free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.tokens = {"hf_alice": ("alice", "write"), "hf_alice_read": ("alice", "read"), "hf_bob": ("bob", "write")}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[dict] = []
        self.log: list[tuple[str, str]] = []  # (method, path) of every request
        self.lock = threading.RLock()
        self.server = None

    def start(self) -> "LocalHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def fail(self, method: str, path: str, how, times: int = 1) -> None:
        """Let the next `times` requests whose path holds `path` go wrong.

        how: "drop" closes the connection before anything is done (an upload: after a part of the body), "lost" does the
        work and closes it without the answer, a status refuses (429 with Retry-After: 0), a function is called first.
        """
        self.faults.append({"method": method, "path": path, "how": how, "times": times})

    def fault(self, method: str, path: str):
        with self.lock:
            for fault in self.faults:
                if fault["times"] > 0 and fault["method"] == method and fault["path"] in path:
                    fault["times"] -= 1
                    return fault["how"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@cache
def use_local_hub() -> LocalHub:
    """The hub that the clients of this process talk to; the first call must come before huggingface_hub is imported."""
    assert "huggingface_hub" not in sys.modules, (
        "conftest.py must call use_local_hub() before it imports anything else"
    )
    hub = LocalHub()
    os.environ |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": tempfile.mkdtemp(prefix="hf-home-"),
    }
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.pop("HF_TOKEN", None)
    return hub


REPO = r"(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
FILE_REPO = r"(?:(?P<type>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/api/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/api/{REPO}/branch/(?P<rev>[^/]+)", "create_branch"),
    ("POST", rf"/api/{REPO}/tag/(?P<rev>[^/]+)", "create_tag"),
    ("GET", rf"/api/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", rf"/api/{REPO}/auth-check/write", "auth_check"),
    ("GET", rf"/api/{REPO}/discussions", "discussions"),
    ("POST", rf"/api/{REPO}/discussions", "create_pull_request"),
    ("GET", rf"/api/{REPO}/discussions/(?P<number>\d+)", "pull_request"),
    ("GET", rf"/api/{REPO}/variables", "variables"),
    ("POST", rf"/api/{REPO}/variables", "set_variable"),
    ("GET", rf"/api/{REPO}(?:/revision/(?P<rev>[^/]+))?", "info"),
    ("POST", rf"/{FILE_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
    ("POST", rf"/{FILE_REPO}/lfs-verify", "lfs_verify"),
    ("GET", rf"/{FILE_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("HEAD", rf"/{FILE_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

    def log_message(self, *args):
        pass

    def handle_one(self):
        path = urlsplit(self.path).path
        self.query = dict(parse_qsl(urlsplit(self.path).query))
        self.hub.log.append((self.command, path))
        how = self.hub.fault(self.command, path)
        if how == "drop":
            self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
            return self.hang_up()
        self.body = self.read_body()
        try:
            if isinstance(how, int):
                raise Refused(how, f"fault {how}")
            if callable(how):
                how()
            with self.hub.lock:
                status, headers, content = self.route(path)
        except Refused as refused:
            status, content = refused.status, {"error": refused.message, **refused.body}
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            headers |= {"Retry-After": "0"} if status == 429 else {}
        if how == "lost":
            return self.hang_up()
        self.answer(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, headers: dict, content) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, path: str):
        for method, pattern, name in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                result = getattr(self, name)(**found)
                return result if isinstance(result, tuple) else (200, {}, result)
        raise Refused(404, f"no such endpoint: {self.command} {path}")

    # ---------------------------------------------------------------- who may do what

    def user(self) -> tuple[str | None, str]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, (None, "none"))

    def readable(self, type: str, id: str) -> Repo:
        name, _ = self.user()
        repo = self.hub.repos.get((type.removesuffix("s"), id))
        if repo is None or (repo.private and name != repo.owner):
            raise Refused(404 if name else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, type: str, id: str) -> Repo:
        repo = self.readable(type, id)
        if self.user() != (repo.owner, "write"):
            raise Refused(403, "You don't have the rights to write to this repository")
        return repo

    def at(self, repo: Repo, revision: str) -> Commit:
        if (commit := repo.at(revision)) is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---------------------------------------------------------------- the account and its repos

    def whoami(self):
        name, role = self.user()
        if name is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def auth_check(self, type, id):
        self.writable(type, id)
        return {}

    def create_repo(self):
        asked = json.loads(self.body)
        name, role = self.user()
        owner = asked.get("organization") or name
        if name is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        if (owner, role) != (name, "write"):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        repo_type, repo_id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        url = self.hub.endpoint + ("" if repo_type == "model" else f"/{repo_type}s") + f"/{repo_id}"
        if (repo_type, repo_id) in self.hub.repos:
            raise Refused(409, "You already created this repo", url=url)
        repo = self.hub.repos[repo_type, repo_id] = Repo(owner, asked.get("visibility") == "private", asked.get("sdk"))
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}, None)
        return {"url": url}

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return (400 if errors else 200), {}, {"errors": errors, "warnings": []}

    def info(self, type: str, id: str, rev: str = "main"):
        repo = self.readable(type, id)
        commit = self.at(repo, rev)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": id, "sha": commit.sha, "private": repo.private, "gated": False, "tags": [], "downloads": 0}
        return about | {"siblings": siblings, "sdk": repo.sdk, "lastModified": "2026-01-01T00:00:00.000Z"}

    def create_branch(self, type: str, id: str, rev: str):
        repo = self.writable(type, id)
        if rev in repo.refs:
            raise Refused(409, "Reference already exists")
        repo.refs[rev] = self.at(repo, (json.loads(self.body or b"{}")).get("startingPoint") or "main").sha
        return {}

    def create_tag(self, type: str, id: str, rev: str):
        repo, name = self.writable(type, id), json.loads(self.body)["tag"]
        repo.refs[name] = self.at(repo, rev).sha
        repo.tags.add(name)
        return {}

    def discussions(self, type: str, id: str):
        found = [
            pr
            for pr in self.readable(type, id).pull_requests
            if self.query.get("author") in (None, pr["author"]["name"])
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def open_pull_request(self, repo: Repo, id: str, type: str, title: str, status: str) -> dict:
        about = {"num": len(repo.pull_requests) + 1, "title": title, "isPullRequest": True, "status": status}
        about |= {"author": {"name": self.user()[0]}, "repo": {"name": id, "type": type[:-1]}, "events": []}
        about |= {"changes": {"base": "main"}, "filesWithConflicts": [], "createdAt": "2026-01-01T00:00:00.000Z"}
        repo.pull_requests.append(about)
        repo.refs[f"refs/pr/{about['num']}"] = repo.refs["main"]
        return about

    def create_pull_request(self, type: str, id: str):
        return self.open_pull_request(self.readable(type, id), id, type, json.loads(self.body)["title"], "draft")

    def pull_request(self, type: str, id: str, number: str):
        return self.readable(type, id).pull_requests[int(number) - 1]

    def variables(self, type: str, id: str):
        variables = self.writable(type, id).variables
        return {name: {"key": name, "value": value, "description": ""} for name, value in variables.items()}

    def set_variable(self, type: str, id: str):
        asked = json.loads(self.body)
        self.writable(type, id).variables[asked["key"]] = asked["value"]
        return self.variables(type, id)

    # ---------------------------------------------------------------- files

    def preupload(self, type: str, id: str, rev: str):
        repo = self.readable(type, id) if self.query.get("create_pr") else self.writable(type, id)
        there = self.at(repo, rev).files
        answer = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            known = {"oid": oid(path, there[path])} if path in there else {}
            answer.append(
                {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False} | known
            )
        return {"files": answer}

    def lfs_batch(self, id: str, type: str = "models"):
        self.writable(type, id)
        objects = []
        for file in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{file['oid']}"}
            verify = {"href": f"{self.hub.endpoint}/{'' if type == 'models' else type + '/'}{id}/lfs-verify"}
            actions = {} if file["oid"] in self.hub.lfs else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": file["oid"], "size": file["size"]} | actions)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "sha256 does not fit")
        self.hub.lfs[oid] = self.body
        return {}

    def lfs_verify(self, id: str, type: str = "models"):
        asked = json.loads(self.body)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "no such object")
        return {}

    def commit(self, type: str, id: str, rev: str):
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, changes = lines[0]["value"], lines[1:]
        as_pr = bool(self.query.get("create_pr"))
        repo = self.readable(type, id) if as_pr else self.writable(type, id)
        head = self.at(repo, rev)
        if not as_pr and header.get("parentCommit", head.sha) != head.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            else:
                files.pop(value["path"])
        ref = f"refs/pr/{self.open_pull_request(repo, id, type, header['summary'], 'open')['num']}" if as_pr else rev
        new = repo.commit(ref, header["summary"], files, head.sha)
        url = f"{self.hub.endpoint}/{id}"
        pull_request = f"{url}/discussions/{len(repo.pull_requests)}" if as_pr else None
        return {"commitOid": new.sha, "commitUrl": f"{url}/commit/{new.sha}", "pullRequestUrl": pull_request}

    def entry(self, path: str, data: bytes) -> dict:
        lfs = {"lfs": {"oid": oid(path, data), "size": len(data), "pointerSize": 130}} if is_lfs(path) else {}
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} | lfs

    def tree(self, type: str, id: str, rev: str, path: str = ""):
        files = self.at(self.readable(type, id), rev).files
        prefix = f"{path}/" if path else ""
        inside = [name for name in sorted(files) if name.startswith(prefix)]
        if path and not inside:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        folders = {str(folder) for name in inside for folder in PurePosixPath(name).parents} - {".", path}
        entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        entries = [entry for entry in entries if entry["path"].startswith(prefix)]
        entries += [self.entry(name, files[name]) for name in inside]
        deep = self.query.get("recursive", "").lower() == "true"
        return [entry for entry in entries if deep or "/" not in entry["path"].removeprefix(prefix)]

    def resolve(self, id: str, rev: str, path: str, type: str = "models"):
        repo = self.readable(type, id)
        if repo.gated and self.user()[0] != repo.owner:
            raise Refused(403, "Access to this model is restricted", "GatedRepo")
        commit = self.at(repo, rev)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        headers = {
            "X-Repo-Commit": commit.sha,
            "ETag": f'"{oid(path, data)}"',
            "Content-Type": "application/octet-stream",
        }
        if is_lfs(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
        return 200, headers | {"Accept-Ranges": "bytes"}, data
