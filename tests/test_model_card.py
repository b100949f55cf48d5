"""The model card: what it says comes from the saved files, and the code on it runs."""

import re

from hub_fixtures import METRICS, tiny_pipeline
from huggingface_hub import ModelCard, snapshot_download

from ddpm_hf import hub


def test_card_says_what_metrics_json_says(remote, saved):
    hub.push(saved, "alice/tiny")
    card = ModelCard.load("alice/tiny")
    card.validate()
    told = card.data.to_dict()
    assert told["license"] == "apache-2.0" and told["library_name"] == "diffusers" and "ddpm" in told["tags"]
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
        "Intended use",
    ):
        assert text in card.text
    ModelCard.load(snapshot_download("alice/tiny", revision="stock") + "/README.md").validate()


def test_card_without_anything_measured(tmp_path):
    text = (hub.save(tiny_pipeline(), tmp_path) / "README.md").read_text()
    assert "model-index" not in text and "Not measured yet" in text and "samples.png" not in text
    assert "was not recorded" in text and "minutes" not in text


def test_code_on_the_card_runs(remote, saved):
    hub.push(saved, "alice/tiny")
    blocks = re.findall(r"```python\n(.*?)```", ModelCard.load("alice/tiny").text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        exec(block, names)
        assert len(names["images"]) == 4 and names["images"][0].size == (8, 8)
