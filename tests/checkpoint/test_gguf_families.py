"""GGUF files of every family that llama.cpp has, against the models they were written from."""

import gguf
import hf
import jax.numpy as jnp
import numpy as np
import pytest
from families import KINDS
from gguf_files import add_family, finish

import sinkjax
from sinkjax.models.families import FAMILIES

# What llama.cpp has no key for is as in its code: the layers without rotation and those with
# windows, and Gemma's scale.
CHANGES = {
    "smollm3": dict(no_rope_layer_interval=4, num_hidden_layers=5),
    "smollm3_listed": dict(no_rope_layers=None, attention_bias=False, num_hidden_layers=5),
    "gemma3": dict(layer_types=None, query_pre_attn_scalar=16, num_hidden_layers=7),
    "gemma3_linear": dict(rope_parameters=None),
    "qwen3_bias": dict(attention_bias=False),
}
WINDOWED = "mistral_windows", "qwen2_windows", "qwen3_windows", "smollm3_windows"  # no file has


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WINDOWED])
def test_a_file_of_a_family_gives_the_models_own_logits(kind, tmp_path):
    oracle = hf.make_llama(**{**KINDS[kind], **CHANGES.get(kind, {})})
    of_family = FAMILIES[KINDS[kind]["family"]].gguf
    architecture = "llama" if of_family is None else of_family.architecture
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    add_family(writer, architecture, oracle)
    model = sinkjax.load(finish(writer))
    tokens = hf.random_tokens((2, 70))
    wanted = hf.logits(oracle, tokens)
    np.testing.assert_allclose(model(jnp.asarray(tokens)), wanted, rtol=0, atol=1e-4)
