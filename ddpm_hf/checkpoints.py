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
    later = [
        path for path in _all(folder) if int(path.name[5:]) > step
    ]  # broken: the run has gone on from before them
    for path in later + [path for path in _all(folder) if path not in later][:-total_limit]:
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
    steps = {int(path.name[5:]): path for path in folder.glob("checkpoints/step-*") if path.name[5:].isdigit()}
    return [steps[step] for step in sorted(steps)]


def _fsync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
