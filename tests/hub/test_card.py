"""The model card: what it says comes from the saved files, and the code on it runs."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from hub_fixtures import METRICS, TRAIN_CONFIG, TRAIN_RESULTS, tiny_pipeline
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image

from ddpm_hf import DDPMImagePipeline, hub


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


@pytest.mark.parametrize(
    ("num_processes", "options"), [(1, "--num_processes 1"), (4, "--multi_gpu --num_processes 4")]
)
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


def test_an_edited_text_stays_and_its_metadata_gets_the_results(saved, caplog):
    """The owner's license and tags stay in any case; a text that somebody edited, as it is."""
    edited = ModelCard.load(saved / "README.md")
    edited.data.license, edited.data.tags = "cc-by-4.0", ["garments"]
    edited.text += "\nTo \\1 my mother.\n"
    edited.save(saved / "README.md")
    before = (saved / "README.md").read_text()
    hub.save(hub.load(saved), saved)
    assert (saved / "README.md").read_text() == before and not caplog.records
    for metrics in ({"fid": 1.25}, {"fid": 1.25}, METRICS):
        hub.save(hub.load(saved), saved, metrics=metrics)
        card = ModelCard.load(saved / "README.md")
        assert [result.metric_value for result in card.data.eval_results] == (
            [3.5, 2.75] if metrics is METRICS else [1.25]
        )
        assert card.text == edited.text and "README.md was edited" in caplog.text
        assert (card.data.license, card.data.tags) == ("cc-by-4.0", ["garments"])
    assert (saved / "README.md").read_text() == before


def test_metadata_of_the_owner_stays_with_a_generated_text(remote, saved):
    """A license does not make a text edited: figures, the repo's name and the branch still come into it."""
    owned = (saved / "README.md").read_text().replace("---\n", "---\nlicense: mit  # as agreed\n", 1)
    (saved / "README.md").write_text(owned)
    hub.push(saved, "alice/tiny")
    for branch in ("main", "stock"):
        text = remote.repo("alice/tiny").at(branch).files["README.md"].decode()
        assert "license: mit  # as agreed" in text and 'from_pretrained("alice/tiny"' in text
    hub.save(hub.load(saved), saved, metrics={"fid": 1.25})
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "mit" and "| fid | 1.25 |" in card.text


def test_a_card_of_the_owners_own_gets_the_results_only(saved, caplog):
    (saved / "README.md").write_text("# Mine\n")
    hub.save(hub.load(saved), saved, metrics={"fid": 1.25})
    card = ModelCard.load(saved / "README.md")
    assert card.text == "# Mine\n" and card.data.eval_results[0].metric_value == 1.25
    (saved / "README.md").write_text("---\nlicense: a: b\n---\n# Mine\n")  # no YAML: nothing measured is lost for it
    hub.save(hub.load(saved), saved, metrics={"fid": 1.5})
    assert "1.5" in (saved / "metrics.json").read_text() and "The card stays as it is" in caplog.text
    assert (saved / "README.md").read_text() == "---\nlicense: a: b\n---\n# Mine\n"


@pytest.mark.parametrize(
    "metadata", ["license: a: b", "tags: [a", "- a list", "1: a", "model-index: 3", "\\x00: \x00"]
)
def test_a_slip_in_the_metadata_is_one_line_before_anything_is_sent(remote, saved, metadata):
    (saved / "README.md").write_text(f"---\n{metadata}\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"README.md: its metadata cannot be read: ") as refusal:
        hub.push(saved, "alice/tiny")
    assert "\n" not in str(refusal.value) and remote.log == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", '{"metrics": 3}'),
        ("metrics.json", '{"metrics": {"fid": 1}, "settings": [1]}'),
        ("train_results.json", '{"train_runtime": "an hour"}'),
        ("train_results.json", "[1]"),
        ("train_results.json", "{"),
        ("training_config.yaml", "a: b: c"),
        ("training_config.yaml", "- preset"),
    ],
)
def test_figures_written_by_hand_that_do_not_fit_are_named(remote, saved, name, text):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=r"The card cannot be made from metrics.json") as refusal:
        hub.push(saved, "alice/tiny")
    assert "\n" not in str(refusal.value)
    assert remote.log == []


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


def test_the_card_tells_how_the_model_wants_to_be_sampled(tmp_path):
    pipe = tiny_pipeline()
    hub.save(pipe, tmp_path / "plain")
    assert "By default" not in (tmp_path / "plain" / "README.md").read_text()
    sampling = {"num_inference_steps": 5, "eta": 0.0, "solver_order": 2, "guidance_scale": 1.3}
    sampling |= {"timesteps": [19, 12, 7, 3, 1], "guidance_interval": [3, 15]}
    hub.save(DDPMImagePipeline(pipe.unet, pipe.scheduler, pipe.id2label, sampling), tmp_path / "told")
    text = (tmp_path / "told" / "README.md").read_text()
    told = "By default it samples in 5 steps, at the timesteps 19 12 7 3 1, eta 0.0, solver order 2, with guidance scale 1.3 at those from 3 to 15"
    told += " where a class is named."
    assert told in text and "guidance_scale=" not in text  # the examples leave it to the model
