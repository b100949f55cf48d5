"""The model card: what it says comes from the saved files, and the code on it runs."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from hub_fixtures import METRICS, TRAIN_CONFIG, TRAIN_RESULTS, tiny_pipeline
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image

from ddpm_hf import hub
from ddpm_hf.hub.card import WITHOUT_CODE, name_repo, without_stock


def test_card_says_what_metrics_json_says(remote, saved):
    hub.push(saved, "alice/tiny")
    card = ModelCard.load("alice/tiny")
    card.validate()
    told = card.data.to_dict()
    assert "license" not in told and told["library_name"] == "diffusers" and "ddpm" in told["tags"]
    assert told["pipeline_tag"] == "unconditional-image-generation"
    assert told["datasets"] == ["zalando-datasets/fashion_mnist"]
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "fid": 3.5,
        "bits.test": 2.75,
    }
    for text in (
        "samples.png",
        METRICS["command"],
        "1.5 minutes for 4,000 images",
        "250 steps on 4 CPU cores",
        "T-shirt",
        "scripts/train.py training_config.yaml",
        "`training_config.yaml`, which lies beside this card",
        "The name stands for the repo's id on the Hub, or\nfor the path of a folder",
        "The package `ddpm_hf` is optional.",
        "Intended use",
    ):
        assert text in card.text
    ModelCard.load(snapshot_download("alice/tiny", revision="stock") + "/README.md").validate()


@pytest.mark.parametrize("num_processes, options", [(1, "--num_processes 1"), (4, "--multi_gpu --num_processes 4")])
def test_the_training_command_asks_for_as_many_ranks(tmp_path, num_processes, options):
    """`accelerate launch` alone takes all GPUs that it finds; without --multi_gpu it starts one rank on a CPU."""
    results = TRAIN_RESULTS | {"num_processes": num_processes}
    saved = hub.save(tiny_pipeline(), tmp_path, train_config=TRAIN_CONFIG, train_results=results)
    command = f"```bash\naccelerate launch {options} scripts/train.py training_config.yaml\n```"
    assert command in (saved / "README.md").read_text()


def test_card_without_anything_measured(tmp_path):
    text = (hub.save(tiny_pipeline(), tmp_path) / "README.md").read_text()
    assert "model-index" not in text and "Not measured yet" in text and "samples.png" not in text
    assert "was not recorded" in text and "minutes" not in text


def test_an_edited_card_keeps_its_owners_words(saved):
    """License, tags and paragraphs stay where new figures come, under any heading but that of the figures."""
    edited = ModelCard.load(saved / "README.md")
    edited.data.license, edited.data.tags = "cc-by-4.0", ["garments"]
    edited.text = (
        edited.text.replace("## Intended use and limits", "## Thanks\n\nTo \\1 my mother.\n\n## Uses") + "\nEnd.\n"
    )
    edited.text = edited.text.replace("## Citation", "### By eye\n\nVery good.\n\n## Citation")
    edited.save(saved / "README.md")
    before = (saved / "README.md").read_text()
    hub.save(hub.load(saved), saved)
    assert (saved / "README.md").read_text() == before
    for metrics in ({"fid": 1.25}, {"fid": 1.25}, METRICS):
        hub.save(hub.load(saved), saved, metrics=metrics)
        card = ModelCard.load(saved / "README.md")
        assert [result.metric_value for result in card.data.eval_results] == (
            [3.5, 2.75] if metrics is METRICS else [1.25]
        )
        assert ("| fid | 1.25 |" in card.text) is (metrics is not METRICS)
    assert (saved / "README.md").read_text() == before
    hub.save(hub.load(saved), saved, train_results=TRAIN_RESULTS | {"hardware": "an abacus"})
    assert (saved / "README.md").read_text() == before.replace("4 CPU cores", "an abacus")


def test_a_card_of_the_owners_own_gets_the_results_only(saved):
    (saved / "README.md").write_text("# Mine\n")
    hub.save(hub.load(saved), saved, metrics={"fid": 1.25})
    card = ModelCard.load(saved / "README.md")
    assert card.text == "# Mine\n" and card.data.eval_results[0].metric_value == 1.25
    (saved / "README.md").write_text("---\nlicense: a: b\n---\n# Mine\n")  # no YAML: nothing measured is lost for it
    hub.save(hub.load(saved), saved, metrics={"fid": 1.5})
    assert "1.5" in (saved / "metrics.json").read_text()
    assert (saved / "README.md").read_text() == "---\nlicense: a: b\n---\n# Mine\n"


def test_an_unedited_card_shows_what_comes_later(tmp_path):
    hub.save(tiny_pipeline(), tmp_path / "a")
    hub.save(hub.load(tmp_path / "a"), tmp_path / "b", samples=Image.new("L", (8, 8)), train_config=TRAIN_CONFIG)
    card = ModelCard.load(tmp_path / "b" / "README.md")
    assert "# b\n" in card.text
    assert "![A grid of samples](samples.png)" in card.text and card.data.datasets == [
        "zalando-datasets/fashion_mnist"
    ]


def run_examples(card: str) -> list[dict]:
    """What each Python block of a card leaves in its variables."""
    blocks = [{"code": block} for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    for block in blocks:
        exec(block["code"], block)
        assert len(block["images"]) == 4
    return blocks


@pytest.mark.parametrize(
    ("options", "num_ways", "size"),
    [
        ({}, 3, 8),
        ({"labels": None}, 3, 8),
        ({"labels": {0: 'a "so-called" bag', 1: "it's"}}, 3, 8),
        ({"labels": {0: "a", 1: "b"}, "num_class_embeds": 2}, 2, 8),  # no null label, and so no unconditional model
        ({"labels": None, "num_class_embeds": 5}, 2, 8),
        ({"labels": None, "sample_size": None}, 2, 16),  # the class's own default: DDPMPipeline could not draw it
        ({"labels": None, "sample_size": (8, 8)}, 3, 8),
    ],
    ids=str,
)
def test_code_on_the_card_runs(remote, tmp_path, options, num_ways, size):
    hub.push(hub.save(tiny_pipeline(**options), tmp_path), "alice/tiny")
    card = ModelCard.load("alice/tiny").text
    examples = run_examples(card)
    assert len(examples) == num_ways == len(remote.repo("alice/tiny").refs) + 1
    assert all(example["images"][0].size == (size, size) for example in examples)
    assert ("8x8 pixels" if size == 8 else "any size") in card
    if options == {}:
        pipe = examples[0]["pipe"]
        exec(re.search(r"`(pipe\.scheduler = .*?)`", card)[1], {"pipe": pipe, "DDIMScheduler": DDIMScheduler})
        assert type(pipe.scheduler) is DDIMScheduler and len(pipe(num_inference_steps=2).images) == 1


def test_code_on_the_card_of_a_branch_runs_what_is_there(remote, saved):
    """Model A on main and stock, B on another branch: all of B's examples load B. A pull request's are those of main."""
    hub.push(saved, "alice/tiny")
    other = tiny_pipeline(seed=1)
    hub.save(other, saved)
    hub.push(saved, "alice/tiny", revision="v2")
    repo = remote.repo("alice/tiny")
    examples = run_examples(repo.at("v2").files["README.md"].decode())
    assert len(examples) == 2
    for example in examples:
        assert torch.equal(example["pipe"].unet.conv_in.weight, other.unet.conv_in.weight)
    hub.push(saved, "alice/tiny", create_pr=True)
    repo.refs["main"] = repo.refs["refs/pr/1"]  # it is merged
    assert 'revision="v2"' not in repo.at("main").files["README.md"].decode()
    assert len(run_examples(repo.at("main").files["README.md"].decode())) == 2
    hub.push(saved, "alice/tiny")
    examples = run_examples(repo.at("main").files["README.md"].decode())
    stock = examples[2]["pipe"].unet
    assert type(stock) is UNet2DModel and torch.equal(stock.conv_in.weight, other.unet.conv_in.weight)


def test_a_push_changes_the_examples_of_this_model_alone():
    others = 'CLIPModel.from_pretrained("openai/clip")\ntorch.load("weights.pt")\n'
    text = name_repo(
        others + 'hub.load("tiny")\nDiffusionPipeline.from_pretrained("tiny", revision="stock")\n', "a/b", "v2"
    )
    ours = 'hub.load("a/b", revision="v2")\nDiffusionPipeline.from_pretrained("a/b", revision="stock")\n'
    assert text == others + ours


def test_a_comment_in_code_is_no_heading():
    section = f"{WITHOUT_CODE}\n```python\n# unconditional\npipe()\n```\nAll the same.\n\n"
    assert without_stock("# tiny\n" + section + "## Training\n") == "# tiny\n## Training\n"
