"""A run on somebody's own folder of photos: wide ones, some of which cannot be used."""

import shutil
from pathlib import Path

from tiny import ASSETS
from training_fixtures import tiny

from ddpm_hf import hub
from ddpm_hf.training import PRESETS, train


def test_a_folder_of_photos_trains_wide_images_and_says_on_what(tmp_path, tiny_preset, capsys):
    folder = Path(shutil.copytree(ASSETS / "imagefolder", tmp_path / "photos"))
    shutil.copyfile(folder / "Bag" / "0.png", folder / "preview.png")
    (folder / "Bag" / "broken.png").write_bytes(b"\x89PNG")
    PRESETS["tiny"].unet["sample_size"] = (16, 28)
    run = train(tiny(tmp_path, dataset=str(folder), skip_undecodable=True, max_train_steps=2))
    told = capsys.readouterr()
    assert "11 images of 16 x 28; 3 classes (Bag, Sneaker, Trouser); every tenth image is held out (1)" in told.out
    assert "beside the folders of the classes (preview.png)" in told.out
    assert "skipped 1 images that cannot be decoded" in told.out and "broken.png" in told.out
    pipe = hub.load(run)
    assert pipe(2, class_labels=["Bag", "Trouser"], num_inference_steps=2).images[0].size == (28, 16)
