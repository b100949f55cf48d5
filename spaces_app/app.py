"""The Space: watch images form from noise.

`python app.py` serves the model that the variable MODEL_ID names: a Hub id, or a folder saved by `DDPMImagePipeline`. By default it is the
few-step model of the repository.

This file has the page and the API, `service.py` the sampling, `pictures.py` the drawings, `viewer.js` the slider over the steps, `bounds.py` the
limits of what a visitor may send.
"""

import argparse
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # help answers before torch and gradio are imported
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

import diffusers
import gradio as gr
import numpy as np
import torch
import yaml
from bounds import MAX_UPLOAD, UPLOAD_SECONDS, Gate, quote
from diffusers import DiffusionPipeline
from gradio.route_utils import FnIndexInferError
from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pictures import draw_schedule, enlarge, fit, make_grid, painted, save_downloads, to_data_uri
from PIL import Image
from pipeline_ddpm_image import DDPMImagePipeline
from service import (
    FEW_STEPS,
    MAX_BATCH,
    MAX_EVALUATIONS,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_WAITING,
    OWN_SAMPLER,
    ZERO_GPU,
    Frame,
    Job,
    Parameters,
    SamplingService,
    check_range,
    to_uint8,
)
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

HERE = Path(__file__).resolve().parent
MODEL_ID = os.environ.get("MODEL_ID", str(HERE.parent / "checkpoints" / "ddpm-fashion-mnist-fast"))
NO_CLASS = "None: whatever comes"
NEW, PICTURE, STRIP = "From noise", "From a picture", "Between two seeds"
CANVAS = 336  # pixels of the editor
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # of the page's own events
if "SPACE_ID" in os.environ:  # behind the Hub's proxy, which names the visitor
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")

VIEWER = """
<div class="viewer empty">
  <div class="panels">
    <figure><figcaption><b>x<sub>t</sub></b> the image at this step</figcaption><div><img alt="x_t"></div></figure>
    <figure><figcaption><b>predicted x<sub>0</sub></b> where the model thinks it ends</figcaption>
      <div><img alt="predicted x_0"></div></figure>
  </div>
  <input type="range" min="0" max="0" value="0" disabled aria-label="Step of the denoising">
  <div class="line"><output aria-live="off"></output><span class="status" role="status"></span></div>
</div>
"""

EXPLANATION = r"""
Training destroys images in a way that can be undone. Noise is added in many small steps, and because a sum of Gaussians is
Gaussian, step $t$ can be reached in one jump:

$$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon, \qquad \epsilon \sim \mathcal N(0, I)$$

The network sees $x_t$ and $t$ and is trained to predict the noise, or the image. Its answer gives a first guess of the image: sharp
when little noise was added, an average of all that is possible when nearly everything is noise. Generation starts from pure
noise and takes many small steps in the direction of that guess, each one a little better informed than the one before.
Move $t$ and see from where on the model recognises the image.
"""


def load_model(model_id: str) -> tuple[DiffusionPipeline, Path]:
    """Loads the pipeline and returns it with its folder, where the card and the metrics lie as well. A stock pipeline of a
    network and a scheduler becomes a DDPMImagePipeline."""
    try:
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise SystemExit(
            f"MODEL_ID={model_id!r} is neither a folder here nor an available model of the Hub: {error}"
        ) from None
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    if not hasattr(pipe, "num_channels"):  # stock, or saved by an earlier version
        if not pipe.components.keys() <= {"unet", "scheduler", "text_encoder", "tokenizer"}:
            name, parts = type(pipe).__name__, ", ".join(pipe.components)
            raise SystemExit(f"MODEL_ID={model_id!r} is a {name} of {parts}: supported are a unet and a scheduler.")
        pipe = DDPMImagePipeline.from_pipe(pipe)
    prediction_type = pipe.scheduler.config.get("prediction_type")
    if not hasattr(pipe.scheduler, "alphas_cumprod") or prediction_type not in ("epsilon", "sample", "v_prediction"):
        name = type(pipe.scheduler).__name__
        raise SystemExit(f"MODEL_ID={model_id!r}: {name} with prediction_type={prediction_type!r} tells no x_0.")
    return pipe.to("cuda" if torch.cuda.is_available() and not ZERO_GPU else "cpu"), folder


def load_finest(folder: Path, metadata: dict[str, Any], pipe: DiffusionPipeline) -> DiffusionPipeline | None:
    """The many-step model that a few-step one was distilled from: the card's `base_model`, a folder beside it or a Hub id."""
    base = metadata.get("base_model")
    if not isinstance(base, str) or pipe.sampling.get("num_inference_steps", 1000) > FEW_STEPS:
        return None
    beside = folder.resolve().parent / Path(base).name
    try:
        finest, _ = load_model(str(beside) if beside.is_dir() else base)
    except SystemExit as error:
        print(f"Without {base}, of which this is the student: {error}")
        return None
    return finest if finest.id2label == pipe.id2label and finest.takes == pipe.takes else None


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of the card; {} where there is none that can be read."""
    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{folder / 'README.md'}: its metadata is left out: {quote(str(error))}")
        return {}


def read_card(folder: Path) -> str:
    """The model card without its metadata, its own pictures inlined, as Markdown."""
    path = folder / "README.md"
    if not path.is_file():
        return "This model has no card."
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(errors="replace"), flags=re.DOTALL)
    places = folder.resolve(), folder.resolve().parent.parent / "blobs"  # where the Hub's cache has a snapshot's files

    def inline(match: re.Match) -> str:
        picture = Path(os.path.normpath(folder / match[2]))
        try:
            if picture.is_relative_to(folder) and any(map(picture.resolve().is_relative_to, places)):
                return f"![{match[1]}]({to_data_uri(Image.open(picture))})"
        except (OSError, ValueError, Image.DecompressionBombError) as error:  # absent, no picture for PIL, too large
            print(f"{path}: {match[2]} is left out: {quote(str(error))}")
        return match[1]

    return re.sub(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)", inline, text)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    path = folder / "metrics.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        print(f"{path} is not shown, it is no JSON: {quote(str(error))}")
        return None


class App:
    """The handlers behind the page and the API: one model, one service."""

    def __init__(self, model_id: str):
        self.model_id = model_id
        self.pipe, self.folder = load_model(model_id)
        self.metadata = read_metadata(self.folder)
        self.service = SamplingService(self.pipe, load_finest(self.folder, self.metadata, self.pipe))
        self.class_names = self.service.class_names
        takes_whole = self.pipe.image_condition not in (
            "grey",
            "lower_resolution",
        )  # the page fits pictures to the model
        self.takes_pictures = self.service.shape[0] in (1, 3) and takes_whole
        self.name = Path(model_id).resolve().name if Path(model_id).is_dir() else model_id

    def words(self, asked: str | list[str] | None) -> dict[str, Any]:
        """What the visitor asks to see, as the service takes it: a prompt, or names of classes."""
        if self.service.takes_text:
            return {"prompt": asked or ""}
        return {"class_labels": (asked,) if isinstance(asked, str) else tuple(asked or ())}

    def start(self, request: gr.Request | None, seed: int | None, **wanted) -> Job:
        """Checks what was asked for and puts it in line; a bad value or a full line is told to the visitor."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        visitor = request.client.host if request else None
        try:
            return self.service.submit(Parameters(seed=seed, **wanted), visitor)
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        """All that is needed to make the same images again."""
        given = asdict(parameters)
        for name in ("image", "mask_image"):
            given[name] = given[name] and to_data_uri(given[name])
        return {
            "model": self.name,
            **given,
            **self.service.samplers[parameters.sampler].options_of(parameters.num_inference_steps),
            "class_labels": parameters.labels,
            "seeds": parameters.seeds if parameters.last_seed is None else [parameters.seed, parameters.last_seed],
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        }

    def pictures(self, image: Image.Image | None, mask_image: Image.Image | None = None) -> dict[str, Any]:
        """A visitor's picture and mask, as the service takes them."""
        channels, height, width = self.service.shape
        return {
            "image": image and fit(image, (width, height), "L" if channels == 1 else "RGB"),
            "mask_image": mask_image and fit(mask_image, (width, height), "L"),
        }

    def click(
        self,
        mode,
        asked,
        batch_size,
        num_inference_steps,
        sampler,
        guidance_scale,
        seed,
        editor,
        strength,
        last_seed,
        event: gr.EventData,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """One run of the page, by a click on Generate, a moved control or a link: yields (viewer, gallery, png, gif, json) as the
        denoising goes on."""
        keep = [gr.skip()] * 5
        moved = isinstance(event.target, gr.components.FormComponent)
        yield keep  # gradio can end what has yielded once: before that, nothing is put in line
        if moved and sampler != OWN_SAMPLER:  # only what is there at once follows the controls
            return

        def view(
            *what, **more
        ):  # an update, as skip is: gradio keeps a component for every plain value that follows one
            return gr.update(value=view_of(num_steps, *what, **more))

        num_steps, job, shown, frames = num_inference_steps, None, [], []
        wanted = {"batch_size": batch_size, "num_inference_steps": num_inference_steps, "sampler": sampler}
        wanted |= {"guidance_scale": guidance_scale}
        link = {**wanted, **self.words(asked), "seed": seed, "last_seed": last_seed if mode == STRIP else None}
        try:
            wanted |= self.asked_of_page(mode, asked, batch_size, editor, strength, last_seed)
            job = self.start(request, seed, **wanted)
            num_steps = self.service.num_timesteps_of(job.parameters)
            link = (
                {} if job.parameters.image else link | {"seed": job.parameters.seed}
            )  # a picture fits into no address
            if not moved:  # else the picture before stands until this one is there
                yield view(self.place(job), shown), *keep[1:]
            for new in job.frames():
                frames += new
                shown += [show_frame(frame) for frame in new]
                yield keep if moved else (view("denoising" if shown else self.place(job), shown), *keep[1:])
            with tempfile.TemporaryDirectory() as folder:
                paths = self.save(Path(folder), job, frames)
                gallery = [(enlarge(image, 8), text) for image, text in zip(job.images, captions(job.parameters))]
                buttons = [gr.DownloadButton(value=path) for path in paths]
                status = f"seed {job.parameters.seed}, {sampler}, {num_inference_steps} steps"
                yield view(status, shown, done=True, link=link), gr.Gallery(gallery, selected_index=None), *buttons
        except Exception:  # of any kind: gradio shows it, and the viewer must not look as if it went on
            yield view("not possible" if job is None else "failed", shown, done=True), *keep[1:]
            raise
        finally:  # reached as well when the visitor stops it or leaves
            if job is not None:
                self.service.cancel(job)

    def asked_of_page(self, mode, asked, batch_size, editor, strength, last_seed) -> dict[str, Any]:
        """What the page's controls mean: no class chosen is all in turn, for a strip the model's own choice."""
        words = self.words(
            [None if name == NO_CLASS else name for name in asked] if isinstance(asked, list) else asked
        )
        if not words.get("class_labels", True):
            own = (None,) if self.service.has_null_label else tuple(self.class_names[:1])
            words["class_labels"] = own if mode == STRIP else tuple(self.class_names[:batch_size])
        if mode == PICTURE:
            picture, mask = painted(editor)
            if picture is None:
                raise gr.Error("Drop a picture first, or take one of the results.", print_exception=False)
            return {**words, **self.pictures(picture, mask), "strength": strength}
        return {**words, "last_seed": last_seed} if mode == STRIP else words

    def restore(self, request: gr.Request) -> list:
        """The page's controls as the address has them, and whether it has any."""
        query = request.query_params
        if "seed" not in query:
            return [gr.skip()] * 9
        try:
            steps, guidance, seed = (query.get(name) for name in ("num_inference_steps", "guidance_scale", "seed"))
            last_seed = query.get("last_seed")
            asked = query.get("prompt", "") if self.service.takes_text else query.getlist("class_labels")
            return [
                NEW if last_seed is None else STRIP,
                asked,
                int(query.get("batch_size", 1)),
                query.get("sampler", OWN_SAMPLER),
                self.service.own.num_inference_steps if steps is None else int(steps),
                self.service.own.guidance_scale if guidance is None else float(guidance),
                int(seed),
                None if last_seed is None else int(last_seed),
                True,
            ]
        except ValueError as error:
            raise gr.Error(
                f"The address is not one of this page: {quote(str(error))}", print_exception=False
            ) from error

    def rule_of(self, name: str) -> tuple[int, float]:
        """Steps and guidance of a sampler."""
        sampler = self.service.samplers[name]
        return sampler.num_inference_steps, sampler.guidance_scale

    def edit(self, gallery: list, chosen: int | None) -> tuple:
        """Puts the chosen result, or the first, on the canvas, and asks for its class."""
        picture, label = gallery[chosen if chosen and chosen < len(gallery) else 0]
        return PICTURE, picture.resize((CANVAS, CANVAS), Image.Resampling.NEAREST), self.class_of(label)

    def class_of(self, caption: str) -> Any:
        return [caption] if caption in self.class_names else gr.skip()

    def reach(self, gallery: list, chosen: int | None, seed: int | None) -> tuple:
        """Goes from the first result to the chosen one, or the last, and to its class."""
        if seed is None:
            raise gr.Error("Set the seed first: the line under the picture tells it.", print_exception=False)
        index = chosen if chosen and chosen < len(gallery) else len(gallery) - 1
        return STRIP, seed + index, self.class_of(gallery[index][1])

    def opening(self, batch_size: int, seed: int, num_steps: int) -> dict[str, Any]:
        """What the viewer shows before the first click: the noise that the images will come out of."""
        start = Frame(0, self.service.num_timesteps, *self.service.draw_noise(batch_size, seed))
        return view_of(num_steps, "press Generate", [show_frame(start)], done=True)

    def place(self, job: Job) -> str:
        num_ahead = self.service.num_ahead(job)
        return {None: "starting", 0: "next in line"}.get(num_ahead, f"waiting for {num_ahead} before you")

    def save(self, folder: Path, job: Job, frames: list[Frame]) -> list[str]:
        return save_downloads(folder, job.images, [frame.x_t for frame in frames], self.describe(job.parameters))

    def generate(
        self,
        class_labels=(),
        batch_size=1,
        num_inference_steps=None,
        sampler=OWN_SAMPLER,
        guidance_scale=None,
        seed=None,
        prompt="",
        image=None,
        mask_image=None,
        strength=1.0,
        last_seed=None,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Samples images. Image i is of class_labels[i % len(class_labels)] (none: no class), or of the prompt, and depends on seed + i
        alone, not on batch_size; without a seed one is drawn. `image` is changed by `strength`, and repainted where mask_image is white.
        With last_seed the images go from that of `seed` to that of last_seed. Returns the images as one PNG,
        their denoising as GIF, and all that is needed to make them again."""
        keep = (None,) * 3  # not gr.skip(), an update: gradio keeps a component for every value that follows one
        yield keep  # at these points gradio ends it, when the client cancels or leaves: before that, nothing is put in line
        labels = (class_labels,) if isinstance(class_labels, str) else tuple(class_labels or ())
        wanted = {"class_labels": labels, "prompt": prompt or "", "batch_size": batch_size, "sampler": sampler}
        wanted |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "strength": strength}
        wanted |= {"last_seed": last_seed, **self.pictures(image, mask_image)}
        job = self.start(request, seed, **wanted)
        frames = []
        try:
            for new in job.frames():
                frames += new
                yield keep
            with tempfile.TemporaryDirectory() as folder:
                png, gif, _ = self.save(Path(folder), job, frames)
                yield png, gif, self.describe(job.parameters)
        finally:
            self.service.cancel(job)

    @cached_property
    def drawn(self) -> Image.Image:
        """A picture that the model drew, in at most 50 steps."""
        own = self.service.own
        steps, names = min(own.num_inference_steps, 50), tuple(self.class_names[-1:])
        job = self.service.submit(Parameters(names, 1, steps, guidance_scale=own.guidance_scale))
        for _ in job.frames():
            pass
        return job.images[0]

    def explain(self, image=None, timestep=0) -> tuple:
        """A picture (none: one that the model drew), the same with the noise of `timestep`, the x_0 that the model predicts from it, and
        the weights of image and noise in x_t."""
        check_range("timestep", timestep, 0, self.service.num_timesteps - 1, int)
        x_0 = to_x_0(self.drawn if image is None else self.pictures(image)["image"])
        pictures = [Image.fromarray(to_uint8(x)[0]) for x in (x_0, *self.service.noise_and_guess(x_0, timestep))]
        abar = self.pipe.scheduler.alphas_cumprod[timestep].item()
        return *pictures, {"timestep": timestep, "signal": abar**0.5, "noise": (1 - abar) ** 0.5}

    def show_explanation(self, image: Image.Image | None, timestep: int) -> str:
        """What `explain` gives, and the schedule, as HTML."""
        *pictures, _ = self.explain(image, timestep)
        alphas_cumprod = self.pipe.scheduler.alphas_cumprod.double().cpu().numpy()
        signal, noise = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
        names = (
            ("x<sub>0</sub>", "drawn by the model" if image is None else "yours"),
            ("x<sub>t</sub>", "noised"),
            ("x̂<sub>0</sub>", "predicted"),
        )
        figures = "".join(
            f'<figure><figcaption><b>{symbol}</b> {text}</figcaption><img src="{to_data_uri(picture)}" alt="{text}"></figure>'
            for (symbol, text), picture in zip(names, pictures, strict=True)
        )
        equation = (
            f'x<sub>{timestep}</sub> = <span class="signal">{signal[timestep]:.3f}</span> x<sub>0</sub> + '
            f'<span class="noise">{noise[timestep]:.3f}</span> ε'
        )
        return (
            f'<div class="explanation"><div class="pictures">{figures}</div><div class="schedule">'
            f'<p class="equation">{equation}</p>{draw_schedule(signal, noise, timestep)}</div></div>'
        )


def view_of(num_steps: int, status: str, shown: list, done: bool = False, link: dict | None = None) -> dict[str, Any]:
    """What the viewer shows. link: the parameters of the results below it, for the address."""
    link = link and {name: [str(x) for x in as_list(value)] for name, value in link.items()}
    return {"status": status, "done": done, "num_steps": num_steps, "frames": list(shown), "link": link}


def as_list(value) -> list | tuple:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


def captions(parameters: Parameters) -> list[str]:
    """What stands below each image."""
    if parameters.last_seed is not None:
        return [f"seed {parameters.seed}", *[""] * (parameters.batch_size - 2), f"seed {parameters.last_seed}"]
    return [label or f"seed {seed}" for label, seed in zip(parameters.labels, parameters.seeds)]


def show_frame(frame: Frame) -> list:
    return [frame.step, frame.timestep, to_data_uri(make_grid(frame.x_t)), to_data_uri(make_grid(frame.x_0))]


def to_x_0(image: Image.Image) -> torch.Tensor:
    """A picture as the model would see it: float32 (1, C, H, W) in [-1, 1]."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def build_condition(app: App) -> gr.components.Component:
    """What the images shall be of: the control that the model's words ask for, unseen where it takes none."""
    if app.service.takes_text:
        prompt = gr.Textbox(label="Prompt", placeholder="what to draw", max_length=MAX_PROMPT, elem_id="prompt")
        widget = app.metadata.get("widget")
        texts = [entry["text"] for entry in widget or [] if isinstance(entry, dict) and "text" in entry]
        if texts:
            gr.Examples([[text] for text in texts], prompt, label="For example")
        return prompt
    choices = [*app.class_names, *([NO_CLASS] if app.service.has_null_label else [])]
    return gr.Dropdown(
        choices,
        multiselect=True,
        label="Classes (none chosen: all in turn)",
        visible=bool(app.class_names),
        elem_id="classes",
    )


def build_modes(app: App) -> tuple[gr.Radio, list]:
    """Where the images start from, and the controls of each way."""
    modes = [NEW, *([PICTURE] if app.takes_pictures else []), STRIP]
    mode = gr.Radio(modes, value=NEW, label="Start")
    with gr.Group(visible=False) as picture:
        gr.Markdown("Paint over what shall be new. Without paint all of it changes.", padding=True)
        editor = gr.ImageEditor(
            show_label=False,
            type="pil",
            format="png",
            sources=("upload", "clipboard"),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=40, colors=["#e11d48"], color_mode="fixed"),
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            buttons=[],
            elem_id="editor",
        )
        strength = gr.Slider(0.05, 1, value=0.8, step=0.05, label="Strength (1: from noise alone)")
    with gr.Group(visible=False) as strip:
        last_seed = gr.Number(43, precision=0, label="Last seed: the other end", elem_id="last-seed")
    mode.change(
        lambda chosen: [gr.Group(visible=chosen == PICTURE), gr.Group(visible=chosen == STRIP)],
        mode,
        [picture, strip],
        **PRIVATE,
    )
    return mode, [editor, strength, last_seed]


class Controls(NamedTuple):
    """What `App.click` takes, in its order."""

    mode: gr.Radio
    asked: gr.components.Component
    batch_size: gr.Slider
    steps: gr.Number
    sampler: gr.Radio
    guidance: gr.Slider
    seed: gr.Number
    editor: gr.ImageEditor
    strength: gr.Slider
    last_seed: gr.Number


def build_controls(app: App) -> Controls:
    """The column on the left, without its buttons."""
    own = app.service.own
    asked = build_condition(app)
    most = MAX_EVALUATIONS // app.service.num_evaluations(
        Parameters(num_inference_steps=own.num_inference_steps, guidance_scale=own.guidance_scale)
    )
    batch_size = gr.Slider(1, MAX_IMAGES, value=min(10, most), step=1, precision=0, label="Images")
    sampler = gr.Radio(list(app.service.samplers), value=OWN_SAMPLER, label="Sampler")
    steps = gr.Number(own.num_inference_steps, precision=0, label="Steps", elem_id="steps")
    guidance = gr.Slider(
        0,
        max(MAX_GUIDANCE, own.guidance_scale),
        value=own.guidance_scale,
        step=0.1,
        label="Guidance (1: none)",
        visible=app.service.can_guide,
    )
    dice = gr.Button("⚄ roll", render=False)
    seed = gr.Number(42, precision=0, label="Seed (empty: draw one)", buttons=[dice], elem_id="seed")
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 2 ** 32)")
    mode, ways = build_modes(app)
    sampler.input(app.rule_of, sampler, [steps, guidance], **PRIVATE)
    if app.service.takes_text:
        asked.submit(None, js="() => { document.querySelector('#generate').click() }")
    controls = Controls(mode, asked, batch_size, steps, sampler, guidance, seed, *ways)
    unchecked([*controls[1:7], controls.strength, controls.last_seed])
    return controls


def build_results(app: App, controls: Controls) -> list[gr.components.Component]:
    """The gallery, its downloads, and the buttons that take an image of it to the controls; what `App.click` fills."""
    with gr.Column(elem_id="results"):
        gallery = gr.Gallery(
            show_label=False,
            format="png",
            type="pil",
            object_fit="contain",
            buttons=["download"],
            interactive=False,
            elem_classes="samples",
        )
        with gr.Row():
            downloads = [gr.DownloadButton(name, size="sm", min_width=80) for name in ("PNG", "GIF", "Parameters")]
        with gr.Row():
            edit = gr.Button("Change the chosen one", size="sm", min_width=140, visible=app.takes_pictures)
            reach = gr.Button("From the first to it", size="sm", min_width=140)
    chosen, c = gr.State(None), controls
    gallery.select(chosen_index, None, chosen, **PRIVATE)
    edit.click(app.edit, [gallery, chosen], [c.mode, c.editor, c.asked], **PRIVATE)
    reach.click(app.reach, [gallery, chosen, c.seed], [c.mode, c.last_seed, c.asked], **PRIVATE)
    return [gallery, *downloads]


def build_generate_tab(app: App, page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            c = build_controls(app)
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="generate", min_width=140)
                stop = gr.Button("Stop", elem_id="stop", min_width=100)
        with gr.Column(scale=5, min_width=320):
            viewer = gr.HTML(
                app.opening(c.batch_size.value, c.seed.value, c.steps.value),
                html_template=VIEWER,
                js_on_load=(HERE / "viewer.js").read_text(),
                elem_id="viewer",
            )
            results = build_results(app, c)
    linked = gr.State(False)
    followed = [c.asked, c.batch_size, c.steps, c.guidance, c.seed, c.strength, c.last_seed]
    run = gr.on(
        [go.click, linked.change, *(control.input for control in followed if app.service.follows)],
        app.click,
        list(c),
        [viewer, *results],
        **PRIVATE,
        trigger_mode="always_last" if app.service.follows else "once",
        concurrency_limit=None,  # the line is the service's, which tells each visitor the place in it
    )
    # When it is done, or stopped for good: before that, gradio takes no click on Generate.
    run.then(None, js="() => { document.dispatchEvent(new Event('ended')) }")
    stop.click(None, cancels=[run])
    restored = [c.mode, c.asked, c.batch_size, c.sampler, c.steps, c.guidance, c.seed, c.last_seed, linked]
    page.load(app.restore, None, restored, **PRIVATE)


def chosen_index(event: gr.SelectData) -> int:
    return event.index


def unchecked(components: list) -> None:
    """Leaves the checks of these values to the service, which says what is wrong; gradio would quote them in full."""
    for component in components:
        component.preprocess = lambda value: value


def build_explanation_tab(app: App, tab: gr.Tab) -> None:
    num_timesteps = app.service.num_timesteps
    gr.Markdown(
        EXPLANATION,
        latex_delimiters=[
            {"left": "$$", "right": "$$", "display": True},
            {"left": "$", "right": "$", "display": False},
        ],
    )
    with gr.Row():
        image = gr.Image(
            label="A picture of yours (none: one that the model drew)",
            type="pil",
            sources=("upload", "clipboard"),
            height=140,
            buttons=[],
            visible=app.takes_pictures,
        )
        timestep = gr.Slider(0, num_timesteps - 1, value=num_timesteps // 4, step=1, label="t", elem_id="t")
    unchecked([timestep])
    picture = gr.HTML(elem_id="explanation")
    gr.on(
        [tab.select, image.change, timestep.input],
        app.show_explanation,
        [image, timestep],
        picture,
        api_visibility="private",
        trigger_mode="always_last",
        show_progress="hidden",
        concurrency_limit=2,
    )


def build_api(app: App) -> None:
    """The endpoints. Their arguments are unseen components without bounds: the service checks, and says what is wrong."""
    own, pictures = app.service.own, {"type": "pil", "format": "png"}
    with gr.Row(visible=False):
        arguments = [
            gr.Dropdown(app.class_names, multiselect=True, label="class_labels"),
            gr.Number(1, label="batch_size"),
            gr.Number(own.num_inference_steps, label="num_inference_steps"),
            gr.Radio(list(app.service.samplers), value=OWN_SAMPLER, label="sampler"),
            gr.Number(own.guidance_scale, label="guidance_scale"),
            gr.Number(None, label="seed"),
            gr.Textbox("", label="prompt"),
            gr.Image(label="image", **pictures),
            gr.Image(label="mask_image", **pictures),
            gr.Number(1.0, label="strength"),
            gr.Number(None, label="last_seed"),
        ]
        unchecked([argument for argument in arguments if not isinstance(argument, gr.Image)])
        results = [gr.File(label="images"), gr.File(label="denoising"), gr.JSON(label="parameters")]
        gr.Button().click(app.generate, arguments, results, api_name="generate", concurrency_limit=None)
        arguments = [gr.Image(label="image", **pictures), gr.Number(0, label="timestep")]
        unchecked(arguments[1:])
        results = [gr.Image(label=label, **pictures) for label in ("x_0", "x_t", "predicted_x_0")]
        gr.Button().click(
            app.explain, arguments, [*results, gr.JSON(label="weights")], api_name="explain", concurrency_limit=2
        )


def introduce(app: App) -> str:
    """The page's first words, of this model and its data."""
    channels, height, width = app.service.shape
    datasets = as_list(app.metadata.get("datasets"))
    data = f", trained on {' and '.join(map(str, datasets))}" if datasets else ""
    colour = "grey images" if channels == 1 else "images"
    return (
        f"# {app.name}\nA diffusion model that draws {colour} of {width}x{height} pixels{data}. It starts from noise and removes it step "
        "by step: watch it, then scrub back through what it saw."
    )


def build_page(app: App) -> gr.Blocks:
    with gr.Blocks(title=app.name, delete_cache=(60, UPLOAD_SECONDS), analytics_enabled=False) as page:
        gr.Markdown(introduce(app), elem_classes="intro")
        with gr.Tab("Generate"):
            build_generate_tab(app, page)
        with gr.Tab("How it works") as tab:
            build_explanation_tab(app, tab)
        with gr.Tab("The model"):
            gr.Markdown(read_card(app.folder))
            if metrics := read_metrics(app.folder):
                with gr.Accordion("metrics.json: every figure and how it was measured", open=False):
                    gr.JSON(metrics, show_label=False)
        build_api(app)
    return page.queue(max_size=MAX_WAITING)


def no_such_endpoint(*_) -> PlainTextResponse:
    return PlainTextResponse("There is no such endpoint.", 404)


def launch(app: App, **options):
    """Serves the page; `options` go to gradio's launch."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        checkbox_label_gap="*spacing_sm",
        checkbox_label_padding="*spacing_sm *spacing_md",
        checkbox_label_text_size="*text_sm",
        block_title_text_color="*body_text_color",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
    page = build_page(app)
    return page.launch(
        theme=theme,
        app_kwargs={
            "middleware": [Middleware(Gate, page)],
            "exception_handlers": dict.fromkeys((KeyError, FnIndexInferError), no_such_endpoint),
        },
        max_file_size=MAX_UPLOAD,
        css_paths=HERE / "style.css",
        footer_links=["api"],
        ssr_mode=False,
        state_session_capacity=2 * MAX_WAITING,  # pages whose last picture is kept; by default 10,000
        max_threads=MAX_WAITING + MAX_BATCH + 8,  # who waits or is in the batch holds one; the next shall be refused
        run_history=False,
        show_error=True,  # also what gradio's own components refuse
        **options,
    )


if __name__ == "__main__":
    launch(App(MODEL_ID))
