"""What a saved model was trained on, as its run wrote it down."""

from pathlib import Path

import yaml

OPTIONS = ("image_column", "label_column", "caption_column", "skip_undecodable")  # of `load_image_dataset`


def recorded_options(folder: str | Path) -> dict:
    """The data of the model saved in `folder`: "dataset", and those of OPTIONS that its run set.

    Raises:
        ValueError: the folder does not tell, or the data set was a folder of which only the name is known here.
    """
    from .images import one_line_error  # beside torch, for which options do not wait

    recorded: dict = {}
    # training_config.yaml has every option, but of a local path the last part alone; run.yaml has what was asked for, as it was.
    for path in (Path(folder, "training_config.yaml"), Path(folder, "run.yaml")):
        with one_line_error(str(path)):
            options = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
            recorded |= {name: options[name] for name in ("dataset", *OPTIONS) if options.get(name) is not None}
    if (dataset := recorded.get("dataset")) is None:
        raise ValueError(f"dataset: {str(folder)!r} does not tell what it was trained on; name the data set.")
    if "/" not in str(dataset) and not Path(dataset).is_dir():
        raise ValueError(
            f"dataset: the model was trained on {dataset!r}, which is no folder here and no Hub id ('owner/name'): name it."
        )
    return recorded
