"""Shared fixtures, and the strictest settings that JAX has, for every test.

Two CPU devices, so that sharding is real; no implicit promotion of dtypes or ranks. Compilers for
devices that are not here are installed, and JAX is not to look for these devices.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def smollm2_gguf() -> pathlib.Path:
    """The real model's file, fetched once a machine into the cache folder."""
    from sinkjax.checkpoint import registry

    return registry.fetch("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf):
    """The real model, float32."""
    import sinkjax

    return sinkjax.load(smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf):
    import sinkjax

    return sinkjax.load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, smollm2_tokenizer):
    """A folder with a random Llama of two layers, and the real model's tokenizer."""
    import hf

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
def hf_smollm2(smollm2_gguf):
    """transformers' reading of the same file: the oracle. Eager attention, float32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent,
        gguf_file=smollm2_gguf.name,
        attn_implementation="eager",
        dtype=torch.float32,
    )
    return model.eval()
