"""Data sets of the Hub, through the same local server as the models: `datasets` with the real client."""

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi
from PIL import Image


def test_load_dataset_through_the_same_hub(remote, tmp_path):
    for label in ("Bag", "Sneaker"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "train" / label / f"{i}.png")
    api = HfApi()
    for repo_id, private in {"alice/garments": False, "alice/own-garments": True}.items():
        api.create_repo(repo_id, repo_type="dataset", private=private)
        api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=tmp_path)
        data = load_dataset(repo_id, split="train", token="hf_alice", cache_dir=tmp_path / "cache")
        assert data.num_rows == 6 and data.features["label"].names == ["Bag", "Sneaker"]
        assert data[5]["image"].size == (8, 8)
    with pytest.raises(Exception, match="own-garments"):
        load_dataset("alice/own-garments", split="train", token="hf_bob", cache_dir=tmp_path / "other-cache")
