"""What the pushes of `hub` are made of: a branch that gets one commit or none, however often the network fails in between.

publish(attempt, ...)      repeats `attempt`, with growing pauses, while what stopped it may pass
    create_repo, commit    the requests of an attempt; each looks first at what is there
"""

import logging
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import filter_repo_objects
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_exponential

logger = logging.getLogger(__name__)

MESSAGE = "Upload DDPM image pipeline"
LOG_IN = "pass token=, set HF_TOKEN or run `hf auth login`."


class HubError(OSError):
    """The Hub did not give or take a model; the message says why and what to do."""


def publish(attempt, folder: Path, repo_id: str, token):
    """Call attempt(api, parents) until it gets through; a HubError where it does not."""
    attempts = Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait_exponential(max=8),
        stop=stop_after_attempt(5),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    try:
        return attempts(attempt, HfApi(token=token), {})
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubError(
            f"Could not push {folder} to {repo_id}: {reason(error)} {folder} is as it was; the same again finishes it."
        ) from error


def create_repo(api: HfApi, repo_id: str, repo_type: str, private: bool, **options) -> dict[str, Any]:
    url = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, **options)
    repo: dict[str, Any] = {"repo_id": url.repo_id, "repo_type": repo_type}
    if private and not api.repo_info(**repo).private:
        raise HubError("it exists and is public, but was to be private. Make it private there or take another name.")
    return repo


def commit(api: HfApi, repo, branch, files, allowed, parents: dict[str, str], create_pr: bool = False) -> CommitInfo:
    """Bring the branch of a repo to the files given, in one commit or none.

    files: path in the repo -> file here, or its text.
    allowed: patterns of the files that are ours to delete there.
    parents: branch -> the commit it was at when the push began; the Hub refuses to build on another (412).
    """
    if branch != "main" and not create_pr:
        api.create_branch(**repo, branch=branch, exist_ok=True)
    pull_request = _open_pull_request(api, repo) if create_pr else None
    target = pull_request or branch
    there: Any = api.repo_info(**repo, revision=target)
    ours = filter_repo_objects((file.rfilename for file in there.siblings), allow_patterns=list(allowed))
    operations: list[Any] = [CommitOperationDelete(name) for name in ours if name not in files]
    operations += [
        CommitOperationAdd(name, data.encode() if isinstance(data, str) else data) for name, data in files.items()
    ]
    return api.create_commit(
        **repo,
        operations=operations,
        commit_message=MESSAGE,
        revision=target,
        create_pr=create_pr and not pull_request,
        parent_commit=parents.setdefault(target, there.sha),
    )


def has_weights(api: HfApi, repo, branch: str, files) -> bool:
    """Whether the branch is there and has the weights among these files."""
    try:
        there: Any = {file.path: file for file in api.list_repo_tree(**repo, revision=branch, recursive=True)}
    except hub_errors.RevisionNotFoundError:
        return False
    weights = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    ours = {name: CommitOperationAdd(name, path).upload_info.sha256.hex() for name, path in weights.items()}
    return all(name in there and getattr(there[name].lfs, "sha256", None) == sha256 for name, sha256 in ours.items())


def _open_pull_request(api: HfApi, repo) -> str | None:
    """The pull request of an earlier push (or of an attempt whose answer was lost), if it is still open."""
    author = api.whoami()["name"]
    ours = api.get_repo_discussions(**repo, author=author, discussion_type="pull_request", discussion_status="open")
    return next((request.git_reference for request in ours if request.title == MESSAGE), None)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, httpx2.TransportError)


def reason(error: Exception) -> str:
    """What the Hub refused, in one line, and what to do about it."""
    status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else None
    if isinstance(error, hub_errors.GatedRepoError):
        return f"it is gated. Ask for access on its page, then {LOG_IN}"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return "it has no such revision."
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"the Hub shows no such repo to this token. Check the name; for a private one {LOG_IN}"
    told = {
        401: f"the Hub got no token, or one that it does not know: {LOG_IN}",
        403: "the token may not write there. Take one with the role 'write', and check the owner in the name.",
        412: "somebody else committed to it meanwhile.",
    }
    return told.get(status) or first_line(error)


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
