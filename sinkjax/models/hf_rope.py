"""The rotary embeddings of Hugging Face's configs, in their old and their new form."""

import reprlib
from collections.abc import Mapping
from typing import Any

from sinkjax.models.config import ROPE_TYPES, RopeConfig
from sinkjax.models.families.family import FULL, WHOLE, WINDOWED, Family, is_positive, is_whole

ROPE_ATTRIBUTES = frozenset(
    {
        *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
        "original_max_position_embeddings",
    }
)
"""What a config may say of them, beside a local rope's base."""

_YARN = "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"

# rope_type -> (required, optional) keys of the rope parameters, beside rope_type and rope_theta.
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), {"freq_factors"}),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (set(), {"factor", *_YARN}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor"}),
}
_UNKNOWN = "the key is unknown"
_WAYS_ON = {
    "attn_factor": "transformers does not read it, and others multiply YaRN's factor by it: write "
    "attention_factor, the whole factor, in a copy of the folder, or leave it out to compute what "
    "transformers does"
}
_STRETCHED = "yarn", "llama3", "longrope"  # beyond an original length
_LISTS = "freq_factors", "short_factor", "long_factor"  # of the rope parameters


def split_ropes(
    attributes: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Returns the attributes of the rope, and of that of layers with windows if it is another.

    Their parameters lie under the kinds of layers, or in older configs beside those of all; others
    are appended to `problems`.
    """
    if family.local_theta is None:
        return attributes, None
    theta = attributes.get("rope_local_base_freq") or family.local_theta
    kinds = attributes.get("rope_parameters")
    if isinstance(kinds, Mapping) and not {FULL, WINDOWED}.isdisjoint(kinds):
        local = {"rope_parameters": kinds.get(WINDOWED), "rope_theta": theta}
        return {**attributes, "rope_parameters": kinds.get(FULL)}, local
    if kinds and isinstance(kinds, Mapping):
        problems.append(
            f"rope_parameters is {reprlib.repr(kinds)}; a {family.model_type} has such under "
            f"{FULL} and {WINDOWED}"
        )
    return attributes, {"rope_theta": theta}


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """Returns the `rope_parameters` from which `rope_from_hf` reads the same."""
    required, optional = _ROPE_KEYS[rope.type]
    parameters: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    values = vars(rope)
    if rope.type == "longrope":
        divisors = list(rope.freq_factors or ())
        half = len(divisors) // 2
        values = {**values, "short_factor": divisors[:half], "long_factor": divisors[half:]}
    for key in sorted(required | optional):
        if values[key] is not None:
            parameters[key] = values[key]
    if rope.type in _STRETCHED:
        parameters["original_max_position_embeddings"] = rope.original_max_length
    if rope.part != 1:
        parameters["partial_rotary_factor"] = rope.part
    return parameters


def rope_from_hf(
    attributes: Mapping[str, Any],
    max_length: int,
    defaults: Mapping[str, Any],
    problems: list[str],
) -> RopeConfig:
    """Reads the rotary embedding from either form of the attributes; appends to `problems`."""
    where = "rope_scaling" if attributes.get("rope_scaling") else "rope_parameters"
    parameters = attributes.get(where)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        problems.append(f"{where} is {reprlib.repr(parameters)}; a JSON object is needed")
        return RopeConfig()
    parameters = {
        key: value
        for key, value in parameters.items()
        if (value is not None or key in ("type", "rope_type"))
        and not (key.startswith("mscale") and value == 0)  # 0 is none
    }
    if any(isinstance(value, Mapping) for value in parameters.values()):
        problems.append(f"{where} differs by layer type; a Llama has one for all layers")
        return RopeConfig()

    parameters.pop("finetuned", None)  # how the weights came about
    old_name = parameters.pop("type", "default")
    rope_type = parameters.pop("rope_type", old_name)
    rope_type = "longrope" if rope_type == "su" else rope_type  # as Phi-3 first called it
    theta = attributes.get("rope_theta")
    theta = defaults.get("rope_theta", 10_000.0) if theta is None else theta
    parameters.setdefault("rope_theta", theta)
    part = parameters.pop("partial_rotary_factor", attributes.get("partial_rotary_factor"))
    part = 1.0 if part is None else part
    if not (is_positive(part) and part <= 1):
        problems.append(
            f"partial_rotary_factor is {reprlib.repr(part)}; a number above 0 and at most 1 is "
            "needed"
        )
        return RopeConfig()
    # What is beside the rope parameters wins over what is inside them, as in transformers.
    key, sources = "original_max_position_embeddings", (attributes, defaults, parameters)
    original = next((source[key] for source in sources if key in source), max_length)
    parameters[key] = original
    if rope_problems := _rope_problems(rope_type, parameters):
        problems += [f"{where}: {problem}" for problem in rope_problems]
        return RopeConfig()

    # As floats, so that equal configs have equal JSON.
    fields: dict[str, Any] = {
        key: tuple(map(float, value)) if key in _LISTS else float(value)
        for key, value in parameters.items()
        if key in set.union(*_ROPE_KEYS[rope_type])
    }
    theta = float(parameters["rope_theta"])
    if rope_type in ("yarn", "longrope"):
        fields.setdefault("factor", max_length / original)
    if rope_type == "yarn":
        fields["truncate"] = parameters.get("truncate", True)
    if rope_type == "longrope":
        fields["freq_factors"] = fields.pop("short_factor") + fields.pop("long_factor")
    if rope_type in _STRETCHED:
        fields["original_max_length"] = original
    return RopeConfig(type=rope_type, theta=theta, part=float(part), **fields)


def _rope_problems(rope_type: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Returns everything that is wrong with the parameters of a rope type."""
    if rope_type not in ROPE_TYPES:
        return [f"rope_type is {reprlib.repr(rope_type)}; known are {', '.join(ROPE_TYPES)}"]
    required, _ = _ROPE_KEYS[rope_type]
    problems = [f"rope_type {rope_type} needs {key}" for key in sorted(required - set(parameters))]
    # transformers, too, leaves out what only another type would read.
    numbers = {"rope_theta"}.union(*(keys for kinds in _ROPE_KEYS.values() for keys in kinds))
    for key, value in parameters.items():
        if key in _LISTS:
            good = isinstance(value, (list, tuple)) and all(map(is_positive, value))
            wanted = "a list of positive numbers is needed"
        elif key == "truncate":
            good, wanted = isinstance(value, bool), "true or false is needed"
        elif key == "original_max_position_embeddings":
            unused = value is None and rope_type not in _STRETCHED
            good, wanted = unused or is_whole(value), WHOLE
        else:
            good = key in numbers and is_positive(value)
            wanted = (
                "a positive number is needed" if key in numbers else _WAYS_ON.get(key, _UNKNOWN)
            )
        if not good:
            problems.append(f"{key} is {reprlib.repr(value)}; {wanted}")
    if rope_type == "llama3" and not problems:
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        if low >= high:
            problems.append(f"low_freq_factor is {low}; below high_freq_factor, {high}, is needed")
    if rope_type == "longrope" and not problems:
        short, long = (len(parameters[f"{kind}_factor"]) for kind in ("short", "long"))
        if short != long:
            problems.append(
                f"long_factor has {long} values, short_factor {short}; as many are needed"
            )
        if (original := parameters["original_max_position_embeddings"]) < 2:
            problems.append(f"original_max_position_embeddings is {original}; at least 2 is needed")
    return problems
