"""Runs of like layers as loops: the same tokens, and compile time that depth does not add to."""

import dataclasses
import time

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import Sizes, predict
from sinkjax.masks.mask import SinkMask
from sinkjax.models.abstract import abstract_model
from sinkjax.models.shapes import SHAPES
from sinkjax.programs.compile import compile
from sinkjax.programs.scan import LayerRun, scanned
from sinkjax.specialize.build import specialize

SIZES = dict(batch_size=2, prefill_lengths=(16,), max_length=32)


def test_scanned_layers_generate_the_same_tokens(tiny):
    prompts = [hf.random_tokens((n,), seed=n) for n in (3, 16)]
    unrolled = compile(tiny[0], **SIZES).generate(prompts, max_new_tokens=9)
    program = compile(tiny[0], layers="scanned", **SIZES)
    for tokens, wanted in zip(program.generate(prompts, max_new_tokens=9), unrolled, strict=True):
        np.testing.assert_array_equal(tokens, wanted)
    assert any(isinstance(layer, LayerRun) for layer in scanned(tiny[0]).layers)


def test_a_decode_step_is_given_no_weights_that_are_for_prompts_alone(tiny):
    """Both a group of `sink` heads and one that has another, with every fill."""
    config = dataclasses.replace(tiny[0].config, attention_bias=True)
    mask = SinkMask.from_text("L0-2: 2s(first) s(zero) f s(mean) s(first)")
    fills = np.zeros((config.num_layers, config.num_heads, config.head_dim), np.float32)
    fast = specialize(abstract_model(config, jnp.dtype("float32")), mask, fills=fills)
    program = compile(fast, layers="scanned", device=jax.devices()[0], **SIZES)
    assert [type(layer) for layer in program.structure.layers] == [LayerRun]
    for executable, length in zip(program.executables, (16, None), strict=True):
        sizes = Sizes(SIZES["batch_size"], length, SIZES["max_length"], itemsize=4)
        assert account(program, executable).rows == predict(config, mask, sizes)
    for_prompts = [
        {a.name for a in executable.module.arguments if "sink_v" in a.name or "first_o" in a.name}
        for executable in program.executables
    ]
    assert len(for_prompts[0]) == 3
    assert not for_prompts[1]


def test_the_model_itself_is_left_as_it_was(tiny):
    before = [id(layer) for layer in tiny[0].layers]
    scanned(tiny[0])
    assert [id(layer) for layer in tiny[0].layers] == before


@pytest.mark.default_compilation
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
