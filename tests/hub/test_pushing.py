"""Pushing when something is in the way: each fault with what it leaves; pull requests, the Space, the script."""

import copy
import itertools
import json
import re
import threading

import hub_repos
import pytest
from hub_fixtures import tiny_pipeline, tree
from huggingface_hub import HfApi, SpaceCard, constants
from tiny import ROOT

from ddpm_hf import hub
from ddpm_hf.cli.push import main
from ddpm_hf.hub import commits as commits_module
from ddpm_hf.hub import pushing as pushing_module

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
ALL = 10**6


def commits(remote, repo_id="alice/tiny") -> dict[str, int]:
    """Branch -> number of commits, the Hub's own initial one included."""
    repo = remote.repos.get(("model", repo_id))
    return {name: len(repo.history(name)) for name in repo.refs} if repo else {}


FINISHED = {"main": 2, "stock": 2}
CREATE, UPLOAD, BRANCH = ("POST", "/repos/create"), ("PUT", "/lfs/"), ("POST", "/branch/stock")
PREUPLOAD, COMMIT, COMMIT_STOCK = ("POST", "/preupload/"), ("POST", "/commit/main"), ("POST", "/commit/stock")


@pytest.mark.parametrize(
    ("where", "how", "times"),
    [
        (CREATE, "drop", 1),
        (CREATE, "lost", 1),
        (CREATE, 503, 2),
        (PREUPLOAD, 502, 1),
        (UPLOAD, "drop", 1),
        (UPLOAD, "lost", 2),
        (UPLOAD, 500, 1),
        (COMMIT, "drop", 2),
        (COMMIT, "lost", 1),
        (COMMIT, 429, 2),
        (COMMIT, 503, 2),
        (BRANCH, "lost", 1),
        (COMMIT_STOCK, "lost", 1),
        (COMMIT_STOCK, 504, 1),
    ],
)
def test_a_fault_that_passes(remote, saved, no_waiting, where, how, times):
    before = tree(saved)
    remote.fail(*where, how, times)
    hub.push(saved, "alice/tiny")
    assert remote.faults[0]["times"] == 0  # it did happen
    assert commits(remote) == FINISHED and tree(saved) == before
    assert no_waiting or where == UPLOAD


@pytest.mark.parametrize(
    ("where", "how", "left"),
    [
        (CREATE, "drop", {}),
        (CREATE, 500, {}),
        (PREUPLOAD, 503, {"main": 1, "stock": 1}),
        (UPLOAD, "drop", {"main": 1, "stock": 1}),
        (COMMIT, "drop", {"main": 1, "stock": 2}),
        (COMMIT, 429, {"main": 1, "stock": 2}),
        (COMMIT, 500, {"main": 1, "stock": 2}),
        (COMMIT_STOCK, "drop", {"main": 1, "stock": 1}),
    ],
)
def test_a_fault_that_stays(remote, saved, no_waiting, where, how, left):
    """One error, nothing half done on a branch, nothing touched here; the same push finishes it when the fault is gone."""
    before = tree(saved)
    remote.fail(*where, how, ALL)
    with pytest.raises(
        hub.HubError, match=r"Could not push .* to alice/tiny.*: .*The same push again finishes it"
    ) as error:
        hub.push(saved, "alice/tiny")
    assert "\n" not in str(error.value)
    assert ("its branch 'stock' has this model already" in str(error.value)) is (left.get("stock") == 2)
    assert commits(remote) == left and tree(saved) == before
    assert sum(no_waiting) < 150
    remote.faults.clear()
    hub.push(saved, "alice/tiny")
    assert commits(remote) == FINISHED


def test_server_down(remote, saved, no_waiting):
    before = tree(saved)
    remote.stop()
    try:
        with pytest.raises(hub.HubError, match="Could not push"):
            hub.push(saved, "alice/tiny")
        with pytest.raises(hub.HubError, match="Could not load 'alice/never-downloaded'"):
            hub.load("alice/never-downloaded")  # what is in the cache would load
    finally:
        remote.start()
    assert commits(remote) == {} and tree(saved) == before
    assert len(no_waiting) >= 4 and no_waiting[:4] == sorted(no_waiting[:4])  # pauses that grow
    hub.push(saved, "alice/tiny")
    assert commits(remote) == FINISHED


def test_somebody_else_commits_meanwhile(remote, saved, no_waiting):
    """Their commit lands between our look at the branch and our commit: ours is refused, the next push builds on theirs."""
    HfApi().create_repo("alice/tiny")
    repo = remote.repo("alice/tiny")
    theirs = {"notes.txt": b"theirs", "README.md": b"theirs"}
    remote.fail("POST", "/commit/main", lambda: repo.commit("main", "theirs", theirs, repo.refs["main"]))
    with pytest.raises(hub.HubError, match="somebody else committed to it meanwhile"):
        hub.push(saved, "alice/tiny")
    assert repo.at("main").title == "theirs" and repo.at("main").files == theirs
    hub.push(saved, "alice/tiny")
    assert len(repo.history("main")) == 3 and repo.at("main").files["notes.txt"] == b"theirs"
    assert not no_waiting  # a stale parent is not a thing to try again


@pytest.mark.parametrize("token", ["hf_alice_read", "hf_wrong", "hf_bob", False])
def test_a_token_that_may_not_write_creates_nothing(remote, saved, token):
    before = tree(saved)
    with pytest.raises(hub.HubError, match=r"role 'write'|HF_TOKEN"):
        hub.push(saved, "alice/tiny", token=token)
    assert remote.repos == {} and remote.lfs == {} and tree(saved) == before
    hub.push(saved, "alice/tiny", token="hf_alice")
    pushed = set(remote.lfs)
    hub.save(hub.load(saved), saved, metrics={"fid": 1.0})
    with pytest.raises(hub.HubError, match=r"role 'write'|HF_TOKEN"):
        hub.push(saved, "alice/tiny", token=token)
    assert commits(remote) == FINISHED and set(remote.lfs) == pushed


def test_private_is_not_ignored_for_a_public_repo(remote, saved):
    HfApi().create_repo("alice/tiny")
    with pytest.raises(hub.HubError, match="exists and is public"):
        hub.push(saved, "alice/tiny", private=True)
    assert commits(remote) == {"main": 1} and remote.lfs == {}


def test_nothing_is_sent_for_a_damaged_model(remote, saved):
    (saved / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be loaded"):
        hub.push(saved, "alice/tiny")
    assert remote.log == []


# ------------------------------------------------------------------ pull requests


@pytest.mark.parametrize("how", [None, "lost", "drop"])
def test_pull_request(remote, saved, no_waiting, how):
    """One, whatever happens on the way; main is not touched, and a second push renews the one that is open."""
    HfApi().create_repo("alice/tiny")
    if how:
        remote.fail("POST", "/commit/main", how)
    first = hub.push(saved, "alice/tiny", create_pr=True)
    if how is None:
        assert first.pr_url.endswith("/discussions/1")
    hub.save(hub.load(saved), saved, metrics={"fid": 1.0})
    hub.push(saved, "alice/tiny", create_pr=True)
    hub.push(saved, "alice/tiny", create_pr=True)
    assert commits(remote) == {"main": 1, "refs/pr/1": 3} and len(remote.repo("alice/tiny").pull_requests) == 1
    assert b"stock" not in remote.repo("alice/tiny").at("refs/pr/1").files["README.md"]  # which there is not


# ------------------------------------------------------------------ two pushes to one repo


@pytest.fixture(scope="module")
def rivals(tmp_path_factory):
    """Two saved models, "a" and "b", that draw alike with and without `DDPMPipeline`: their weights are the same on both branches."""
    home = tmp_path_factory.mktemp("rivals")
    return {name: hub.save(tiny_pipeline(seed, None), home / name) for seed, name in enumerate("ab")}


def owners(remote, rivals) -> dict[str, str]:
    """Branch -> whose weights it has."""
    weights = {(folder / WEIGHTS).read_bytes(): name for name, folder in rivals.items()}
    repo = remote.repo("alice/tiny")
    return {branch: weights.get(repo.at(branch).files.get(WEIGHTS), "nobody") for branch in ("main", "stock")}


def refusal(push) -> str:
    """Why a push failed, "" if it did not."""
    try:
        push()
    except hub.HubError as error:
        return str(error)
    return ""


def check(remote, rivals, refused: dict[str, str]) -> None:
    """Both branches are of one model, or a push said that they are not, and does its work when it is repeated."""
    assert len(set(owners(remote, rivals).values())) == 1 or any(refused.values()), (owners(remote, rivals), refused)
    assert all("somebody else committed to it meanwhile" in text for text in refused.values() if text)
    for name in [name for name, text in refused.items() if text]:
        hub.push(rivals[name], "alice/tiny")
        assert set(owners(remote, rivals).values()) == {name}


@pytest.mark.parametrize("is_new", [True, False])
def test_a_push_within_a_push(remote, rivals, monkeypatch, is_new):
    """All of b's push goes through at one of the requests of a's, whichever."""
    HfApi().create_repo("alice/tiny")
    if not is_new:
        hub.push(hub.save(tiny_pipeline(2, None), rivals["a"].parent / "first"), "alice/tiny")
    before = copy.deepcopy(remote.repos)

    def run(moment: int) -> dict[str, str]:
        remote.repos.update(copy.deepcopy(before))
        requests, refused = itertools.count(), {}

        def fault(method, path):
            if next(requests) == moment:
                return lambda: refused.update(b=refusal(lambda: hub.push(rivals["b"], "alice/tiny")))

        monkeypatch.setattr(remote, "fault", fault)
        refused["a"] = refusal(lambda: hub.push(rivals["a"], "alice/tiny"))
        check(remote, rivals, refused)
        return refused

    moments = itertools.takewhile(lambda moment: "b" in run(moment), itertools.count())  # a has no more requests
    assert len(list(moments)) > 12


ORDERS = [["b" if i in places else "a" for i in range(6)] for places in itertools.combinations(range(1, 6), 3)]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_two_pushes_at_once(remote, rivals, monkeypatch, order):
    """Three steps of each, in every order: all up to its look at the branches, then stock, then main."""
    hub.push(hub.save(tiny_pipeline(2, None), rivals["a"].parent / "first"), "alice/tiny")
    staged = threading.Event()  # models are loaded one after the other: diffusers cannot do it in two threads
    turns, changed, refused, attempt = list(order), threading.Condition(), {}, commits_module.attempt

    def in_turn(what, function, *args, **kwargs):
        me = threading.current_thread().name
        staged.set()
        with changed:
            assert changed.wait_for(lambda: me not in turns or turns[0] == me, 60)
            result = attempt(what, function, *args, **kwargs)
            if function is commits_module._upload or (turns.count(me) == 3 and kwargs.get("revision") == "main"):
                turns.remove(me)
            changed.notify_all()
        return result

    def run(name):
        refused[name] = refusal(lambda: hub.push(rivals[name], "alice/tiny"))
        with changed:
            turns[:] = [turn for turn in turns if turn != name]
            changed.notify_all()

    with monkeypatch.context() as patch:
        patch.setattr(commits_module, "attempt", in_turn)
        patch.setattr(pushing_module, "attempt", in_turn)
        threads = [threading.Thread(target=run, args=name, name=name) for name in "ab"]
        threads[0].start()
        assert staged.wait(60)
        threads[1].start()
        for thread in threads:
            thread.join()
    assert refused.keys() == {"a", "b"}
    check(remote, rivals, refused)


# ------------------------------------------------------------------ uploads as they go by default


@pytest.fixture
def pipelined(monkeypatch):
    """upload_folder as it is with hf_xet, in a thread of its own and with its own retries; the local Hub then takes all files as text."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(hub_repos, "LFS_SUFFIXES", ())


@pytest.mark.parametrize("where", [COMMIT, COMMIT_STOCK])
@pytest.mark.parametrize("how", ["lost", "drop", 503, None])
def test_faults_of_the_default_upload(remote, saved, pipelined, no_waiting, where, how):
    """huggingface_hub repeats a commit whose answer was lost, and is told that its parent is old: our own commit."""
    if how:
        remote.fail(*where, how)
    commit = hub.push(saved, "alice/tiny")
    assert commits(remote) == FINISHED and commit.oid == remote.repo("alice/tiny").refs["main"]
    assert hub.push(saved, "alice/tiny").oid == commit.oid and commits(remote) == FINISHED


@pytest.mark.parametrize("how", ["lost", "drop", None])
@pytest.mark.parametrize("where", [("POST", "/discussions"), ("POST", "/commit/refs")])
def test_pull_request_by_the_default_upload(remote, saved, pipelined, no_waiting, where, how):
    HfApi().create_repo("alice/tiny")
    if how:
        remote.fail(*where, how)
    first = hub.push(saved, "alice/tiny", create_pr=True)
    assert how or first.pr_url.endswith("/discussions/1")
    hub.save(hub.load(saved), saved, metrics={"fid": 1.0})
    hub.push(saved, "alice/tiny", create_pr=True)
    repo = remote.repo("alice/tiny")
    assert set(repo.refs) == {"main", "refs/pr/1"} and len(repo.pull_requests) == 1
    assert b"1.0" in repo.at("refs/pr/1").files["metrics.json"]


# ------------------------------------------------------------------ the Space and the script


def push(*arguments: str) -> int:
    """The exit code of ddpm-push."""
    return main(list(arguments))


def test_script_pushes_a_model(remote, saved, capsys):
    push(str(saved), "--repo_id", "tiny", "--private")
    assert commits(remote) == FINISHED and remote.repo("alice/tiny").private
    assert remote.repo("alice/tiny").refs["main"] in capsys.readouterr().out
    push(str(saved), "--repo_id", "tiny", "--revision", "next")
    assert commits(remote) == FINISHED | {"next": 3}  # the examples on its card name it
    push(str(saved), "--repo_id", "tiny", "--create_pr")
    assert "/discussions/1\nAfter its merge push again" in capsys.readouterr().out
    assert push(str(saved), "--repo_id", "tiny", "--create_pr", "--revision", "next") == 2
    assert "error: create_pr: pull requests are opened to main" in capsys.readouterr().err


def test_script_creates_and_updates_the_space(remote, saved):
    space = ["--space", "alice/garments", "--model"]
    push(*space, "alice/tiny")
    repo = remote.repo("alice/garments", "space")
    assert repo.sdk == "gradio" and repo.variables == {"MODEL_ID": "alice/tiny"} and len(repo.commits) == 2
    app = ROOT / "spaces_app"
    card = SpaceCard(repo.at("main").files["README.md"].decode())
    assert card.data.models == ["alice/tiny"] and card.text == SpaceCard.load(app / "README.md").text
    given = SpaceCard.load(app / "README.md").data.to_dict()
    assert {name: value for name, value in card.data.to_dict().items() if name != "models"} == given
    for name in repo.at("main").files.keys() - {".gitattributes", "README.md"}:
        assert repo.at("main").files[name] == (app / name).read_bytes()
    assert "app.py" in repo.at("main").files
    push(*space, "alice/tiny")
    assert len(repo.commits) == 2
    push(*space, "alice/other")
    assert len(repo.commits) == 3 and repo.variables == {"MODEL_ID": "alice/other"}


def test_space_with_the_answer_lost(remote, tmp_path, no_waiting):
    (tmp_path / "app.py").write_text("import gradio\n")
    (tmp_path / "secret.env").write_text("secret")
    remote.fail("POST", "/commit/main", "lost")
    hub.push_space(tmp_path, "alice/app", "alice/tiny")
    repo = remote.repo("alice/app", "space")
    assert len(repo.commits) == 2 and set(repo.at("main").files) == {".gitattributes", "app.py"}
    with pytest.raises(ValueError, match=r"has no app.py"):
        hub.push_space(tmp_path / "nothing", "alice/app", "alice/tiny")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "--repo_id"),
        (["--space", "app"], "--space goes with --model"),
        (["model", "--repo_id", "x", "--model", "y"], "--repo_id"),
        (["--space", "app", "--model", "y", "--create_pr"], "--space goes with"),
    ],
)
def test_script_usage_errors(capsys, arguments, message):
    with pytest.raises(SystemExit):
        push(*arguments)
    assert message in capsys.readouterr().err


def test_script_says_why_it_failed(remote, saved, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_alice_read")
    assert push(str(saved), "--repo_id", "alice/tiny") == 2
    assert re.search("error: Could not push .*role 'write'", capsys.readouterr().err)
    assert push(str(saved / "logs"), "--repo_id", "alice/tiny") == 2
    assert re.search("error: .*model_index.json", capsys.readouterr().err)
    assert json.loads((saved / "metrics.json").read_text())["metrics"]["fid"] == 3.5
