"""The registry's other real models against transformers' reading of the same file.

They run where a model's file is cached already, or with --large_models, which fetches it.
"""

import dataclasses
import pathlib

import hf
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import sinkjax
from sinkjax import shipped
from sinkjax.checkpoint import registry
from sinkjax.models.shapes import SHAPES
from sinkjax.studies import texts

LENGTH, SOME = 600, 16  # tokens: across Gemma's windows of 512; of the greedy continuation

pytestmark = pytest.mark.default_compilation


@pytest.fixture(params=[name for name in registry.names() if name != "smollm2-135m"])
def name(request) -> str:
    cached = [path.parent.name for path in registry.cache_folder().glob("*/*.gguf")]
    if request.param not in cached and not request.config.getoption("--large_models"):
        pytest.skip(f"{request.param} is not cached: --large_models fetches it")
    return request.param


def oracle(path: pathlib.Path):
    dtype = hf.torch.float32  # first, since it skips the test where there is no PyTorch
    how = {"gguf_file": path.name, "dtype": dtype, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, **how).eval()


def test_a_large_model_is_the_one_that_transformers_reads(name):
    path = registry.fetch(name)
    theirs = oracle(path)
    tokenizer = sinkjax.load_tokenizer(name)
    tokens = np.array(tokenizer(texts.read_text(texts.JUDGE, 1, 0).text[:6_000]).input_ids[:LENGTH])
    wanted = hf.logits(theirs, tokens[None])[0]
    prompt = tokens[-40:]
    with hf.torch.no_grad():
        continued = theirs.generate(
            hf.torch.tensor(prompt[None]), max_new_tokens=SOME, do_sample=False
        )
    del theirs
    model = sinkjax.load(name)
    if name in SHAPES:
        ids = dict(bos_token_id=None, eos_token_ids=(), pad_token_id=None)
        assert dataclasses.replace(model.config, **ids) == SHAPES[name]
    for mask in masks_for(name):
        assert mask.provenance.model_digest == sinkjax.model_digest(model)
        assert mask.provenance.tokenizer_digest == sinkjax.tokenizer_digest(tokenizer)
    logits = np.asarray(model(jnp.asarray(tokens[None], jnp.int32)))[0]
    assert largest_kl(wanted, logits) < 1e-6
    program = sinkjax.compile(model, batch_size=1, prefill_lengths=(64,), max_length=64 + SOME)
    (ours,) = program.generate([prompt.tolist()], max_new_tokens=SOME)
    assert list(ours) == continued[0, len(prompt) :].tolist()


def masks_for(name: str) -> list[sinkjax.SavedMask]:
    masks = map(sinkjax.load_mask, shipped.names("masks", ".json"))
    return [mask for mask in masks if mask.provenance.model == name]


def largest_kl(wanted: np.ndarray, logits: np.ndarray) -> float:
    """Of all positions, float64, a block at a time."""

    def log_probs(block: np.ndarray) -> np.ndarray:
        block = block.astype(np.float64)
        block -= block.max(-1, keepdims=True)
        return block - np.log(np.exp(block).sum(-1, keepdims=True))

    largest = 0.0
    for start in range(0, len(wanted), 50):
        p, q = (log_probs(of[start : start + 50]) for of in (wanted, logits))
        largest = max(largest, float((np.exp(p) * (p - q)).sum(-1).max()))
    return largest
