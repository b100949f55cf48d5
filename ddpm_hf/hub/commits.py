"""Requests to the Hub: repeated while what stops them may pass; one error, in one line, where it stays."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub import errors as hub_errors
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

logger = logging.getLogger(__name__)

MESSAGE = "Upload DDPM image pipeline"
LOG_IN = "pass token=, set HF_TOKEN or run `hf auth login`."
REFUSALS = {
    401: f"the Hub got no token, or one that it does not know: {LOG_IN}",
    403: "the token may not write there. Take one with the role 'write', and check the owner in the name.",
    412: "somebody else committed to it meanwhile. Look at that commit, then push again.",
}


class HubError(OSError):
    """The Hub did not give or take a model; the message says why and what to do."""


def attempt(what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), up to five times with growing pauses; then a HubError "Could not {what}: (the reason)"."""

    def warn(state: RetryCallState) -> None:
        pause = state.next_action.sleep
        logger.warning(f"Could not {what}: {reason(state.outcome.exception())} Trying again in {pause:g} s.")

    retry, wait, stop = retry_if_exception(_is_transient), wait_exponential(max=8), stop_after_attempt(5)
    try:
        return Retrying(retry=retry, wait=wait, stop=stop, before_sleep=warn, reraise=True)(function, *args, **kwargs)
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        may_pass = _is_transient(error) or isinstance(error, RuntimeError)  # an upload that huggingface_hub gave up
        again = " The same push again finishes it." if may_pass else ""
        raise HubError(f"Could not {what}: {reason(error)}{again}") from error


def create_repo(api: HfApi, repo_id: str, repo_type: str, private: bool, **options: Any) -> dict[str, Any]:
    """Make the repo if it is missing; gives what names it in further calls."""
    url = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, **options)
    repo: dict[str, Any] = {"repo_id": url.repo_id, "repo_type": repo_type}
    if private and not api.repo_info(**repo).private:
        raise HubError("it exists and is public, but was to be private. Make it private there or choose another name.")
    return repo


def commit(
    what: str, api: HfApi, repo: Mapping[str, Any], stages: dict[str, Path], patterns: Iterable[str]
) -> CommitInfo:
    """Bring each branch to the files staged for it, in one commit or none; returns the last one.

    Every commit names the head that its branch had before the first of them, and the Hub refuses to build on another (412). So of two
    pushes that overlap one fails, and its error says which branches it had brought along.

    stages: branch, made if missing -> folder with its files.
    patterns: files on a branch that are deleted there if they are not staged.
    """
    for branch in stages.keys() - {"main"}:
        attempt(what, api.create_branch, **repo, branch=branch, exist_ok=True)
    heads = {branch: attempt(what, api.repo_info, **repo, revision=branch).sha for branch in stages}
    for branch, stage in stages.items():
        options = {**repo, "revision": branch, "folder_path": stage, "parent_commit": heads[branch]}
        pushed = attempt(what, _upload, api, patterns, **options)
        what += f" (its branch {branch!r} has this model already, the rest has another)"
    return pushed


def pull_request(what: str, api: HfApi, repo: Mapping[str, Any], stage: Path, patterns: Iterable[str]) -> CommitInfo:
    """Open a pull request with these files, or renew the one that an earlier push (or an attempt whose answer was lost) opened."""

    def request() -> CommitInfo:
        author = api.whoami()["name"]
        requests = api.get_repo_discussions(**repo, author=author, discussion_type="pull_request")
        ours = (found for found in requests if found.title == MESSAGE and found.status in ("open", "draft"))
        reference = next((found.git_reference for found in ours), None)
        return _upload(api, patterns, **repo, revision=reference, create_pr=reference is None, folder_path=stage)

    return attempt(what, request)


def _upload(api: HfApi, patterns: Iterable[str], **options: Any) -> CommitInfo:
    options |= {"commit_message": MESSAGE, "delete_patterns": list(patterns)}
    try:
        return api.upload_folder(**options)
    except hub_errors.HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        # It may be our own commit, whose answer was lost: then nothing is left to commit, and no parent is compared.
        return api.upload_folder(**options)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, httpx2.TransportError)


def reason(error: BaseException) -> str:
    """What the Hub refused, in one line, and what to do about it."""
    if isinstance(error, hub_errors.GatedRepoError):
        return f"it is gated. Ask for access on its page, then {LOG_IN}"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return "it has no such revision."
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"the Hub shows no such repo to this token. Check the name; for a private one {LOG_IN}"
    if isinstance(error, hub_errors.HfHubHTTPError):
        status = error.response.status_code
        return REFUSALS.get(status) or one_line(f"the Hub answered {status}: {error.server_message}")
    return one_line(error)


def one_line(message: object) -> str:
    """An error or its message in one line of at most 300 characters, with a full stop."""
    text = (" ".join(str(message).split()) or repr(message))[:300]
    return text if text.endswith(".") else f"{text}."
