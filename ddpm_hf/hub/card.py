"""The card of a saved model: model_card.md filled in from what lies in its folder, through huggingface_hub's ModelCard.

`hub.save` writes it as README.md. Its figures, and the `model-index` that the Hub reads, come from metrics.json alone:
{"metrics": {"fid": 3.17, "bits": {"test": 3.7}}, "command": "...", ...}: numbers under "metrics" are results, those of the
same name under "floors" and "spreads" stand beside them, the rest says how they were measured. A dict without "metrics" is
taken to be results only; what is not finite is left out. What training took comes from train_results.json, as far as it tells:
{"train_runtime": seconds, "train_steps": 6000, "train_samples": 96000, "num_processes": 1, "hardware": "2 CPU cores", ...}.

It names no license: that is for the model's owner to choose, in view of the data's terms, and to put on the card, where it stays.
"""

import json
import logging
import math
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, SpaceCard

from .. import __version__

logger = logging.getLogger(__name__)

TASK = "unconditional-image-generation"
CLASSIFIER_METRICS = ("fid", "kid", "precision", "recall")
MIN_DIFFUSERS = "0.35"  # the oldest that was seen to run a saved model's code; the package itself wants a newer one
TRAINING, EVALUATION, WITHOUT_CODE = "## Training", "## Evaluation", "### Where remote code may not run"
SECTIONS = {"training_config.yaml": TRAINING, "train_results.json": TRAINING, "metrics.json": EVALUATION}
LOAD = r"(\b(?:(?:Diffusion|DDPMImage)Pipeline\.from_pretrained|snapshot_download|hub\.load)\()"  # begins an example


def write_card(pipeline, folder: Path, name: str, *, stock: bool = False) -> ModelCard:
    """The card of the model in `folder`, or of the stock branch made from it.

    Args:
        pipeline: the `DDPMImagePipeline` that is in the folder.
        folder: holds metrics.json, training_config.yaml, train_results.json and samples.png, as far as there are any.
        name: the model's name, a heading and the argument of the examples.
        stock: describe the branch under diffusers' own classes.
    """
    options = yaml.safe_load(_read(folder / "training_config.yaml")) or {}
    dataset = str(options.get("dataset") or "unknown")
    metrics = json.loads(_read(folder / "metrics.json") or "{}")
    figures, notes = _results(metrics)
    settings = metrics.get("settings") or {}
    measured = str(settings.get("dataset") or dataset)
    results = [
        EvalResult(
            TASK, measured, measured.rpartition("/")[2], metric, value, metric_name=_full_name(metric, settings)
        )
        for metric, value in figures.items()
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["ddpm", "diffusion", "pytorch", TASK],
        datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).exists() else None,
        model_name=name,
        eval_results=results or None,
    )
    unet, size = pipeline.unet.config, pipeline.unet.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    return ModelCard.from_template(
        data,
        template_path=str(_template()),
        name=name,
        stock=stock,
        stock_branch=has_stock(pipeline),
        unet=unet,
        scheduler=pipeline.scheduler.config,
        size="any size" if size is None else "x".join(map(str, sides)) + " pixels",
        num_parameters=pipeline.unet.num_parameters(),
        labels=[label for _, label in sorted(pipeline.id2label.items())],
        null_label=pipeline.null_label,
        arguments=_arguments(pipeline),
        without_code=WITHOUT_CODE,
        min_diffusers=MIN_DIFFUSERS,
        dataset=dataset,
        figures=figures,
        results=json.loads(_read(folder / "train_results.json") or "null"),
        floors=_flat(metrics.get("floors") or {}),
        spreads=_flat(metrics.get("spreads") or {}),
        settings=settings,
        notes=notes,
        options=options,
        has_samples=(folder / "samples.png").exists(),
        versions=_versions(),
    )


def has_stock(pipeline) -> bool:
    """Whether diffusers' `DDPMPipeline`, which passes neither labels nor the initial noise, can draw what this pipeline draws."""
    unet = pipeline.unet.config
    unlabelled = unet.num_class_embeds is None or pipeline.null_label is not None
    return unlabelled and unet.class_embed_type is None and unet.sample_size is not None


def _arguments(pipeline) -> str:
    """What the examples on the card pass, in Python, for this model to draw four images."""
    unet, arguments = pipeline.unet.config, ["batch_size=4"]
    if unet.num_class_embeds is not None:
        label = min(pipeline.id2label, default=0)
        label = json.dumps(pipeline.id2label.get(label, label), ensure_ascii=False)  # JSON's strings are Python's
        arguments.append(f"class_labels={label}")
    if unet.sample_size is None:
        size = 8 * 2 ** (len(unet.block_out_channels) - 1)  # fits: each level halves it
        arguments.append(f"latents=torch.randn(4, {unet.in_channels}, {size}, {size})")
    return ", ".join(arguments)


def is_edited(path: Path, pipeline) -> bool:
    """Whether the card of a saved model says anything else than `write_card` does here of what lies beside it."""
    text = path.read_text()
    name = re.search(r"^# (.+)$", text, re.MULTILINE)
    return name is None or text != str(write_card(pipeline, path.parent, name[1]))


def renew_card(path: Path, card: Any, files: Iterable[str]) -> str:
    """The text of an edited card, with what `card` says of these files in its place: the sections that tell of them, each up to the
    next heading, and for metrics.json the results in the metadata. All else is as its owner wrote it."""
    try:
        edited: Any = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(f"The metadata of {path.name} cannot be read, and it stays as it is: {error}")
        return path.read_text()
    for section in {SECTIONS[name] for name in files}:
        if there := _section(edited.text, section):
            edited.text = edited.text.replace(there, _section(card.text, section))
    if "metrics.json" in files:
        edited.data.model_name = edited.data.model_name or card.data.model_name
        edited.data.eval_results = card.data.eval_results
    return str(edited)


def _section(text: str, heading: str) -> str:
    """From this heading to the next one, comments in code aside; "" where there is none."""
    found = re.search(rf"^{heading}\s*\n(?:^```.*?^```|.)*?(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[0] if found else ""


def without_stock(text: str) -> str:
    """A card's text for a branch with no stock branch beside it."""
    return text.replace(_section(text, WITHOUT_CODE), "")


def name_repo(text: str, repo_id: str, branch: str) -> str:
    """A card's text with this repo in its examples, and the branch in those that would load `main` instead."""
    text = re.sub(rf'{LOAD}"[^"]*"', rf'\1"{repo_id}"', text)
    if branch != "main":
        text = re.sub(rf'{LOAD}"[^"]*"(?![^)]*revision=)', rf'\g<0>, revision="{branch}"', text)
    return text


def name_model(path: Path, model_id: str) -> str:
    """The card of a Space, its README.md, with the model that it shows in its metadata."""
    card = SpaceCard.load(path)
    card.data.models = [model_id]
    return str(card)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _results(metrics: dict) -> tuple[dict[str, float], dict]:
    """metrics.json -> its results, finite numbers by dotted name, and what is said about them."""
    if "metrics" not in metrics:
        told = {name: value for name, value in metrics.items() if isinstance(value, str)}
        metrics = {"metrics": metrics} | told
    notes = {
        name: value
        for name, value in metrics.items()
        if name != "metrics" and value is not None and not isinstance(value, (dict, list))
    }
    return _flat(metrics["metrics"] or {}), notes


def _full_name(metric: str, settings: dict) -> str:
    """The metric, and whose features it takes where they are not Inception's, which readers of a model-index expect."""
    classifier = settings.get("classifier")
    return f"{metric}, features of {Path(classifier).name}" if classifier and metric in CLASSIFIER_METRICS else metric


def _flat(values: dict, prefix: str = "") -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            figures |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            figures[prefix + name] = value
    return figures


def _template() -> Path:
    """model_card.md: beside this file where the package is installed, at the top of the source tree otherwise."""
    here = Path(__file__).parents[1]
    return next(path for path in (here / "model_card.md", here.parent / "model_card.md") if path.exists())


def _versions() -> dict[str, str]:
    return {
        "ddpm_hf": __version__,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
