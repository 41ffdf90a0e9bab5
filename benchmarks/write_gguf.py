"""Writes a model as a float32 GGUF file, for llama.cpp to run: weights and shape, no tokenizer."""

import pathlib
import re

import gguf
import numpy as np

import sinkjax
from sinkjax.checkpoint.gguf import hugging_face_rows
from sinkjax.checkpoint.weights import stored_tensors
from sinkjax.errors import InputError
from sinkjax.models.rope import inverse_frequencies

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: sinkjax.Llama, path: pathlib.Path) -> None:
    """Writes a model of the llama architecture.

    Raises:
      InputError: for other families, rotary scaling other than none and Llama 3's, and other
        activations than silu.
    """
    config = model.config
    kind = config.family, config.rope.type, config.activation
    if kind not in (("llama", "default", "silu"), ("llama", "llama3", "silu")):
        raise InputError(
            f"llama.cpp is not written for here with family, rope and activation {kind}; leave it "
            "out of --engines"
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    if config.rope.type == "llama3":
        writer.add_tensor("rope_freqs.weight", _rope_divisors(config))
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for name, tensor in stored_tensors(model).items():
        writer.add_tensor(_file_name(name), _file_rows(tensor(), heads, _file_name(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_divisors(config: sinkjax.LlamaConfig) -> np.ndarray:
    """What llama.cpp divides the unscaled frequencies by, float32 [H/2]."""
    plain = sinkjax.RopeConfig(theta=config.rope.theta)
    return inverse_frequencies(plain, config.head_dim) / inverse_frequencies(
        config.rope, config.head_dim
    )


def _file_name(name: str) -> str:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    return f"blk.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}" if layer else _NAMES[name]


def _file_rows(tensor: np.ndarray, heads: dict[str, int], name: str) -> np.ndarray:
    """float32, query and key rows in the file's order."""
    tensor = np.ascontiguousarray(tensor, np.float32)
    kind = name.split(".")[-2]
    if kind in heads:
        rows = np.empty_like(tensor)
        rows[hugging_face_rows(len(tensor), heads[kind])] = tensor
        return rows
    return tensor
