"""Tokenizers of folders, against what their files stand for.

tokenizer.json: the `tokenizers` package. tokenizer.model: SentencePiece, with models that are
trained here. And one model's from a folder, a GGUF file and an Orbax folder, against each other.
"""

import json
import os
import pathlib
import re

import gguf
import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
import tokenizers
import transformers
from gguf_files import finish
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import decoders, normalizers, pre_tokenizers, processors

import sinkjax
from sinkjax.checkpoint.orbax import MANIFEST
from sinkjax.errors import InputError
from sinkjax.studies.texts import CHOOSE, read_text

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
PIECES = (
    *("a", "The", "the", " Hello", "Hello", "don't", "é", "ß", "漢字", "ж", "\u0301", "ﬁ"),
    *(" ", "  ", "    ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "▁", "1", "12", "½"),
    *(".", "...", "<", "<0x41>", "<0x0A>", "🎉", "\x00", "\U0010ffff"),
)
PROSE = read_text(CHOOSE, 1, seed=0).text[:100_000]
texts = st.one_of(
    st.sampled_from(["", " ", "  ", " Hello", "Hello ", "  Hello  world  ", "\n", "\n Hello"]),
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.text(max_size=20),
    st.integers(0, len(PROSE)).map(lambda start: PROSE[start : start + 60]),
)
texts_with_special = texts | st.lists(st.sampled_from((*PIECES, *SPECIAL)), max_size=8).map("".join)
tries = hypothesis.settings(deadline=None, max_examples=100)
LLAMA = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)


def train(folder: pathlib.Path, **changes) -> ModelProto:
    """Writes a tokenizer.model of Llama's kind, but for changes, as a folder's only file."""
    folder.mkdir(exist_ok=True)
    options = dict(model_type="bpe", byte_fallback=True, split_digits=True, vocab_size=600)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **options | changes,
    )
    (folder / "tokenizer.vocab").unlink()
    return ModelProto.FromString((folder / "tokenizer.model").read_bytes())


def write_gguf(path: pathlib.Path, proto: ModelProto, **keys) -> pathlib.Path:
    """What llama.cpp's converter writes of a SentencePiece model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    for key, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    return finish(writer)


def as_orbax(tokenizer: transformers.PreTrainedTokenizerBase, folder: pathlib.Path):
    """The tokenizer of an Orbax folder that it was saved in."""
    tokenizer.save_pretrained(folder)
    (folder / MANIFEST).write_text("{}")
    return sinkjax.load_tokenizer(folder)


def configure(folder: pathlib.Path, **config) -> pathlib.Path:
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# tokenizer.model alone.


def with_prefix(proto: ModelProto, prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own reading of a model, with a dummy prefix or without."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.normalizer_spec.add_dummy_prefix = prefix
    return sentencepiece.SentencePieceProcessor(model_proto=copy.SerializeToString())


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no_prefix"])
def llama(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "model"
    return folder, train(folder, **LLAMA, add_dummy_prefix=request.param)


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("add_prefix_space", [None, True, False])
def test_a_model_alone_is_sentencepiece_from_folder_gguf_and_orbax(
    llama, tmp_path, legacy, add_prefix_space
):
    folder, proto = llama
    prefix = proto.normalizer_spec.add_dummy_prefix
    prefix = prefix if add_prefix_space is None else add_prefix_space
    configure(
        folder, tokenizer_class="LlamaTokenizer", legacy=legacy, add_prefix_space=add_prefix_space
    )
    tokenizer = sinkjax.load_tokenizer(folder)
    orbax = as_orbax(tokenizer, tmp_path / "orbax")
    other = sinkjax.load_tokenizer(
        write_gguf(tmp_path / "model.gguf", proto, add_space_prefix=prefix)
    )
    first, later = with_prefix(proto, prefix), with_prefix(proto, prefix and legacy is not False)
    pattern = re.compile(f"({'|'.join(map(re.escape, SPECIAL))})")

    @hypothesis.given(text=texts_with_special)
    @tries
    def check(text):
        # SentencePiece knows no special tokens in a text; what lies between is its own.
        pieces = pattern.split(text)
        expected = [1, *first.encode(pieces[0])]
        for special, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            expected += [SPECIAL[special], *later.encode(piece)]
        assert tokenizer(text)["input_ids"] == expected
        assert orbax(text)["input_ids"] == expected
        if len(pieces) == 1:
            assert tokenizer.decode(expected, skip_special_tokens=True) == text.replace("▁", " ")
        assert orbax.decode(expected) == tokenizer.decode(expected) == other.decode(expected)
        # A GGUF file cannot say that only what is first gets a space.
        if legacy is not False or len(pieces) == 1:
            assert other(text)["input_ids"] == expected

    check()
    assert sinkjax.tokenizer_digest(orbax) == sinkjax.tokenizer_digest(tokenizer)


@pytest.mark.parametrize(
    "changes",
    [
        LLAMA | {"user_defined_symbols": ["<sep>", "<sep>2", "of▁the"]},
        LLAMA | {"byte_fallback": False},
        LLAMA | {"remove_extra_whitespaces": True},
        LLAMA | {"model_type": "unigram"},
        {},
        {"model_type": "unigram"},
    ],
    ids=["user_defined", "no_bytes", "fewer_spaces", "unigram", "defaults", "unigram_defaults"],
)
def test_models_of_other_kinds_are_sentencepiece_too(tmp_path, changes):
    proto = train(tmp_path / "folder", **changes)
    tokenizer, model = sinkjax.load_tokenizer(tmp_path / "folder"), with_prefix(proto, True)
    # Marks that are not joined to what they are on: tokenizers' reading of SentencePiece's table
    # of replacements has its own idea of them.
    plain = texts.filter(lambda text: "\u0301" not in text and not has_special(text))
    if "normalization_rule_name" not in changes:
        plain = st.integers(0, len(PROSE)).map(lambda start: PROSE[start : start + 60]) | st.lists(
            st.sampled_from([piece for piece in PIECES if piece not in ("\u0301", "\U0010ffff")])
        ).map("".join)
    tokens = st.lists(plain | st.sampled_from(["<sep>", "<sep>2", " of the "]), max_size=4)

    @hypothesis.given(text=tokens.map("".join))
    @tries
    def check(text):
        ids, expected = tokenizer.encode(text, add_special_tokens=False), model.encode(text)
        if changes.get("model_type") == "unigram":  # the same tokens in another order score alike
            ids, expected = sorted(ids), sorted(expected)
        assert ids == expected

    check()


def has_special(text: str) -> bool:
    return any(token in text for token in SPECIAL)


def test_what_the_files_beside_a_model_add_has_its_ids(tmp_path):
    proto = train(tmp_path, **LLAMA)
    count = len(proto.pieces)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": count}))
    renamed = proto.pieces[count - 1].piece
    configure(
        tmp_path,
        eos_token="<|im_end|>",
        chat_template="{{ messages[0]['content'] }}<|im_end|>",
        added_tokens_decoder={
            "1": {"content": "<s>", "special": True},
            str(count - 1): {"content": "<unused>", "special": False},
            str(count + 1): {"content": "<|im_start|>", "special": True},
        },
    )
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    bare = tokenizer.encode("<|im_start|>a<|im_end|><unused>", add_special_tokens=False)
    assert bare[:1] + bare[-2:] == [count + 1, count, count - 1]
    assert tokenizer.eos_token_id == count
    assert renamed not in tokenizer.get_vocab()
    assert tokenizer.decode(bare, skip_special_tokens=True) == "a<unused>"
    assert tokenizer.name_or_path == str(tmp_path)
    chat = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "a<|im_end|>"

    whole = tmp_path / "chat_template.json"  # of models that see images as well
    whole.write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}!"}))
    assert sinkjax.load_tokenizer(tmp_path).chat_template == tokenizer.chat_template
    configure(tmp_path)
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "a!"
    whole.write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(InputError, match=r"chat_template\.json has no text; download"):
        sinkjax.load_tokenizer(tmp_path)
    whole.unlink()

    configure(tmp_path, added_tokens_decoder={str(count + 5): {"content": "<far>"}})
    with pytest.raises(InputError, match=f"tokens up to {count}, .* is {count + 5}, '<far>'"):
        sinkjax.load_tokenizer(tmp_path)


# tokenizer.json.


def bpe(**options) -> tokenizers.Tokenizer:
    """A tokenizer with SentencePiece's normalization, as transformers converts Llama's."""
    letters = ["▁", "H", "e", "l", "o", "a", "\n", "▁H", "ll", "▁▁"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *byte_tokens, *letters])}
    merges = [("▁", "▁"), ("▁", "H"), ("l", "l")]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options
        )
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)])
    return tokenizer


def prepend() -> tokenizers.Tokenizer:
    tokenizer = bpe()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def no_prepend() -> tokenizers.Tokenizer:
    tokenizer = bpe()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    tokenizer = bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def split_by_metaspace() -> tokenizers.Tokenizer:
    tokenizer = bpe()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    return tokenizer


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE[:20_000].split("\n"), trainer)
    return tokenizer


@pytest.mark.parametrize("class_", [None, "LlamaTokenizer", "LlamaTokenizerFast", "Unheard"])
@pytest.mark.parametrize("make", [prepend, no_prepend, metaspace, split_by_metaspace, byte_level])
@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_tokenizer_json_is_what_tokenizers_reads(tmp_path, make, class_, legacy):
    written = make()
    if legacy is not False:
        written.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    written.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if class_:
        configure(tmp_path, tokenizer_class=class_, legacy=legacy, add_prefix_space=legacy)
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    orbax = as_orbax(tokenizer, tmp_path / "orbax")
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert sinkjax.tokenizer_digest(orbax) == sinkjax.tokenizer_digest(tokenizer)

    @hypothesis.given(text=texts_with_special)
    @hypothesis.settings(deadline=None, max_examples=10)
    @hypothesis.example(" Hello")
    @hypothesis.example("</s> Hello</s>Hello")
    def check(text):
        ids = expected.encode(text).ids
        assert tokenizer(text)["input_ids"] == orbax(text)["input_ids"] == ids
        for skip in (True, False):
            decoded = expected.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == decoded

    check()


@pytest.mark.parametrize("file_adds", ["", "<s>", "</s>", "<s></s>"])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("add_eos", [None, True, False])
@pytest.mark.parametrize("model", [True, False])
def test_bos_and_eos_are_added_as_the_config_says_else_as_the_file_does(
    tmp_path, file_adds, add_bos, add_eos, model
):
    if model:
        train(tmp_path, **LLAMA)
        adds = {"<s>": True, "</s>": False}
    else:
        template = file_adds.replace("</s>", " </s>").replace("<s>", "<s> ")
        template = f"{template[:4]}$A{template[4:]}" if "<s>" in file_adds else f"$A{template}"
        written = prepend()
        written.post_processor = processors.TemplateProcessing(
            template, None, [("<s>", 1), ("</s>", 2)]
        )
        written.save(str(tmp_path / "tokenizer.json"))
        adds = {token: token in file_adds for token in ("<s>", "</s>")}
    configure(
        tmp_path,
        bos_token="<s>",
        eos_token="</s>",
        add_bos_token=add_bos,
        add_eos_token=add_eos,
    )
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    adds |= {t: a for t, a in {"<s>": add_bos, "</s>": add_eos}.items() if a is not None}
    bare = tokenizer.encode("Hello", add_special_tokens=False)
    ids = [1] * adds["<s>"] + bare + [2] * adds["</s>"]
    assert tokenizer("Hello")["input_ids"] == ids
    assert as_orbax(tokenizer, tmp_path / "orbax")("Hello")["input_ids"] == ids


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_a_vocabulary_without_letters_is_read(tmp_path, add_bos):
    digits = tokenizers.models.BPE({str(digit): digit for digit in range(10)}, [])
    written = tokenizers.Tokenizer(digits)
    written.add_special_tokens(["<s>"])
    written.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, bos_token="<s>", add_bos_token=add_bos)
    assert sinkjax.load_tokenizer(tmp_path)("12")["input_ids"] == [10] * bool(add_bos) + [1, 2]


def test_a_template_of_its_own_is_kept(tmp_path):
    written = prepend()
    written.post_processor = processors.TemplateProcessing(
        "<unk> <s> $A", None, [("<s>", 1), ("<unk>", 0)]
    )
    written.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, bos_token="<s>", add_bos_token=True)
    assert sinkjax.load_tokenizer(tmp_path)("a")["input_ids"][:2] == [0, 1]


def test_how_added_tokens_are_matched_the_tokenizer_json_says(tmp_path):
    prepend().save(str(tmp_path / "tokenizer.json"))
    token = {"content": "</s>", "special": True, "normalized": True, "rstrip": True}
    configure(tmp_path, eos_token="</s>", added_tokens_decoder={"2": token})
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Hello</s> </s>Hello"
    ids = expected.encode(text).ids
    assert ids.count(2) == 2
    assert sinkjax.load_tokenizer(tmp_path)(text)["input_ids"] == ids


def test_pipes_in_place_of_files_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="it is a pipe"):
        sinkjax.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja"])
def test_files_that_would_fill_the_memory_are_not_read(name, tmp_path):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 3 << 29)  # of zeros, of which the disk keeps none
    with pytest.raises(InputError, match=f"{name} cannot be read .it has 1,610,612,736 bytes"):
        sinkjax.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"],
)
def test_what_is_there_and_no_file_is_not_taken_for_absent(name, tmp_path):
    prepend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "removed from a cache")
    with pytest.raises(InputError, match=f"{name} cannot be read .No such file"):
        sinkjax.load_tokenizer(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} cannot be read .Is a directory"):
        sinkjax.load_tokenizer(tmp_path)


def test_special_tokens_of_a_map_are_named(tmp_path):
    prepend().save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_without_its_config_the_ends_are_those_of_the_models(tmp_path):
    prepend().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token_id": 1, "eos_token_id": [2, 5]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


# Refusals.


@pytest.mark.parametrize(
    ("file", "content", "mentions"),
    [
        ("tokenizer.model", b"no model", ["is no SentencePiece model", "tokenizer.json"]),
        ("tokenizer.model", b"", ["has no tokens"]),
        ("tokenizer_config.json", b"[" * 100_000, ["tokenizer_config.json"]),
        ("tokenizer_config.json", b"[]", ["tokenizer_config.json is not a JSON object"]),
        ("added_tokens.json", b'{"a": "b"}', ["added_tokens.json"]),
        ("added_tokens.json", b'{"a": [1]}', ["added_tokens.json"]),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"a": 1}}', ["added tokens"]),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', ["added tokens"]),
    ],
)
def test_what_cannot_be_read_beside_a_model_is_named(tmp_path, file, content, mentions):
    train(tmp_path, **LLAMA)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        sinkjax.load_tokenizer(tmp_path)
    for mention in mentions:
        assert mention in str(caught.value)


def test_models_of_words_and_with_spaces_behind_are_refused(tmp_path):
    train(tmp_path, **LLAMA | {"model_type": "char", "treat_whitespace_as_suffix": True})
    with pytest.raises(InputError, match="another kind than BPE and unigram and puts spaces after"):
        sinkjax.load_tokenizer(tmp_path)


def test_a_panic_of_tokenizers_is_a_problem_of_the_file(tmp_path):
    written = prepend()
    written.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cannot read its tokenizer \(PanicException"):
        sinkjax.load_tokenizer(tmp_path)
