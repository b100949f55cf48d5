"""Every command and every Python block of README and docs runs: in their order, offline, with few steps and images."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from PIL import Image
from tiny import ASSETS, ROOT
from transformers import BertConfig, BertModel

from ddpm_hf import hub
from ddpm_hf.data import sources
from ddpm_hf.training import PRESETS, validation

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {  # script -> options that make a command short
    "train.py": "--max_train_steps 2 --train_batch_size 2 --validation_steps 0 --num_validation_images 2 --logging_steps 1"
    " --ema_sigma_rels 0.05 0.1 --report_to none",
    "sample.py": "--num_images 2 --num_inference_steps 2",
    "evaluate.py": "--metrics accuracy --num_images 10 --num_inference_steps 2 --cache_dir cache --bpd_timesteps 2",
    "train_classifier.py": "--num_epochs 1 --dataset ~/photos",
    "average.py": "",
    "push_to_hub.py": "",
}
ELSEWHERE = {"git", ".", "tensorboard"}  # commands that are not ours


@pytest.fixture
def clone(tmp_path, monkeypatch, remote, tiny_preset, text_parts):
    """A clone of the repository in which a user has trained models, with photos in the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASHION_MNIST_DIR", str(ASSETS / "idx"))
    for path in ROOT.iterdir():
        if path.name not in ("runs", "docs"):
            Path(path.name).symlink_to(path)
    monkeypatch.setattr(validation, "IMAGES_PER_CLASS", 1)
    monkeypatch.setattr(sources, "_hub_answers", lambda dataset: False)  # the local Hub has models only
    Path("photos").symlink_to(ASSETS / "imagefolder")
    hub.save(hub.load(ROOT / "checkpoints" / "ddpm-fashion-mnist-fast"), "runs/quick")
    for name in ("photo.png", "mask.png"):
        Image.new("L", (28, 28), 200).save(name)
    captions = Path(shutil.copytree(ASSETS / "imagefolder", "captions"))
    paths = [path.relative_to(captions).as_posix() for path in sorted(captions.rglob("*.png"))]
    lines = [json.dumps({"file_name": path, "text": "a cat"}) for path in paths]
    (captions / "metadata.jsonl").write_text("\n".join(lines))
    wide = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30522}
    parts = text_parts | {"text_encoder": BertModel(BertConfig(**wide)).eval()}  # as wide as MiniLM
    for module in (hub, hub.models):
        monkeypatch.setattr(module, "load_text_encoder", lambda name: parts)
    return tmp_path


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block of code, which may be indented."""
    return [
        (kind, text) for _, kind, text in re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.S | re.M)
    ]


def run(line: str, monkeypatch) -> None:
    """A line of shell: in this process where it is Python."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0] in ELSEWHERE:
        return
    if words[0] == "make":
        return subprocess.run(["make", "-n", *words[1:]], check=True, stdout=subprocess.DEVNULL) and None
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"\.\[(\w+)\]", line)
        assert extras and set(extras) <= set(metadata("ddpm_hf").get_all("Provides-Extra"))
        return None
    if words[:2] == ["accelerate", "launch"]:
        assert words[2] == "--config_file" and Path(words[3]).exists()
        words[:4] = ["python"]
    assert words[0] == "python" and Path(words[1]).exists(), line
    script, arguments = Path(words[1]), [word.replace("you/", "alice/") for word in words[2:]]
    if script.parts[0] != "scripts":
        return None  # benchmarks take their time
    arguments += shlex.split(SMALL[script.name])
    if script.name == "train.py" and "--distill_guidance" not in arguments:  # a teacher has its own classes
        arguments += ["--dataset", "~/photos"]
    if "--preset" in arguments:
        preset = PRESETS[arguments[arguments.index("--preset") + 1]]
        arguments += ["--dataset", "captions"] if preset.text_encoder else ["--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    code = None
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code
    assert not code, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_code_runs(page, clone, monkeypatch):
    names: dict = {}
    for kind, text in fences(page):
        assert kind in ("bash", "python", "bibtex", "text"), f"{page.name}: a block without its language: {text[:60]}"
        if kind == "bash":
            for line in text.replace("\\\n", "").splitlines():
                run(line, monkeypatch)
        if kind == "python":
            small = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", text).replace("you/", "alice/")
            exec(compile(small, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)\"", page.read_text()):
        path = "".join(target)
        assert path.startswith("https://") or (page.parent / path).exists(), path


def test_the_front_page_is_short():
    """Its first screen is for strangers."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
