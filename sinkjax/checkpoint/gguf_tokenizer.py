"""Builds a tokenizer from the metadata of a GGUF file: no network, no other file, no PyTorch.

Two kinds occur in Llama models. Both are byte-pair encodings; they differ in what a symbol is.

- "gpt2": on bytes (Llama 3, SmolLM2, Mistral NeMo). The text is split by the model's own patterns,
  which the file only names (`tokenizer.ggml.pre`), and the file lists the merges.
- "llama": SentencePiece (Llama 1 and 2, Mistral 7B), see `sentencepiece_tokenizer.py`.

What the metadata means is defined by what llama.cpp does with it (`src/llama-vocab.cpp`).
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sinkjax.checkpoint.gguf_file import open_gguf_file, under
from sinkjax.checkpoint.sentencepiece_tokenizer import (
    SentencePiece,
    TokenType,
    add_tokens,
    sentencepiece_problems,
    sentencepiece_tokenizer,
)
from sinkjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class _ByteLevel(NamedTuple):
    """The meaning of one `tokenizer.ggml.pre`."""

    # Patterns, each applied to the pieces of the one before; matches and what is between are pieces
    splits: tuple[str, ...]
    whole_tokens: bool = False  # a piece that is a token is one, whatever the merges make of it
    add_bos: bool = False  # where the file does not say
    composes: bool = False  # text to Unicode's form C first, as tokenizer.json, not llama.cpp, does


# The type of each key's value, or of what it is a list of.
_TYPES = {
    "tokens": str,
    "token_type": int,
    "scores": float,
    "merges": str,
    "pre": str,
    "bos_token_id": int,
    "eos_token_id": int,
    "unknown_token_id": int,
    "padding_token_id": int,
    "add_bos_token": bool,
    "add_eos_token": bool,
    "add_space_prefix": bool,
}
_LISTS = ("tokens", "token_type", "scores", "merges")

_INSTEAD = " Use the model's folder with config.json, safetensors and tokenizer.json instead."

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen 2 splits as Llama 3 does, but for digits: each stands alone.
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VIKING_SPLIT = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
# The letters with two cases, as far as some version of Unicode and DeepSeek's authors had them.
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124"
    "\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
# Where llama.cpp and the tokenizer.json of the model that the name is of split differently, as
# they do the digits of deepseek-llm, the tokens are those of the model.
_PRE_TOKENIZERS = {
    "default": _ByteLevel((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "trillion", "olmo"), _ByteLevel((_GPT2_SPLIT,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "minerva-7b"), _ByteLevel((r"\p{N}", _GPT2_SPLIT))
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0"),
        _ByteLevel((_LLAMA3_SPLIT,), whole_tokens=True, add_bos=True),
    ),
    "smaug-bpe": _ByteLevel((_LLAMA3_SPLIT,)),
    "dbrx": _ByteLevel((_LLAMA3_SPLIT,)),  # OLMo 2 and Phi-4 too
    "gpt-4o": _ByteLevel((_GPT4O_SPLIT,)),  # Phi-4-mini
    "tekken": _ByteLevel((_TEKKEN_SPLIT,), whole_tokens=True, add_bos=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _ByteLevel((_QWEN2_SPLIT,), composes=True)),
    "megrez": _ByteLevel((_QWEN2_SPLIT,)),
    "seed-coder": _ByteLevel((_SEED_SPLIT,)),
    "viking": _ByteLevel((_VIKING_SPLIT, r"\p{N}")),
    "deepseek-llm": _ByteLevel(
        (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _DEEPSEEK_CJK, r"\p{N}")
    ),
    "deepseek-coder": _ByteLevel((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
}

_ENDS_OF_TURNS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<end_of_utterance>"),
        *("<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "<|eom_id|>"),
        "<\N{FULLWIDTH VERTICAL LINE}end▁of▁sentence\N{FULLWIDTH VERTICAL LINE}>",
    }
)
"""The texts by which llama.cpp knows tokens that end an answer, whatever the keys say."""


def load_gguf_tokenizer(path: pathlib.Path) -> "PreTrainedTokenizerFast":
    """Builds the tokenizer that a GGUF file describes.

    `tokenizer(text)` adds the beginning- and end-of-sequence tokens that the file asks for;
    `add_special_tokens=False` adds none. Control tokens are special tokens; user-defined ones are
    not, but are matched whole in the text, too.

    Raises:
      InputError: the file is not GGUF, damaged, or has no tokenizer that can be built; all the
        reasons are listed.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and weights need none of it

    metadata = open_gguf_file(path).metadata
    chat_template = metadata.get("tokenizer.chat_template")
    architecture = metadata.get("general.architecture")
    metadata = under("tokenizer.ggml.", metadata)
    problems = [f"ggml.{problem}" for problem in _problems(metadata)]
    if not isinstance(chat_template, str | None):
        problems.append(f"chat_template must be of type str.{_INSTEAD}")
    if problems:
        raise InputError(*(f"{path}: tokenizer.{problem}" for problem in problems))
    tokens = metadata["tokens"]
    if _is_byte_level(metadata):
        tokenizer = _byte_level(metadata)
    else:
        is_phi3 = architecture == "phi3"
        tokenizer = sentencepiece_tokenizer(_described(metadata, is_phi3))
    special_tokens = {
        name: None if token_id is None else tokens[token_id]
        for name, token_id in _special_ids(metadata).items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special_tokens["bos"],
        eos_token=special_tokens["eos"],
        unk_token=special_tokens["unknown"],
        pad_token=special_tokens["padding"],
        add_bos_token=_adds_bos(metadata),
        add_eos_token=metadata.get("add_eos_token", False),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def end_tokens(metadata: Mapping[str, Any]) -> list[Any]:
    """The ids at which an answer ends, as they stand in a file's metadata, unchecked."""
    metadata = under("tokenizer.ggml.", metadata)
    named = (_special_ids(metadata)["eos"], *map(metadata.get, ("eot_token_id", "eom_token_id")))
    ids = [token_id for token_id in named if token_id is not None]
    tokens = metadata.get("tokens")
    for token_id, token in enumerate(tokens if isinstance(tokens, list) else ()):
        if isinstance(token, str) and token in _ENDS_OF_TURNS and token_id not in ids:
            ids.append(token_id)
    return ids


# What the metadata says: the values of the keys under "tokenizer.ggml.", by the rest of the key.


def _is_byte_level(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("model") != "llama"


def _pre_tokenizer(metadata: Mapping[str, Any]) -> _ByteLevel | None:
    # A file without the key is older than the names; llama.cpp takes it for "default".
    return _PRE_TOKENIZERS.get(metadata.get("pre", "default"))


def _token_types(metadata: Mapping[str, Any]) -> Sequence[int]:
    count = len(metadata["tokens"])
    return metadata.get("token_type", [TokenType.NORMAL] * count)


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int | None]:
    sentencepiece_ids = {"bos": 1, "eos": 2, "unknown": 0}
    defaults = {} if _is_byte_level(metadata) else sentencepiece_ids
    return {
        name: metadata.get(f"{name}_token_id", defaults.get(name))
        for name in ("bos", "eos", "unknown", "padding")
    }


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    if _is_byte_level(metadata):
        kind = _pre_tokenizer(metadata)
        return metadata.get("add_bos_token", kind is not None and kind.add_bos)
    return metadata.get("add_bos_token", True)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The listed merges. A left token may begin with a space, so the first character is none."""
    return [
        (merge[:space], merge[space + 1 :])
        for merge in metadata.get("merges", ())
        for space in (merge.find(" ", 1),)
    ]


def _problems(metadata: Mapping[str, Any]) -> list[str]:
    """Everything that keeps the tokenizer from being built, and what to do instead."""
    model, tokens = (metadata.get(key) for key in ("model", "tokens"))
    if model not in ("gpt2", "llama"):
        problems = [f"model is {model!r}; 'gpt2' and 'llama' are read."]
    elif not tokens:
        problems = ["tokens is missing."]
    else:
        problems = _type_problems(metadata) or _value_problems(metadata)
    return [problem + _INSTEAD for problem in problems]


def _type_problems(metadata: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, type_ in _TYPES.items():
        if key not in metadata:
            continue
        is_list = isinstance(metadata[key], list)
        items = metadata[key] if is_list else [metadata[key]]  # all of one type, by the format
        allowed_types = (float, int) if type_ is float else (type_,)  # some write scores of 0
        if is_list != (key in _LISTS) or not all(type(item) in allowed_types for item in items[:1]):
            allowed = "a list of" if key in _LISTS else "of type"
            problems.append(f"{key} must be {allowed} {type_.__name__}.")
    return problems


def _value_problems(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata["tokens"]
    problems = []
    repeated = [token for token, count in collections.Counter(tokens).items() if count > 1]
    if repeated:
        problems.append(
            f"tokens has {len(repeated)} token(s) more than once,"
            f" {_listed(repeated[:8])} among them: their ids are ambiguous."
        )
    for key in ("token_type", "scores"):
        count = len(metadata.get(key, tokens))
        if count != len(tokens):
            problems.append(f"{key} has {count} entries for {len(tokens)} tokens.")
    ids = _special_ids(metadata)
    for name, token_id in ids.items():
        if token_id is not None and not 0 <= token_id < len(tokens):
            problems.append(f"{name}_token_id is {token_id}; the ids are 0 to {len(tokens) - 1}.")
    added = {"bos": _adds_bos(metadata), "eos": metadata.get("add_eos_token", False)}
    for name in added:
        if added[name] and ids[name] is None:
            problems.append(f"{name}_token_id is missing, and the tokenizer adds that token.")
    if _is_byte_level(metadata):
        return problems + _byte_level_problems(metadata)
    if "scores" not in metadata:
        problems.append("scores is missing.")
    if metadata.get("remove_extra_whitespaces", False):
        problems.append("remove_extra_whitespaces is set, which no Llama has.")
    if not problems:
        problems = [f"tokens {text}." for text in sentencepiece_problems(_described(metadata))]
    return problems


def _byte_level_problems(metadata: Mapping[str, Any]) -> list[str]:
    problems = []
    if _pre_tokenizer(metadata) is None:
        problems.append(f"pre is {metadata['pre']!r}; {_listed(_PRE_TOKENIZERS)} are known.")
    tokens, merges = set(metadata["tokens"]), _merges(metadata)
    broken = [(a, b) for a, b in merges if not (a in tokens and b in tokens and a + b in tokens)]
    if not merges:
        problems.append("merges is missing.")
    if broken:
        problems.append(
            f"merges has {len(broken)} merge(s) of or to something that is no token,"
            f" {_listed(broken[:8])} among them."
        )
    return problems


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(repr(value) for value in values)


# The two kinds.


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    kind = _pre_tokenizer(metadata)
    vocabulary = {token: i for i, token in enumerate(metadata["tokens"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(metadata), ignore_merges=kind.whole_tokens)
    )
    # Whatever add_space_prefix says: llama.cpp heeds it for SentencePiece only.
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in kind.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    if kind.composes:
        tokenizer.normalizer = normalizers.NFC()
    special = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    types = zip(metadata["tokens"], _token_types(metadata), strict=True)
    add_tokens(tokenizer, {token: special[type_] for token, type_ in types if type_ in special})
    return tokenizer


def _described(metadata: Mapping[str, Any], is_phi3: bool = False) -> SentencePiece:
    # As Phi-3's tokenizer.json has it; llama.cpp goes by `general.name`.
    closed = set(metadata["tokens"]) - {"<unk>", "<s>", "<|endoftext|>"} if is_phi3 else ()
    return SentencePiece(
        tokens=metadata["tokens"],
        scores=metadata["scores"],
        types=_token_types(metadata),
        unknown_id=_special_ids(metadata)["unknown"],
        dummy_prefix="always" if metadata.get("add_space_prefix", True) else None,
        closed=closed,
    )
