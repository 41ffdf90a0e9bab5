"""GGUF files of Hugging Face Llamas, as llama.cpp's converter writes them."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

import gguf
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Type

from sinkjax.checkpoint.gguf import open_gguf
from sinkjax.errors import InputError

# Rows of 64 and 96, because blocks hold 32 elements.
SHAPE = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def permute(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """The order in which llama.cpp's converter writes the rows of q and k: its definition."""
    rows = weights.shape[0]
    return (
        weights.reshape(num_heads, 2, rows // num_heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def weights_of(model: transformers.LlamaForCausalLM) -> dict[str, np.ndarray]:
    tied = model.config.tie_word_embeddings
    return {
        name: value.numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def _add_sizes(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_llama(
    writer: gguf.GGUFWriter, model: transformers.LlamaForCausalLM, type_: Type = Type.F32
) -> None:
    """What the converter writes of a Llama, its rotary scaling apart."""
    config = model.config
    _add_sizes(writer, config)
    writer.add_rope_dimension_count(config.head_dim)
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(7)
    for name, value in weights_of(model).items():
        if "q_proj" in name:
            value = permute(value, config.num_attention_heads)
        if "k_proj" in name:
            value = permute(value, config.num_key_value_heads)
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        stored = type_ if value.ndim > 1 else Type.F32  # as the converter does
        writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)


ARCHITECTURES = {"mistral": "llama", "olmo3": "olmo2", "granitemoehybrid": "granite"}
"""What llama.cpp's converter writes families as that it has no architecture of their own for."""

PAIRED = "llama", "granite", "smollm3"
"""Architectures whose converters permute rows of q and k."""

GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FAMILY_NAMES = {
    "gemma2": GEMMA_NAMES,
    "gemma3": GEMMA_NAMES,
    "granite": {"shared_mlp.output_linear": "ffn_down"},
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "olmo2": {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def add_family(
    writer: gguf.GGUFWriter,
    architecture: str,
    config: transformers.PreTrainedConfig,
    weights: Mapping[str, np.ndarray],
    types: Sequence[Type] = (Type.F32,),
) -> None:
    """What the converter writes of a model of a family, without its tokens.

    Args:
      types: of one matrix after the other, and again from the first.
    """
    _add_sizes(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "granitemoehybrid":
        add_granite_4(writer, config)
    if config.model_type == "olmo3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([x == "sliding_attention" for x in config.layer_types])
    if architecture in ("gemma2", "gemma3") and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if architecture in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        size = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(size * rope["partial_rotary_factor"]))
    if rope.get("rope_type") == "longrope":
        stretch = config.max_position_embeddings / config.original_max_position_embeddings
        log = math.log(stretch) / math.log(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + log))
        for kind in ("short", "long"):
            factors = np.array(rope[f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    names = {**GGUF_NAMES, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    names |= FAMILY_NAMES.get(architecture, {})
    type_ = itertools.cycle(types)
    for name, value in split(weights).items():
        if architecture in PAIRED and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = permute(value, heads)
        if architecture in ("gemma2", "gemma3") and "norm" in name:
            value = value + 1
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        stored = next(type_) if value.ndim > 1 else Type.F32
        writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)


def add_granite_4(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    """What the converter says of layers of other kinds, also where a Granite 4 has none."""
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(0)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_head_count_kv([config.num_key_value_heads] * config.num_hidden_layers)
    writer.add_rope_scaling_finetuned(True)


def split(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights with Granite 4's gate and up projections as two tensors."""
    joined, parts = "shared_mlp.input_linear", {}
    for name, whole in weights.items():
        gate, up = np.split(whole, 2) if joined in name else (whole, whole)
        parts |= {
            name.replace(joined, "mlp.gate_proj"): gate,
            name.replace(joined, "mlp.up_proj"): up,
        }
    return parts


def finish(writer: gguf.GGUFWriter) -> pathlib.Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pathlib.Path(writer.path)


def assert_refused(path: pathlib.Path, *mentions: str) -> None:
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    assert all(str(path) in str(problem) for problem in caught.value.problems)
    for mention in mentions:
        assert mention in str(caught.value), mention
