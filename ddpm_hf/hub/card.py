"""The card of a saved model: model_card.md filled in from what lies in its folder, through huggingface_hub's ModelCard.

metrics.json: {"metrics": {"fid": 3.17, "bits": {"test": 3.7}}, "floors": ..., "spreads": ..., "settings": ..., "command": "..."}. Numbers
under "metrics" are results, on the card and in the `model-index` that the Hub reads; those of the same name under "floors" and "spreads" stand
beside them; what is not finite is left out. A dict without "metrics" holds results only.
train_results.json: {"train_runtime": seconds, "train_steps": 6000, "train_samples": 96000, "num_processes": 1, "hardware": "2 CPU cores"},
as far as it is known.

The last line of a generated text is its checksum. While that fits, saves and pushes write the text anew; a text that somebody edited stays as
it is. The metadata is its owner's in both cases, but for the results. A generated card names no license: that is for the model's owner to
choose, in view of the data's terms.
"""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import yaml
from diffusers import ConsistencyModelPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..pipeline_ddpm_image import DDPMImagePipeline
from .commits import one_line
from .files import read_json

logger = logging.getLogger(__name__)

STOCK = "stock"  # the branch under diffusers' own classes
CLASSIFIER_METRICS = ("fid", "kid", "precision", "recall")
CHECKSUM = "\n<!-- The text above is written by ddpm_hf, and renewed until somebody edits it. Checksum: {} -->\n"


def make_card(
    pipeline: DDPMImagePipeline, folder: Path, name: str, branch: str = "main", stock: bool | None = None
) -> ModelCard:
    """The generated ModelCard of the model in `folder`, under a name (a folder's or a repo's) that its examples load, on a branch.

    stock: whether the branch `stock` has the same weights; None: wherever a push to `main` would bring it along.

    Raises:
        ValueError: a file in the folder does not hold what the card takes from it.
    """
    try:
        metrics, results = _read(folder / "metrics.json"), _read(folder / "train_results.json")
        options = _read(folder / "training_config.yaml")
        figures, settings = _flat(metrics.get("metrics", metrics) or {}), metrics.get("settings") or {}
        dataset = str(options.get("dataset") or "unknown")
        tasks = {"prompt_embeds": "text-to-image", "condition_image": "image-to-image"}
        task = next((tasks[name] for name in pipeline.takes if name in tasks), "unconditional-image-generation")
        metadata = ModelCardData(
            library_name="diffusers",
            pipeline_tag=task,
            tags=["ddpm", "diffusion", "pytorch", task],
            datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).exists() else None,
            model_name=name,
            eval_results=_eval_results(task, figures, settings, str(settings.get("dataset") or dataset)) or None,
        )
        about: dict[str, Any] = {"name": name, "branch": branch, "pipeline": pipeline}
        about |= {"arguments": _arguments(pipeline)}
        about |= {"stock_class": getattr(stock_class(pipeline), "__name__", None)}
        about |= {"shows_stock": branch == "main" if stock is None else stock}
        about |= {"metrics": metrics, "figures": figures, "settings": settings, "flat": _flat}
        about |= {"dataset": dataset, "options": options, "results": results}
        about |= {"has_samples": (folder / "samples.png").exists()}
        card = ModelCard.from_template(metadata, template_path=str(_template()), **about)
    except Exception as error:  # of any kind: the template meets what others wrote
        files = "metrics.json, train_results.json and training_config.yaml"
        raise ValueError(f"The card cannot be made from {files} in {folder}: {one_line(error)}") from error
    card.text = card.text.rstrip() + "\n"
    card.text += CHECKSUM.format(_checksum(card.text))
    return card


def renew_card(pipeline: DDPMImagePipeline, folder: Path, name: str) -> None:
    """Write README.md, or bring the one that is there up to date: its text, if nobody edited it, and the results in its metadata."""
    path = folder / "README.md"
    card: Any = make_card(pipeline, folder, name)
    if path.exists():
        try:
            owned = read_card(path)
        except ValueError as error:  # nothing measured is lost for it
            logger.warning(f"The card stays as it is: {error}")
            return
        if is_generated(owned.text):
            owned.text, owned.data.datasets = card.text, owned.data.datasets or card.data.datasets
        else:
            logger.warning(f"{path.name} was edited: new results go into its metadata, its text stays as it is.")
        owned.data.model_name = owned.data.model_name or card.data.model_name
        owned.data.eval_results = card.data.eval_results
        card = owned
    card.save(path)


def card_on_hub(pipeline: DDPMImagePipeline, folder: Path, repo_id: str, branch: str, stock: bool) -> str:
    """README.md as it is pushed to a branch of a repo, which the examples then name. Arguments and errors as in `make_card`."""
    path, card = folder / "README.md", make_card(pipeline, folder, repo_id, branch, stock)
    if not path.exists():
        return str(card)
    owned, text = read_card(path), path.read_bytes().decode("utf-8-sig")
    if branch != STOCK and not is_generated(owned.text):
        return text.replace(f'("{folder.resolve().name}"', f'("{repo_id}"')
    metadata = text.removesuffix(owned.text)
    return metadata + card.text if metadata else str(card)


def read_card(path: Path) -> Any:  # ModelCard's type knows no fields of its metadata
    """README.md as a ModelCard. ValueError, one line, where its metadata cannot be read."""
    try:
        return ModelCard.load(path)
    except Exception as error:  # of any kind: the parser takes the types of what is there for granted
        raise ValueError(f"{path.name}: its metadata cannot be read: {one_line(error)}") from error


def is_generated(text: str) -> bool:
    """Whether the text of a card, without metadata, is as `make_card` wrote it."""
    body = text[: text.rfind(CHECKSUM.partition("{}")[0])]
    return text == body + CHECKSUM.format(_checksum(body))


def stock_class(pipeline: DDPMImagePipeline) -> type[DiffusionPipeline] | None:
    """Diffusers' pipeline that draws what this one draws, or None.

    `DDPMPipeline` passes neither labels nor the initial noise. `ConsistencyModelPipeline` passes labels; a student of few steps, which needs
    no guidance, is drawn by it.
    """
    unet, scheduler = pipeline.unet.config, pipeline.scheduler
    kind = type(scheduler).__name__
    if (
        not isinstance(pipeline.unet, UNet2DModel)
        or unet.class_embed_type is not None
        or pipeline.image_condition is not None
    ):
        return None
    if pipeline.is_student:
        is_known = kind in ("LCMScheduler", "DDPMNoiseScheduler", "DDPMScheduler")
        is_plain = isinstance(unet.sample_size, int) and unet.out_channels == unet.in_channels  # no learned variance
        return ConsistencyModelPipeline if is_known and is_plain else None
    is_unlabelled = unet.num_class_embeds is None or pipeline.null_label is not None
    if not is_unlabelled or unet.sample_size is None or kind not in ("DDPMNoiseScheduler", "DDPMScheduler"):
        return None
    is_nan_there = scheduler.config.variance_type in ("learned", "fixed_large_log")
    return None if is_nan_there else DDPMPipeline


def _eval_results(task: str, figures: dict[str, float], settings: dict, dataset: str) -> list[EvalResult]:
    results = [EvalResult(task, dataset, dataset.rpartition("/")[2], name, value) for name, value in figures.items()]
    for result in results:  # readers of a model-index expect features of Inception
        of_classifier = settings.get("classifier") and result.metric_type in CLASSIFIER_METRICS
        features = f", features of {Path(settings['classifier']).name}" if of_classifier else ""
        result.metric_name = result.metric_type + features
    return results


def _arguments(pipeline: DDPMImagePipeline) -> str:
    """What the examples on the card pass, in Python, for this model to draw four images."""
    unet, arguments = pipeline.unet.config, ["batch_size=4"]
    if "class_labels" in pipeline.takes:
        label = next(iter(pipeline.id2label.values()), 0)
        arguments.append(f"class_labels={json.dumps(label, ensure_ascii=False)}")  # JSON's strings are Python's
    if "prompt_embeds" in pipeline.takes:
        arguments.append('prompt="a red apple"')
    if unet.sample_size is None:
        size = 8 * 2 ** (len(unet.get("block_out_channels", "12")) - 1)  # fits: each level halves it
        arguments.append(f"latents=torch.randn(4, {pipeline.num_channels}, {size}, {size})")
    return ", ".join(arguments)


def _read(path: Path) -> dict:
    if not path.exists():
        return {}
    return read_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text()) or {}


def _flat(values: dict, prefix: str = "") -> dict[str, float]:
    """The finite numbers in nested dicts by dotted name."""
    figures: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            figures |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            figures[f"{prefix}{name}"] = value
    return figures


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _template() -> Path:
    """model_card.md: beside the package's modules where it is installed, at the top of the source tree otherwise."""
    here = Path(__file__).parents[1]
    return next(path for path in (here / "model_card.md", here.parent / "model_card.md") if path.exists())
