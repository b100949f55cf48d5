"""Write emoji and their names as an image folder, which `datasets` reads: `make emoji`.

    python scripts/prepare_emoji.py .data/emoji

    FOLDER/{train,test}/metadata.jsonl     a line for each picture: file_name, text, name, category, subcategory, source
    FOLDER/{train,test}/SOURCE-CODE.png    RGBA, 64 x 64, transparent around the emoji
    FOLDER/README.md, LICENSE-APACHE-2.0   where the pictures are from, and their licences

`text` is a list of captions: the Unicode name, then the short names. The pictures are Google's and Twitter's, from npm's
emoji-datasource-google and emoji-datasource-twitter. A tenth of the names is held out in test/, with all their pictures: both
sources, every skin tone. Names that share a picture, such as the flags of France and St. Martin, stay together.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import PIL.Image

VERSION = "16.0.0"
SOURCES = ("google", "twitter")
SKIN_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}

README = f"""---
pretty_name: Emoji and their names
license: [apache-2.0, cc-by-4.0]
task_categories: [text-to-image]
---

# Emoji and their names

Pictures of 64 x 64 pixels with captions, names and categories, made by `scripts/prepare_emoji.py` of ddpm_hf from the npm packages
emoji-datasource-google and emoji-datasource-twitter, version {VERSION}. All were converted to RGBA and are otherwise unchanged. The five
swatches of skin tones are left out. `test` holds a tenth of the names; no picture of it is in `train`.

- `google-*.png`: [Noto Emoji](https://github.com/googlefonts/noto-emoji) v2.048, copyright Google LLC, under the
  [Apache License 2.0](LICENSE-APACHE-2.0).
- `twitter-*.png`: [Twemoji](https://github.com/jdecked/twemoji) v16.0.1, copyright Twitter, Inc and other contributors, under
  [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/).
- Names and categories: [emoji-data](https://github.com/iamcal/emoji-data), copyright Cal Henderson, under the MIT License.
"""


def install(folder: Path) -> dict[str, Path]:
    """Source -> its npm package, unpacked in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed, and the pictures are npm packages: install Node.js")
    packages = [f"emoji-datasource-{source}@{VERSION}" for source in SOURCES]
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *packages]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise ConnectionError(f"npm could not install {' and '.join(packages)}; its messages are above")
    return {source: folder / "node_modules" / f"emoji-datasource-{source}" for source in SOURCES}


def captions(emoji: dict, skin_tones: str = "") -> list[str]:
    """The name and the short names in lower case, e.g. ["waving hand sign, dark skin tone", "wave, dark skin tone"]."""
    names = [emoji["name"], *emoji["short_names"]]
    words = [re.sub(r"(?<=\w)[-_]", " ", name.lower()) for name in names]  # "+1" and "-1" stay
    tones = " and ".join(dict.fromkeys(SKIN_TONES[tone] for tone in skin_tones.split("-") if tone))
    return [f"{text}, {tones} skin tone" if tones else text for text in dict.fromkeys(words)]


def read(source: str, package: Path) -> list[tuple[Path, dict]]:
    """Each picture of a package and its line of metadata."""
    pictures = []
    for emoji in json.loads((package / "emoji.json").read_text()):
        if emoji["category"] == "Component":  # swatches of skin tones
            continue
        variants = {"": emoji} | emoji.get("skin_variations", {})
        facts = {name: emoji[name] for name in ("name", "category", "subcategory")}
        for skin_tones, variant in variants.items():
            row = {"file_name": f"{source}-{variant['image']}", "text": captions(emoji, skin_tones), "source": source}
            pictures.append((package / "img" / source / "64" / variant["image"], row | facts))
    return pictures


def held_out_names(pictures: list[tuple[Path, dict]]) -> set[str]:
    """A tenth of the names by their hashes; those that share a picture count as one."""
    sharing = defaultdict(set)
    for path, row in pictures:
        sharing[path.read_bytes()].add(row["name"])
    groups = {row["name"]: {row["name"]} for _, row in pictures}
    for names in sharing.values():
        union = set().union(*(groups[name] for name in names))
        groups.update(dict.fromkeys(union, union))
    leaders = {min(group) for group in groups.values()}
    by_hash = sorted(leaders, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = by_hash[: len(by_hash) // 10]
    return {name for name, group in groups.items() if min(group) in held_out}


def of_one_tone(pictures: list[tuple[Path, dict]]) -> list[tuple[Path, dict]]:
    """The pictures without those that differ in skin tones alone: of these, one of each source and name, chosen by its hash."""
    kept: list[tuple[Path, dict]] = []
    tones: dict[tuple, list] = defaultdict(list)
    for path, row in pictures:
        (tones[row["source"], row["name"]] if "skin tone" in row["text"][0] else kept).append((path, row))
    by_hash = {
        name: min(rows, key=lambda item: hashlib.sha256(item[1]["file_name"].encode()).hexdigest())
        for name, rows in tones.items()
    }
    return kept + list(by_hash.values())


def _write(folder: Path, pictures: list[tuple[Path, dict]], one_tone: bool) -> None:
    held_out = held_out_names(pictures)
    if one_tone:
        chosen = {row["file_name"] for _, row in of_one_tone(pictures)}
        pictures = [(path, row) for path, row in pictures if row["name"] in held_out or row["file_name"] in chosen]
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        with open(folder / split / "metadata.jsonl", "w") as metadata:
            for path, row in pictures:
                if (row["name"] in held_out) == (split == "test"):
                    PIL.Image.open(path).convert("RGBA").save(folder / split / row["file_name"])
                    metadata.write(json.dumps(row) + "\n")
    (folder / "README.md").write_text(README)
    shutil.copyfile(Path(__file__).parents[1] / "LICENSE", folder / "LICENSE-APACHE-2.0")


def main() -> None:
    """Installs the two packages and writes their pictures and captions, all or nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder to write. It must not exist yet.")
    parser.add_argument(
        "--one_tone",
        action="store_true",
        help="Keep one skin tone of each picture in train, so that objects are a larger part of it.",
    )
    args = parser.parse_args()
    folder = args.folder
    try:
        if folder.exists():
            raise FileExistsError(f"folder={str(folder)!r} exists already: remove it, or choose another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            packages = install(Path(temporary))
            _write(
                Path(temporary, "emoji"),
                [row for package in packages.items() for row in read(*package)],
                args.one_tone,
            )
            Path(temporary, "emoji").rename(folder)  # complete, or not there
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}.")


if __name__ == "__main__":
    main()
