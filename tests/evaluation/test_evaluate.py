"""scripts/evaluate.py end to end on a tiny model: one or two ranks, the same figures; and what it refuses."""

import gzip
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from transformers import MobileNetV2Config, ResNetConfig, ResNetForImageClassification

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub, training
from ddpm_hf.cli import sample
from ddpm_hf.cli.evaluate import main
from ddpm_hf.data import load_image_dataset
from ddpm_hf.evaluation import EvaluationConfig, evaluate, measures, report
from ddpm_hf.evaluation import run as evaluation
from ddpm_hf.evaluation.run import Evaluation
from ddpm_hf.evaluation.samplers import SAMPLERS
from ddpm_hf.images import unit_to_uint8

ROOT = Path(__file__).parents[2]
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
OWN = [19, 13, 8, 4, 1]
SAMPLING = {"num_inference_steps": 5, "timesteps": OWN, "eta": 0.5, "solver_order": 2}
SAMPLING |= {"guidance_scale": 1.5, "guidance_interval": [3, 15]}
CHAIN = {"num_train_timesteps": 20, "beta_start": 0.005, "beta_end": 0.4}


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data set of three classes (grey, bright top, bright left), a classifier, a conditional and a stock model."""
    home = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    (home / "data").mkdir()
    for name, n in (("train", 70), ("t10k", 40)):
        labels = np.arange(n) % 3
        images = rng.normal(90, 25, (n, 8, 8))
        images[labels == 1, :4] += 100
        images[labels == 2, :, :4] += 100
        write_idx(home / "data" / f"{name}-images-idx3-ubyte.gz", images.clip(0, 255))
        write_idx(home / "data" / f"{name}-labels-idx1-ubyte.gz", labels)
    torch.manual_seed(0)
    names = {0: "0", 1: "1", 2: "2"}
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "image_size": 16}
    ResNetForImageClassification(ResNetConfig(num_channels=1, id2label=names, **sizes)).save_pretrained(
        home / "classifier"
    )
    unet = DDPMUNet2DModel(**UNET, num_class_embeds=4)
    hub.save(DDPMImagePipeline(unet, DDPMNoiseScheduler(**CHAIN), id2label=names), home / "model")
    hub.save(DDPMImagePipeline(unet, DDPMNoiseScheduler(**CHAIN), names, SAMPLING), home / "fast")
    DDPMPipeline(UNet2DModel(**UNET), DDPMScheduler(**CHAIN)).save_pretrained(home / "stock")
    unet = DDPMUNet2DModel(**UNET | {"out_channels": 2})
    scheduler = DDPMNoiseScheduler(**CHAIN, variance_type="learned_range")
    hub.save(DDPMImagePipeline(unet, scheduler), home / "learned")
    return home


def options(home: Path, **changes) -> dict:
    return {
        "dataset": str(home / "data"),
        "classifier": str(home / "classifier"),
        "cache_dir": str(home / "cache"),
        "num_images": 20,
        "seed": 0,
        "batch_size": 6,
        "num_inference_steps": 3,
        "mixed_precision": "no",
        "bpd_timesteps": 4,
    } | changes


@pytest.fixture(scope="module")
def one_rank(home) -> tuple[dict, dict]:
    return evaluate(str(home / "model"), EvaluationConfig(**options(home)))


def test_every_figure_stands_beside_its_floor_and_spread(one_rank):
    result, drawn = one_rank
    names = {"fid", "kid", "precision", "recall", "accuracy", "nearest_distance", "memorized_share"}
    assert set(result["metrics"]) == names | {"bits_per_dim"} and set(result["floors"]) == names
    assert set(result["spreads"]) == names | {"bits_per_dim"} and not result["unavailable"]
    assert all(np.isfinite(list(result[kind].values())).all() for kind in ("metrics", "floors", "spreads"))
    assert result["floors"]["fid"] < result["metrics"]["fid"]  # the untrained model is worse than real images are
    assert result["spreads"]["fid"] > 0 and result["details"]["seconds_per_image"] > 0
    for kind in ("accuracy_of_class", "floor_of_accuracy_of_class"):
        assert set(result["details"][kind]) == {"0", "1", "2"}
    assert list(drawn["samples"]) == list(drawn["neighbors"]) == ["0", "1", "2"]
    assert sum(map(len, drawn["samples"].values())) == 20 and drawn["neighbors"]["1"].shape == (3, 2, 1, 8, 8)
    json.dumps(result, allow_nan=False)


def test_settings_are_enough_to_repeat_it(home, one_rank):
    settings = one_rank[0]["settings"]
    known = {key: settings[key] for key in options(home) if key != "cache_dir"}
    repeated, _ = evaluate(settings["model"], EvaluationConfig(**known, cache_dir=str(home / "empty")))
    assert repeated["metrics"] == one_rank[0]["metrics"] and repeated["floors"] == one_rank[0]["floors"]
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == (3, 1.0) and settings["weights"]
    assert settings["data"]["train"]["num_images"] == 70 and len(settings["data"]["train"]["fingerprint"]) >= 16


def test_two_ranks_find_the_values_of_one(home, one_rank):
    """The script under `accelerate launch` on two CPU ranks: the metrics are one rank's, and only rank 0 speaks."""
    arguments = [str(home / "model"), "--output", str(home / "two" / "metrics.json")]
    for name, value in options(home, cache_dir=str(home / "cache_of_two")).items():  # real images are measured anew
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *launch, str(ROOT / "scripts" / "evaluate.py"), *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((home / "two" / "metrics.json").read_text())
    assert result["settings"]["num_processes"] == 2 and one_rank[0]["settings"]["num_processes"] == 1
    for kind in ("metrics", "floors", "spreads"):
        assert result[kind] == pytest.approx(one_rank[0][kind], rel=1e-6)
    assert run.stdout.count("bits_per_dim") == 1 and result["command"].startswith("accelerate launch ")
    assert Image.open(home / "two" / "report.png").width > 1000


def samples(evaluation: Evaluation) -> torch.Tensor:
    return evaluation.samples(*evaluation.points[0])[0]


def test_samples_depend_on_the_seed_and_their_number_not_on_the_batch(home):
    def draw(**changes):
        config = EvaluationConfig(**options(home, metrics=["memorization"], **changes))
        return samples(Evaluation(str(home / "model"), config))

    whole, parts = draw(batch_size=20), draw(batch_size=7)
    assert (whole.int() - parts.int()).abs().max() <= 1  # another batch is another order of summation
    assert not torch.equal(whole, draw(seed=1, batch_size=20))
    assert torch.equal(parts[:14], draw(num_images=14, batch_size=7))


@pytest.mark.parametrize(
    ("model", "given", "resolved"),
    [
        ("fast", {}, (5, OWN, 0.5, 2, 1.5, [3, 15])),
        ("fast", {"num_inference_steps": 5, "guidance_scale": 1.5}, (5, OWN, 0.5, 2, 1.5, [3, 15])),
        ("fast", {"num_inference_steps": 4}, (4, None, None, None, 1.5, [3, 15])),
        ("fast", {"timesteps": [18, 6], "guidance_interval": [0, 9]}, (2, [18, 6], None, None, 1.5, [0, 9])),
        ("fast", {"eta": 0.0, "guidance_scale": 1}, (5, None, 0.0, None, 1, None)),
        ("fast", {"sampler": "ddpm"}, (5, None, None, None, 1.5, [3, 15])),
        ("fast", {"sampler": "sde-dpmsolver++", "num_inference_steps": 4}, (4, None, 1.0, 2, 1.5, [3, 15])),
        ("fast", {"sampler": "unipc"}, (5, None, None, None, 1.5, [3, 15])),
        ("model", {}, (20, None, None, None, 1.0, None)),
        ("stock", {}, (20, None, None, None, 1.0, None)),
    ],
)
def test_how_samples_are_drawn_is_the_models_own_way_and_written_down(home, model, given, resolved):
    asked = {"num_inference_steps": None, "metrics": ["memorization"]} | given
    measured = Evaluation(str(home / model), EvaluationConfig(**options(home, **asked)))
    settings = measured._settings()
    assert tuple(settings[name] for name in evaluation.SAMPLING) == resolved
    if "sampler" not in given:
        generators = [torch.Generator().manual_seed(evaluation.sample_key(0, i)) for i in range(20)]
        labels = measured.test.labels[measured.subset] if measured.pipeline.takes else None
        words = {name: value for name, value in given.items() if name != "sampler"}
        own = hub.load(str(home / model))(
            20, generators, class_labels=labels, output_type="pt", autocast=False, **words
        ).images
        assert (unit_to_uint8(own).int() - samples(measured).int()).abs().max() <= 1


@pytest.mark.parametrize("mixed_precision", ["bf16", None])
def test_bf16_is_near_to_float32(home, one_rank, mixed_precision, monkeypatch):
    monkeypatch.setattr("ddpm_hf.hardware.has_bfloat16", lambda device: True)  # of whatever CPU this is
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    config = EvaluationConfig(**options(home, metrics=["bpd", "memorization"], mixed_precision=mixed_precision))
    half, drawn = evaluate(str(home / "model"), config)
    assert half["settings"]["mixed_precision"] == "bf16"
    figures = [result["metrics"]["bits_per_dim"] for result in (half, one_rank[0])]
    assert figures[0] != figures[1] and figures[0] == pytest.approx(figures[1], rel=1e-2)
    difference = torch.cat([drawn["samples"][i].int() - one_rank[1]["samples"][i].int() for i in "012"]).abs()
    assert 0 < difference.max() and difference.float().mean() < 2


@pytest.mark.parametrize("phase", ["bpd", "samples"])
def test_an_evaluation_that_was_cut_off_goes_on(home, one_rank, monkeypatch, tmp_path, phase):
    config = EvaluationConfig(**options(home, metrics=["bpd", "fid"], cache_dir=str(tmp_path)))
    owner, name = (evaluation, "variational_bound") if phase == "bpd" else (DDPMImagePipeline, "__call__")
    real, calls = getattr(owner, name), []

    def cut_off_in_the_third_batch(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, cut_off_in_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(home / "model"), config)
    result, _ = evaluate(str(home / "model"), config)
    assert len(calls) == 3 + 2  # 20 images in batches of 6: the first two were kept
    assert result["metrics"] == {name: one_rank[0]["metrics"][name] for name in ("bits_per_dim", "fid")}
    bound = result["details"]["bits_per_dim"]
    assert bound["prior"] + np.dot(bound["weights"], bound["per_timestep"]) == pytest.approx(bound["bits_per_dim"])


def test_what_a_result_depends_on_names_its_file(monkeypatch):
    paths = [measures.cache_path("cache", "bound", *what) for what in ((1, {"a": 2}), (1, {"a": 3}))]
    monkeypatch.setattr(torch, "__version__", "another")
    paths += [measures.cache_path("cache", "bound", 1, {"a": 2}), measures.cache_path("cache", "measure", 1, {"a": 2})]
    assert len(set(paths)) == 4 and {path.parent for path in paths} == {Path("cache")}


def test_real_images_are_measured_once(home, one_rank):
    again = Evaluation(str(home / "model"), EvaluationConfig(**options(home, metrics=["fid", "memorization"])))

    def never(_):
        raise AssertionError("measured again")

    again.measures = {name: measure._replace(function=never) for name, measure in again.measures.items()}
    real = again.real_images()
    assert real["classifier"].train["features"].shape == (70, 12) and real["neighbors"].test["distances"].shape == (
        40,
    )


def test_real_images_as_samples_reach_the_floor(home, monkeypatch, tmp_path):
    """A "model" that answers with the floor's own test images is given the floor's figures: both take one path."""
    metrics = ["fid", "kid", "precision_recall", "accuracy", "memorization"]
    perfect = Evaluation(
        str(home / "model"), EvaluationConfig(**options(home, metrics=metrics, cache_dir=str(tmp_path)))
    )
    drawn = [int(i) for i in perfect.subset]

    def draw(self, batch_size, generator, output_type, class_labels, **_):
        indices = [drawn.pop(0) for _ in range(batch_size)]
        assert perfect.test.labels[indices].tolist() == class_labels.tolist()
        return SimpleNamespace(images=perfect.test[indices]["x_0"] / 2 + 0.5)

    monkeypatch.setattr(DDPMImagePipeline, "__call__", draw)
    result, _ = perfect.run()
    assert result["metrics"] == pytest.approx(result["floors"], rel=1e-5, abs=1e-9)
    assert result["details"]["accuracy_of_class"] == result["details"]["floor_of_accuracy_of_class"]


def test_a_stock_pipeline_is_measured_as_it_is(home):
    result, _ = evaluate(str(home / "stock"), EvaluationConfig(**options(home, seed=3, bpd_timesteps=0)))
    assert "accuracy" not in result["metrics"] and not result["unavailable"]
    assert len(result["details"]["bits_per_dim"]["per_timestep"]) == 20  # exact: all of the chain


def test_a_colour_pipeline_of_google_is_measured(home, tmp_path):
    """The shape of google/ddpm-cifar10-32, saved by diffusers: three channels, no classes, published attention names."""
    for i in range(30):
        path = tmp_path / "data" / ("train" if i < 20 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    config = {"in_channels": 3, "out_channels": 3, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
    config |= {"attention_head_dim": None, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    config |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(**UNET | config)
    DDPMPipeline(unet, DDPMScheduler(**CHAIN, variance_type="fixed_large")).save_pretrained(tmp_path / "google")
    changes = {"dataset": str(tmp_path / "data"), "num_images": 10, "metrics": ["bpd", "memorization"]}
    result, drawn = evaluate(str(tmp_path / "google"), EvaluationConfig(**options(home, **changes)))
    assert np.isfinite(list(result["metrics"].values())).all() and drawn["samples"][""].shape == (10, 3, 8, 8)
    report.save_report(tmp_path / "report.png", result, drawn)
    assert Image.open(tmp_path / "report.png").width > 1000


def save_images(folder: Path, num_images: int) -> None:
    """Grey images of three classes, as a user has them: no split is set apart."""
    for i in range(num_images):
        path = folder / str(i % 3) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def test_a_set_without_a_test_split_is_measured_on_what_training_holds_out(home, tmp_path, capsys):
    save_images(tmp_path / "photos", 120)
    changes = {"dataset": str(tmp_path / "photos"), "num_images": None, "metrics": ["bpd", "memorization", "accuracy"]}
    result, _ = evaluate(str(home / "model"), EvaluationConfig(**options(home, **changes)))
    assert [data["num_images"] for data in result["settings"]["data"].values()] == [108, 12]
    assert result["settings"]["num_images"] == 12 and result["metrics"]["nearest_distance"] > 0
    assert "12 images of 8 x 8; 3 classes (0, 1, 2); every tenth image of 'train'" in capsys.readouterr().out
    save_images(tmp_path / "few", 60)
    with pytest.raises(ValueError, match=r"there are 6 test images, .* 10 or more"):
        evaluate(
            str(home / "model"), EvaluationConfig(**options(home, **changes | {"dataset": str(tmp_path / "few")}))
        )


def test_a_model_of_text_is_asked_for_the_captions_of_test_images(home, tmp_path, text_parts):
    save_images(tmp_path / "data", 120)
    paths = sorted(tmp_path.glob("data/*/*.png"))
    rows = [{"file_name": str(path.relative_to(tmp_path / "data")), "text": f"a {path.parent.name}"} for path in paths]
    rows = [row | {"kind": path.parent.name} for row, path in zip(rows, paths)]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    unet = DDPMUNet2DModel(**UNET, class_embed_type="identity", time_embedding_dim=16)
    pipe = DDPMImagePipeline(unet, DDPMNoiseScheduler(**CHAIN), **text_parts)
    hub.save(pipe, tmp_path / "text")
    changes = {"dataset": str(tmp_path / "data"), "num_images": 12, "guidance_scale": 2.0, "batch_size": 12}
    measured = Evaluation(str(tmp_path / "text"), EvaluationConfig(**options(home, **changes)))
    assert measured.metrics == ["bpd", "kid", "precision_recall", "memorization"] and "fid" in measured.unavailable
    captions = [measured.test.captions[i][0] for i in measured.subset]
    generators = [torch.Generator().manual_seed(evaluation.sample_key(0, i)) for i in range(12)]
    own = hub.load(tmp_path / "text")(
        12, generators, 3, "pt", prompt=captions, guidance_scale=2.0, autocast=False
    ).images
    assert (unit_to_uint8(own).int() - samples(measured).int()).abs().max() <= 1
    result, drawn = measured.run()
    assert np.isfinite(list(result["metrics"].values())).all() and list(drawn["samples"]) == [""]
    changes |= {"metrics": ["accuracy"], "label_column": "kind"}  # whether the picture is of the prompt's kind
    result, _ = evaluate(str(tmp_path / "text"), EvaluationConfig(**options(home, **changes)))
    assert set(result["metrics"]) == {"accuracy"} and result["floors"]["accuracy"] > 0.3


def test_a_model_of_condition_images_is_asked_for_those_of_test_images(home, tmp_path):
    unet = DDPMUNet2DModel(**UNET | {"in_channels": 3}, num_class_embeds=4)
    names = {0: "0", 1: "1", 2: "2"}
    hub.save(DDPMImagePipeline(unet, DDPMNoiseScheduler(**CHAIN), names, image_condition="masked"), tmp_path / "model")
    changes = {"metrics": ["bpd", "accuracy", "memorization"], "batch_size": 20, "guidance_scale": 2.0}
    measured = Evaluation(str(tmp_path / "model"), EvaluationConfig(**options(home, **changes)))
    asked = measured.test[measured.subset.tolist()]
    words = {name: asked[name] for name in ("class_labels", "condition_image")}
    generators = [torch.Generator().manual_seed(evaluation.sample_key(0, i)) for i in range(20)]
    own = hub.load(tmp_path / "model")(20, generators, 3, "pt", guidance_scale=2.0, autocast=False, **words).images
    assert (unit_to_uint8(own).int() - samples(measured).int()).abs().max() <= 1
    result, _ = measured.run()
    assert np.isfinite(list(result["metrics"].values())).all()


def test_a_model_with_learned_variance_is_measured(home):
    result, _ = evaluate(str(home / "learned"), EvaluationConfig(**options(home, metrics=["bpd", "memorization"])))
    assert set(result["metrics"]) == {"bits_per_dim", "nearest_distance", "memorized_share"}


@pytest.mark.parametrize("model", ["model", "learned"])
def test_sweep_measures_every_sampler(home, tmp_path, model):
    config = EvaluationConfig(
        **options(home, num_inference_steps=None, sweep=[f"{name}:{20 if name == 'ddpm' else 4}" for name in SAMPLERS])
    )
    result, _ = evaluate(str(home / model), config)
    assert [point["sampler"] for point in result["sweep"]] == list(SAMPLERS)
    assert len({point["fid"] for point in result["sweep"]}) == len(SAMPLERS)
    assert all(point["spread"] > 0 for point in result["sweep"]) and result["floors"]["fid"] > 0
    assert all(point["seconds_per_image"] > 0 for point in result["sweep"])
    report.save_sweep(tmp_path / "sweep.png", result)
    assert Image.open(tmp_path / "sweep.png").width > 100
    assert "dpmsolver++" in report.format_table(result)


@pytest.fixture
def script(tmp_path):
    """Call ddpm-evaluate as the command line does -> exit code; metrics.json lands in tmp_path."""

    def call(model, output=tmp_path / "metrics.json", **values):
        argv = [str(model), "--output", str(output)]
        for name, value in values.items():
            if value is not None:
                argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return main(argv)

    return call


def test_a_default_metric_that_is_unavailable_is_named_and_the_rest_is_computed(
    home, script, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(evaluation, "CLASSIFIER", home / "nowhere")
    values = options(home, bpd_timesteps=2)
    del values["classifier"]
    assert script(home / "model", **values) == 3
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert set(result["metrics"]) == {"bits_per_dim", "nearest_distance", "memorized_share"}
    assert set(result["unavailable"]) == {"fid", "kid", "precision_recall", "accuracy"}
    assert "fid: not measured: classifier=" in capsys.readouterr().out


def test_the_card_of_a_saved_model_tells_its_figures(home, script, tmp_path):
    trained = {"dataset": "ylecun/mnist"}  # the card shall name what was measured on
    model = hub.save(hub.load(str(home / "model")), tmp_path / "mine", train_config=trained)
    assert script(model, model / "metrics.json", **options(home, metrics=["bpd", "fid"])) == 0
    result, card = json.loads((model / "metrics.json").read_text()), (model / "README.md").read_text()
    assert re.search(rf"\| fid \| {result['metrics']['fid']:.4g} \| {result['floors']['fid']:.4g} \| [\d.]+ \|", card)
    assert re.search(rf"\| bits_per_dim \| {result['metrics']['bits_per_dim']:.4g} \| none \| [\d.]+ \|\n", card)
    assert "name: fid, features of classifier" in card and "name: bits_per_dim\n" in card
    assert "      name: data\n      type: data\n" in card and "datasets:\n- ylecun/mnist\n" in card
    assert "20 samples of seed 0, drawn in 3 steps" in card
    assert "Bits/dim are the bound of 20 test images, with\n4 timesteps of each, an estimate of the sum." in card
    assert "`python scripts/evaluate.py mine --output metrics.json" in card and str(home) not in card + json.dumps(
        result
    )
    assert (model / "report.png").exists() and hub.load(str(model)).unet is not None
    assert script(model, model / "metrics.json", **options(home, metrics=["bpd"], bpd_timesteps=0)) == 0
    card = (model / "README.md").read_text()
    assert "20 test images, with\nevery timestep of each: all of the sum." in card
    assert re.search(
        r"\| metric \| value \| spread \|\n\|---\|---\|---\|\n\| bits_per_dim \| [\d.]+ \| [\d.]+ \|\n\n", card
    )
    assert "samples of seed" not in card
    before = (model / "metrics.json").read_text()
    assert script(model, model / "metrics.json", **options(home, num_inference_steps=None), sweep="ddim:4") == 2
    assert (model / "metrics.json").read_text() == before


def test_the_command_repeats_the_measurement_under_another_launcher(home, script, tmp_path, monkeypatch):
    values = options(home, metrics=["memorization"], num_images=10)
    del values["mixed_precision"], values["num_inference_steps"]
    monkeypatch.setattr("ddpm_hf.hardware.has_bfloat16", lambda device: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert script(home / "fast", **values) == 0
    first = json.loads((tmp_path / "metrics.json").read_text())
    *program, script_path = shlex.split(first["command"])[:3]
    assert (program, script_path) == (["accelerate", "launch"], "scripts/evaluate.py")
    assert first["settings"]["mixed_precision"] == "bf16"
    resolved = "--num_inference_steps 5 --timesteps 19 13 8 4 1 --eta 0.5 --solver_order 2 --guidance_scale 1.5"
    assert f"{resolved} --guidance_interval 3 15" in first["command"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # of a launch without a config
    main(shlex.split(first["command"])[3:])
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert all(again[name] == first[name] for name in ("metrics", "settings", "command"))


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("evaluate.py", ["./nowhere"], 2),
        ("sample.py", ["./nowhere"], 2),
        ("train.py", ["--dataset", "./nowhere", "--output_dir", "nowhere"], 2),
        ("train_classifier.py", ["--dataset", "./nowhere", "--output", "classifier"], 2),
        ("train_classifier.py", ["--dataset", "nowhere", "--output", "classifier", "--num_epochs", "0"], 2),
        ("train_classifier.py", ["--dataset", "nowhere", "--output", "classifier", "--image_size", "8", "8", "8"], 2),
        ("train_classifier.py", ["--dataset", "nowhere", "--output", "classifier", "--seed", "1" * 23], 2),
        ("train.py", [], 1),
    ],
)
def test_scripts_tell_errors_in_one_way(name, arguments, code, monkeypatch, tmp_path, capsys):
    def diverges(_):
        raise FloatingPointError("not a number")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if code == 1:
        monkeypatch.setattr(training, "train", diverges)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    told = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == code and re.match(
        "error: .*(nowhere|not a number|num_epochs=0|image_size=|seed=1)", told
    ), told


def test_the_classifier_is_tested_on_what_training_holds_out_of_the_columns_that_it_is_given(monkeypatch, capsys):
    loaded = []

    def load(dataset, **options):
        loaded.append(options)
        return SimpleNamespace(class_names=None, describe=lambda: "no classes")

    monkeypatch.setattr("ddpm_hf.data.load_image_dataset", load)
    given = ["--image_column", "photo", "--label_column", "kind", "--skip_undecodable", "True"]
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", "--output", "here", "--dataset", "mine", *given])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts" / "train_classifier.py"), run_name="__main__")
    told = capsys.readouterr()
    assert told.out == "train: no classes\ntest: no classes\n"
    assert told.err.splitlines()[-1].startswith("error: dataset='mine' has the classes None: two")
    shape = {"num_channels": 1, "image_size": (28, 28)}
    columns = {"image_column": "photo", "label_column": "kind", "skip_undecodable": True}
    assert loaded == [{"split": split, **columns, **shape} for split in ("train", "test")]


@pytest.mark.parametrize(("names", "size"), [("abcdefghijkl", [12]), ("ab", [8, 12])])
def test_a_classifier_of_colour_images_of_any_size_and_number_of_classes_measures_them(
    monkeypatch, tmp_path, names, size
):
    height, width = (size * 2)[:2]
    for split, n in (("train", 48), ("test", 24)):
        for i in range(n):
            path = tmp_path / "data" / split / names[i % len(names)] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    arguments = {"dataset": tmp_path / "data", "output": tmp_path / "classifier", "num_channels": 3, "num_epochs": 1}
    argv = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *argv, "--image_size", *map(str, size)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "scripts" / "train_classifier.py"), run_name="__main__")
    train = load_image_dataset(str(tmp_path / "data"), num_channels=3, image_size=(height, width))
    measure = measures.load_classifier(str(tmp_path / "classifier"), train, torch.device("cpu"))
    seen = measure.function(measures.pixels(train, range(5)))
    assert seen["features"].shape == (5, measure.num_features) and seen["logits"].shape == (5, len(names))
    assert measure.class_names == train.class_names == list(names)
    assert f"{len(names)} classes" in (tmp_path / "classifier" / "README.md").read_text()


def test_samples_are_drawn_on_any_accelerator(home, monkeypatch, capsys):
    def to(pipe, device):
        raise ValueError(f"moved to {device}")

    monkeypatch.setattr(accelerate, "PartialState", lambda: SimpleNamespace(device=torch.device("xpu")))
    monkeypatch.setattr(DDPMImagePipeline, "to", to)
    assert sample.main([str(home / "model")]) == 2 and "moved to xpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("model", {"metrics": ["fid", "is"]}, r"metrics has \['is'\]: choose from \['bpd', 'fid'"),
        ("model", {"num_images": 12, "metrics": ["fid"]}, "num_images=12 is too small: .* from 13 images on"),
        ("model", {"num_images": 41}, "num_images=41: there are 40 test images"),
        ("model", {"num_images": 9}, "num_images=9 must be at least 10"),
        ("model", {"seed": -1}, "seed=-1 must be at least 0"),
        ("model", {"sampler": "euler"}, "sampler='euler': choose from"),
        ("model", {"mixed_precision": "fp8"}, "mixed_precision='fp8': choose from"),
        ("model", {"mixed_precision": "fp16"}, "mixed_precision='fp16' needs a GPU"),
        ("model", {"bpd_timesteps": 21, "metrics": ["bpd"]}, "num_timesteps=21: choose 2 .* to 20"),
        (
            "model",
            {"sweep": ["ddim:4"], "eta": 0.5},
            r"sweep: each point .* leave out \['num_inference_steps', 'eta'\]",
        ),
        ("model", {"sweep": ["ddim"], "num_inference_steps": None}, "sweep has 'ddim': give SAMPLER:STEPS"),
        (
            "model",
            {"sweep": ["ddim:4", "ddim:21"], "num_inference_steps": None},
            "num_inference_steps=21: the model's chain has 20",
        ),
        ("model", {"num_inference_steps": None, "timesteps": [30, 3]}, r"timesteps=\[30, 3\].*within 0 .. 19"),
        ("model", {"num_inference_steps": -1}, "num_inference_steps=-1 must be .* at least 1"),
        ("model", {"eta": 1.5}, "eta=1.5 must be from 0 to 1"),
        ("model", {"eta": "nan"}, "eta=nan must be from 0 to 1"),
        ("model", {"guidance_scale": "nan"}, "guidance_scale=nan must be a number of at least 0"),
        ("model", {"sampler": "unipc", "solver_order": 2}, "solver_order=2: UniPCMultistepScheduler takes none"),
        (
            "model",
            {"metrics": ["fid"], "classifier": "./no"},
            "fid cannot be measured: classifier='./no' cannot be loaded",
        ),
        ("model", {"classifier": "./no"}, "classifier='./no' cannot be loaded"),
        ("stock", {"metrics": ["accuracy"]}, "metrics has 'accuracy': model=.*stock' takes no condition"),
        ("stock", {"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ("stock", {"sweep": ["ddim:4"], "num_inference_steps": None, "classifier": "./no"}, "fid cannot be measured"),
        ("nowhere", {}, "nowhere"),
        ("model", {"output": "/"}, "output='/' is a folder"),
        ("model", {"output": "/dev/null/metrics.json"}, "/dev/null"),
        ("model", {"dataset": "./nowhere"}, "dataset='./nowhere': there is no such folder"),
    ],
)
def test_refusals(home, script, capsys, tmp_path, model, changes, message):
    assert script(home / model, **options(home, **changes)) == 2
    error = capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
    assert re.search(message, error.replace("\n", " ")), error


def test_a_colour_model_and_grey_images_are_refused(home, tmp_path):
    unet = UNet2DModel(**UNET | {"in_channels": 3, "out_channels": 3})
    DDPMPipeline(unet, DDPMScheduler(**CHAIN)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"draws colour images, but those of dataset=.* are grey"):
        evaluate(str(tmp_path), EvaluationConfig(**options(home)))


@pytest.mark.parametrize(
    ("names", "num_class_embeds", "message"),
    [
        ("012", 4, None),
        ("0123", 5, None),  # the data set lacks the last
        ("01", 3, r"has the classes \['0', '1'\]; dataset=.* has \['0', '1', '2'\]"),
        ("abc", 4, r"has the classes \['a', 'b', 'c'\]; dataset=.* has \['0', '1', '2'\]"),
        ("", 3, None),  # a stock model names none
        ("", 2, r"has the classes 2 without names; dataset=.* has \['0', '1', '2'\]"),
    ],
)
def test_a_model_of_other_classes_is_refused(home, tmp_path, names, num_class_embeds, message):
    unet = DDPMUNet2DModel(**UNET, num_class_embeds=num_class_embeds)
    hub.save(DDPMImagePipeline(unet, DDPMNoiseScheduler(**CHAIN), id2label=dict(enumerate(names))), tmp_path)
    config = EvaluationConfig(**options(home, metrics=["bpd"]))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        Evaluation(str(tmp_path), config)
    if not names and not message:
        with pytest.raises(ValueError, match=r"guidance_scale=2.0: this model has no null label"):
            Evaluation(str(tmp_path), replace(config, guidance_scale=2.0))


def test_a_model_is_measured_on_what_it_was_trained_on(home, script, remote, tmp_path, monkeypatch, capsys):
    values = options(home, metrics=["memorization"])
    del values["dataset"]
    trained = {"dataset": str(home / "data")}  # of which everybody is shown "data"
    run = hub.save(hub.load(str(home / "model")), tmp_path / "run", train_config=trained)
    assert script(run, **values) == 2
    assert "the model was trained on 'data', which is no folder here and no Hub id" in capsys.readouterr().err
    (run / "run.yaml").write_text(yaml.safe_dump(trained))
    assert script(run, **values) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["dataset"] == str(home / "data")
    (run / "run.yaml").unlink()
    monkeypatch.chdir(home)
    hub.push(run, "alice/trained", revision="of-data")
    for model, revision in ((str(run), None), ("alice/trained", "of-data")):
        config = EvaluationConfig(**values, revision=revision)
        assert Evaluation(model, config).config.dataset == "data"


def test_the_data_set_that_is_taken(tmp_path):
    with pytest.raises(ValueError, match="does not tell what it was trained on; name the data set"):
        EvaluationConfig().with_data_of(tmp_path)
    trained = {"dataset": "uoft-cs/cifar100", "image_column": None, "label_column": "coarse_label"}
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(trained))
    for given, taken in (
        ({}, ("uoft-cs/cifar100", "coarse_label")),
        ({"label_column": "fine_label"}, ("uoft-cs/cifar100", "fine_label")),
        ({"dataset": "ylecun/mnist"}, ("ylecun/mnist", None)),
    ):
        config = EvaluationConfig(**given).with_data_of(tmp_path)
        assert (config.dataset, config.label_column) == taken


@pytest.mark.parametrize(("config", "missing"), [(ResNetConfig, "image_size"), (MobileNetV2Config, "hidden_sizes")])
def test_a_classifier_that_does_not_tell_its_sizes_is_refused(home, monkeypatch, config, missing):
    classifier = SimpleNamespace(config=config(num_channels=1), to=lambda device: classifier, eval=lambda: classifier)
    monkeypatch.setattr(measures.AutoModelForImageClassification, "from_pretrained", lambda path: classifier)
    with pytest.raises(ValueError, match=f"classifier=.* has no {missing} in its config"):
        Evaluation(str(home / "model"), EvaluationConfig(**options(home, metrics=["fid", "memorization"])))


def test_replaced_images_are_measured_anew(home, tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    images, labels = rng.integers(0, 256, (400, 8, 8)), np.arange(400) % 3
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    found = []
    for seen in (images, np.where(np.arange(400)[:, None, None] < 256, images, images // 4)):
        write_idx(folder / "train-images-idx3-ubyte.gz", seen)
        write_idx(folder / "t10k-images-idx3-ubyte.gz", 255 - seen)
        changes = {"dataset": str(folder), "cache_dir": str(tmp_path / "cache"), "batch_size": 200}
        changes["metrics"] = ["bpd", "fid", "memorization"]
        found.append(evaluate(str(home / "model"), EvaluationConfig(**options(home, **changes)))[0])
    fingerprints = [result["settings"]["data"]["train"]["fingerprint"] for result in found]
    assert fingerprints[0] != fingerprints[1]
    for kind, name in (("metrics", "bits_per_dim"), ("metrics", "fid"), ("floors", "nearest_distance")):
        assert found[0][kind][name] != found[1][kind][name], name


def test_a_classifier_of_other_classes_leaves_accuracy_out(home, tmp_path):
    classifier = ResNetForImageClassification.from_pretrained(home / "classifier")
    classifier.config.id2label = dict(enumerate("xyz"))
    classifier.save_pretrained(tmp_path)
    config = EvaluationConfig(**options(home, classifier=str(tmp_path)))
    found = Evaluation(str(home / "model"), config)
    assert "fid" in found.metrics and "accuracy" not in found.metrics
    assert "the classifier knows ['x', 'y', 'z']" in found.unavailable["accuracy"]
    with pytest.raises(ValueError, match="accuracy cannot be measured: the classifier knows"):
        Evaluation(str(home / "model"), replace(config, metrics=["accuracy"]))


def test_pairs_in_the_report_are_set_apart():
    pair = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 14, 14)
    joined = np.asarray(report._join(pair))
    assert joined.shape == (14, 30) and joined[3].tolist() == [0] * 14 + [1] * 14 + [255] * 2


@pytest.mark.parametrize("asked", ["seed: 0", "dataset: /photos/of/mine"])
def test_the_data_that_a_run_was_trained_on(tmp_path, asked):
    """Its preset's, which training_config.yaml has and run.yaml has not; or the folder that was asked for, with its path."""
    (tmp_path / "training_config.yaml").write_text("dataset: uoft-cs/cifar10\nlabel_column: fine")
    (tmp_path / "run.yaml").write_text(asked)
    config = EvaluationConfig().with_data_of(tmp_path)
    assert config.dataset == ("uoft-cs/cifar10" if "seed" in asked else "/photos/of/mine")
    assert config.label_column == "fine"
