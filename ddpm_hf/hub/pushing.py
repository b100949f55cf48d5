"""Push a saved model to the Hub, or the app as a Space. Pushes are atomic and can be retried.

A pushed model has a second branch, `stock`: the same weights under diffusers' own classes, for those who may not run remote code.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import CommitInfo, HfApi, SpaceCard, get_token

from ..pipeline_ddpm_image import DDPMImagePipeline
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from .card import STOCK, card_on_hub, stock_class
from .commits import attempt, commit, create_repo, pull_request
from .files import (
    CODE,
    MODEL_FILES,
    SPACE_FILES,
    TEXT_WEIGHTS,
    copy_files,
    list_files,
    list_variants,
    read_json,
    refuse_tokens,
)
from .models import load


def prepare_push(folder: str | os.PathLike, repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """Before long work: create the repo if it is missing, see that the token may write there. HubError where a push could not."""
    what, api = f"push {folder} to {repo_id}", HfApi(token=token)
    repo = attempt(what, create_repo, api, repo_id, "model", private)
    attempt(what, api.auth_check, repo["repo_id"], write=True)


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """Push a saved model to the Hub: one commit on a branch, or none where the branch has these files already.

    The branch `main` brings the branch `stock` with it. Only the files of a saved model go up, with this package's own code; those of an
    earlier model that this one lacks are deleted there, anybody else's stay. Nothing in `folder` is changed. Requests are repeated with
    growing pauses where that is safe; an answer that was lost makes no second commit.

    Args:
        folder: a saved model.
        repo_id: "owner/name" or "name"; created if missing. A card that nobody edited names it in its examples.
        private: create it private; an error if it exists and is public.
        revision: branch to push to, made if missing. None is `main`.
        create_pr: open a pull request to `main` instead, or renew the one that an earlier push opened and that is still open. After its
            merge push once more without it: that brings `stock` along.
        token: None takes $HF_TOKEN or the login's.

    Returns: the commit, or the one that was there already; with `create_pr` see its `pr_url`.

    Raises:
        ValueError: `folder` is no saved model, its card's metadata cannot be read, or one of its files has an access token in it or is a
            link to somewhere else. Nothing was sent.
        HubError: not everything went up; the message says what did.
    """
    folder, branch = Path(folder).expanduser(), revision or "main"
    if branch == STOCK:
        raise ValueError(f"revision={revision!r} is written by a push to main; choose another branch.")
    if create_pr and branch != "main":
        raise ValueError(f"create_pr: pull requests are opened to main, not to revision={revision!r}.")
    what, api = f"push {folder} to {repo_id}", HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        stages = {STOCK: Path(temporary, STOCK), branch: Path(temporary, "model")}
        pipeline = _stage(folder, stages[branch], token)
        stock = branch == "main" and not create_pr and stock_class(pipeline) is not None
        if stock:
            _stage_stock(pipeline, stages[STOCK])
        repo = attempt(what, create_repo, api, repo_id, "model", private)
        if branch != "main" or create_pr or not (stock or attempt(what, api.revision_exists, **repo, revision=STOCK)):
            del stages[STOCK]  # else it gets this model, or a card that says that it cannot have it
        for name, stage in stages.items():
            stage.mkdir(exist_ok=True)
            card = card_on_hub(pipeline, folder, repo["repo_id"], name, stock)
            (stage / "README.md").write_text(card, encoding="utf-8")
        if create_pr:
            return pull_request(what, api, repo, stages[branch], MODEL_FILES)
        return commit(what, api, repo, stages, MODEL_FILES)


def push_space(
    folder: str | os.PathLike, repo_id: str, model_id: str, *, private: bool = False, token: str | None = None
) -> CommitInfo:
    """Create or update a Gradio Space from an app's folder; its variable MODEL_ID and its card name the model it shall show.

    Arguments and errors as in `push`; only an app's own files go up: code, style, pictures, requirements.txt, README.md.
    """
    folder, api = Path(folder).expanduser(), HfApi(token=token)
    names, what = list_files(folder, SPACE_FILES), f"push {folder} to {repo_id}"
    if "app.py" not in names:
        raise ValueError(f"folder={str(folder)!r} is no Space: it has no app.py.")
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        copy_files(folder, stage, names)
        refuse_tokens(stage, token or get_token())
        if "README.md" in names:
            card = SpaceCard.load(stage / "README.md")
            card.data.models = [model_id]
            card.save(stage / "README.md")
        repo = attempt(what, create_repo, api, repo_id, "space", private, space_sdk="gradio")
        current = attempt(what, api.get_space_variables, repo["repo_id"]).get("MODEL_ID")
        if current is None or current.value != model_id:
            attempt(what, api.add_space_variable, repo["repo_id"], "MODEL_ID", model_id)
        return commit(what, api, repo, {"main": stage}, SPACE_FILES)


def _stage(folder: Path, stage: Path, token: str | None) -> DDPMImagePipeline:
    """Copy what is pushed, with this package's code in place of what lies there, and check it. Gives the pipeline."""
    pipeline, *_ = [
        load(folder, variant=name) for name in sorted(list_variants(folder), key=lambda name: name or "")
    ] or [load(folder)]
    if not (folder / "unet").is_dir():
        raise ValueError(f"folder={str(folder)!r} has all in its root: `save` it to another folder and push that.")
    named = {part[0] for part in read_json(folder / "model_index.json").values() if isinstance(part, list)}
    code = {name for name in CODE if Path(name).stem in named}
    copy_files(folder, stage, (set(list_files(folder)) - set(CODE)) | code)
    if pipeline.text_encoder is not None and not list_files(stage, TEXT_WEIGHTS):  # it was loaded by reference
        pipeline.text_encoder.save_pretrained(stage / "text_encoder")
    card_on_hub(pipeline, stage, folder.name, branch="main", stock=False)  # its errors come before the network's
    refuse_tokens(stage, token or get_token())
    return pipeline


def _stage_stock(pipeline: DDPMImagePipeline, stage: Path) -> None:
    """The model under diffusers' own classes, where it has one (`stock_class`).

    `DDPMPipeline` passes no labels, so there a class-conditional U-Net becomes the unconditional one that its null label makes:
    temb = W x + b + class_embedding[null], the last two summed into the bias b.
    """
    kind: Any = stock_class(pipeline)
    config = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    state, scheduler = dict(pipeline.unet.state_dict()), pipeline.scheduler
    if kind is DDPMPipeline and config["num_class_embeds"] is not None:
        null = state.pop("class_embedding.weight")[pipeline.null_label]
        state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + null
        config["num_class_embeds"] = None
    unet = UNet2DModel.from_config(config)
    unet.load_state_dict(state, assign=True)
    if isinstance(scheduler, DDPMNoiseScheduler):
        scheduler = DDPMScheduler.from_config(scheduler.config)
    kind(unet, scheduler).save_pretrained(stage)
