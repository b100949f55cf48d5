"""Save, load and push: a model on disk IS a Hub repo, so there is one layout and nothing to convert.

    model_index.json  pipeline_ddpm_image.py    what diffusers' loaders read; code that a `trust_remote_code` load runs
    unet/             config.json, *.safetensors, modeling_ddpm_unet.py
    scheduler/        scheduler_config.json, scheduling_ddpm_noise.py
    README.md         the model card (model_card.py)
    samples.png  metrics.json  training_config.yaml  train_results.json

`training.train` saves through here, every script loads through here. A pushed repo has a second branch, "stock": the
same weights under diffusers' own classes, for those who may not run remote code. Writing is a transaction in both places:
on disk a complete model takes the old one's place or nothing does; on the Hub a branch gets one commit or none, however
often the network fails in between (push.py).
"""

import filecmp
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import httpx2
import yaml
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError

from ..pipeline_ddpm_image import DDPMImagePipeline
from .card import is_edited, renew_card, write_card
from .commits import HubError, first_line, reason

WEIGHTS = ("unet/*.safetensors", "unet/*.safetensors.index.json", "diffusion_pytorch_model*.safetensors")
ROOT_CONFIGS = ("config.json", "scheduler_config.json")  # google/ddpm-* has all in the root; read there, never written
EXTRAS = ("README.md", "samples.png", "metrics.json", "training_config.yaml", "train_results.json")
CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
CODE = ("pipeline_ddpm_image.py", "unet/modeling_ddpm_unet.py", "scheduler/scheduling_ddpm_noise.py")
# The allow-list: whatever else lies in the folder (optimizer state, logs, keys) is never pushed.
MODEL_FILES = (*CONFIGS, *CODE, *WEIGHTS, *EXTRAS)
SPACE_FILES = ("README.md", "requirements.txt", "*.py", "*.css", "*.js", "*.png")
STOCK = "stock"
DIRECTORIES = re.compile(r"(?<![^\s='\"])/(?:[^/\s'\"]+/)*")  # of a path on this machine, in a command
NO_PICKLES = "Weights are read from .safetensors only; a .bin or .pt is refused: unpickling it can run any code."


# ------------------------------------------------------------------ on disk


def save(pipeline, folder, *, samples=None, metrics=None, train_config=None, train_results=None) -> Path:
    """Save a pipeline as a model folder, all of it or nothing.

    A saved model that is already in `folder` stays whole until the next one is complete and on the disk; files that are
    not a saved model's (checkpoints/, logs/) are left alone. What is not given is kept from the earlier save of the same
    weights (in `folder`, or where `pipeline` was loaded from), so that saving what was loaded changes nothing. An edited
    card stays as it is but for the sections Training and Evaluation, where something new is given for them.

    Args:
        pipeline: a `DDPMImagePipeline`.
        folder: where to; made if missing.
        samples: a PIL image, the grid that the card shows -> samples.png.
        metrics: dict, results and how they were measured (see model_card.py) -> metrics.json and the card.
        train_config: dict, the run's options -> training_config.yaml, without tokens and without paths of this machine.
        train_results: dict, what the run took (see model_card.py) -> train_results.json and the card.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file: a saved model is a folder.")
    given = {"metrics.json": metrics, "train_results.json": train_results, "training_config.yaml": train_config}
    texts = {name: _text(name, _public(figures)) for name, figures in given.items() if figures is not None}
    _finish_save(folder)
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed save left
    try:
        _stage(pipeline, staging, folder, samples, texts)
        staging.rename(folder / ".saved")  # from here on the new model is the one that counts
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _finish_save(folder)
    return folder


def _stage(pipeline, staging: Path, folder: Path, samples, texts: dict[str, str]) -> None:
    """Write all of a saved model aside, where it is not one yet."""
    pipeline.save_pretrained(staging)
    _keep_extras(staging, [folder, Path(pipeline.config.get("_name_or_path") or folder)])
    readme = staging / "README.md"
    edited = readme.exists() and is_edited(readme, pipeline)
    if samples is not None:
        samples.save(staging / "samples.png")
    for name, text in texts.items():
        (staging / name).write_text(text)
    card = write_card(pipeline, staging, folder.resolve().name)
    if edited and texts:
        readme.write_text(renew_card(readme, card, texts))
    elif not edited and (texts or samples is not None or not readme.exists()):
        card.save(readme)
    stale = set(_saved_files(folder)) - set(_saved_files(staging))
    (staging / ".stale").write_text("\n".join(sorted(stale)))
    _sync(staging)


def _finish_save(folder: Path) -> None:
    """Put a complete save in place. May be killed and called again at any point, by a second process as well."""
    saved = folder / ".saved"
    with suppress(FileNotFoundError):
        for name in (saved / ".stale").read_text().splitlines():
            (folder / name).unlink(missing_ok=True)
        for name in _saved_files(saved):
            (folder / name).parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                os.replace(saved / name, folder / name)
        _sync(folder)
        shutil.rmtree(saved, ignore_errors=True)


def _saved_files(folder: Path, allowed=MODEL_FILES) -> list[str]:
    """The files of a saved model, or of what is allowed, in a folder, as paths in a repo."""
    paths = (path for part in (".", "unet", "scheduler") for path in (folder / part).glob("*") if path.is_file())
    return sorted(filter_repo_objects((p.relative_to(folder).as_posix() for p in paths), allow_patterns=list(allowed)))


def _keep_extras(staging: Path, sources: list[Path]) -> None:
    """Take over card, samples and figures from where the same weights were saved before."""
    weights = _saved_files(staging, WEIGHTS)
    for source in sources:
        same_files = _saved_files(source, WEIGHTS) == weights
        if same_files and filecmp.cmpfiles(staging, source, weights, shallow=False)[0] == weights:
            for name in _saved_files(source, EXTRAS):
                shutil.copyfile(source / name, staging / name)
            return


def _text(name: str, figures: dict) -> str:
    """As YAML or JSON. JSON knows no NaN: null stands for it, for one figure that is no number shall not cost a trained model."""
    if name.endswith(".yaml"):
        return yaml.safe_dump(figures, sort_keys=False)
    figures = json.loads(json.dumps(figures), parse_constant=lambda constant: None)
    return json.dumps(figures, indent=2) + "\n"


def _public(value):
    """An option, a figure or a command as everybody may read it: no token, of a path on this machine the last part only, no tensor."""
    if isinstance(value, dict):
        return {key: _public(option) for key, option in value.items() if "token" not in str(key).lower()}
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_public(option) for option in value]
    if isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value)):
        return Path(value).name
    return DIRECTORIES.sub("", value) if isinstance(value, str) else value


def _sync(folder: Path) -> None:
    """Force the files of a saved model, and the names of all, to the disk."""
    paths = [folder / name for name in (*_saved_files(folder, (*MODEL_FILES, ".stale")), ".", "unet", "scheduler")]
    for path in filter(Path.exists, paths) if os.name == "posix" else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ------------------------------------------------------------------ loading


def load(model, *, revision=None, token=None, local_files_only: bool = False) -> DDPMImagePipeline:
    """Load a model from a folder or the Hub with the classes of this package; no code that comes with it is run.

    Args:
        model: a folder that `save` wrote, or a Hub id; stock models as well, e.g. "google/ddpm-cifar10-32".
        revision: on the Hub: branch, tag or commit.
        token: for a private or gated repo; None takes $HF_TOKEN or the login's.
        local_files_only: take a Hub model from the cache and ask nobody.

    Raises:
        ValueError: `model` is no saved model, is damaged, or keeps its weights in a format that can run code.
        HubError: the Hub does not have it, does not show it to this token, or cannot be reached.
    """
    folder = Path(model)
    if folder.is_file() or folder.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"model={str(model)!r}: pass the folder of a saved model or a Hub id. {NO_PICKLES}")
    if folder.is_dir():
        _finish_save(folder)
    else:
        folder = _download(str(model), revision=revision, token=token, local_files_only=local_files_only)
    try:
        index = json.loads((folder / "model_index.json").read_text())
        unet_class = DDPMImagePipeline.component_classes[index["unet"][1]]
    except FileNotFoundError:
        raise ValueError(f"model={str(model)!r} is not a saved model: it has no model_index.json.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model={str(model)!r}: model_index.json names no U-Net of a DDPM ({error!r}).") from error
    if not _saved_files(folder, WEIGHTS):
        raise ValueError(f"model={str(model)!r} has no unet/*.safetensors. {NO_PICKLES}")
    try:
        unet, info = unet_class.from_pretrained(
            folder, subfolder="unet", use_safetensors=True, disable_mmap=True, output_loading_info=True
        )
        pipeline = DDPMImagePipeline.from_pretrained(folder, unet=unet)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"model={str(model)!r} is damaged or incomplete: {first_line(error)}") from error
    if wrong := "; ".join(f"{kind}: {names}" for kind, names in info.items() if names):
        raise ValueError(f"model={str(model)!r}: its weights do not fit its config ({wrong}).")
    return pipeline


def _download(repo_id: str, **options) -> Path:
    patterns = [name for name in (*MODEL_FILES, *ROOT_CONFIGS) if not name.endswith(".py")]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **options))
    except hub_errors.HFValidationError:
        raise ValueError(f"model={repo_id!r}: no such folder, and no Hub id ('name' or 'owner/name').") from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise HubError(f"Could not load {repo_id!r} (there is no such folder here): {reason(error)}") from error
