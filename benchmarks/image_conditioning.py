"""Repainting and enlarging test images of FashionMNIST, measured: image_conditioning.py [NUM_IMAGES [NUM_RESAMPLE ...]]

The published model draws in its saved way (25 steps) and without guidance: without a class and, with most resampling, with the true one.
PSNR is of the whole image; the mean error, in grey levels (0 to 255), of what was hidden or enlarged; accuracy is the share of images that
the classifier assigns to the true class. Peers: the mean of the training images in what is hidden, PIL's bicubic enlargement. Leaves
image_conditioning.json here, and image_conditioning.png and repainted.png in docs/.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from ddpm_hf import hub
from ddpm_hf.data import FASHION_MNIST, load_image_dataset
from ddpm_hf.evaluation.fidelity import classify
from ddpm_hf.images import labelled_grid

ROOT = Path(__file__).parents[1]
SIZE = 28


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


def scores(answers: np.ndarray, images: np.ndarray, asked: np.ndarray, labels: torch.Tensor, classifier) -> dict:
    error = answers.astype(float) - images
    predicted = classify(classifier, torch.tensor(answers)[:, None])[1].argmax(dim=1)
    return {
        "psnr": round(float(np.mean(10 * np.log10(255**2 / (error**2).mean((1, 2)).clip(1e-3)))), 2),
        "mean_error": round(float(np.abs(error[:, asked]).mean()), 2),
        "accuracy": round((predicted == labels).double().mean().item(), 3),
    }


def draw(pipe, given: dict, count: int, **options) -> np.ndarray:
    pictures = []
    for start in range(0, count, 50):
        part = {name: x[start : start + 50] if isinstance(x, list) else x for name, x in given.items()}
        seeds = [torch.Generator().manual_seed(i) for i in range(start, min(start + 50, count))]
        pictures += pipe(generator=seeds, **part, **options).images
    return np.stack([np.asarray(picture) for picture in pictures])


if __name__ == "__main__":
    count, *resamples = map(int, sys.argv[1:] or [100, 1, 3])
    pipe = hub.load(ROOT / "checkpoints" / "ddpm-fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    classifier = AutoModelForImageClassification.from_pretrained(ROOT / "checkpoints" / "fashion-mnist-classifier")
    size = {"num_channels": 1, "image_size": SIZE}
    train, test = (load_image_dataset(FASHION_MNIST, split=split, **size) for split in ("train", "test"))
    images, labels = test.images[:count, 0].numpy(), test.labels[:count]
    mean = train.images[:, 0].double().mean(0).round().to(torch.uint8).numpy()
    score = partial(scores, images=images, labels=labels, classifier=classifier)
    results = {
        "num_images": count,
        "accuracy of test images": score(images, asked=np.ones((SIZE, SIZE), bool))["accuracy"],
    }
    rows = {"test images": images[:10]}
    ways = {f"num_resample={n}": {"num_resample": n} for n in resamples}
    ways["with the class"] = {"num_resample": max(resamples), "class_labels": labels.tolist(), "guidance_scale": 1.0}
    for name, given, shown, peer, asked in tasks(images, mean):
        results[name] = {"peer": score(peer, asked=asked)}
        rows[name] = shown[:10]
        for way, options in ways.items():
            answers = draw(pipe, given | options, count)
            results[name][way] = score(answers, asked=asked)
            print(name, way, results[name][way], flush=True)
            Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        rows[f"drawn{' ' * len(rows)}"] = answers[:10]
        grid = labelled_grid({name: list(map(Image.fromarray, row)) for name, row in rows.items()})
        grid.save(ROOT / "docs" / "image_conditioning.png")
    strips = {}
    for i in (0, 1, 8, 9):  # an ankle boot, a pullover, a sandal, a sneaker
        _, given, shown, *_ = list(tasks(np.stack([images[i]] * 5), mean))[1]
        answers = draw(pipe, given, 5, num_resample=max(resamples), class_labels=int(labels[i]))
        strips[pipe.id2label[int(labels[i])]] = [Image.fromarray(x) for x in (images[i], shown[0], *answers)]
    labelled_grid(strips).save(ROOT / "docs" / "repainted.png")
