"""The text part of a checkpoint that sees images as well: its config, and its tensors' names.

A prompt of text alone goes through nothing else.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_TEXT_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""The `model_type` of a `text_config` that names none, by that of the whole."""

# Of the text, too, where the whole says it.
_OF_THE_WHOLE = "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"
# Before transformers 4.52, and since.
_OURS = re.compile(
    r"language_model\.(?P<old>.+)|model\.language_model\.(?P<new>.+)|lm_head\.weight"
)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config, or its text part's in its place."""
    part = config.get("text_config")
    if not _is_whole(config) or not isinstance(part, Mapping):
        return dict(config)
    of_whole = {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    return {"model_type": _TEXT_PARTS[config["model_type"]], **part, **of_whole}


def text_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Returns the tensors of a config's model, or of its text part, each by the name it has alone.

    Args:
      config: of the whole.
      names: of all tensors.
    """
    if not _is_whole(config):
        return {name: name for name in names}
    of_text = {}
    for name in names:
        if match := _OURS.fullmatch(name):
            alone = f"model.{match['new']}" if match["new"] else match["old"] or name
            of_text[name if alone in of_text else alone] = name  # under both: it is one too many
    return of_text


def _is_whole(config: Mapping[str, Any]) -> bool:
    """Returns whether a config is of a model of which text is a part."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in _TEXT_PARTS
