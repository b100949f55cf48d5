"""Which files a saved model has: the one table that saving, loading and pushing go by.

model_index.json  pipeline_ddpm_image.py    what diffusers' loaders read; code that a `trust_remote_code` load runs
unet/             config.json, *.safetensors, modeling_ddpm_unet.py
scheduler/        scheduler_config.json, scheduling_ddpm_noise.py
text_encoder/  tokenizer/                   transformers', where the model has them
README.md         the model card (card.py)
samples.png  metrics.json  training_config.yaml  train_results.json
"""

import json
import mmap
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path


def _weights(stem: str) -> tuple[str, ...]:
    """Whole, of a variant (stem.fp16.safetensors) or in shards."""
    return tuple(
        stem + end for end in (".safetensors", ".*.safetensors", "-*-of-*.safetensors", ".safetensors.index*.json")
    )


STEM = "diffusion_pytorch_model"
WEIGHTS = (*_weights(f"unet/{STEM}"), *_weights(STEM))  # google/ddpm-* has all in its root
CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
ROOT_CONFIGS = ("config.json", "scheduler_config.json")  # google/ddpm-*: read, never written
TEXT_WEIGHTS = _weights("text_encoder/model")
TEXT = ("text_encoder/config.json", *TEXT_WEIGHTS, "tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.model")
CODE = ("pipeline_ddpm_image.py", "unet/modeling_ddpm_unet.py", "scheduler/scheduling_ddpm_noise.py")
EXTRAS = ("README.md", "samples.png", "metrics.json", "training_config.yaml", "train_results.json")
MODEL_FILES = (*CONFIGS, *WEIGHTS, *TEXT, *CODE, *EXTRAS)
SPACE_FILES = ("README.md", "requirements.txt", "*.py", "*.css", "*.js", "*.png")

HUB_TOKEN = re.compile(rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}")


def list_files(folder: Path, patterns: Iterable[str] = MODEL_FILES) -> list[str]:
    """The files of a folder that match, as paths in a repo."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def list_variants(folder: Path) -> list[str | None]:
    """The variants of a model's weights, first None where there are weights without one."""
    name = re.compile(rf"(?:unet/)?{STEM}(?:\.([^.-]+))?(?:-\d+-of-\d+)?\.safetensors")
    found = {match[1] for path in list_files(folder, WEIGHTS) if (match := name.fullmatch(path))}
    return sorted(found, key=lambda variant: variant or "")


def copy_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder; the code of a model is this package's own, whatever lies there.

    Raises:
        ValueError: a link leads out of the folder. (A snapshot in the Hub's cache has its files in blobs/.)
    """
    places = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for name in names:
        path = Path(__file__).parents[1] / Path(name).name if name in CODE else folder / name
        if name not in CODE and not any(path.resolve().is_relative_to(place) for place in places):
            raise ValueError(f"{path} is a link that leads out of {folder}: put the file itself there.")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def refuse_tokens(folder: Path, token: str | None) -> None:
    """ValueError for a file with an access token of the Hub in it: `token`, or any that looks like one."""
    for path in (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if HUB_TOKEN.search(data) or (token and data.find(token.encode()) >= 0):
                raise ValueError(
                    f"{path.relative_to(folder).as_posix()} has an access token of the Hub in it: remove it."
                )


def read_json(path: Path, check: Callable[[list], dict] | None = None, most_bytes: int = 2**24) -> dict:
    """A JSON object; ValueError otherwise, which names the file. check: an `object_pairs_hook` that may raise one as well."""
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError(f"at most {most_bytes:,} bytes are read.")
        value = json.loads(path.read_bytes(), object_pairs_hook=check)
        if not isinstance(value, dict):
            raise ValueError("this is not a JSON object.")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from error
    return value
