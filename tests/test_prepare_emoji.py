"""scripts/prepare_emoji.py from small npm packages, installed by an npm that copies them."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import PIL.Image
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_emoji.py"
NPM = """#!{python}
import shutil, sys
shutil.copytree("{modules}", sys.argv[sys.argv.index("--prefix") + 1] + "/node_modules")
"""


@pytest.fixture
def packages(tmp_path):
    """20 names, of which the first two share a picture, in two sources; three have two variants; one is a swatch of a skin tone."""
    emojis = [
        {
            "name": f"OPEN BOX {i}",
            "short_names": [f"open_box-{i}", "+1"],
            "image": f"{i}.png",
            "category": "Component" if i == 19 else "Objects",
            "subcategory": "box",
        }
        for i in range(20)
    ]
    for i in range(2, 5):
        emojis[i]["skin_variations"] = {
            "1F3FB-1F3FF": {"image": f"{i}-light-dark.png"},
            "1F3FB": {"image": f"{i}-light.png"},
        }
    for source in ("google", "twitter"):
        folder = tmp_path / "node_modules" / f"emoji-datasource-{source}" / "img" / source / "64"
        folder.mkdir(parents=True)
        (folder.parents[2] / "emoji.json").write_text(json.dumps(emojis))
        for path in (f"{i}-{tones}.png" for i in range(2, 5) for tones in ("light-dark", "light")):
            PIL.Image.new("LA", (64, 64), (200, 0)).save(folder / path)
        for i in range(20):
            PIL.Image.new("RGBA", (64, 64), (max(i, 1), 0, 0, 128)).save(folder / f"{i}.png")
    return tmp_path / "node_modules"


@pytest.fixture
def prepare(packages, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(NPM.format(python=sys.executable, modules=packages))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda *arguments: subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_the_folder_loads_as_an_image_folder(prepare, tmp_path):
    run = prepare(tmp_path / "emoji")
    assert run.returncode == 0, run.stderr
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "emoji"), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in loaded.values() for row in split]
    assert len(rows) == 2 * (19 + 6)  # the variants too; no swatch
    assert all(row["image"].mode == "RGBA" and row["image"].size == (64, 64) for row in rows)
    plain = next(row for row in rows if row["name"] == "OPEN BOX 3" and row["source"] == "twitter")
    assert plain["text"] == ["open box 3", "+1"] and plain["category"] == "Objects"
    assert plain["image"].getpixel((0, 0)) == (3, 0, 0, 128)
    tones = ", light and dark skin tone"
    assert [f"open box 2{tones}", f"+1{tones}"] in [row["text"] for row in rows]
    assert (tmp_path / "emoji" / "LICENSE-APACHE-2.0").is_file()
    assert "CC-BY 4.0" in (tmp_path / "emoji" / "README.md").read_text()


def test_a_tenth_of_the_names_is_held_out_with_all_pictures(prepare, tmp_path):
    names = {}
    prepare(tmp_path / "emoji")
    for split in ("train", "test"):
        lines = (tmp_path / "emoji" / split / "metadata.jsonl").read_text().splitlines()
        names[split] = {json.loads(line)["name"] for line in lines}
    assert not names["train"] & names["test"]
    shared = {"OPEN BOX 0", "OPEN BOX 1"}
    assert shared <= names["train"] or shared <= names["test"]
    assert len(names["test"]) in (1, 2)  # of 18, the two that share a picture being one


def test_of_pictures_that_differ_in_skin_tones_one_is_trained_on(prepare, tmp_path):
    prepare(tmp_path / "all")
    prepare(tmp_path / "one", "--one_tone")
    for split in ("train", "test"):
        rows = {}
        for folder in ("all", "one"):
            lines = map(json.loads, (tmp_path / folder / split / "metadata.jsonl").read_text().splitlines())
            rows[folder] = {
                row["file_name"]: (row["source"], row["name"], "skin tone" in row["text"][0]) for row in lines
            }
        assert rows["one"].items() <= rows["all"].items() and set(rows["one"].values()) == set(rows["all"].values())
        assert split == "test" or len(rows["one"]) == len(set(rows["one"].values()))
        assert split == "train" or rows["one"] == rows["all"]


def test_an_existing_folder_is_refused(prepare, tmp_path):
    run = prepare(tmp_path)
    assert run.returncode == 1 and "exists already" in run.stderr


@pytest.mark.parametrize("npm", [None, "exit 1"])
def test_without_npm_or_its_packages_one_line_says_so(tmp_path, monkeypatch, npm):
    if npm:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = subprocess.run([sys.executable, SCRIPT, tmp_path / "emoji"], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "npm" in run.stderr
    assert not (tmp_path / "emoji").exists()
