"""Runs of like layers as loops: the same tokens, and compile time that depth does not add to."""

import dataclasses
import time

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.checkpoint.weights import abstract_model
from sinkjax.program.compile import compile
from sinkjax.program.scan import LayerRun, scanned
from sinkjax.shapes import SHAPES

SIZES = dict(batch_size=2, prefill_lengths=(16,), max_length=32)


def test_scanned_layers_generate_the_same_tokens(tiny):
    prompts = [hf.random_tokens((n,), seed=n) for n in (3, 16)]
    unrolled = compile(tiny[0], **SIZES).generate(prompts, max_new_tokens=9)
    program = compile(tiny[0], layers="scanned", **SIZES)
    for one, other in zip(program.generate(prompts, max_new_tokens=9), unrolled, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(isinstance(layer, LayerRun) for layer in scanned(tiny[0]).layers)


def test_the_model_itself_is_left_as_it_was(tiny):
    before = [id(layer) for layer in tiny[0].layers]
    scanned(tiny[0])
    assert [id(layer) for layer in tiny[0].layers] == before


def test_eighty_layers_compile_about_as_fast_as_sixteen():
    """Processor time of this process, which others on the machine do not add to."""

    def seconds(num_layers: int) -> float:
        config = dataclasses.replace(
            SHAPES["smollm2-135m"], num_layers=num_layers, vocab_size=64, embed_dim=96, mlp_dim=128
        )
        model = abstract_model(config, jnp.dtype("float32"))
        start = time.process_time()
        compile(model, layers="scanned", device=jax.devices()[0], **SIZES)
        return time.process_time() - start

    seconds(2)  # what JAX does once a process
    assert seconds(80) <= 1.5 * seconds(16)


def test_an_unknown_form_of_layers_is_refused(tiny):
    with pytest.raises(sinkjax.InputError, match="allowed are unrolled, scanned"):
        compile(tiny[0], layers="rolled", **SIZES)
