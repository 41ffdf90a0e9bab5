"""Tiny random Hugging Face Llamas, written and run by the tests: the oracle for the model."""

import copy
import importlib.util
import pathlib
from typing import Any

import numpy as np
import pytest
import tiny
import transformers
from flax import nnx

import sinkjax
from sinkjax.checkpoint import weights
from sinkjax.checkpoint.names import name_table
from sinkjax.models.hf_config import from_hf_config


class _Absent:
    """In place of PyTorch where it is not installed: a test that asks anything of it is skipped."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):  # pytest itself, looking for tests
            raise AttributeError(name)
        pytest.skip("needs PyTorch, which is not installed: the oracle")


def oracle(module: str) -> Any:
    """PyTorch, or a module that needs it."""
    return importlib.import_module(module) if importlib.util.find_spec("torch") else _Absent()


torch = oracle("torch")

TINY: dict[str, Any] = dict(
    vocab_size=101,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    # Large enough that attention is far from uniform, small enough that float32 itself is worth
    # 1e-5 in the logits (at 0.3, transformers in float32 is 5e-5 from transformers in float64).
    initializer_range=0.2,
)

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn_attention_factor": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}

KINDS = {
    "one_kv_head": dict(num_key_value_heads=1),
    "two_kv_heads": dict(num_key_value_heads=2),
    "all_kv_heads": dict(num_key_value_heads=6),
    "tied": dict(tie_word_embeddings=True),
    "attention_bias": dict(attention_bias=True),
    "mlp_bias": dict(mlp_bias=True),
    "explicit_head_dim": dict(head_dim=16),
    "gelu": dict(hidden_act="gelu"),
    "gelu_tanh": dict(hidden_act="gelu_pytorch_tanh"),
    "large_eps": dict(rms_norm_eps=1e-2),
    **{f"rope_{name}": dict(rope_parameters=rope) for name, rope in ROPES.items()},
}
"""Llamas of every kind, as changes of `TINY`."""

TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "In 1969, after eight years of work, two people walked on the Moon while a third waited above "
    "them; a fifth of mankind watched. What none of them had been told was how close the landing "
    "had come to failing, and that the computer had raised the alarm five times.",
]
"""What the real model reads where it is held to transformers."""


def make_llama(
    seed: int = 0, family: str = "llama", **changes: Any
) -> transformers.LlamaForCausalLM:
    """A random Llama, float32, with biases and norm scales that are not at their initial values.

    Or a model of another family, by its `model_type`.
    """
    torch.manual_seed(seed)
    # A copy: transformers completes the rope parameters that it is given.
    config = transformers.AutoConfig.for_model(family, **copy.deepcopy({**TINY, **changes}))
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_small(folder: pathlib.Path, tokenizer: Any, **changes: Any) -> pathlib.Path:
    """Writes a random Llama of two layers, and the tokenizer beside it; returns the folder."""
    how = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "initializer_range": 0.5}
    save_llama(folder, **{**how, **changes})
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(
    folder: pathlib.Path,
    seed: int = 0,
    dtype: str = "float32",
    family: str = "llama",
    **changes: Any,
) -> transformers.LlamaForCausalLM:
    """Writes a random Llama to a folder in several shards; returns it in float32.

    Without PyTorch it is one of our own: what asks for no oracle can still be tested.
    """
    if isinstance(torch, _Absent):
        config = from_hf_config({**TINY, **changes, "model_type": family})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "_SHARD_BYTES", 40_000)
            sinkjax.save_safetensors(tiny.make(seed, dtype, **vars(config)), folder)
        return torch
    model = make_llama(seed, family, **changes)
    for parameter in model.parameters():  # model.to(dtype) rounds the rotary frequencies, too
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="40KB")
    return model.float()


def load_llama(folder: pathlib.Path) -> transformers.LlamaForCausalLM:
    """Reads a folder that `save_llama` wrote, in float32."""
    dtype = torch.float32
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype
    ).eval()


def share_weights(theirs: transformers.LlamaForCausalLM, ours: sinkjax.Llama) -> None:
    """Puts the weights of ours, where they are equal to the bit, in the place of transformers'."""
    own = dict(nnx.to_flat_state(nnx.state(ours, nnx.Param)))
    parameters, table = dict(theirs.named_parameters()), name_table(ours.config)
    assert parameters.keys() == {entry.name for entry in table}
    for entry in table:
        value = torch.from_dlpack(own[entry.path][...]).reshape(entry.stored_shape)
        assert torch.equal(parameters[entry.name], value), entry.name
        parameters[entry.name].data = value


def logits(model: transformers.LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, T, V]."""
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens), dtype=torch.long)).logits.float().numpy()


def cached_logits(oracle, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """transformers' logits from the prompt's last token on, one step a token: [B, steps, V]."""
    tokens = torch.as_tensor(tokens, dtype=torch.long)
    out, cache = [], None
    with torch.no_grad():
        for begin, end in [(0, prompt), *((t, t + 1) for t in range(prompt, tokens.shape[1]))]:
            step = oracle(tokens[:, begin:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            out.append(step.logits[:, -1].float().numpy())
    return np.stack(out, axis=1)


def attentions(model: transformers.LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """Every attention map: float32 [L, B, N, T, T]."""
    with torch.no_grad():
        out = model(torch.as_tensor(np.asarray(tokens), dtype=torch.long), output_attentions=True)
    return np.stack([a.float().numpy() for a in out.attentions])


def random_tokens(shape: tuple[int, ...], vocab: int = TINY["vocab_size"], seed: int = 0):
    """int32 tokens."""
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)
