"""Granite 4 of attention alone (Micro, and the small ones without an H): a Granite.

Its gate and up projections lie in one tensor, and some have no rotary positions. In GGUF
files it is a Granite.
"""

from typing import Any

from sinkjax.models.families import granite
from sinkjax.models.families.family import WHOLE, Attributes, Family, is_whole, shown

_SIZE, _POSITIONS = "shared_intermediate_size", "position_embedding_type"
# Of the layers that it has none of.
_OF_OTHER_LAYERS = (
    *("init_method", "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head"),
    *("mamba_d_state", "mamba_expand", "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias"),
    *("normalization_function", "num_experts_per_tok", "output_router_logits"),
    *("router_aux_loss_coef", "time_step_limit"),
)


def _problems(attributes: Attributes) -> list[str]:
    problems = granite.FAMILY.problems({name: attributes[name] for name in granite.FAMILY.own})
    kinds, layers = attributes["layer_types"], attributes["num_hidden_layers"]
    # The second is as newer versions of transformers write it.
    if kinds not in ([kind] * layers for kind in ("attention", "full_attention")):
        problems.append(
            f"layer_types is {shown(kinds)}; attention is needed in each layer: choose a Granite 4 "
            "without an H in its name"
        )
    if attributes["num_local_experts"] != 0:
        problems.append(
            f"num_local_experts is {shown(attributes['num_local_experts'])}; 0 is needed: choose a "
            "dense Granite 4, such as Micro"
        )
    if attributes[_POSITIONS] not in (None, "rope", "nope"):
        problems.append(f"{_POSITIONS} is {shown(attributes[_POSITIONS])}; rope or null is needed")
    if not is_whole(attributes[_SIZE]):
        problems.append(f"{_SIZE} is {shown(attributes[_SIZE])}; {WHOLE}")
    return problems


def _read(attributes: Attributes) -> dict[str, Any]:
    rotates = attributes[_POSITIONS] == "rope"
    still = () if rotates else tuple(range(attributes["num_hidden_layers"]))
    fields = granite.FAMILY.read(attributes)
    return {**fields, "mlp_dim": attributes[_SIZE], "unrotated_layers": still}


def _write(config: Any) -> dict[str, Any]:
    return {
        **granite.FAMILY.write(config),
        _SIZE: config.mlp_dim,
        _POSITIONS: None if config.unrotated_layers else "rope",
        "layer_types": ["attention"] * config.num_layers,
        "num_local_experts": 0,
        "mamba_n_heads": 1,  # which transformers asks to divide the width, and does not use
    }


FAMILY = Family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    own={
        **granite.FAMILY.own,
        **dict.fromkeys(_OF_OTHER_LAYERS),
        _SIZE: 1024,
        _POSITIONS: None,
        "layer_types": None,
        "num_local_experts": 8,
    },
    problems=_problems,
    read=_read,
    write=_write,
    joined={
        **{f"mlp.{x}_proj": "shared_mlp.input_linear" for x in ("gate", "up")},
        "mlp.down_proj": "shared_mlp.output_linear",
    },
)
