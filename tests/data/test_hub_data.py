"""Data sets of the Hub, through the same local server as the models: `datasets` with the real client."""

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

from ddpm_hf.data import load_image_dataset

RGB = {"num_channels": 3, "image_size": 8}


def test_data_sets_of_the_same_hub(remote, tmp_path):
    for label in ("Bag", "Sneaker"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "train" / label / f"{i}.png")
    api = HfApi()
    for repo_id, private in {"alice/garments": False, "alice/own-garments": True}.items():
        api.create_repo(repo_id, repo_type="dataset", private=private)
        api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=tmp_path)
        data = load_image_dataset(repo_id, token="hf_alice", cache_dir=str(tmp_path / "cache"), **RGB)
        assert data.class_names == ["Bag", "Sneaker"] and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert (data.images[:3] == torch.tensor([0, 40, 80])[:, None, None, None]).all()
    streamed = load_image_dataset("alice/garments", streaming=True, **RGB)
    assert sorted(next(iter(streamed))) == ["class_labels", "position", "x_0"]
    with pytest.raises(FileNotFoundError, match=r"dataset='alice/own-garments': .*doesn't exist on the Hub"):
        load_image_dataset("alice/own-garments", token="hf_bob", cache_dir=str(tmp_path / "other-cache"), **RGB)
