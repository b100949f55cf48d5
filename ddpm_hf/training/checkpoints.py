"""The checkpoints of a run: `trainer` writes them and resumes from them. Each is complete or absent.

OUTPUT_DIR/checkpoints/.step-N/                    being written; never read
OUTPUT_DIR/checkpoints/step-N/                     complete: every file was on the disk before it got this name
OUTPUT_DIR/checkpoints/step-N/state/manifest.json  what it holds, and the sha256 of every other file
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


def staging(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is committed."""
    return folder / "checkpoints" / f".step-{step}"


def commit(folder: Path, step: int, total_limit: int, **contents: Any) -> None:
    """Give the staged checkpoint its name, with `contents` in its manifest; then remove all but the newest `total_limit`."""
    written, target = staging(folder, step), folder / "checkpoints" / f"step-{step}"
    manifest = written / "state" / "manifest.json"
    files = [path for path in sorted(written.rglob("*")) if path.is_file() and path != manifest]
    hashes = {path.relative_to(written).as_posix(): _sha256(path) for path in files}
    manifest.write_text(json.dumps({"step": step, "sha256": hashes} | contents))
    for path in (*files, manifest, *{path.parent for path in files}, written):
        _fsync(path)
    shutil.rmtree(target, ignore_errors=True)  # it exists only where it was damaged
    written.rename(target)
    _fsync(target.parent)
    for path in _all(folder):
        if _step(path) > step:  # damaged: the run has gone on from before it
            shutil.rmtree(path)
    remove_old(folder, step, total_limit)


def remove_old(folder: Path, step: int, total_limit: int) -> None:
    """Keep the newest `total_limit` checkpoints up to `step`. A resumed run does it too, should the last one have been killed before."""
    for path in [path for path in _all(folder) if _step(path) <= step][:-total_limit]:
        shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint, None where there is none at all; damaged ones are passed over with a warning.

    Raises ValueError where all are damaged.
    """
    checkpoints = _all(folder)
    for checkpoint in reversed(checkpoints):
        try:
            damaged = _damaged_files(checkpoint)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # a manifest of another shape
            damaged = [repr(error)]
        if not damaged:
            return checkpoint
        logger.warning(f"{checkpoint} is damaged ({', '.join(damaged)}): trying the one before it.")
    if checkpoints:
        raise ValueError(
            f"resume: every checkpoint in {folder / 'checkpoints'} is damaged; remove them to start anew."
        )
    return None


def last(folder: Path) -> Path | None:
    """The last checkpoint, whether intact or not: a look at the names alone."""
    return next(reversed(_all(folder)), None)


def fingerprint(network: torch.nn.Module) -> str:
    """Hash of the weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _damaged_files(checkpoint: Path) -> list[str]:
    manifest = read_manifest(checkpoint)
    if "sha256" not in manifest:  # of a version that kept the sizes alone
        sizes = manifest["sizes"].items()
        return [name for name, size in sizes if (checkpoint / name).stat().st_size != size]
    return [name for name, sha256 in manifest["sha256"].items() if _sha256(checkpoint / name) != sha256]


def read_manifest(checkpoint: Path) -> dict:
    """{"step": int, "sha256": {name: hash}} and what `commit` was given."""
    return json.loads((checkpoint / "state" / "manifest.json").read_text())


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(
        (path for path in folder.glob("checkpoints/step-*") if re.fullmatch(r"step-[0-9]+", path.name)), key=_step
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
