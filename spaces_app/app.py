"""The Space: see a garment come out of noise.

`python app.py` serves the model in MODEL_ID (a Hub id or a folder saved by `DDPMImagePipeline`; by default the repository's
own checkpoint). Here are the page and the API; `service.py` samples, `pictures.py` draws, `viewer.js` scrubs.
"""

import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import gradio as gr
import numpy as np
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pictures import draw_schedule, enlarge, make_grid, save_downloads, to_data_uri
from PIL import Image
from pipeline_ddpm_image import DDPMImagePipeline
from service import (
    MAX_BATCH,
    MAX_EVALUATIONS,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_WAITING,
    OWN_SAMPLER,
    ZERO_GPU,
    Frame,
    Job,
    Parameters,
    SamplingService,
    to_uint8,
)

HERE = Path(__file__).resolve().parent
MODEL_ID = os.environ.get("MODEL_ID", str(HERE.parent / "checkpoints" / "ddpm-fashion-mnist"))
ALL_CLASSES, NO_CLASS = "All, in turn", "None: whatever comes"
REAL_IMAGES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

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
            f"MODEL_ID={model_id!r} is neither a folder here nor a model that can be had from the Hub: {error}"
        ) from None
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    if not hasattr(pipe, "predict_x_0"):  # stock, or saved by an earlier version
        if not pipe.components.keys() <= {"unet", "scheduler", "text_encoder", "tokenizer"}:
            name, parts = type(pipe).__name__, ", ".join(pipe.components)
            raise SystemExit(f"MODEL_ID={model_id!r} is a {name} of {parts}: supported are a unet and a scheduler.")
        pipe = DDPMImagePipeline.from_pipe(pipe)
    prediction_type = pipe.scheduler.config.get("prediction_type")
    if not hasattr(pipe.scheduler, "alphas_cumprod") or prediction_type not in ("epsilon", "sample", "v_prediction"):
        name = type(pipe.scheduler).__name__
        raise SystemExit(f"MODEL_ID={model_id!r}: {name} with prediction_type={prediction_type!r} tells no x_0.")
    return pipe.to("cuda" if torch.cuda.is_available() and not ZERO_GPU else "cpu"), folder


def read_card(folder: Path) -> str:
    """The model card without its metadata, its pictures inlined, as Markdown."""
    path = folder / "README.md"
    if not path.is_file():
        return "This model has no card."
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(), flags=re.DOTALL)

    def inline(match: re.Match) -> str:
        picture = folder / match[2]
        return f"![{match[1]}]({to_data_uri(Image.open(picture))})" if picture.is_file() else match[1]

    return re.sub(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)", inline, text)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    path = folder / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None


class App:
    """The handlers behind the page and the API: one model, one service."""

    def __init__(self, model_id: str):
        self.model_id = model_id
        self.pipe, self.folder = load_model(model_id)
        self.service = SamplingService(self.pipe)
        self.class_names = self.service.class_names
        self.num_steps = {name: steps for name, (steps, _) in self.service.samplers.items()}

    def start(self, class_labels, batch_size, num_inference_steps, sampler, guidance_scale, seed) -> Job:
        """Checks what was asked for and puts it in line; a bad value or a full line is told to the visitor."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        labels = (class_labels,) if isinstance(class_labels, str) else tuple(class_labels or ())
        try:
            return self.service.submit(
                Parameters(labels, batch_size, num_inference_steps, sampler, guidance_scale, seed)
            )
        except ValueError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        """All that is needed to make the same images again."""
        return {
            "model": self.model_id if not Path(self.model_id).is_dir() else Path(self.model_id).name,
            **asdict(parameters),
            **self.service.samplers[parameters.sampler][1],
            "class_labels": parameters.labels,
            "seeds": parameters.seeds,
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        }

    def click(self, class_name, batch_size, num_inference_steps, sampler, guidance_scale, seed) -> Iterator[tuple]:
        """One click on Generate: yields (viewer, gallery, png, gif, json) as the denoising goes on."""
        class_labels = {ALL_CLASSES: self.class_names[:batch_size], NO_CLASS: None}.get(class_name, class_name)
        view, keep = partial(view_of, num_inference_steps), [gr.skip()] * 4
        yield view("starting", []), *keep  # gradio can end what has yielded once: before that, nothing is put in line
        job, shown, frames = None, [], []
        try:
            job = self.start(class_labels, batch_size, num_inference_steps, sampler, guidance_scale, seed)
            view = partial(view_of, self.service.num_evaluations(num_inference_steps))
            yield view(self.place(job), shown), *keep
            for new in job.frames():
                frames += new
                shown += [show_frame(frame) for frame in new]
                yield view("denoising" if shown else self.place(job), shown), *keep
            with tempfile.TemporaryDirectory() as folder:
                paths = self.save(Path(folder), job, frames)
                captions = [
                    label or f"seed {seed}" for label, seed in zip(job.parameters.labels, job.parameters.seeds)
                ]
                gallery = [(enlarge(image, 8), text) for image, text in zip(job.images, captions, strict=True)]
                buttons = [gr.DownloadButton(value=path, interactive=True) for path in paths]
                status = f"seed {job.parameters.seed}, {sampler}, {num_inference_steps} steps"
                yield view(status, shown, done=True), gr.Gallery(gallery, visible=True), *buttons
        except Exception:  # of any kind: gradio shows it, and the viewer must not look as if it went on
            yield view("not possible" if job is None else "failed", shown, done=True), *keep
            raise
        finally:  # reached as well when the visitor stops it or leaves
            if job is not None:
                self.service.cancel(job)

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
        self, class_labels, batch_size, num_inference_steps, sampler, guidance_scale, seed=None
    ) -> Iterator[tuple]:
        """Samples images. Image i is of class_labels[i % len(class_labels)] (none: no class) and depends on seed + i alone,
        not on batch_size; without a seed one is drawn. Returns the images as one PNG, their denoising as GIF, and all that
        is needed to make them again."""
        keep = (None,) * 3  # not gr.skip(), an update: gradio keeps a component for every value that follows one
        yield keep  # at these points gradio ends it, when the client cancels or leaves: before that, nothing is put in line
        job = self.start(class_labels, batch_size, num_inference_steps, sampler, guidance_scale, seed)
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

    def explain(self, image: str, timestep: int) -> tuple:
        """A real image, the same with the noise of `timestep`, the x_0 that the model predicts from it, and the weights of
        image and noise in x_t."""
        config = self.pipe.unet.config
        x_0 = real_image(image, self.pipe.num_channels, config.sample_size)
        pictures = [Image.fromarray(to_uint8(x)[0]) for x in (x_0, *self.service.noise_and_guess(x_0, timestep))]
        abar = self.pipe.scheduler.alphas_cumprod[timestep].item()
        return *pictures, {"timestep": timestep, "signal": abar**0.5, "noise": (1 - abar) ** 0.5}

    def show_explanation(self, image: str, timestep: int) -> str:
        """What `explain` gives, and the schedule, as HTML."""
        *pictures, _ = self.explain(image, timestep)
        alphas_cumprod = self.pipe.scheduler.alphas_cumprod.double().cpu().numpy()
        signal, noise = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
        names = ("x<sub>0</sub>", "real"), ("x<sub>t</sub>", "noised"), ("x̂<sub>0</sub>", "predicted")
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


def view_of(num_steps: int, status: str, shown: list, done: bool = False) -> dict[str, Any]:
    """What the viewer shows."""
    return {"status": status, "done": done, "num_steps": num_steps, "frames": list(shown)}


def show_frame(frame: Frame) -> list:
    return [frame.step, frame.timestep, to_data_uri(make_grid(frame.x_t)), to_data_uri(make_grid(frame.x_0))]


def real_image(name: str, num_channels: int, size: int | tuple[int, int]) -> torch.Tensor:
    """One of the real images, as the model would see it: float32 (1, C, H, W) in [-1, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    sprite, left = Image.open(HERE / "garments.png"), 28 * REAL_IMAGES.index(name)
    image = sprite.crop((left, 0, left + 28, 28)).resize((width, height))
    x_0 = torch.from_numpy(np.asarray(image, np.float32)) / 127.5 - 1
    return x_0.expand(1, num_channels, height, width)


def build_generate_tab(app: App) -> None:
    choices = [ALL_CLASSES, *app.class_names] if app.class_names else []
    choices += [NO_CLASS] if app.service.has_null_label else []
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            class_name = gr.Dropdown(choices, value=choices[0], label="Class", filterable=len(choices) > 20)
            own_steps, scale = app.num_steps[OWN_SAMPLER], app.service.guidance_scale
            most = MAX_EVALUATIONS // app.service.num_evaluations(own_steps, scale)
            batch_size = gr.Slider(1, MAX_IMAGES, value=min(10, most), step=1, precision=0, label="Images")
            sampler = gr.Radio(list(app.num_steps), value=OWN_SAMPLER, label="Sampler")
            steps = gr.Slider(1, app.service.max_steps, value=own_steps, step=1, label="Steps")
            guidance = gr.Slider(
                0,
                max(MAX_GUIDANCE, scale),
                value=scale,
                step=0.1,
                label="Guidance (1: none)",
                visible=app.service.can_guide,
            )
            dice = gr.Button("⚄ roll", render=False)
            seed = gr.Number(42, precision=0, label="Seed (empty: draw one)", buttons=[dice], elem_id="seed")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="generate", min_width=140)
                stop = gr.Button("Stop", elem_id="stop", min_width=100)
        with gr.Column(scale=5, min_width=320):
            viewer = gr.HTML(
                app.opening(batch_size.value, seed.value, steps.value),
                html_template=VIEWER,
                js_on_load=(HERE / "viewer.js").read_text(),
                elem_id="viewer",
            )
            with gr.Row():
                downloads = [
                    gr.DownloadButton(name, interactive=False, size="sm", min_width=80)
                    for name in ("PNG", "GIF", "Parameters")
                ]
            gallery = gr.Gallery(
                show_label=False,
                format="png",
                object_fit="contain",
                buttons=["download"],
                visible=False,
                elem_classes="samples",
            )
    controls = [class_name, batch_size, steps, sampler, guidance, seed]
    run = go.click(
        app.click,
        controls,
        [viewer, gallery, *downloads],
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=None,  # the line is the service's, which tells each visitor the place in it
    )
    # When it is done, or stopped for good: before that, gradio takes no click on Generate.
    run.then(None, js="() => { document.dispatchEvent(new Event('ended')) }")
    stop.click(None, cancels=[run])
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 2 ** 32)")
    sampler.input(app.num_steps.get, sampler, steps, api_visibility="private", queue=False)


def build_explanation_tab(app: App) -> None:
    num_timesteps = app.service.num_timesteps
    gr.Markdown(
        EXPLANATION,
        latex_delimiters=[
            {"left": "$$", "right": "$$", "display": True},
            {"left": "$", "right": "$", "display": False},
        ],
    )
    with gr.Row():
        name = gr.Dropdown(REAL_IMAGES, value="Ankle boot", label="A real image", filterable=False)
        timestep = gr.Slider(0, num_timesteps - 1, value=num_timesteps // 4, step=1, label="t", elem_id="t")
    picture = gr.HTML(app.show_explanation(name.value, timestep.value), elem_id="explanation")
    gr.on(
        [name.input, timestep.input],
        app.show_explanation,
        [name, timestep],
        picture,
        api_visibility="private",
        trigger_mode="always_last",
        show_progress="hidden",
        concurrency_limit=2,
    )


def build_api(app: App) -> None:
    """The endpoints. Their arguments are unseen components without bounds: the service checks, and says what is wrong."""
    with gr.Row(visible=False):
        arguments = [
            gr.Dropdown(app.class_names, multiselect=True, label="class_labels"),
            gr.Number(1, label="batch_size"),
            gr.Number(app.num_steps[OWN_SAMPLER], label="num_inference_steps"),
            gr.Radio(list(app.num_steps), value=OWN_SAMPLER, label="sampler"),
            gr.Number(app.service.guidance_scale, label="guidance_scale"),
            gr.Number(None, label="seed"),
        ]
        results = [gr.File(label="images"), gr.File(label="denoising"), gr.JSON(label="parameters")]
        gr.Button().click(app.generate, arguments, results, api_name="generate", concurrency_limit=None)
        arguments = [gr.Dropdown(REAL_IMAGES, label="image"), gr.Number(0, label="timestep")]
        results = [gr.Image(label=label, format="png", type="pil") for label in ("x_0", "x_t", "predicted_x_0")]
        gr.Button().click(
            app.explain, arguments, [*results, gr.JSON(label="weights")], api_name="explain", concurrency_limit=2
        )


def build_page(app: App) -> gr.Blocks:
    with gr.Blocks(title="Images out of noise", delete_cache=(600, 1800), analytics_enabled=False) as page:
        gr.Markdown(
            "# Images out of noise\nA denoising diffusion model starts from pure noise and removes it step by step. "
            "Watch it, then scrub back through what it saw.",
            elem_classes="intro",
        )
        with gr.Tab("Generate"):
            build_generate_tab(app)
        with gr.Tab("How it works"):
            build_explanation_tab(app)
        with gr.Tab("The model"):
            gr.Markdown(read_card(app.folder))
            if metrics := read_metrics(app.folder):
                with gr.Accordion("metrics.json: every figure and how it was measured", open=False):
                    gr.JSON(metrics, show_label=False)
        build_api(app)
    return page.queue(max_size=MAX_WAITING)


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
    return build_page(app).launch(
        theme=theme,
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
