"""Push a saved model to the Hub, or the app as a Space."""

import tempfile
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import CommitInfo, HfApi, ModelCard

from .card import has_stock, name_model, name_repo, without_stock, write_card
from .commits import commit, create_repo, has_weights, publish
from .models import MODEL_FILES, SPACE_FILES, STOCK, _saved_files, load


def prepare_push(folder, repo_id: str, *, private=False, token=None) -> None:
    """Before long work: create the repo if it is missing, see that the token may write there. HubError where a push could not."""

    def attempt(api: HfApi, parents) -> None:
        api.auth_check(create_repo(api, repo_id, "model", private)["repo_id"], write=True)

    publish(attempt, folder, repo_id, token)


def push(folder, repo_id: str, *, private=False, revision=None, create_pr=False, token=None) -> CommitInfo:
    """Push a saved model to the Hub: one commit on a branch, or none where the branch has these files already.

    The branch `main` brings the branch `stock` with it. Only the files of a saved model go up; those of an earlier one
    that this one lacks are deleted there, anybody else's stay. Nothing in `folder` is changed. Requests are repeated with
    growing pauses where that is safe: every commit names its parent, and every attempt looks first at what the branch has,
    so that an answer that was lost makes no second commit.

    Args:
        folder: a saved model.
        repo_id: "owner/name" or "name"; created if missing. The card that is pushed names it in its examples.
        private: create it private; an error if it exists and is public.
        revision: branch to push to, made if missing. None is `main`.
        create_pr: open a pull request instead, or renew the one that an earlier push opened and that is still open. After its
            merge `stock` is still the former model: push once more, to `main`, to bring it along.
        token: None takes $HF_TOKEN or the login's.

    Returns: the commit, or the one that was there already; with `create_pr` see its `pr_url`.

    Raises:
        ValueError: `folder` is no saved model.
        HubError: not everything went up. The same call again finishes what is missing.
    """
    folder, branch = Path(folder), revision or "main"
    if branch == STOCK:
        raise ValueError(f"revision={revision!r} is written by a push to main; choose another branch.")
    pipeline = load(folder)
    if not (folder / "unet").is_dir():
        raise ValueError(f"folder={str(folder)!r} has all in its root: `save` it to another folder and push that.")
    card = folder / "README.md"
    card = card.read_text() if card.exists() else str(write_card(pipeline, folder, folder.resolve().name))
    model: dict[str, Path | str] = {name: folder / name for name in _saved_files(folder)}
    with tempfile.TemporaryDirectory() as stock_folder:
        stock: dict[str, Path | str] = {}
        if branch == "main" and has_stock(pipeline):
            stock = _stock_model(pipeline, folder, Path(stock_folder), ModelCard(card).data, Path(repo_id).name)

        def attempt(api: HfApi, parents: dict[str, str]) -> CommitInfo:
            repo = create_repo(api, repo_id, "model", private)
            # A card tells of `stock` only where that is this very model: a pull request cannot bring it along.
            twin = bool(stock) and (not create_pr or has_weights(api, repo, STOCK, stock))
            model["README.md"] = card if twin else without_stock(card)
            pushed = commit(api, repo, branch, _named(model, repo, branch), MODEL_FILES, parents, create_pr)
            if stock and not create_pr:
                commit(api, repo, STOCK, _named(stock, repo, STOCK), MODEL_FILES, parents)
            return pushed

        return publish(attempt, folder, repo_id, token)


def push_space(folder, repo_id: str, model_id: str, *, private: bool = False, token=None) -> CommitInfo:
    """Create or update a Gradio Space from an app's folder; its variable MODEL_ID and its card name the model it shall show.

    Arguments and errors as in `push`; only an app's own files go up: code, style, pictures, requirements.txt, README.md.
    """
    folder = Path(folder)
    files: dict[str, Path | str] = {name: folder / name for name in _saved_files(folder, SPACE_FILES)}
    if "app.py" not in files:
        raise ValueError(f"folder={str(folder)!r} is no Space: it has no app.py.")
    if "README.md" in files:
        files["README.md"] = name_model(folder / "README.md", model_id)

    def attempt(api: HfApi, parents: dict[str, str]) -> CommitInfo:
        repo = create_repo(api, repo_id, "space", private, space_sdk="gradio")
        current = api.get_space_variables(repo["repo_id"]).get("MODEL_ID")
        if current is None or current.value != model_id:
            api.add_space_variable(repo["repo_id"], "MODEL_ID", model_id)
        return commit(api, repo, "main", files, SPACE_FILES, parents)

    return publish(attempt, folder, repo_id, token)


def _named(files: dict[str, Path | str], repo: dict[str, str], branch: str) -> dict[str, Path | str]:
    return files | {"README.md": name_repo(str(files["README.md"]), repo["repo_id"], branch)}


def _stock_model(pipeline, folder: Path, target: Path, card_data, title: str) -> dict[str, Path | str]:
    """The model under diffusers' own classes, where it has one (`has_stock`).

    `DDPMPipeline` passes no labels, so a class-conditional U-Net becomes the unconditional one that its null label makes:
    temb = W x + b + class_embedding[null], the last two summed into the bias b.
    """
    config = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    state = dict(pipeline.unet.state_dict())
    if config["num_class_embeds"] is not None:
        null = state.pop("class_embedding.weight")[pipeline.null_label]
        state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + null
        config["num_class_embeds"] = None
    unet = UNet2DModel.from_config(config)
    unet.load_state_dict(state, assign=True)
    DDPMPipeline(unet, DDPMScheduler.from_config(pipeline.scheduler.config)).save_pretrained(target)
    card = write_card(pipeline, folder, title, stock=True)
    card.data = card_data  # a licence or a tag edited on the card holds here too
    return {name: target / name for name in _saved_files(target)} | {"README.md": str(card)}
