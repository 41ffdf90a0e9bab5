"""A model and a text for whole runs."""

import hf
import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, smollm2_tokenizer):
    """A random Llama of two layers, with the real model's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    hf.save_llama(
        folder,
        vocab_size=len(smollm2_tokenizer),
        num_hidden_layers=2,
        initializer_range=0.5,
        max_position_embeddings=128,
    )
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("\n".join(f"Line {n} of a text, {n * n} steps from home." for n in range(400)))
    return path
