"""The checkpoints of a run, each whole or not there at all: what `training` writes on the way and goes on from.

OUTPUT_DIR/checkpoints/.step-N/                    being written; never read
OUTPUT_DIR/checkpoints/step-N/                     stands: every file was on the disk before it got this name
OUTPUT_DIR/checkpoints/step-N/state/manifest.json  what it holds, and the size of each file in state/
"""

import json
import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)


def aside(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it stands."""
    return folder / "checkpoints" / f".step-{step}"


def commit(folder: Path, step: int, total_limit: int, **contents) -> None:
    """Let what was written `aside` stand, with `contents` in its manifest; then remove all but the newest `total_limit`."""
    written, target = aside(folder, step), folder / "checkpoints" / f"step-{step}"
    files = [path for path in sorted((written / "state").rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(written)): path.stat().st_size for path in files}
    manifest = written / "state" / "manifest.json"
    manifest.write_text(json.dumps({"step": step, "sizes": sizes} | contents))
    for path in (*files, manifest, written / "state", written):
        _fsync(path)
    shutil.rmtree(target, ignore_errors=True)  # it is there only where it was broken
    written.rename(target)
    _fsync(target.parent)
    for path in _all(folder):
        if _step(path) > step:  # broken: the run has gone on from before it
            shutil.rmtree(path)
    remove_old(folder, step, total_limit)


def remove_old(folder: Path, step: int, total_limit: int) -> None:
    """Leave the newest `total_limit` checkpoints up to `step`; a run that was killed before this does it when it goes on."""
    for path in [path for path in _all(folder) if _step(path) <= step][:-total_limit]:
        shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, None where there is none at all; broken ones are passed over with a warning.

    Raises ValueError where all are broken.
    """
    checkpoints = _all(folder)
    for checkpoint in reversed(checkpoints):
        try:
            sizes = read_manifest(checkpoint)["sizes"]
            broken = [name for name, size in sizes.items() if (checkpoint / name).stat().st_size != size]
        except (OSError, ValueError, KeyError) as error:
            broken = [str(error)]
        if not broken:
            return checkpoint
        logger.warning(f"{checkpoint} is not whole ({', '.join(broken)}): trying the one before it.")
    if checkpoints:
        raise ValueError(f"resume: no checkpoint in {folder / 'checkpoints'} is whole; remove them to start anew.")
    return None


def read_manifest(checkpoint: Path) -> dict:
    """{"step": int, "sizes": {name: bytes}} and what `commit` was given."""
    return json.loads((checkpoint / "state" / "manifest.json").read_text())


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((path for path in folder.glob("checkpoints/step-*") if path.name[5:].isdigit()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _fsync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
