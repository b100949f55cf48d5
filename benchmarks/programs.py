"""Whole programs, each in a process of its own: training with data loading, start-up to the first image. Each takes the options of run.py.

Neighbours: `rounds` (turns, ratios), `parts` (the network that is trained), `train_lucidrains` (a training that has no command of its own).
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers import DDPMScheduler, UNet2DModel
from parts import CONFIG, pipelines
from PIL import Image
from rounds import compare, take_turns

from ddpm_hf.data import FASHION_MNIST, load_image_dataset

RGB = CONFIG | dict(in_channels=3, out_channels=3)  # train_unconditional.py always trains on three channels

TRAIN_UNCONDITIONAL = Path("examples/unconditional_image_generation/train_unconditional.py")

# The kernel counts what a process held before it became the program, so the program must not be started by this large one.
METER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(json.dumps([code, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def launch(command: list[str], cache: Path) -> tuple[float, float]:
    """Run a Python program to its end: its seconds, from the interpreter's start, and the most memory that it held, in MiB.

    datasets keeps its files in `cache`. Raises CalledProcessError, with what the program said.
    """
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    metered = [sys.executable, "-c", METER, sys.executable, *command]
    process = subprocess.run(metered, env=environment, capture_output=True, text=True, check=True)
    code, seconds, most = json.loads(process.stdout)
    if code:
        raise subprocess.CalledProcessError(code, command, process.stderr)
    return seconds, most


# ---------------------------------------------------------------------- training


def write_images(folder: Path, count: int) -> None:
    """The first `count` images of FashionMNIST as PNG files."""
    folder.mkdir()
    pixels = load_image_dataset(FASHION_MNIST, num_channels=1, image_size=28).images
    for i in range(count):
        Image.fromarray(pixels[i % len(pixels), 0].numpy()).save(folder / f"{i:05}.png")


def step_times(folder: Path) -> list[tuple[int, float]]:
    """(step, wall-clock time) of the losses that a run has logged for TensorBoard under `folder`, or of steps.json."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if (folder / "steps.json").exists():
        return json.loads((folder / "steps.json").read_text())
    for path in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        if "loss" in events.Tags()["scalars"]:
            return [(event.step, event.wall_time) for event in events.Scalars("loss")]
    raise ValueError(f"{folder} holds no log of the losses.")


def images_per_second(times: list[tuple[int, float]], batch_size: int) -> float:
    """The rate after a third of the run, by when the first steps' allocations are over."""
    steady = [(step, wall) for step, wall in times if step >= times[-1][0] / 3]
    (first, start), (last, end) = steady[0], steady[-1]
    return (last - first) * batch_size / (end - start)


def trainings(options, images: Path) -> dict[str, list[str]]:
    """Side -> the command that trains for `options.train_steps` steps; its output folder is to follow as the last argument."""
    model, here = images.with_name("model"), Path(__file__).parent
    UNet2DModel(**RGB).save_config(model / "unet")
    DDPMScheduler().save_config(model / "scheduler")
    flags = f"""--preset {model} --dataset {images} --train_batch_size {options.batch_size} --max_train_steps {options.train_steps}
        --lr_warmup_steps 0 --ema_decay 0.999 --num_validation_images 0 --output_dir"""
    commands = {"ours": [str(here.parent / "scripts" / "train.py"), *flags.split()]}
    if not options.diffusers:
        options.skip("training: train_unconditional", "no --diffusers CHECKOUT")
    elif not find_spec("torchvision"):
        options.skip("training: train_unconditional", "torchvision is not installed")
    else:
        flags = f"""--train_data_dir {images} --model_config_name_or_path {model / "unet"} --resolution 28 --num_epochs 1
            --train_batch_size {options.batch_size} --use_ema --mixed_precision bf16 --logger tensorboard
            --ddpm_num_inference_steps 1 --eval_batch_size 1 --output_dir"""
        commands["train_unconditional"] = [str(options.diffusers / TRAIN_UNCONDITIONAL), *flags.split()]
    if find_spec("denoising_diffusion_pytorch") and find_spec("torchvision"):
        arguments = (images, model / "unet" / "config.json", options.train_steps, options.batch_size)
        commands["denoising-diffusion-pytorch"] = [str(here / "train_lucidrains.py"), *map(str, arguments)]
    else:
        options.skip("training: denoising-diffusion-pytorch", "it or torchvision is not installed")
    return commands


def training(options) -> list[dict]:
    """Images/s of whole training programs, data loading included: bf16, EMA, the same folder of PNG files, a network of the same size.

    ours decodes the folder once, before its first step: "until step 10" counts that, and the imports.
    """
    with TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_images(images, options.train_steps * options.batch_size)
        commands = trainings(options, images)
        memory: dict[str, list[float]] = {side: [] for side in commands}
        until_step_10: dict[str, list[float]] = {side: [] for side in commands}

        def side(name: str) -> float:
            with TemporaryDirectory(dir=folder) as output:
                start = time.time()
                memory[name].append(launch([*commands[name], output + "/run"], Path(output) / "cache")[1])
                times = step_times(Path(output) / "run")
                until_step_10[name].append(next(wall for step, wall in times if step >= 10) - start)
                return images_per_second(times, options.batch_size)

        values = take_turns({name: partial(side, name) for name in commands}, options.rounds)
    return [
        compare("training program", "images/s", values, targets={"train_unconditional": 1.6}),
        compare("training program, until step 10", "s", until_step_10, lower_is_better=True),
        compare("training program, peak memory", "MiB", memory, lower_is_better=True),
    ]


# ---------------------------------------------------------------------- start-up

FIRST_IMAGE = {
    "ours": "from ddpm_hf import DDPMImagePipeline as Pipeline",
    "diffusers": "from diffusers import DDPMPipeline as Pipeline",
}


def startup(options) -> list[dict]:
    """From the interpreter's start to one saved image, by a saved model: with each pipeline's defaults, and with 50 steps for both."""
    rows = []
    with TemporaryDirectory() as folder:
        for side, pipeline in pipelines().items():
            pipeline.save_pretrained(f"{folder}/{side}")
        for name, arguments in (("defaults", ""), ("50 steps", "num_inference_steps=50")):
            memory: dict[str, list[float]] = {side: [] for side in FIRST_IMAGE}

            def side(name: str, arguments: str, memory: dict) -> float:
                code = f"{FIRST_IMAGE[name]}\npipe = Pipeline.from_pretrained('{folder}/{name}')\n"
                code += f"pipe({arguments}).images[0].save('{folder}/image.png')"
                seconds, most = launch(["-c", code], Path(folder))
                memory[name].append(most)
                return seconds

            sides = {name: partial(side, name, arguments, memory) for name in FIRST_IMAGE}
            rows.append(compare(f"first image, {name}", "s", take_turns(sides, options.rounds), lower_is_better=True))
            rows.append(compare(f"first image, {name}: peak memory", "MiB", memory, lower_is_better=True))
    return rows
