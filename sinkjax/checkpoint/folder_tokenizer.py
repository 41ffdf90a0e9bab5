"""Reads the tokenizer of a folder as the Hugging Face Hub has it.

Its tokens are those of `tokenizer.json`, as the `tokenizers` package reads it; without that file,
those of SentencePiece's `tokenizer.model`. The class that `tokenizer_config.json` names says
nothing about tokens: transformers' class for Llamas would put rules of its own in the place of
the file's. Special tokens and the chat template are as transformers reads them.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from sinkjax.checkpoint.folder import CONFIG, read_json
from sinkjax.checkpoint.sentencepiece_tokenizer import (
    ADDED_SCORE,
    SentencePiece,
    TokenType,
    sentencepiece_problems,
    sentencepiece_tokenizer,
)
from sinkjax.errors import InputError, explaining, first_line
from sinkjax.files import check_file, check_path, read_file
from sinkjax.models.hf_config import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_TOKENIZER_CONFIG, _SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_ADDED_TOKENS, _TEMPLATE = "added_tokens.json", "chat_template.jinja"
_TEMPLATE_OF_WHOLE = "chat_template.json"  # of a model that sees images as well
TOKENIZER_FILES = (
    *(_JSON, _MODEL, _TOKENIZER_CONFIG, _SPECIAL_TOKENS),
    *(_ADDED_TOKENS, _TEMPLATE, _TEMPLATE_OF_WHOLE),
)
"""All that is read of a folder, beside a model's config."""

_ADVICE = "download the tokenizer files again"
_UNIGRAM, _BPE = 1, 2  # SentencePiece's numbers of its kinds

# What is read of SentencePiece's messages. Its own package has them, too, but in a form that asks
# for one release of protobuf.
_SCHEMA = """
name: "sentencepiece" package: "sinkjax"
message_type {
  name: "SentencePiece"
  field { name: "piece" number: 1 type: TYPE_STRING }
  field { name: "score" number: 2 type: TYPE_FLOAT }
  field { name: "type" number: 3 type: TYPE_INT32 default_value: "1" }
}
message_type {
  name: "TrainerSpec"
  field { name: "model_type" number: 3 type: TYPE_INT32 default_value: "1" }
  field { name: "treat_whitespace_as_suffix" number: 24 type: TYPE_BOOL }
  field { name: "byte_fallback" number: 35 type: TYPE_BOOL }
  field { name: "unk_id" number: 40 type: TYPE_INT32 }
  field { name: "bos_id" number: 41 type: TYPE_INT32 default_value: "1" }
  field { name: "eos_id" number: 42 type: TYPE_INT32 default_value: "2" }
  field { name: "pad_id" number: 43 type: TYPE_INT32 default_value: "-1" }
}
message_type {
  name: "NormalizerSpec"
  field { name: "precompiled_charsmap" number: 2 type: TYPE_BYTES }
  field { name: "add_dummy_prefix" number: 3 type: TYPE_BOOL default_value: "true" }
  field { name: "remove_extra_whitespaces" number: 4 type: TYPE_BOOL default_value: "true" }
  field { name: "escape_whitespaces" number: 5 type: TYPE_BOOL default_value: "true" }
}
message_type {
  name: "ModelProto"
  field { name: "pieces" number: 1 type_name: "SentencePiece" label: LABEL_REPEATED }
  field { name: "trainer_spec" number: 2 type_name: "TrainerSpec" }
  field { name: "normalizer_spec" number: 3 type_name: "NormalizerSpec" }
}
"""


def load_folder_tokenizer(folder: pathlib.Path) -> "PreTrainedTokenizerFast":
    """The tokenizer whose files lie in a folder; no network, no code of the checkpoint's own.

    Beginning- and end-of-sequence tokens are added as `add_bos_token` and `add_eos_token` of
    tokenizer_config.json say; where they say nothing, as tokenizer.json does, or, of a
    tokenizer.model, the first alone.

    Raises:
      InputError: if there is none, or it cannot be read.
    """
    for path in (folder / name for name in (*TOKENIZER_FILES, CONFIG)):
        with explaining(f"{path} cannot be read", _ADVICE):
            check_path(path)
            if os.path.lexists(path):  # a folder or a link to nothing is no absent file
                check_file(path)
    config = _optional(folder / _TOKENIZER_CONFIG)
    adds = {
        end: config[f"add_{end}_token"]
        for end in ("bos", "eos")
        if isinstance(config.get(f"add_{end}_token"), bool)
    }
    if (folder / _JSON).is_file():
        tokenizer = _read(folder, _special_tokens(folder, config), adds, folder)
    elif (folder / _MODEL).is_file():
        tokenizer = _read_model(folder, config, {"bos": True, **adds})
    else:
        raise InputError(
            f"{folder} holds no tokenizer ({_JSON} or {_MODEL}; others, as tekken.json, are not "
            "read); copy there the tokenizer files of the model, or of one with the same tokens"
        )
    if not tokenizer.chat_template:
        template = _optional(folder / _TEMPLATE_OF_WHOLE).get("chat_template")
        if not isinstance(template, str | None):
            raise InputError(f"{folder / _TEMPLATE_OF_WHOLE} has no text; {_ADVICE}")
        tokenizer.chat_template = template
    return tokenizer


def _read(
    folder: pathlib.Path, special: Mapping[str, str], adds: Mapping[str, bool], name: pathlib.Path
) -> "PreTrainedTokenizerFast":
    """What transformers makes of a folder's tokenizer.json and the files beside it.

    Its `special` tokens go before those of tokenizer_config.json; `adds` says whether BOS ("bos")
    and EOS ("eos") are added, where that is not left to the file; `name` is for messages.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and weights need none of it

    with _reading(f"{name}: transformers cannot read its tokenizer"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(folder),
            local_files_only=True,
            clean_up_tokenization_spaces=False,  # decoded text is what was encoded
            added_tokens_decoder={},  # tokenizer.json has them, and says how they are matched
            **special,
        )
        _add_ends(tokenizer, adds)
    tokenizer.name_or_path = str(name)
    return tokenizer


@contextlib.contextmanager
def _reading(failure: str) -> Iterator[None]:
    """Makes a problem of whatever a damaged file has transformers and tokenizers raise."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of tokenizers are no Exception
        raise InputError(
            f"{failure} ({type(error).__name__}: {first_line(error)}); {_ADVICE}"
        ) from error


def _special_tokens(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name, such as bos_token, that tokenizer_config.json does not name."""
    if "added_tokens_decoder" not in config:  # from then on, transformers names all there
        listed_there = _optional(folder / _SPECIAL_TOKENS).items()
        named = {name: text for name, token in listed_there for text in _texts(token)}
        if named := {name: text for name, text in named.items() if name.endswith("_token")}:
            return named
    if config or not (folder / _JSON).is_file():
        return {}
    model, added = _optional(folder / CONFIG), _optional(folder / _JSON).get("added_tokens")
    return {
        f"{end}_token": token["content"]
        for end in ("bos", "eos")
        for token in listed(added)
        if isinstance(token, dict)
        and token.get("id") in listed(model.get(f"{end}_token_id"))[:1]
        and isinstance(token.get("content"), str)
    }


def _texts(tokens: object) -> list[str]:
    """The texts of one or several tokens in any of the forms that transformers has written."""
    contents = [
        token.get("content") if isinstance(token, dict) else token for token in listed(tokens)
    ]
    return [text for text in contents if isinstance(text, str)]


def around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts by itself before every text, and after it."""
    for text in _any_text(tokenizer):
        if bare := tokenizer.encode(text, add_special_tokens=False):
            full = tokenizer.encode(text)
            starts = range(len(full) - len(bare) + 1)
            start = next(i for i in starts if full[i : i + len(bare)] == bare)
            return full[:start], full[start + len(bare) :]
    return tokenizer.encode(""), []


def _any_text(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Texts of which one has tokens: "a", but for vocabularies without letters."""
    yield "a"
    yield from (text for text in tokenizer.get_vocab() if text not in tokenizer.all_special_tokens)


def _add_ends(tokenizer: "PreTrainedTokenizerFast", adds: Mapping[str, bool]) -> None:
    """Adds BOS and EOS to every text, or not, where that is not what the tokenizer does already."""
    does = dict(zip(("bos", "eos"), around(tokenizer), strict=True))
    wanted = {}
    for end, ids in does.items():
        token_id = getattr(tokenizer, f"{end}_token_id")
        wanted[end] = [token_id] if adds.get(end, bool(ids)) and token_id is not None else []
        if ids not in ([], [token_id]):  # a template of its own, which the two say nothing of
            return
    if wanted != does:
        tokenizer.add_bos_token = bool(wanted["bos"])
        tokenizer.add_eos_token = bool(wanted["eos"])


def _read_model(
    folder: pathlib.Path, config: Mapping[str, Any], adds: Mapping[str, bool]
) -> "PreTrainedTokenizerFast":
    """What transformers makes of a tokenizer.model, once it is a tokenizer.json."""
    path = folder / _MODEL
    proto = _parse(path)
    spec = _specification(path, proto, config, _added_tokens(folder, config))
    if problems := sentencepiece_problems(spec):
        raise _unread(path, problems)
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        if 0 <= (id_ := getattr(proto.trainer_spec, f"{name}_id")) < len(spec.tokens):
            special[f"{name}_token"] = spec.tokens[id_]
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary)
        with _reading(f"{path} cannot be read"):
            sentencepiece_tokenizer(spec).save(str(copy / _JSON))
        if (folder / _TEMPLATE).is_file():
            shutil.copy(folder / _TEMPLATE, copy)
        (copy / _TOKENIZER_CONFIG).write_text(json.dumps({**special, **config}))
        return _read(copy, _special_tokens(folder, config), adds, folder)


def _parse(path: pathlib.Path) -> Any:
    try:
        proto = _model_class().FromString(read_file(path))
    except (DecodeError, OSError) as error:
        raise InputError(
            f"{path} is no SentencePiece model, or damaged ({first_line(error)}); download it "
            f"again, or the model's {_JSON}"
        ) from error
    pieces = [piece.piece for piece in proto.pieces]
    bytes_ = [piece.piece for piece in proto.pieces if piece.type == TokenType.BYTE]
    wanted = {f"<0x{byte:02X}>" for byte in range(256 * proto.trainer_spec.byte_fallback)}
    unread = {
        "has empty pieces, or some twice": "" in pieces or len(set(pieces)) < len(pieces),
        "has not the byte pieces that it says": len(bytes_) != len(wanted) or set(bytes_) != wanted,
        "has no tokens": not 0 <= proto.trainer_spec.unk_id < len(proto.pieces),
        "is of another kind than BPE and unigram": proto.trainer_spec.model_type
        not in (_UNIGRAM, _BPE),
        "puts spaces after words": proto.trainer_spec.treat_whitespace_as_suffix,
        "does not escape spaces": not proto.normalizer_spec.escape_whitespaces,
    }
    if problems := [text for text, is_so in unread.items() if is_so]:
        raise _unread(path, problems)
    return proto


def _unread(path: pathlib.Path, problems: list[str]) -> InputError:
    return InputError(
        f"{path} {' and '.join(problems)}, and cannot be read; download the model's {_JSON}"
    )


@functools.cache
def _model_class() -> Any:
    """The class of SentencePiece's message of a model."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sinkjax.ModelProto"))


def _added_tokens(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """The tokens that were added to SentencePiece's: of each id, the text and if it is special."""
    special = {
        text
        for tokens in (_optional(folder / _SPECIAL_TOKENS), config)
        for name, token in tokens.items()
        if name.endswith(("_token", "_tokens"))
        for text in _texts(token)
    }
    texts = _optional(folder / _ADDED_TOKENS).items()
    try:
        added = {id_: (text, text in special) for text, id_ in texts}
        for id_, token in config.get("added_tokens_decoder", {}).items():
            added[int(id_)] = (token["content"], bool(token.get("special")))
        if not all(type(id_) is int and type(text) is str for id_, (text, _) in added.items()):
            raise TypeError("their ids must be whole numbers, their contents texts")
        return dict(sorted(added.items()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{folder}: the added tokens in {_ADDED_TOKENS} or {_TOKENIZER_CONFIG} cannot be read "
            f"({type(error).__name__}: {first_line(error)}); {_ADVICE}"
        ) from error


def _specification(
    path: pathlib.Path,
    proto: Any,
    config: Mapping[str, Any],
    added: Mapping[int, tuple[str, bool]],
) -> SentencePiece:
    rows = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    for id_, (text, special) in added.items():
        if not 0 <= id_ <= len(rows):
            raise InputError(
                f"{path} has tokens up to {len(rows) - 1}, and the next one that the files beside "
                f"it add is {id_}, {text!r}; {_ADVICE}"
            )
        piece, _, type_ = rows[id_] if id_ < len(rows) else (None, None, None)
        if piece != text or type_ == TokenType.NORMAL:
            type_ = TokenType.CONTROL if special else TokenType.USER_DEFINED
            rows[id_ : id_ + 1] = [(text, ADDED_SCORE, type_)]
    tokens, scores, types = zip(*rows, strict=True)
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{path} and the files beside it name a token twice; {_ADVICE}")
    normalizer = proto.normalizer_spec
    plain = not (normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces)
    prefix = config.get("add_prefix_space")
    if prefix is None:
        prefix = normalizer.add_dummy_prefix
    return SentencePiece(
        tokens=tokens,
        scores=scores,
        types=types,
        unknown_id=proto.trainer_spec.unk_id,
        # Where characters in front are removed, nothing tells what was first in the text.
        dummy_prefix=("first" if config.get("legacy") is False and plain else "always")
        if prefix
        else None,
        unigram=proto.trainer_spec.model_type == _UNIGRAM,
        charsmap=normalizer.precompiled_charsmap,
        remove_extra_spaces=normalizer.remove_extra_whitespaces,
    )


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, _ADVICE) if path.is_file() else {}
