"""Builds a tokenizer from the metadata of a GGUF file: no network, no other file, no PyTorch.

Two kinds occur in Llama models. Both are byte-pair encodings; they differ in what a symbol is.

- "gpt2": on bytes (Llama 3, SmolLM2, Mistral NeMo). The text is split by the model's own patterns,
  which the file only names (`tokenizer.ggml.pre`), and the file lists the merges.
- "llama": SentencePiece (Llama 1 and 2, Mistral 7B). The text is not split, spaces are "▁", the
  file scores the tokens, and characters outside the vocabulary become their UTF-8 bytes.

What the metadata means is defined by what llama.cpp does with it (`src/llama-vocab.cpp`).
"""

import collections
import enum
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from sinkjax.checkpoint.gguf_file import open_gguf_file, under
from sinkjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's "▁"


class _TokenType(enum.IntEnum):
    """The kinds of a token in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _ByteLevel(NamedTuple):
    """The meaning of one `tokenizer.ggml.pre`.

    Attributes:
      splits: patterns applied one after the other, each to the pieces of the one before; matches
        and the text between them become pieces.
      whole_tokens: whether a piece that is a token is taken whole, whatever the merges make of it.
      add_bos: whether a beginning-of-sequence token is added where the file does not say.
    """

    splits: tuple[str, ...]
    whole_tokens: bool = False
    add_bos: bool = False


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
_DIGITS_APART = _ByteLevel((r"\p{N}", _GPT2_SPLIT))
_LLAMA3 = _ByteLevel((_LLAMA3_SPLIT,), whole_tokens=True, add_bos=True)
_PRE_TOKENIZERS = {
    "default": _ByteLevel((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _ByteLevel((_GPT2_SPLIT,)),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _ByteLevel((_LLAMA3_SPLIT,)),
    "tekken": _ByteLevel((_TEKKEN_SPLIT,), whole_tokens=True, add_bos=True),
}


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
    metadata = under("tokenizer.ggml.", metadata)
    problems = _problems(metadata)
    if problems:
        raise InputError(*(f"{path}: tokenizer.ggml.{problem}" for problem in problems))
    tokens = metadata["tokens"]
    tokenizer = _byte_level(metadata) if _is_byte_level(metadata) else _sentencepiece(metadata)
    special = {_TokenType.CONTROL: True, _TokenType.USER_DEFINED: False}
    tokenizer.add_tokens(
        [
            AddedToken(token, special=special[type_], normalized=False)
            for token, type_ in zip(tokens, _token_types(metadata), strict=True)
            if type_ in special
        ]
    )
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


# What the metadata says: the values of the keys under "tokenizer.ggml.", by the rest of the key.


def _is_byte_level(metadata: Mapping[str, Any]) -> bool:
    return metadata["model"] == "gpt2"


def _pre_tokenizer(metadata: Mapping[str, Any]) -> _ByteLevel | None:
    # A file without the key is older than the names; llama.cpp takes it for "default".
    return _PRE_TOKENIZERS.get(metadata.get("pre", "default"))


def _token_types(metadata: Mapping[str, Any]) -> Sequence[int]:
    count = len(metadata["tokens"])
    return metadata.get("token_type", [_TokenType.NORMAL] * count)


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
    advice = " Use the model's folder with config.json, safetensors and tokenizer.json instead."
    return [problem + advice for problem in problems]


def _type_problems(metadata: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, type_ in _TYPES.items():
        if key not in metadata:
            continue
        is_list = isinstance(metadata[key], list)
        items = metadata[key] if is_list else [metadata[key]]  # all of one type, by the format
        if is_list != (key in _LISTS) or not all(type(item) is type_ for item in items[:1]):
            allowed = (
                f"a list of {type_.__name__}" if key in _LISTS else f"of type {type_.__name__}"
            )
            problems.append(f"{key} must be {allowed}.")
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
    for name, added in (
        ("bos", _adds_bos(metadata)),
        ("eos", metadata.get("add_eos_token", False)),
    ):
        if added and ids[name] is None:
            problems.append(f"{name}_token_id is missing, and the tokenizer adds that token.")
    kind_problems = _byte_level_problems if _is_byte_level(metadata) else _sentencepiece_problems
    return problems + kind_problems(metadata)


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


def _sentencepiece_problems(metadata: Mapping[str, Any]) -> list[str]:
    problems = []
    if "scores" not in metadata:
        problems.append("scores is missing.")
    if metadata.get("remove_extra_whitespaces", False):
        problems.append("remove_extra_whitespaces is set, which no Llama has.")
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
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = metadata["tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            _scored_merges(tokens, metadata["scores"], _token_types(metadata)),
            unk_token=tokens[_special_ids(metadata)["unknown"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    encode = [normalizers.Replace(" ", _SPACE)]
    decode = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("add_space_prefix", True):
        encode.insert(0, normalizers.Prepend(_SPACE))
        decode.append(decoders.Strip(" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(encode)
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def _scored_merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that scores stand for, best first.

    SentencePiece joins the two neighbours whose union scores best, the leftmost of equals. A list
    of merges orders pairs, not places, so equals are taken in the order of their ids, which is that
    of training, and with the longer left part first.
    """
    ranks = {
        token: (-score, i)
        for i, (token, score, type_) in enumerate(zip(tokens, scores, types, strict=True))
        if type_ == _TokenType.NORMAL
    }
    merges = [
        (rank, -cut, (token[:cut], token[cut:]))
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [pair for _, _, pair in sorted(merges)]
