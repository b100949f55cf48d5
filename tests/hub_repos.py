"""What hub_server keeps: a repo with its commits, branches and tags, in memory."""

import hashlib
import json
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".parquet")


@dataclass
class Commit:
    sha: str
    title: str
    parent: str | None
    files: dict[str, bytes]


@dataclass
class Repo:
    owner: str
    private: bool
    sdk: str | None = None
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch, tag or refs/pr/N -> sha
    tags: set[str] = field(default_factory=set)
    pull_requests: list[dict] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: dict[str, bytes], parent: str | None) -> Commit:
        content = json.dumps(
            [title, parent, {path: oid(path, data) for path, data in files.items()}, len(self.commits)]
        )
        new = Commit(hashlib.sha1(content.encode()).hexdigest(), title, parent, files)
        self.commits[new.sha] = new
        self.refs[ref] = new.sha
        return new

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str) -> list[Commit]:
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def oid(path: str, data: bytes) -> str:
    """The id that the client compares: sha256 of an LFS file, git's sha1 of another."""
    return (
        hashlib.sha256(data).hexdigest() if is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )
