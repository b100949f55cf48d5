"""What the tests of training share: a tiny preset, and the config of a run of six steps."""

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import ASSETS, TINY_UNET
from transformers import BertConfig, BertModel, BertTokenizerFast

from ddpm_hf.training import PRESETS, Preset, TrainConfig, validation

RECIPE = {"train_batch_size": 8, "learning_rate": 1e-3, "lr_warmup_steps": 2, "max_train_steps": 6, "ema_decay": 0.9}


@pytest.fixture
def tiny_preset(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process runs many runs here, of different precision
    unet = TINY_UNET | {"sample_size": 28, "dropout": 0.1, "num_class_embeds": None}
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    monkeypatch.setitem(PRESETS, "tiny", Preset(unet, scheduler, RECIPE, class_conditional=True))
    monkeypatch.setattr(validation, "IMAGES_PER_CLASS", 1)  # drawing takes longer than these runs


def tiny(tmp_path, **options) -> TrainConfig:
    defaults = {
        "preset": "tiny",
        "dataset": str(ASSETS / "idx"),
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
    }
    defaults |= {"num_validation_images": 16, "validation_steps": 0, "logging_steps": 1, "random_flip": True}
    return TrainConfig(**defaults | options)


@pytest.fixture(scope="session")
def text_parts(tmp_path_factory):
    """A BERT of one layer and its tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sleepy", "cat", "dog"]
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=8)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=8, **shape)).eval()
    return {"text_encoder": encoder, "tokenizer": tokenizer}
