"""Saving, loading and pushing: on the disk, and with huggingface_hub's real client against a local Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    TCDScheduler,
    UNet2DModel,
)
from hub_fixtures import METRICS, TRAIN_RESULTS, draw, tiny_pipeline, tree
from huggingface_hub import HfApi, constants, snapshot_download
from safetensors.torch import load_file, save_file
from tiny import TINY_UNET

import ddpm_hf
from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub
from ddpm_hf.hub import files
from ddpm_hf.hub.card import stock_class

CODE = ["pipeline_ddpm_image.py", "scheduler/scheduling_ddpm_noise.py", "unet/modeling_ddpm_unet.py"]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
STOCK_FILES = ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
RESULTS = ["metrics.json", "samples.png", "train_results.json", "training_config.yaml"]
FILES = sorted([*STOCK_FILES, *RESULTS, *CODE])

# ------------------------------------------------------------------ on disk


def test_saved_folder(saved_once):
    files = tree(saved_once)
    assert sorted(files) == FILES
    for name in CODE:
        assert files[name] == Path(ddpm_hf.__file__).with_name(name.rpartition("/")[2]).read_bytes()
    index = json.loads(files["model_index.json"])
    assert index["_class_name"] == ["pipeline_ddpm_image", "DDPMImagePipeline"]
    assert index["unet"] == ["modeling_ddpm_unet", "DDPMUNet2DModel"]
    assert index["scheduler"] == ["scheduling_ddpm_noise", "DDPMNoiseScheduler"]


def test_save_load_save_changes_nothing(saved_once, tmp_path):
    first = tree(saved_once)
    hub.save(hub.load(saved_once), tmp_path / "b")
    hub.save(hub.load(tmp_path / "b"), tmp_path / "b")
    assert tree(tmp_path / "b") == first
    DDPMImagePipeline.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    assert tree(tmp_path / "c") == {name: data for name, data in first.items() if name not in files.EXTRAS}
    DiffusionPipeline.from_pretrained(tmp_path / "c", trust_remote_code=True).save_pretrained(tmp_path / "d")
    assert tree(tmp_path / "d") == tree(tmp_path / "c")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_save_load_save_keeps_half_precision(saved, dtype):
    """Loading widens to float32, saving does not: the file, the samples and the record of the training stay."""
    figures = {name: (saved / name).read_bytes() for name in ("samples.png", "train_results.json", "metrics.json")}
    pipe = hub.load(saved)
    pipe.unet.to(dtype)
    hub.save(pipe, saved)
    for name, data in figures.items():
        (saved / name).write_bytes(data)
    first = tree(saved)
    again = hub.load(saved)
    assert again.unet.dtype == torch.float32
    hub.save(again, saved)
    assert tree(saved) == first
    next(again.unet.parameters()).data.mul_(1 + 2**-20)  # a difference that the narrow dtype cannot hold
    hub.save(again, saved)
    assert load_file(saved / WEIGHTS).popitem()[1].dtype == torch.float32 and not (saved / "samples.png").exists()


def test_nothing_saved_names_this_machine(tmp_path):
    hub.save(tiny_pipeline(), tmp_path / "a")
    options = {
        "hub_token": "hf_secret",
        "nested": {"token": "hf_secret"},
        "dataset": tmp_path,
        "output_dir": str(tmp_path),
    }
    hub.save(hub.load(tmp_path / "a"), tmp_path / "b", train_config=options)
    for data in tree(tmp_path / "b").values():
        assert str(tmp_path).encode() not in data and b"hf_secret" not in data


CHECKPOINTS = Path(ddpm_hf.__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.rglob("*.py")), ids=lambda path: path.stem)
def test_the_published_models_carry_this_code(path):
    """Whoever changes a hub file saves them anew: CONTRIBUTING.md."""
    assert path.read_bytes() == Path(ddpm_hf.__file__).with_name(path.name).read_bytes()


def test_a_new_save_replaces_the_model_and_nothing_else(saved):
    (saved / "unet/diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"of an older, larger model")
    hub.save(tiny_pipeline(seed=1), saved)
    files = tree(saved)
    others = {name for name in files if files[name] == b"secret"}
    assert others == {"checkpoints/step-5/optimizer.bin", "logs/events.out", ".env", "unet/optimizer.pt", "wandb.key"}
    kept = set(FILES) - {
        "metrics.json",
        "samples.png",
        "training_config.yaml",
        "train_results.json",
    }  # they told of other weights
    assert set(files) - others == kept
    assert torch.equal(hub.load(saved).unet.conv_in.weight, tiny_pipeline(seed=1).unet.conv_in.weight)


def test_new_metrics_of_the_same_weights(saved):
    hub.save(hub.load(saved), saved, metrics={"fid": 1.25})
    assert "1.25" in (saved / "README.md").read_text() and "learning_rate" in (saved / "README.md").read_text()
    assert (saved / "samples.png").exists()


@pytest.mark.parametrize("number", [np.float32(1.5), np.array(1.5), torch.tensor(1.5, requires_grad=True)])
def test_numbers_of_numpy_and_torch_are_figures(tmp_path, number):
    figures = {"metrics": {"fid": number}}
    hub.save(tiny_pipeline(), tmp_path, metrics=figures, train_results=figures, train_config=figures)
    for name in ("metrics.json", "train_results.json", "training_config.yaml"):  # YAML holds JSON as well
        assert yaml.safe_load((tmp_path / name).read_text())["metrics"] == {"fid": 1.5}
    assert "| fid | 1.5 |" in (tmp_path / "README.md").read_text()


def test_a_figure_that_is_no_number_costs_no_model(tmp_path):
    """JSON knows no NaN: null, and the card is silent; YAML knows one, and `max_grad_norm: .inf` is an option."""
    metrics = {"fid": float("nan"), "kid": torch.tensor(float("inf")), "recall": 0.5}
    hub.save(tiny_pipeline(), tmp_path, metrics=metrics, train_config={"max_grad_norm": float("inf")})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"fid": None, "kid": None, "recall": 0.5}
    card = (tmp_path / "README.md").read_text()
    assert "| recall | 0.5 |" in card and "| fid |" not in card and "nan" not in card
    assert yaml.safe_load((tmp_path / "training_config.yaml").read_text()) == {"max_grad_norm": float("inf")}


@pytest.mark.parametrize(
    "figures",
    [
        {"metrics": METRICS | {"settings": None, "floors": None, "spreads": None}},
        {"metrics": {"metrics": None, "settings": {"dataset": "a/b"}}},
        {"metrics": {"metrics": {"bits_per_dim": 3.0}, "floors": {"fid": 1.0}, "settings": {"dataset": "a/b"}}},
        {"metrics": {"metrics": {0: 0.5, 1: 0.75}}},  # by label
        *({"train_results": TRAIN_RESULTS | {name: None}} for name in TRAIN_RESULTS),
        {"train_results": {"train_runtime": 90.0}},
        {"train_results": {"sigma_rel": 0.1}},
    ],
)
def test_a_part_of_the_figures_will_do(tmp_path, figures):
    card = (hub.save(tiny_pipeline(), tmp_path, **figures) / "README.md").read_text()
    assert "None" not in card and "nan" not in card
    assert ("1.5 minutes" in card) is (figures.get("train_results", {}).get("train_runtime") is not None)


@pytest.mark.parametrize("cause", ["figures", "card"])
def test_a_save_that_fails_leaves_nothing_behind(saved, cause):
    before = tree(saved)
    wrong = {"metrics": {"fid": object()}} if cause == "figures" else {"train_results": {"train_runtime": "an hour"}}
    with pytest.raises((TypeError, ValueError)):
        hub.save(tiny_pipeline(seed=1), saved, **wrong)
    assert tree(saved) == before and not (saved / ".saving").exists()
    with pytest.raises(TypeError):
        hub.save(tiny_pipeline(), saved / "other", metrics={"fid": object()})
    assert not (saved / "other").exists()


class Killed(BaseException):
    pass


def kill_after(patch, moment: int, *functions) -> None:
    """Let these functions, (owner, name), do nothing but stop the process from their `moment`th call on."""
    calls = 0

    def stopping(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in functions:
        patch.setattr(owner, name, stopping(getattr(owner, name)))


def test_killed_while_saving_leaves_the_old_or_the_new_model(saved, tmp_path, monkeypatch):
    """Whatever call it stops in, the folder then loads: a whole model, with the run's other files."""
    states = [
        hub.load(saved).unet.state_dict(),
        (new := tiny_pipeline(seed=1, block_out_channels=(4, 8))).unet.state_dict(),
    ]
    disk = [(os, name) for name in ("replace", "fsync", "unlink", "mkdir", "rename")] + [(shutil, "rmtree")]
    found = []
    for moment in range(0, 100, 2):
        folder = shutil.copytree(saved, tmp_path / str(moment) / "tiny")
        with monkeypatch.context() as patch, suppress(Killed):
            kill_after(patch, moment, *disk)
            hub.save(new, folder)
            break  # nothing was left to stop
        state = hub.load(folder).unet.state_dict()
        equal = [all(torch.equal(state[name], old.get(name, torch.empty(0))) for name in state) for old in states]
        assert sum(equal) == 1, moment
        found.append(equal.index(True))
        assert (folder / "checkpoints/step-5/optimizer.bin").read_text() == "secret"
        hub.save(new, folder)
        assert not (folder / ".saving").exists() and not (folder / ".saved").exists()
    assert set(found) == {0, 1} and found == sorted(found)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        hub.save(tiny_pipeline(), tmp_path / "model")


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def drop_tensor(path: Path) -> None:
    state = load_file(path)
    state.pop("conv_out.weight")
    save_file(state, path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "unet"), "no unet/\\*.safetensors.*can run any code"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin"), "can run any code"),
        (lambda folder: truncate(folder / WEIGHTS, 0.7), "cannot be loaded"),
        (lambda folder: truncate(folder / WEIGHTS, 0.001), "cannot be loaded"),
        (lambda folder: truncate(folder / WEIGHTS, 0), "cannot be loaded"),
        (lambda folder: drop_tensor(folder / WEIGHTS), "do not fit its config.*conv_out.weight"),
        (lambda folder: truncate(folder / "unet/config.json", 0.5), "cannot be loaded"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "cannot be loaded"),
        (lambda folder: truncate(folder / "model_index.json", 0.5), "model_index.json.*"),
        (
            lambda folder: (folder / "model_index.json").write_text(
                '{"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"]}'
            ),
            "UNet2DConditionModel is not a network of x_t and a timestep alone",
        ),
        (lambda folder: (folder / "model_index.json").unlink(), "No such file.*model_index.json"),
    ],
)
def test_a_damaged_model_is_refused(saved, harm, message):
    harm(saved)
    with pytest.raises(ValueError, match=message) as refusal:
        hub.load(saved)
    assert "tiny" in str(refusal.value) and "\n" not in str(refusal.value)


def test_pickled_weights_are_refused(saved):
    torch.save({}, saved / "unet_diffusion_trained.pt")
    with pytest.raises(ValueError, match="safetensors only"):
        hub.load(saved / "unet_diffusion_trained.pt")
    (saved / WEIGHTS).rename(saved / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        DDPMImagePipeline.from_pretrained(saved)


def test_no_such_model():
    with pytest.raises(ValueError, match="no such folder, and no Hub id"):
        hub.load("./runs/that/never/were")


def old_google_checkpoint(folder: Path) -> UNet2DModel:
    """A repo as google/ddpm-cifar10-32 is: stock classes, all in the root, and attention weights under their old names."""
    torch.manual_seed(0)
    unet = UNet2DModel(**TINY_UNET)
    DDPMPipeline(unet, DDPMScheduler(20)).save_pretrained(folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()
    weights = folder / Path(WEIGHTS).name
    state = load_file(weights)
    state = {re.sub("|".join(old), lambda match: old[match[0]], name): value for name, value in state.items()}
    assert any("proj_attn" in name for name in state)
    save_file(state, weights)
    torch.save(state, weights.with_suffix(".bin"))
    return unet.eval()


@pytest.mark.parametrize("load", [hub.load, DDPMImagePipeline.from_pretrained])
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_stock_repo_with_all_in_its_root_loads_as_ours(remote, tmp_path, load, place):
    unet = old_google_checkpoint(tmp_path)
    HfApi().create_repo("alice/ddpm-cifar10-32")
    HfApi().upload_folder(repo_id="alice/ddpm-cifar10-32", folder_path=tmp_path)
    pipe = load({"folder": tmp_path, "hub": "alice/ddpm-cifar10-32"}[place])
    assert type(pipe.unet) is DDPMUNet2DModel and type(pipe.scheduler) is DDPMNoiseScheduler
    assert len(pipe.scheduler) == 20
    x = torch.randn(2, 1, 8, 8)
    assert (pipe.unet(x, 7).sample - unet(x, 7).sample).abs().max() < 1e-5
    name = Path(WEIGHTS).name
    (tmp_path / name).unlink()
    HfApi().delete_file(name, repo_id="alice/ddpm-cifar10-32")
    with pytest.raises((ValueError, OSError), match="safetensors") as refusal:
        load({"folder": tmp_path, "hub": "alice/ddpm-cifar10-32"}[place])
    assert load is not hub.load or "can run any code" in str(refusal.value)


def test_a_save_takes_the_place_of_a_model_in_the_root(tmp_path):
    """diffusers' U-Nets prefer weights in the root to those in unet/: the old ones would be loaded."""
    old_google_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="all in its root"):
        hub.push(tmp_path, "alice/tiny")
    new = tiny_pipeline(seed=1)
    hub.save(new, tmp_path)
    for load in (hub.load, DDPMImagePipeline.from_pretrained):
        assert torch.equal(load(tmp_path).unet.conv_in.weight, new.unet.conv_in.weight)
    assert (tmp_path / "config.json").exists()  # a name that others use as well


def test_a_repo_of_another_pipeline_is_refused(remote):
    api = HfApi()
    api.create_repo("alice/ddpm-cifar10-32")
    api.upload_file(
        repo_id="alice/ddpm-cifar10-32",
        path_in_repo="model_index.json",
        path_or_fileobj=b'{"unet": ["x", "Evil"]}',
    )
    with pytest.raises(ValueError, match="model_index"):
        hub.load("alice/ddpm-cifar10-32")


def test_another_scheduler_is_kept(tmp_path):
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    hub.save(pipe, tmp_path)
    assert type(hub.load(tmp_path).scheduler) is DDIMScheduler
    assert type(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True).scheduler) is DDIMScheduler


# ------------------------------------------------------------------ the Hub


def test_pushed_tree_and_a_second_push(remote, saved):
    before = tree(saved)
    commit = hub.push(saved, "alice/tiny")
    repo = remote.repo("alice/tiny")
    assert sorted(repo.at("main").files) == [".gitattributes", *FILES]
    assert sorted(repo.at("stock").files) == [".gitattributes", *STOCK_FILES]
    assert [len(repo.history(branch)) for branch in ("main", "stock")] == [2, 2]  # the first is the Hub's own
    assert commit.oid == repo.refs["main"] == hub.push(saved, "tiny").oid
    assert len(repo.commits) == 3 and tree(saved) == before


def test_push_load_save_push_is_byte_identical(remote, saved, tmp_path):
    hub.push(saved, "alice/tiny")
    copy = tree(snapshot_download("alice/tiny"))
    copy.pop(".gitattributes")
    local = {name: data for name, data in tree(saved).items() if name in FILES}
    there, here = copy.pop("README.md"), local.pop("README.md")
    renamed = here.replace(b"# tiny", b"# alice/tiny").replace(b'("tiny"', b'("alice/tiny"')
    assert there.rpartition(b"<!--")[0] == renamed.rpartition(b"<!--")[0]  # all but the text's checksum
    assert copy == local
    hub.save(hub.load("alice/tiny"), tmp_path / "again")
    hub.push(tmp_path / "again", "alice/tiny")
    assert len(remote.repo("alice/tiny").commits) == 3


def test_a_push_deletes_what_an_older_model_left(remote, saved):
    hub.push(saved, "alice/tiny")
    HfApi().upload_file(repo_id="alice/tiny", path_in_repo="notes.txt", path_or_fileobj=b"of somebody else")
    hub.save(tiny_pipeline(seed=1), saved)
    hub.push(saved, "alice/tiny")
    left = set(FILES) - {"metrics.json", "samples.png", "training_config.yaml", "train_results.json"}
    assert set(remote.repo("alice/tiny").at("main").files) == left | {".gitattributes", "notes.txt"}


OUTSIDER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ddpm_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
sys.path.insert(0, sys.argv[1])
import torch
def draw(pipe):
    images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0), num_inference_steps=20).images
    return np.stack([np.asarray(image) for image in images])
told, pixels = {}, {}
try:
    DiffusionPipeline.from_pretrained("alice/tiny")
except ValueError as error:
    told["refusal"] = str(error)
trusted = DiffusionPipeline.from_pretrained("alice/tiny", trust_remote_code=True)
pixels["trusted"] = draw(trusted)
pixels["stock"] = draw(DiffusionPipeline.from_pretrained("alice/tiny", revision="stock"))
pixels["folder"] = draw(DiffusionPipeline.from_pretrained(snapshot_download("alice/tiny"), trust_remote_code=True))
trusted.save_pretrained(sys.argv[2])
told["classes"] = [type(part).__module__ for part in (trusted, trusted.unet, trusted.scheduler)]
told["labels"] = len(trusted(class_labels=["T-shirt", 3], guidance_scale=2.0).images)
np.savez(sys.argv[3], **pixels)
print(json.dumps(told))
"""


def test_three_ways_to_load_give_the_same_pixels(remote, saved, tmp_path):
    """Here with ddpm_hf; where it cannot be imported, from a private repo, with remote code and with stock classes."""
    hub.push(saved, "alice/tiny", private=True)
    again, arrays = tmp_path / "again", tmp_path / "pixels.npz"
    command = [sys.executable, "-c", OUTSIDER, str(tmp_path), str(again), str(arrays)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told, pixels = json.loads(result.stdout.splitlines()[-1]), np.load(arrays)
    assert "contains custom code" in told["refusal"] and "trust_remote_code=True" in told["refusal"]
    assert all(module.startswith("diffusers_modules.") for module in told["classes"]) and told["labels"] == 2
    ours = draw(hub.load("alice/tiny"))
    assert ours.std() > 20  # a picture, not one grey
    for name in pixels.files:
        assert np.abs(pixels[name].astype(int) - ours).max() <= (1 if name == "stock" else 0), name
    assert np.array_equal(ours, draw(DDPMImagePipeline.from_pretrained("alice/tiny")))
    assert tree(again) == {
        name: data for name, data in tree(saved).items() if name in FILES and name not in files.EXTRAS
    }


def test_installed_package_runs_no_code_of_the_repo(remote, saved):
    hub.push(saved, "alice/tiny")
    for name in CODE:
        HfApi().upload_file(repo_id="alice/tiny", path_in_repo=name, path_or_fileobj=b"raise SystemExit('was run')")
    assert type(hub.load("alice/tiny")) is DDPMImagePipeline
    assert type(DDPMImagePipeline.from_pretrained("alice/tiny", trust_remote_code=True).unet) is DDPMUNet2DModel
    with pytest.raises(SystemExit, match="was run"):
        DiffusionPipeline.from_pretrained("alice/tiny", trust_remote_code=True)


@pytest.mark.parametrize("module", ["ddpm_hf", "ddpm_hf.pipeline_ddpm_image"])
def test_importing_the_pipeline_is_enough(saved, module):
    """Its from_pretrained makes the package's classes, which nothing else has imported."""
    command = f"from {module} import DDPMImagePipeline as pipeline; print(type(pipeline.from_pretrained({str(saved)!r}).unet))"
    run = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    assert run.stdout == f"{DDPMUNet2DModel}\n"


@pytest.mark.parametrize(("labels", "num_class_embeds"), [(None, None), ({0: "a", 1: "b"}, 2)])
def test_stock_branch_of_other_models(remote, tmp_path, labels, num_class_embeds):
    """Without labels it is the model itself; with labels and no null label there is no unconditional model to give."""
    pipe = tiny_pipeline(labels=labels, num_class_embeds=num_class_embeds)
    hub.push(hub.save(pipe, tmp_path), "alice/tiny")
    assert ("stock" in remote.repo("alice/tiny").refs) is (labels is None)
    assert ('revision="stock"' in (tmp_path / "README.md").read_text()) is (labels is None)
    if labels is None:
        stock = DiffusionPipeline.from_pretrained("alice/tiny", revision="stock")
        assert type(stock) is DDPMPipeline and np.array_equal(draw(stock), draw(pipe))


@pytest.mark.parametrize("kind", [LCMScheduler, DDPMNoiseScheduler])
@pytest.mark.parametrize("labels", [None, {0: "a", 1: "b"}])
def test_the_stock_branch_of_a_student_of_few_steps_takes_labels(remote, tmp_path, kind, labels):
    """It draws the same pixels, and its card says how."""
    pipe = tiny_pipeline(labels=labels)
    options = {"original_inference_steps": 10} if kind is LCMScheduler else {"timestep_spacing": "trailing"}
    scheduler = kind(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", prediction_type="sample", **options)
    sampling = {"num_inference_steps": 4, "guidance_scale": 1.0}
    pipe = DDPMImagePipeline(pipe.unet, scheduler, labels, sampling)
    hub.push(hub.save(pipe, tmp_path), "alice/student")
    stock = DiffusionPipeline.from_pretrained("alice/student", revision="stock")
    assert type(stock) is ConsistencyModelPipeline and type(stock.unet) is UNet2DModel
    given = {"class_labels": [1, 0, 1, 1]} if labels else {}
    seeds = {"batch_size": 4, "num_inference_steps": 4, "output_type": "np"}
    found = stock(generator=torch.Generator().manual_seed(0), **seeds, **given).images
    expected = pipe(generator=torch.Generator().manual_seed(0), autocast=False, **seeds, **given).images
    assert np.abs(found - expected).max() < 1e-5
    for branch in ("main", "stock"):
        card = remote.repo("alice/student").at(branch).files["README.md"].decode()
        (line,) = re.findall(r'revision="stock"\)\n(.*)', card)
        assert (
            line
            == f"images = pipe(batch_size=4, {'class_labels=[0] * 4, ' if labels else ''}num_inference_steps=4).images"
        )
        assert "`autocast=False`" in card  # the saved number of steps is drawn in bfloat16 otherwise


@pytest.mark.parametrize(
    ("kind", "options", "sampling", "expected"),
    [
        (LCMScheduler, {}, {}, ConsistencyModelPipeline),
        (DDPMNoiseScheduler, {}, {"eta": 1.0, "solver_order": 2}, DDPMPipeline),  # whose rule stock lacks
        (LCMScheduler, {"out_channels": 2}, {}, None),  # a learned variance, which LCM's step cannot take
        (TCDScheduler, {}, {}, None),
    ],
)
def test_the_stock_class_of_few_steps_draws_the_same(kind, options, sampling, expected):
    unet = DDPMUNet2DModel(**TINY_UNET | options)
    pipe = DDPMImagePipeline(unet, kind(), sampling={"num_inference_steps": 4, "guidance_scale": 1.0} | sampling)
    assert stock_class(pipe) is expected


def test_revision_tag_and_commit(remote, saved):
    first = hub.push(saved, "alice/tiny")
    HfApi().create_tag("alice/tiny", tag="v1.0")
    hub.save(tiny_pipeline(seed=1), saved)
    hub.push(saved, "alice/tiny", revision="seed-1")
    repo = remote.repo("alice/tiny")
    assert repo.refs["main"] == first.oid and len(repo.history("stock")) == 2
    weights = {name: tiny_pipeline(seed).unet.conv_in.weight for name, seed in {"old": 0, "new": 1}.items()}
    for revision in (None, "v1.0", first.oid):
        assert torch.equal(hub.load("alice/tiny", revision=revision).unet.conv_in.weight, weights["old"])
    assert torch.equal(hub.load("alice/tiny", revision="seed-1").unet.conv_in.weight, weights["new"])
    with pytest.raises(hub.HubError, match="no such revision"):
        hub.load("alice/tiny", revision="v2.0")
    with pytest.raises(ValueError, match="choose another branch"):
        hub.push(saved, "alice/tiny", revision="stock")


def test_private_repo_and_each_way_to_give_a_token(remote, saved, monkeypatch):
    hub.push(saved, "alice/secret", private=True)
    assert remote.repo("alice/secret").private
    hub.push(saved, "alice/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    token_file = Path(constants.HF_TOKEN_PATH)
    unseen, unknown = "shows no such repo to this token.*HF_TOKEN", "no token, or one that it does not know.*HF_TOKEN"
    for refused, message in {None: unseen, "hf_bob": unseen, "hf_wrong": unknown}.items():
        with pytest.raises(hub.HubError, match=message):
            hub.load("alice/secret", token=refused)
    assert not (Path(constants.HF_HUB_CACHE) / "models--alice--secret" / "snapshots").exists()
    hub.load("alice/secret", token="hf_alice_read")
    DDPMImagePipeline.from_pretrained("alice/secret", token="hf_alice_read", force_download=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.load("alice/secret", revision=remote.repo("alice/secret").refs["main"])
    monkeypatch.delenv("HF_TOKEN")
    token_file.parent.mkdir(parents=True, exist_ok=True)
    token_file.write_text("hf_alice")  # what `hf auth login` does
    try:
        hub.load("alice/secret", revision="stock")
    finally:
        token_file.unlink()


def test_gated_and_missing_repo(remote, saved, monkeypatch):
    hub.push(saved, "alice/gated")
    remote.repo("alice/gated").gated = True
    with pytest.raises(hub.HubError, match=r"gated. Ask for access"):
        hub.load("alice/gated", token="hf_bob")
    with pytest.raises(hub.HubError, match=r"no such folder here.*no such repo"):
        hub.load("alice/nothing")


def test_offline_with_a_warm_cache(remote, saved, monkeypatch):
    hub.push(saved, "alice/warm")
    pixels = draw(hub.load("alice/warm"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote.log.clear()
    assert np.array_equal(draw(hub.load("alice/warm")), pixels)
    assert np.array_equal(draw(DDPMImagePipeline.from_pretrained("alice/warm")), pixels)
    with pytest.raises(hub.HubError, match="Could not load 'alice/cold'"):
        hub.load("alice/cold")
    with pytest.raises(hub.HubError, match="offline mode is enabled"):
        hub.push(saved, "alice/warm")
    assert remote.log == []


def test_the_pipelines_own_push_to_hub(remote, saved_once):
    hub.load(saved_once).push_to_hub("alice/plain")
    files = remote.repo("alice/plain").at("main").files
    assert set(CODE) < set(files) and b"_name_or_path" not in files["unet/config.json"]
    assert np.array_equal(draw(hub.load("alice/plain")), draw(hub.load(saved_once)))
