"""Formats of tokenizers: the tokens of some texts, and the special ones; and chat templates."""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import gguf
import gguf_files
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

import sinkjax
from sinkjax.checkpoint import chat
from sinkjax.errors import InputError
from tests.fuzz.format import PROSE, Format

PROBES = ("", " ", " Hello", "Hello  world", PROSE[2000:2200], "é漢字🎉\n\t1234", "<s></s>ab")


def _tokens(path: pathlib.Path) -> dict[str, Any]:
    tokenizer = sinkjax.load_tokenizer(path)
    full, bare = (
        [tokenizer.encode(t, add_special_tokens=s) for t in PROBES] for s in (True, False)
    )
    tokenizer.decode(bare[4])
    return {"bare": bare, "full": full, "ends": [tokenizer.bos_token, tokenizer.eos_token]}


def _with_tokens(original: dict[str, Any], encode: Callable[[str], list[int]]) -> dict[str, Any]:
    """What is expected of tokens without special ones; of the rest, what it is."""
    return {**original, "bare": [list(encode(text)) for text in PROBES]}


def _bare_alone(original: dict[str, Any]) -> dict[str, Any]:
    return {"bare": original["bare"]}


def tokenizer_json(folder: pathlib.Path) -> Format:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROSE.split("\n"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(named))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        return _bare_alone(_tokens(folder))

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        its = Tokenizer.from_file(str(folder / "tokenizer.json"))
        beside = folder / "tokenizer_config.json"
        said = json.loads(beside.read_bytes()) if beside.exists() else {}
        ends = [said.get(name) for name in ("bos_token", "eos_token")]
        its.add_special_tokens([token for token in ends if isinstance(token, str)])
        return _with_tokens(original, lambda text: its.encode(text, add_special_tokens=False).ids)

    return Format(("tokenizer.json", "tokenizer_config.json"), read, expected)


_CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|é|>"}]
_TEMPLATE = """{%- if messages[0].role != 'system' %}
    {{- raise_exception('a system message is needed') }}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- set content = message['content'] | trim %}
    {{- '<|' + message.role + '|>\\n' ~ content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}
"""


def chat_template(folder: pathlib.Path) -> Format:
    tokenizer_json(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)

    def read(folder: pathlib.Path) -> str:
        tokenizer = sinkjax.load_tokenizer(folder)
        if not tokenizer.chat_template:
            raise InputError(f"{folder / 'chat_template.jinja'} is no template")
        template = chat.ChatTemplate(tokenizer, str(folder))
        with mock.patch.object(chat, "SECONDS", 1.5), contextlib.closing(template):
            return template(_CHAT, add_generation_prompt=True)

    def expected(folder: pathlib.Path, original: str) -> str:
        said = json.loads((folder / "tokenizer_config.json").read_bytes())
        template, beside = said.get("chat_template"), folder / "chat_template.jinja"
        if isinstance(template, list):
            template = {of["name"]: of["template"] for of in template}["default"]
        if beside.exists():
            template = beside.read_bytes().decode()
        ends = {key: said[key] for key in ("bos_token", "eos_token") if said.get(key) is not None}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(
            messages=_CHAT, add_generation_prompt=True, **ends
        )

    return Format(("chat_template.jinja",), read, expected)


def configured_template(folder: pathlib.Path) -> Format:
    """As older folders have it, as one of several."""
    as_file = chat_template(folder)
    (folder / "chat_template.jinja").unlink()
    said = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": name, "template": _TEMPLATE} for name in ("tool_use", "default")]
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": named}))
    return Format(("tokenizer_config.json",), as_file.read, as_file.expected)


def _train_sentencepiece(folder: pathlib.Path) -> Any:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=600,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def sentencepiece_model(folder: pathlib.Path) -> Format:
    import sentencepiece

    _train_sentencepiece(folder)
    pieces = [i for i, text in enumerate(PROBES) if not re.search("<s>|</s>", text)]
    end = {"content": "<|end|>", "lstrip": False, "special": True}
    said = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", **end}}
    said |= {"add_bos_token": True, "model_max_length": 99}
    said["added_tokens_decoder"] = {"1": {"content": "<s>", "special": True}, "600": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": end}))
    (folder / "added_tokens.json").write_text(json.dumps({"<|end|>": 600}))

    def read(folder: pathlib.Path) -> list[list[int]]:
        tokens = _tokens(folder)["bare"]
        return [tokens[i] for i in pieces]  # of special tokens, SentencePiece itself knows none

    def expected(folder: pathlib.Path, original: list) -> list[list[int]]:
        its = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return [its.encode(PROBES[i]) for i in pieces]

    beside = "tokenizer_config.json", "tokenizer_config.json", "added_tokens.json"
    names = ("tokenizer.model",) * 5, beside, ("special_tokens_map.json",)
    return Format(sum(names, ()), read, expected)


def gguf_tokenizer(folder: pathlib.Path) -> Format:
    """SentencePiece's in one file, and of bytes in another."""
    trained = _train_sentencepiece(folder)
    (folder / "tokenizer.model").unlink()
    ids = range(trained.vocab_size())
    kinds = {2: trained.is_unknown, 3: trained.is_control, 6: trained.is_byte}
    with _tokenizer_file(folder / "pieces.gguf", "llama") as writer:
        writer.add_token_list([trained.id_to_piece(i) for i in ids])
        writer.add_token_scores([trained.get_score(i) for i in ids])
        types = [next((kind for kind, holds in kinds.items() if holds(i)), 1) for i in ids]
        writer.add_token_types(types)
    tokenizer_json(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    with _tokenizer_file(folder / "bytes.gguf", "gpt2") as writer:
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(list(model["vocab"]))
        writer.add_token_types([3, 3] + [1] * (len(model["vocab"]) - 2))
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ messages }}")
    files = "pieces.gguf", "bytes.gguf"

    def metadata(folder: pathlib.Path, name: str) -> dict[str, Any]:
        metadata = _metadata(folder / name)
        return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}

    before = {name: metadata(folder, name) for name in files}

    def read(folder: pathlib.Path) -> dict[str, Any]:
        return {name: _tokens(folder / name) for name in files}

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        """The metadata that is there is another tokenizer's: nothing else says what it is."""
        changed = [name for name in files if metadata(folder, name) != before[name]]
        return {**original, **{name: _tokens(folder / name) for name in changed}}

    return Format(files, read, expected)


@contextlib.contextmanager
def _tokenizer_file(path: pathlib.Path, kind: str) -> Iterator[gguf.GGUFWriter]:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    yield writer
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    gguf_files.finish(writer)


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
