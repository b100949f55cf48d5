"""A folder on this machine -> its splits, each a `datasets.Dataset`: image folders, tables, zips of them, what `save_to_disk` wrote.

An image folder may have
    splits     folders train/ and test/ or validation/, or their usual short names; names of files choose nothing
    classes    two or more folders that hold images, at any depth below; images beside them have no class and are skipped
    metadata   metadata.jsonl, .csv or .parquet, anywhere: a column file_name, relative to the file, and columns of labels or captions
A zip counts as a folder of its name. Links are followed. Hidden files are ignored; any other file that is not used is counted and named in a note.
"""

import glob
import os
import posixpath
import re
import shutil
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets.data_files import SPLIT_KEYWORDS
from datasets.fingerprint import Hasher

from .images import list_some, one_line_error

SPLIT_NAMES = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}  # "val" -> "validation"
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # and their modules in datasets
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LISTS = (".csv", ".tsv", ".jsonl", ".json", ".xlsx")  # files that may hold labels
ABOUT = ("readme", "license", "dataset_info")  # files about the data

Skipped = dict[str, list[str]]  # reason -> names of files


def load_folder(folder: Path, cache: Path, class_folders: bool, streaming: bool) -> tuple[dict, list[str]]:
    """-> splits by name, and notes on the files that were skipped. class_folders: whether names of folders become labels."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        with one_line_error(f"dataset={str(folder)!r}"):
            found = datasets.load_from_disk(str(folder))
            return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}, []
    skipped: Skipped = defaultdict(list)
    files, suffixes = _list_files(folder, skipped, cache), PIL.Image.registered_extensions()
    readable = {suffix for suffix, kind in suffixes.items() if kind in PIL.Image.OPEN}
    images = {name: path for name, path in files.items() if _suffix(name) in readable}
    metadata = {name: path for name, path in files.items() if posixpath.basename(name) in METADATA}
    tables = {name: path for name, path in files.items() if _suffix(name) in TABLES and name not in metadata}
    others = [name for name in files if not (name in images or name in metadata or name in tables)]
    if images and tables:
        kinds = f"images ({list_some(list(images), 3)}) and tables ({list_some(list(tables), 3)})"
        raise ValueError(f"dataset={str(folder)!r} holds {kinds}: move what is not to be used")
    if not images and not tables:
        raise FileNotFoundError(
            f"dataset={str(folder)!r}: no images or tables among {len(files)} files {list_some(others, 3)}"
        )
    skipped["not images that Pillow reads"] += [
        x for x in others if not posixpath.basename(x).lower().startswith(ABOUT)
    ]
    if tables:
        return _load_tables(tables, streaming), _notes(skipped)
    return _load_images(images, metadata, class_folders, skipped), _notes(skipped)


def unzip(path: str, cache: Path) -> Path:
    """Unpack a zip into the cache, once for its path, size and date; returns the folder."""
    status = os.stat(path)
    target = cache / f"zip-{Hasher.hash([os.path.abspath(path), status.st_size, status.st_mtime_ns])}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with one_line_error(path), zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=cache) as folder:
            size, free = sum(member.file_size for member in archive.infolist()), shutil.disk_usage(cache).free
            if size > free // 2:
                raise ValueError(f"it unpacks to {size:,} bytes, and {cache} has {free:,} free")
            Path(folder, "files").mkdir()
            archive.extractall(Path(folder, "files"))
            os.rename(Path(folder, "files"), target)
    return target


def _notes(skipped: Skipped) -> list[str]:
    reasons = [f"{len(names)} {reason} ({list_some(names, 3)})" for reason, names in skipped.items() if names]
    return [f"skipped {sum(map(len, skipped.values()))} files: {', '.join(reasons)}"] if reasons else []


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _list_files(folder: Path, skipped: Skipped, cache: Path | None) -> dict[str, str]:
    """All files below the folder, sorted: name relative to it, with "/" -> path. Zips are unpacked into `cache`, zips in zips are not."""

    def refuse(error: OSError) -> None:
        raise error

    found: dict[str, str] = {}
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        inside = Path(root).relative_to(folder)
        if (real := os.path.realpath(root)) in seen:  # a link back up would have no end
            skipped["in folders linked a second time"].append(inside.as_posix())
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        for name in (name for name in names if name[0] != "."):
            relative, path = (inside / name).as_posix(), os.path.join(root, name)
            if not os.path.isfile(path) or relative != relative.encode(errors="replace").decode():
                skipped["broken links, special files or not named in UTF-8"].append(relative)
            elif cache and _suffix(name) == ".zip":
                unpacked = _list_files(unzip(path, cache), skipped, None)
                found |= {posixpath.join(relative[:-4], name): path for name, path in unpacked.items()}
            else:
                found[relative] = path
    return dict(sorted(found.items()))


def _load_tables(tables: dict[str, str], streaming: bool) -> dict:
    """All files, of one kind. NAME-00000-of-00003 is a part of the split NAME; test.parquet and test/x.parquet are of the split test."""
    kinds = {TABLES[_suffix(name)] for name in tables}
    if len(kinds) > 1:
        raise ValueError(f"dataset: tables of several kinds, {list_some(list(tables), 3)}; keep one kind")
    by_split = defaultdict(list)
    for name, path in tables.items():
        folder, stem = posixpath.split(posixpath.splitext(name)[0])
        sharded = re.match(r"(.+)-\d{5}-of-\d{5}", stem)
        split = SPLIT_NAMES.get(stem) or SPLIT_NAMES.get(posixpath.basename(folder), "train")
        by_split[sharded[1] if sharded else split].append(glob.escape(path))
    with one_line_error(f"dataset: {list_some(list(tables), 3)}"):
        return dict(datasets.load_dataset(kinds.pop(), data_files=dict(by_split), streaming=streaming))


# ---------------------------------------------------------------------- image folders


def _load_images(images: dict[str, str], metadata: dict[str, str], class_folders: bool, skipped: Skipped) -> dict:
    table = _read_metadata(metadata, images) if metadata else pa.table({"image": list(images)})
    names: list[str] = table.column("image").to_pylist()
    skipped["not named in the metadata"] += sorted(set(images) - set(names))
    splits, classes = zip(*_places([name.split("/") for name in names]))
    class_names = sorted({label for split, label in zip(splits, classes) if split and label})
    labelled = class_folders and len(class_names) > 1 and "label" not in table.column_names
    lists = [name for name in skipped["not images that Pillow reads"] if _suffix(name) in LISTS]
    if class_folders and not labelled and not metadata and lists:
        ways = "metadata.csv would be, with a column file_name; conditions without class_labels do without"
        raise ValueError(f"dataset: {list_some(lists, 3)} is not read; {ways}")
    skipped["outside the folders of the splits"] += [name for name, split in zip(names, splits) if not split]
    if labelled:
        alone = [name for name, split, label in zip(names, splits, classes) if split and not label]
        skipped["beside the folders of the classes"] += alone
    found, feature = {}, datasets.ClassLabel(names=class_names)
    for split in dict.fromkeys(filter(None, splits)):
        rows = [i for i, label in enumerate(classes) if splits[i] == split and (label or not labelled)]
        paths = [images[names[i]] for i in rows]
        part = table.take(rows).set_column(0, "image", [paths])
        # Names the cached pixels: an image that is replaced is decoded anew.
        stats = [(path, status.st_size, status.st_mtime_ns) for path in paths for status in [os.stat(path)]]
        found[split] = datasets.Dataset(part, fingerprint=Hasher.hash(stats)).cast_column("image", datasets.Image())
        if labelled:
            labels = [feature.str2int(classes[i]) for i in rows]
            found[split] = found[split].add_column("label", labels, feature=feature)
    return found


def _places(paths: list[list[str]]) -> list[tuple[str, str]]:
    """Of each path, as its parts, the split, empty outside of the splits, and the class, empty outside of the folders of classes."""
    paths = _without_common_folder(paths)
    known = {parts[0]: SPLIT_NAMES.get(parts[0].lower(), "") for parts in paths if len(parts) > 1}
    splits = ["train"] * len(paths)
    if {"train"} < {*known.values()} - {""}:  # without a second split, "train" may be a class of vehicles
        if "" in known.values():
            raise ValueError(
                f"dataset: the folders {list_some(list(known))} are neither all splits nor all classes; move the others"
            )
        splits = [known[parts[0]] if len(parts) > 1 else "" for parts in paths]
        paths = _without_common_folder([parts[1:] if split else parts[-1:] for parts, split in zip(paths, splits)])
    return [(split, parts[0] if len(parts) > 1 else "") for parts, split in zip(paths, splits)]


def _without_common_folder(paths: list[list[str]]) -> list[list[str]]:
    depth = len(os.path.commonprefix([parts[:-1] for parts in paths]))  # noqa: RUF071  # of lists
    return [parts[depth:] for parts in paths]


def _read_metadata(metadata: dict[str, str], images: dict[str, str]) -> pa.Table:
    """All metadata files as one table; its first column, "image", names images of the folder."""
    tables = []
    for name, path in metadata.items():
        with one_line_error(path):
            table = _read_table(path)
            if "file_name" not in table.column_names or "image" in table.column_names:
                raise ValueError(f"it needs a column file_name, and none called image; it has {table.column_names}")
            relative = [
                posixpath.join(posixpath.dirname(name), str(value)) for value in table["file_name"].to_pylist()
            ]
            named = [posixpath.normpath(value) for value in relative]
            if missing := [value for value in named if value not in images]:
                raise ValueError(f"{len(missing)} of its files are no images of this folder: {list_some(missing, 3)}")
            tables.append(table.drop_columns("file_name").add_column(0, "image", [named]).replace_schema_metadata())
    with one_line_error(f"dataset: {list_some(list(metadata), 3)}"):
        table = pa.concat_tables(tables, promote_options="permissive")
        if len(table) == 0:
            raise ValueError("no image is named")
        if twice := [name for name, count in Counter(table["image"].to_pylist()).items() if count > 1]:
            raise ValueError(f"{list_some(twice, 3)} named twice; several captions of an image are a list")
        return table


def _read_table(path: str) -> pa.Table:
    block_size = min(os.path.getsize(path) + 1, 2**31 - 1)  # as one block: rows of any length, keys that begin late
    if path.endswith(".parquet"):
        return pyarrow.parquet.read_table(path)
    if path.endswith(".csv"):
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(block_size=block_size), options)
    return pyarrow.json.read_json(path, pyarrow.json.ReadOptions(block_size=block_size))
