"""Image folders, with what people's folders hold beside images: no image and no class is lost without a word."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import PIL.Image
import pytest
import torch

from ddpm_hf.data import load_image_dataset

GRAY = {"num_channels": 1, "image_size": 28}


def class_counts(folder: str, **options) -> dict[str, int]:
    data = load_image_dataset(folder, **GRAY, **options)
    return dict(zip(data.class_names, data.labels.bincount(minlength=len(data.class_names)).tolist()))


def write_metadata(folder: str, rows: list[dict], name: str = "metadata.jsonl"):
    Path(folder, name).write_text("\n".join(map(json.dumps, rows)))


# ---------------------------------------------------------------------- splits


@pytest.mark.parametrize("name", ["holiday-train-ride.jpg", "test.png", "val/x.png", "train/x.png"])
def test_no_single_name_chooses_what_is_trained_on(photos, name):
    folder = photos(*(f"{i}.png" for i in range(50)), name)
    sizes = [len(load_image_dataset(folder, split=split, **GRAY)) for split in ("train", "test")]
    assert sizes == [46, 5]


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_a_folder_named_as_a_split_can_be_a_class(photos, name):
    folder = photos(*(f"{label}/{i}.png" for label in ("car", "plane", name) for i in range(2)))
    assert class_counts(folder) == dict.fromkeys(sorted(["car", "plane", name]), 2)


@pytest.mark.parametrize(("train", "other"), [("train", "test"), ("Training", "val"), ("pets/train", "pets/dev")])
def test_folders_of_splits(photos, train, other):
    names = [f"{split}/{label}/{i}.png" for split in (train, other) for label in ("cats", "dogs") for i in range(5)]
    assert class_counts(photos(*names)) == {"cats": 5, "dogs": 5}
    folder = photos(f"{Path(train).parent}/sample.png")
    assert class_counts(folder, split="test") == {"cats": 5, "dogs": 5}
    told = load_image_dataset(folder, **GRAY).describe()
    assert "skipped 1 files: 1 outside the folders of the splits" in told and "sample.png" in told
    with pytest.raises(ValueError, match=r"folders .*elsewhere.* are neither all splits nor all classes"):
        load_image_dataset(photos(f"{Path(train).parent}/elsewhere/a.png"), **GRAY)


def test_folders_of_splits_without_classes(photos):
    folder = photos("train/a.png", "train/b.png", "test/c.png")
    data = load_image_dataset(folder, **GRAY)
    assert len(data) == 2 and data.labels is None and data.class_names is None
    assert data.describe() == "2 images of 28 x 28; no classes" and set(data[[0, 1]]) == {"x_0"}
    assert "class_labels" not in next(iter(load_image_dataset(folder, streaming=True, **GRAY)))
    with pytest.raises(ValueError, match="label_column='label': allowed are"):
        load_image_dataset(folder, label_column="label", **GRAY)


# ---------------------------------------------------------------------- classes


def test_what_lies_beside_class_folders_costs_no_class(photos):
    folder = photos("cats/a.png", "cats/tabby/b.png", "dogs/c.png", "preview.png")
    Path(folder, "labels.csv").write_text("file,label\n")
    Path(folder, "README.md").write_text("# Cats and dogs")
    data = load_image_dataset(folder, **GRAY)
    assert data.class_names == ["cats", "dogs"] and data.labels.tolist() == [0, 0, 1]
    skipped = "1 not images that Pillow reads (labels.csv), 1 beside the folders of the classes (preview.png)"
    assert data.describe() == f"3 images of 28 x 28; 2 classes (cats, dogs); skipped 2 files: {skipped}"
    assert len(load_image_dataset(folder, conditions=(), **GRAY)) == 4  # without classes none is beside them


def test_a_list_of_labels_that_is_not_read_is_refused(photos):
    folder = photos("a.png", "b.png")
    Path(folder, "labels.csv").write_text("file,label\na.png,cat\n")
    with pytest.raises(ValueError, match=r"labels.csv is not read; metadata.csv would be, with a column file_name"):
        load_image_dataset(folder, **GRAY)
    assert len(load_image_dataset(folder, conditions=(), **GRAY)) == 2


def test_links_are_followed_once(photos, tmp_path):
    folder = Path(photos("cats/a.png", "cats/b.png", "dogs/c.png"))
    links = tmp_path / "links"
    links.mkdir()
    for name in ("cats", "dogs"):
        (links / name).symlink_to(folder / name)
    assert class_counts(str(links)) == {"cats": 2, "dogs": 1}
    (links / "cats again").symlink_to(folder / "cats")
    (links / "up").symlink_to(links)
    (links / "broken.png").symlink_to("nowhere.png")
    data = load_image_dataset(str(links), **GRAY)
    assert len(data) == 3
    assert "1 broken links, special files or not named in UTF-8 (broken.png)" in data.describe()
    assert "2 in folders linked a second time (cats again, up)" in data.describe()


def test_a_pipe_and_an_undecodable_name_are_skipped(photos):
    folder = photos("a.png", "b.png")
    os.mkfifo(Path(folder, "pipe.png"))  # opening it would wait for ever
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(Path(folder, "a.png").read_bytes())
    data = load_image_dataset(folder, **GRAY)
    assert len(data) == 2 and "skipped 2 files" in data.describe() and data.describe().isprintable()


def test_what_is_not_used_is_counted_and_named(photos):
    folder = photos("a.JPG", "b.jpeg", ".hidden.png", "__MACOSX/c.png")
    for i in range(8):
        Path(folder, f"{i}.heic").write_bytes(b"0")
    assert load_image_dataset(folder, **GRAY).describe() == (
        "2 images of 28 x 28; no classes; skipped 8 files: 8 not images that Pillow reads (0.heic, 1.heic, 2.heic, ...)"
    )


def test_many_classes_are_counted_and_the_first_named(photos):
    folder = photos(*(f"c{i:02}/a.png" for i in range(12)))
    told = load_image_dataset(folder, **GRAY).describe()
    assert "12 classes (c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, ...)" in told


# ---------------------------------------------------------------------- ways of packing


@pytest.mark.parametrize("outer", ["", "pets/"])
def test_a_zip_of_class_folders(photos, tmp_path, outer):
    folder = photos("cats/a.PNG", "dogs/b.png")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in ("cats/a.PNG", "dogs/b.png"):
            archive.write(f"{folder}/{path}", f"{outer}{path}")
        archive.writestr("__MACOSX/._a.png", b"resource fork")
    assert class_counts(str(tmp_path / "pets.zip")) == {"cats": 1, "dogs": 1}
    with zipfile.ZipFile(tmp_path / "pets.zip", "a") as archive:
        archive.write(f"{folder}/dogs/b.png", f"{outer}birds/c.png")
    assert class_counts(str(tmp_path / "pets.zip")) == {"birds": 1, "cats": 1, "dogs": 1}  # not the cached one


@pytest.mark.parametrize("names", [("cats", "dogs"), ("train", "test"), ("photos/train", "photos/test")])
def test_a_zip_counts_as_a_folder_of_its_name(photos, tmp_path, names):
    folder = photos("a.png", "b.png")
    for name in names:
        (tmp_path / "zips" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.make_archive(tmp_path / "zips" / name, "zip", folder)
    data = load_image_dataset(str(tmp_path / "zips"), **GRAY)
    if names[0] == "cats":
        assert class_counts(str(tmp_path / "zips")) == {"cats": 2, "dogs": 2}
    else:
        assert len(data) == 2 and not data.class_names
    assert data.describe().count("skipped") == 0


def test_a_zip_leaves_its_folder_alone_and_says_what_is_wrong(photos, tmp_path, monkeypatch):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(photos("a.png") + "/a.png", "../../outside.png")
    assert len(load_image_dataset(str(path), **GRAY)) == 1 and not list(tmp_path.parent.glob("outside.png"))
    for inner, outer in (("pets", "nested"), ("nested", "deeper")):
        with zipfile.ZipFile(tmp_path / f"{outer}.zip", "w") as archive:
            archive.write(tmp_path / f"{inner}.zip", f"{inner}.zip")
    with pytest.raises(FileNotFoundError, match=r"no images or tables among 1 files nested/pets.zip"):
        load_image_dataset(str(tmp_path / "deeper.zip"), **GRAY)  # some zips hold themselves
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"pets.zip: .*not a zip file"):
        load_image_dataset(str(path), **GRAY)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"0" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1500))
    with pytest.raises(ValueError, match=r"pets.zip: it unpacks to 1,000 bytes, and .* has 1,500 free"):
        load_image_dataset(str(path), **GRAY)


def test_brackets_in_a_path(photos, tmp_path):
    shutil.copytree(photos("cats/a.png", "dogs/b.png"), tmp_path / "pets [2] *")
    assert class_counts(str(tmp_path / "pets [2] *")) == {"cats": 1, "dogs": 1}


def test_images_and_tables_in_one_folder_are_refused(photos, table):
    folder = photos("banner.png")
    table.to_parquet(Path(folder, "train.parquet"))
    with pytest.raises(ValueError, match=r"holds images \(banner.png\) and tables \(train.parquet\): move"):
        load_image_dataset(folder, **GRAY)
    Path(folder, "banner.png").unlink()
    Path(folder, "more.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tables of several kinds, more.tar, train.parquet"):
        load_image_dataset(folder, **GRAY)


# ---------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_metadata_with_labels(photos, table, name):
    folder = photos("a/0.png", "a/1.png", "2.png", "unlisted.png")
    rows = [("2.png", "left"), ("a/0.png", "right"), ("./a/1.png", "left")]
    if name.endswith("jsonl"):
        write_metadata(folder, [{"file_name": path, "label": label} for path, label in rows])
    elif name.endswith("csv"):
        Path(folder, name).write_text("\n".join(["file_name,label", *map(",".join, rows)]))
    else:
        columns = dict(zip(("file_name", "label"), map(list, zip(*rows))))
        type(table).from_dict(columns).to_parquet(Path(folder, name))
    data = load_image_dataset(folder, **GRAY)
    assert data.class_names == ["left", "right"] and data.labels.tolist() == [0, 1, 0]
    assert data.describe().endswith("skipped 1 files: 1 not named in the metadata (unlisted.png)")
    streamed = load_image_dataset(folder, streaming=True, **GRAY)
    assert streamed.class_names == data.class_names and next(iter(streamed))["class_labels"] == 0


def test_metadata_without_labels_leaves_the_class_folders(photos):
    folder = photos("cats/a.png", "dogs/b.png")
    write_metadata(folder, [{"file_name": f"{name}.png", "text": "a pet"} for name in ("cats/a", "dogs/b")])
    assert class_counts(folder) == {"cats": 1, "dogs": 1}


def test_metadata_in_the_folder_of_each_split(photos):
    folder = photos("train/a.png", "train/b.png", "test/c.png")
    write_metadata(f"{folder}/train", [{"file_name": "a.png", "label": 5}, {"file_name": "b.png", "label": 11}])
    write_metadata(f"{folder}/test", [{"file_name": "c.png", "label": 11}])
    assert class_counts(folder) == {"5": 1, "11": 1} and class_counts(folder, split="test") == {"5": 0, "11": 1}


METADATA_REFUSALS = {
    "no file_name": ([{"file": "a.png"}], r"needs a column file_name, and none called image; it has \['file'\]"),
    "a column image": ([{"file_name": "a.png", "image": 1}], "none called image"),
    "a missing file": ([{"file_name": "z.png"}], "1 of its files are no images of this folder: z.png"),
    "a file elsewhere": ([{"file_name": "../secret.png"}], "no images of this folder: ../secret.png"),
    "no name": ([{"file_name": "a.png"}, {"label": 1}], "no images of this folder: None"),
    "twice": ([{"file_name": "a.png"}] * 2, "a.png named twice; several captions of an image are a list"),
    "no object": ([7], "JSON parse error"),
    "nothing": ([], "Empty JSON file"),
}


@pytest.mark.parametrize("case", METADATA_REFUSALS)
def test_metadata_refusals(photos, case):
    rows, message = METADATA_REFUSALS[case]
    folder = photos("a.png", "b.png")
    shutil.copyfile(f"{folder}/a.png", f"{folder}/../secret.png")
    write_metadata(folder, rows)
    with pytest.raises(ValueError, match=f"metadata.jsonl.* {message}"):
        load_image_dataset(folder, **GRAY)


def test_metadata_without_a_row(photos):
    folder = photos("a.png")
    Path(folder, "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(ValueError, match=r"metadata.csv: no image is named"):
        load_image_dataset(folder, **GRAY)


# ---------------------------------------------------------------------- images that cannot be decoded


@pytest.mark.parametrize("in_memory", [True, False])
def test_undecodable_images_are_skipped_and_counted_on_request(photos, monkeypatch, in_memory):
    monkeypatch.setattr("ddpm_hf.data.images.MAX_BYTES_IN_MEMORY", 2**30 if in_memory else 0)
    folder = photos("cats/a.png", "cats/b.png", "dogs/c.png", "dogs/d.png")
    Path(folder, "cats/b.png").write_bytes(b"\x89PNG")
    data = load_image_dataset(folder, skip_undecodable=True, **GRAY)
    assert data.labels.tolist() == [0, 1, 1] and data[[0, 1, 2]]["x_0"].shape == (3, 1, 28, 28)
    assert "skipped 1 images that cannot be decoded: image 1" in data.describe() and "cats/b.png" in data.describe()
    with pytest.raises(ValueError, match=r"image 1 \(.*cats/b.png\) cannot be used: .*"):
        load_image_dataset(folder, **GRAY)[[0, 1]]
    for path in Path(folder).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no image can be decoded: image 0"):
        load_image_dataset(folder, skip_undecodable=True, **GRAY)


def test_the_skip_option_is_named_where_it_would_help(photos):
    folder = photos("a.png")
    Path(folder, "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"skip_undecodable leaves such images out\)$"):
        load_image_dataset(folder, **GRAY)


def test_colour_photos_of_any_mode(photos):
    """One folder, whatever the modes: its images become what the model has."""
    folder = Path(photos("a.png"))
    for mode, suffix in {"RGBA": "png", "LA": "png", "P": "gif", "CMYK": "jpg", "1": "png", "I;16": "png"}.items():
        PIL.Image.new(mode, (9, 5)).save(folder / f"{mode.replace(';', '')}.{suffix}")
    data = load_image_dataset(str(folder), num_channels=3, image_size=(8, 4))
    assert data.images.shape == (7, 3, 8, 4) and data.images.dtype == torch.uint8
