"""Repainting and enlarging test images of FashionMNIST, measured: image_conditioning.py 200 1 3 --trained runs/masked

The published model draws in 25 steps of second order with noise, without guidance. It is not told the class, or, with most resampling, it is.
Peers: the mean of the training images in what is hidden, PIL's bicubic enlargement, and diffusers' RePaintPipeline with the same network,
read as one of noise, and as many calls of it. --trained are models with an image_condition, e.g. of
    scripts/train.py --image_condition masked --label_dropout 0.3 --output_dir runs/masked

PSNR is of the whole image; the mean error, in grey levels (0 to 255), of what was hidden or enlarged; accuracy is the share of images that
the classifier assigns to the true class; FID, of more images than the classifier has features, is to 10,000 training images by its features,
and the test images' own is the floor. Leaves image_conditioning.json here, and image_conditioning.png and repainted.png in docs/. Drawn
images are kept in runs/image_conditioning: a run that was stopped goes on, and one of more images or models draws the others only.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import RePaintPipeline, RePaintScheduler
from PIL import Image
from transformers import AutoModelForImageClassification

from ddpm_hf import hub
from ddpm_hf.data import FASHION_MNIST, load_image_dataset
from ddpm_hf.evaluation.fidelity import classify, frechet_distance
from ddpm_hf.images import labelled_grid, to_x_0, unit_to_uint8

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs" / "image_conditioning"
SIZE, BATCH = 28, 50
SHOWN = 10  # images in the picture
SAMPLING = {"num_inference_steps": 25, "eta": 1.0, "solver_order": 2}


def hide_centre(hidden):
    hidden[4:24, 4:24] = True  # half of the pixels


def hide_right(hidden):
    hidden[:, 14:] = True


def hide_most(hidden):
    hidden |= np.random.default_rng(0).random(hidden.shape) < 0.9


MASKS = {"centre half": hide_centre, "right half": hide_right, "90% of the pixels": hide_most}
ENLARGED = {"enlarged 2x": 2, "enlarged 4x": 4}


def tasks(images: np.ndarray, mean: np.ndarray):
    """name, what the pipeline is given, the pictures that show it, the peer's answers, and where they are asked; images: uint8 (N, 28, 28)."""
    for name, hide in MASKS.items():
        hidden = np.zeros((SIZE, SIZE), bool)
        hide(hidden)
        shown = np.where(hidden, np.uint8(128), images)
        given = {"image": list(map(Image.fromarray, images)), "mask_image": Image.fromarray(hidden)}
        yield name, given, shown, np.where(hidden, mean, images), hidden
    for name, factor in ENLARGED.items():
        means = (
            images.reshape(-1, SIZE // factor, factor, SIZE // factor, factor).mean((2, 4)).round().astype(np.uint8)
        )
        small = list(map(Image.fromarray, means))
        shown = np.kron(means, np.ones((factor, factor), np.uint8))
        bicubic = np.stack([np.asarray(x.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for x in small])
        yield name, {"image": small}, shown, bicubic, np.ones((SIZE, SIZE), bool)


# ---------------------------------------------------------------------- ways to answer


def draw(pipe, given: dict, rows: range, class_labels: list[int] | None = None, **options) -> list:
    part = {name: x[rows.start : rows.stop] if isinstance(x, list) else x for name, x in given.items()}
    part |= {} if class_labels is None else {"class_labels": class_labels[rows.start : rows.stop]}
    seeds = [torch.Generator().manual_seed(i) for i in rows]
    return pipe(generator=seeds, **{"guidance_scale": 1.0} | SAMPLING | part | options).images


class OfNoise(torch.nn.Module):
    """A pipeline's network without a class, read as one that predicts noise, as RePaintPipeline calls it."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        with torch.autocast("cpu", torch.bfloat16):
            output = self.pipe.denoise(x_t, t, self.pipe.encode(batch_size=len(x_t)))
        abar = self.pipe.scheduler.alphas_cumprod[t]
        noise = (x_t - abar**0.5 * self.pipe.predict_x_0(output, t, x_t)) / (1 - abar) ** 0.5
        return SimpleNamespace(sample=noise)


def repaint(pipe, given: dict, rows: range, num_resample: int) -> np.ndarray:
    config = pipe.scheduler.config
    scheduler = RePaintScheduler(config.num_train_timesteps, beta_schedule=config.beta_schedule)
    theirs = RePaintPipeline(OfNoise(pipe), scheduler)
    theirs.set_progress_bar_config(disable=True)
    images = [to_x_0(torch.tensor(np.asarray(x)))[None, None] for x in given["image"][rows.start : rows.stop]]
    known = 1 - torch.tensor(np.asarray(given["mask_image"])).float()[None, None]  # theirs is white where it is kept
    options = {"num_inference_steps": SAMPLING["num_inference_steps"], "jump_length": 1}
    options |= {"jump_n_sample": num_resample, "output_type": "np"}
    drawn = theirs(images, [known] * len(images), generator=torch.Generator().manual_seed(rows.start), **options)
    return unit_to_uint8(torch.tensor(drawn.images[..., 0])).numpy()


def ways(pipe, trained: dict, given: dict, labels: list[int], resamples: list[int]) -> dict[str, Callable]:
    """name -> f(rows), the answers to these questions."""
    most = max(resamples)
    found: dict[str, Callable] = {f"num_resample={n}": partial(draw, pipe, given, num_resample=n) for n in resamples}
    found["with the class"] = partial(draw, pipe, given, class_labels=labels, num_resample=most)
    kind = "masked" if "mask_image" in given else "lower_resolution"
    if kind == "masked":
        found["RePaintPipeline"] = partial(repaint, pipe, given, num_resample=most)
    if kind in trained:
        found["trained"] = partial(draw, trained[kind], given)
        found["trained, with the class"] = partial(draw, trained[kind], given, class_labels=labels)
    return found


def answers_of(name: str, weights: str, answer: Callable, count: int) -> np.ndarray:
    """The answers to all questions, uint8 (N, 28, 28), a batch at a time; those that are kept are not drawn again."""
    found = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        file = CACHE / f"{name} {weights} {rows.start}-{rows.stop}.npy"
        if not file.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            np.save(file, np.stack([np.asarray(picture) for picture in answer(rows)]))
        found.append(np.load(file))
    return np.concatenate(found)


# ---------------------------------------------------------------------- figures


def scores(answers: np.ndarray, images: np.ndarray, asked: np.ndarray, labels: torch.Tensor, classifier, real) -> dict:
    error = answers.astype(float) - images
    features, logits = classify(classifier, torch.tensor(answers)[:, None])
    figures = {
        "psnr": round(float(np.mean(10 * np.log10(255**2 / (error**2).mean((1, 2)).clip(1e-3)))), 2),
        "mean_error": round(float(np.abs(error[:, asked]).mean()), 2),
        "accuracy": round((logits.argmax(dim=1) == labels).double().mean().item(), 3),
    }
    if len(features) > features.shape[1]:
        figures["fid"] = round(frechet_distance(real, features), 2)
    return figures


def hash_of(pipe) -> str:
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in pipe.unet.state_dict().values())).hexdigest()[:8]


def show(rows: dict[str, np.ndarray]) -> Image.Image:
    return labelled_grid({name: list(map(Image.fromarray, row)) for name, row in rows.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_images", type=int, nargs="?", default=200)
    parser.add_argument("num_resample", type=int, nargs="*", default=[1, 3])
    parser.add_argument(
        "--trained", nargs="*", default=[], help="Folders of models that were trained with an image_condition."
    )
    args = parser.parse_args()
    pipe, *others = (hub.load(path) for path in (ROOT / "checkpoints" / "ddpm-fashion-mnist", *args.trained))
    trained = {other.image_condition: other for other in others}
    for each in (pipe, *others):
        each.set_progress_bar_config(disable=True)
    classifier = AutoModelForImageClassification.from_pretrained(ROOT / "checkpoints" / "fashion-mnist-classifier")
    size = {"num_channels": 1, "image_size": SIZE}
    train, test = (load_image_dataset(FASHION_MNIST, split=split, **size) for split in ("train", "test"))
    images, labels = test.images[: args.num_images, 0].numpy(), test.labels[: args.num_images]
    mean = train.images[:, 0].double().mean(0).round().to(torch.uint8).numpy()
    measured = 10_000 if args.num_images > classifier.config.hidden_sizes[-1] else 500  # else there is no FID
    real = torch.cat([classify(classifier, part)[0] for part in train.images[:measured].split(500)])
    score = partial(scores, images=images, labels=labels, classifier=classifier, real=real)
    itself = score(images, asked=np.ones((SIZE, SIZE), bool))
    results: dict = {
        "num_images": args.num_images,
        "test images": {k: itself[k] for k in ("accuracy", "fid") if k in itself},
    }
    steps = {
        kind: json.loads(Path(path, "train_results.json").read_text()) for kind, path in zip(trained, args.trained)
    }
    results["trained"] = {kind: {k: told[k] for k in ("train_steps", "train_samples")} for kind, told in steps.items()}
    picture = {"test images": images[:SHOWN]}
    for name, given, shown, peer, asked in tasks(images, mean):
        results[name] = {"mean image" if "mask_image" in given else "bicubic": score(peer, asked=asked)}
        picture[name] = shown[:SHOWN]
        for way, answer in ways(pipe, trained, given, labels.tolist(), args.num_resample).items():
            model = trained["masked" if "mask_image" in given else "lower_resolution"] if "trained" in way else pipe
            answers = answers_of(f"{name} {way}", hash_of(model), answer, len(images))
            results[name][way] = score(answers, asked=asked)
            print(name, way, results[name][way], flush=True)
            Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            if way in (f"num_resample={max(args.num_resample)}", "RePaintPipeline", "trained"):
                picture[way + " " * len(picture)] = answers[:SHOWN]  # names must differ
        show(picture).save(ROOT / "docs" / "image_conditioning.png")
    strips = {}
    for i in (0, 1, 8, 9):  # an ankle boot, a pullover, a sandal, a sneaker
        _, given, shown, *_ = list(tasks(np.stack([images[i]] * 5), mean))[1]
        options = {"num_resample": max(args.num_resample), "guidance_scale": None}  # the saved one
        drawn = draw(pipe, given, range(5), [int(labels[i])] * 5, **options)
        strips[pipe.id2label[int(labels[i])]] = [Image.fromarray(x) for x in (images[i], shown[0])] + drawn
    labelled_grid(strips).save(ROOT / "docs" / "repainted.png")


if __name__ == "__main__":
    main()
