# From a clone to garments on the screen: `make train`. The README has the plain commands that these stand for.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: train test check app data
.SECONDARY:

# Train the quick model on FashionMNIST (8 minutes on two CPU cores); run again, it goes on from its last checkpoint.
train: .venv/train data
	$(BIN)/accelerate launch --config_file accelerate_configs/single.yaml scripts/train.py --preset fashion-mnist-quick --output_dir runs/quick --resume

test: .venv/dev
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

app: .venv/app
	$(BIN)/python spaces_app/app.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/%: setup.py constraints.txt | .venv/bin/python
	$(INSTALL) ".[$*]"
	touch $@
