"""What of a folder is pushed: the files of a saved model, the package's own code, no link to elsewhere and no token."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel
from hub_fixtures import tiny_pipeline, tree
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.torch import load_file, save_file

import ddpm_hf
from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, hub

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TOKEN = "hf_" + "aB3" * 11 + "x"


def pushed(remote, branch: str = "main", repo_id: str = "alice/tiny") -> dict[str, bytes]:
    files = dict(remote.repo(repo_id).at(branch).files)
    files.pop(".gitattributes")
    return files


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "unet/config.json", WEIGHTS, "samples.png"])
def test_a_link_out_of_the_folder_is_refused(remote, saved, tmp_path, name):
    shutil.move(saved / name, tmp_path / "outside")
    (saved / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name} is a link that leads out"):
        hub.push(saved, "alice/tiny")
    assert remote.log == []


def test_a_save_takes_nothing_from_behind_a_link(saved, tmp_path):
    (tmp_path / "secret").write_text("root:x:0:0")
    (saved / "README.md").unlink()
    (saved / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"README.md is a link that leads out"):
        hub.save(hub.load(saved), tmp_path / "copy")
    assert not (tmp_path / "copy" / "README.md").exists()


def test_links_inside_the_folder_and_the_cache_of_the_hub_are_fine(remote, saved):
    shutil.move(saved / "samples.png", saved / "logs" / "grid.png")
    (saved / "samples.png").symlink_to("logs/grid.png")
    hub.push(saved, "alice/tiny")
    files = pushed(remote)
    assert files["samples.png"] == (saved / "logs" / "grid.png").read_bytes()
    snapshot = Path(snapshot_download("alice/tiny"))
    assert (snapshot / WEIGHTS).is_symlink()
    hub.push(snapshot, "alice/copy")
    assert pushed(remote, repo_id="alice/copy")[WEIGHTS] == files[WEIGHTS]


def test_code_comes_from_the_package(remote, saved, tmp_path):
    """Links to the package, as checkpoints/ has them, somebody's own code or none: what is pushed is this package's."""
    code = {"unet/modeling_ddpm_unet.py": None, "scheduler/scheduling_ddpm_noise.py": "raise SystemExit"}
    own = {name: Path(ddpm_hf.__file__).with_name(Path(name).name) for name in (*code, "pipeline_ddpm_image.py")}
    for name, text in code.items():
        (saved / name).unlink()
        if text:
            (saved / name).write_text(text)
    (saved / "pipeline_ddpm_image.py").unlink()
    (saved / "pipeline_ddpm_image.py").symlink_to(own["pipeline_ddpm_image.py"])
    hub.push(saved, "alice/tiny")
    assert {name: pushed(remote)[name] for name in own} == {name: path.read_bytes() for name, path in own.items()}
    hub.save(hub.load(saved), saved)
    assert not any((saved / name).is_symlink() for name in own)
    assert {name: (saved / name).read_bytes() for name in own} == {
        name: path.read_bytes() for name, path in own.items()
    }


def test_an_optimizer_beside_the_weights_stays(remote, saved):
    state = {"exp_avg": torch.zeros(2)}
    for name in ("optimizer.safetensors", "model.safetensors", "diffusion_pytorch_model_ema.safetensors"):
        save_file(state, saved / "unet" / name)
    hub.push(saved, "alice/tiny")
    assert [name for name in pushed(remote) if name.endswith(".safetensors")] == [WEIGHTS]
    save_file(state, saved / "unet" / "diffusion_pytorch_model.optimizer.safetensors")  # as if it were a variant
    with pytest.raises(ValueError, match="do not fit its config"):
        hub.push(saved, "alice/tiny")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train_results.json", json.dumps({"command": f"train.py --hub_token {TOKEN}"})),
        ("metrics.json", json.dumps({"metrics": {}, "note": "hf_alice"})),  # the token in use, whatever it looks like
        ("training_config.yaml", f"secret: {TOKEN}"),
        ("README.md", f"---\nlicense: mit\n---\nlogin({TOKEN!r})\n"),
        ("README.md", f"---\nkey: api_org_{TOKEN[3:]}\n---\n"),
    ],
)
def test_a_token_is_refused_and_the_file_named(remote, saved, name, text):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} has an access token of the Hub in it"):
        hub.push(saved, "alice/tiny")
    assert remote.log == []


def test_tokens_in_weights_and_apps_are_refused(remote, saved, tmp_path):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"format": "pt", "by": TOKEN})
    with pytest.raises(ValueError, match="safetensors has an access token"):
        hub.push(saved, "alice/tiny")
    (tmp_path / "app.py").write_text(f"TOKEN = {TOKEN!r}")
    with pytest.raises(ValueError, match=r"app.py has an access token"):
        hub.push_space(tmp_path, "alice/app", "alice/tiny")
    assert remote.log == []


def test_words_like_a_token_are_fine(remote, saved):
    (saved / "metrics.json").write_text(
        json.dumps({"metrics": {"fid": 1.0}, "command": "hf_hub_download hf_transfer"})
    )
    hub.push(saved, "alice/tiny")


# ------------------------------------------------------------------ variants, classes, networks


def test_variants_are_saved_loaded_and_pushed(remote, saved, tmp_path):
    pipe = hub.load(saved)
    pipe.to(torch.float16).save_pretrained(saved, variant="fp16")
    name = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    half = hub.load(saved, variant="fp16").unet.state_dict()
    assert half.keys() == pipe.unet.state_dict().keys()
    assert all(torch.equal(half[key].half(), value) for key, value in pipe.unet.state_dict().items())
    hub.save(hub.load(saved), saved, metrics={"fid": 1.0})  # of the same weights: the variant stays
    hub.push(saved, "alice/tiny")
    assert {WEIGHTS, name} <= set(pushed(remote)) and name not in pushed(remote, "stock")
    assert torch.equal(hub.load("alice/tiny", variant="fp16").unet.conv_in.weight, half["conv_in.weight"])
    with pytest.raises(ValueError, match="of variant='bf16': its weights have variant=None, variant='fp16'"):
        hub.load(saved, variant="bf16")
    (saved / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="of variant=None: its weights have variant='fp16'"):
        hub.load(saved)
    hub.push(saved, "alice/half")
    assert WEIGHTS not in pushed(remote, repo_id="alice/half") and WEIGHTS in pushed(remote, "stock", "alice/half")


def test_weights_in_shards_are_pushed(remote, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors*"))
    assert len(shards) > 3
    hub.push(tmp_path, "alice/tiny")
    assert {f"unet/{name}" for name in shards} < set(pushed(remote))
    assert torch.equal(hub.load("alice/tiny").unet.conv_out.weight, pipe.unet.conv_out.weight)


def test_more_than_ten_classes_keep_their_order(saved):
    pipe = hub.load(saved)
    assert list(pipe.id2label) == list(range(12)) and pipe.get_label_ids("garment 11") == [11]
    names = ", ".join(["T-shirt", *(f"garment {i}" for i in range(1, 12))])
    assert f"Classes: {names}." in (saved / "README.md").read_text()


def test_another_network_of_diffusers(remote, tmp_path):
    """Saved, loaded, pushed and told of; diffusers' DDPMPipeline cannot draw it, and so there is no stock branch."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    torch.manual_seed(0)
    network = DiTTransformer2DModel(in_channels=1, out_channels=1, num_embeds_ada_norm=3, norm_num_groups=4, **sizes)
    sampling = {"num_inference_steps": 2, "guidance_scale": 1.5}
    pipe = DDPMImagePipeline(network, DDPMNoiseScheduler(20, beta_end=0.9), dict(enumerate("abc")), sampling)
    hub.push(hub.save(pipe, tmp_path / "dit"), "alice/dit")
    assert set(remote.repo("alice/dit").refs) == {"main"} and "unet/modeling_ddpm_unet.py" not in pushed(
        remote, repo_id="alice/dit"
    )
    loaded = hub.load("alice/dit")
    stranger = DiffusionPipeline.from_pretrained("alice/dit", trust_remote_code=True)
    for other in (loaded, stranger):
        assert type(other.unet) is DiTTransformer2DModel and other.sampling == sampling
        assert all(torch.equal(value, other.unet.state_dict()[key]) for key, value in network.state_dict().items())
    card = pushed(remote, repo_id="alice/dit")["README.md"].decode()
    assert 'images = pipe(batch_size=4, class_labels="a").images' in card and "stock" not in card
    assert len(stranger(class_labels="a").images) == 1


@pytest.mark.parametrize("change", ["scheduler", "variance"])
def test_no_stock_branch_where_stock_would_draw_something_else(remote, tmp_path, change):
    """An earlier one says so in its card, and holds no weights of the earlier model."""
    pipe = tiny_pipeline(labels=None)
    hub.push(hub.save(pipe, tmp_path), "alice/tiny")
    assert WEIGHTS in pushed(remote, "stock")
    if change == "scheduler":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    else:  # not a number in diffusers
        pipe.scheduler = DDPMNoiseScheduler(20, beta_schedule="squaredcos_cap_v2", variance_type="fixed_large_log")
    hub.push(hub.save(pipe, tmp_path), "alice/tiny")
    assert set(pushed(remote, "stock")) == {"README.md"} and "load the branch `main`" in str(pushed(remote, "stock"))
    assert b'revision="stock"' not in pushed(remote)["README.md"]
    hub.push(tmp_path, "alice/new")
    assert "stock" not in remote.repo("alice/new").refs


def test_a_text_encoder_and_its_tokenizer_go_along(remote, saved):
    """Their safetensors, JSON and text files, and nothing else that lies there."""
    own = {
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.txt",
    }
    for name in own | {"text_encoder/pytorch_model.bin", "tokenizer/notes.md", "text_encoder/optimizer.safetensors"}:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("{}")
    before = tree(saved)
    hub.push(saved, "alice/tiny")
    assert {name for name in pushed(remote) if name.startswith("t") and "/" in name} == own
    assert not own & set(pushed(remote, "stock")) and tree(saved) == before


def test_a_text_encoder_by_reference(remote, tmp_path, text_parts):
    """A folder without the encoder's weights takes them from the model that its config names; what is pushed has them."""
    text_parts["text_encoder"].save_pretrained(tmp_path / "bert")
    text_parts["tokenizer"].save_pretrained(tmp_path / "bert")
    HfApi().create_repo("alice/bert")
    HfApi().upload_folder(repo_id="alice/bert", folder_path=tmp_path / "bert")
    vectors = {"num_class_embeds": None, "class_embed_type": "identity", "time_embedding_dim": 16}
    tiny = tiny_pipeline(labels=None, **vectors)
    pipe = DDPMImagePipeline(tiny.unet, tiny.scheduler, **hub.load_text_encoder("alice/bert"))
    folder = hub.save(pipe, tmp_path / "text")
    weights = folder / "text_encoder" / "model.safetensors"
    weights.unlink()
    loaded = hub.load(folder)
    assert torch.equal(loaded.embed_prompts(["a cat"]), pipe.embed_prompts(["a cat"]))
    hub.push(folder, "alice/text")
    assert "text_encoder/model.safetensors" in pushed(remote, repo_id="alice/text") and not weights.exists()
    assert torch.equal(hub.load("alice/text").embed_prompts(["a cat"]), pipe.embed_prompts(["a cat"]))
    card = ModelCard.load("alice/text")
    assert card.data.pipeline_tag == "text-to-image" and "encoder [alice/bert](" in card.text
    assert len(pipe(**eval(f"dict({re.search(r'pipe[(](.*)[)]', card.text)[1]})"), num_inference_steps=1).images) == 4
    config = json.loads((weights.parent / "config.json").read_text())
    (weights.parent / "config.json").write_text(json.dumps(config | {"hub_id": None}))
    with pytest.raises(ValueError, match="text_encoder/ has neither weights nor"):
        hub.load(folder)
