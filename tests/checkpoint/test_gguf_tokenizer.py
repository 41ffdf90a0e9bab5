"""Tokenizers built from GGUF metadata, against other implementations of what they stand for.

The real one: transformers' reading of the same file. Byte-level ones of other kinds: a naive
reference in Python. SentencePiece ones: SentencePiece, with a model that is trained here.
"""

import functools
import itertools
import pathlib
import unicodedata
from collections.abc import Callable

import gguf
import hypothesis
import hypothesis.strategies as st
import pytest
import regex
import sentencepiece
import tokenizers
import transformers
from gguf_files import finish
from tokenizers import pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

import sinkjax
from sinkjax.checkpoint.gguf_file import open_gguf_file
from sinkjax.checkpoint.gguf_tokenizer import end_tokens, load_gguf_tokenizer
from sinkjax.errors import InputError
from sinkjax.models.hf_config import from_hf_config
from sinkjax.studies.texts import CHOOSE, read_text

# What byte-pair encodings trip over: runs of spaces and line ends, digits of every kind,
# contractions in every case, accents that combine, joined emoji, control characters.
PIECES = (
    *("a", "The", "the", "SmolLM", "é", "ß", "漢字", "ひ", "ж", "Ω", "ا", "ǅ", "ʰ", "ª", "\u0301"),
    *("'s", "'S", "'ll", "'LL", "'t", "don't", "DON'T", "’t", "'", "''"),
    *("1", "12", "123", "4567", "x1", "²", "½", "٣", "１", "ⅷ"),
    *(" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u200b", "\u2028"),
    *(".", "...", "!?", "$", "+=", "|", "/", "\\", "@", "“q”", "_", "-"),
    *("🎉", "👨‍👩‍👧", "\x00", "\x7f", "\U0010ffff"),
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
PROSE = read_text(CHOOSE, 1, seed=0).text[:200_000]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(max_size=30),
    st.integers(0, len(PROSE)).map(lambda start: PROSE[start : start + 80]),
)
texts_with_special = texts | st.lists(st.sampled_from(PIECES + SPECIAL), max_size=8).map("".join)
tries = hypothesis.settings(deadline=None, max_examples=300)


def write(
    path: pathlib.Path,
    model: str | None,
    tokens: list[str],
    types: list[int] | None,
    architecture: str = "llama",
    **more,
) -> pathlib.Path:
    """A GGUF file that holds a tokenizer and nothing else; `more` are keys of its metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    if model is not None:
        writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    if types is not None:
        writer.add_token_types(types)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in more.items():
        add[type(value)](key if "." in key else f"tokenizer.ggml.{key}", value)
    return finish(writer)


def pre_tokenizer(patterns: list[str]) -> pre_tokenizers.PreTokenizer:
    """The package's own, which splits a text by each of the patterns, and then into bytes."""
    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern is DIGITS
        else pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in patterns
        if pattern is not GPT2
    ]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in patterns)
    return pre_tokenizers.Sequence([*splits, to_bytes])


# The real one.


@pytest.fixture(scope="module")
def published(smollm2_gguf):
    """transformers' reading of the file, split as SmolLM2's own tokenizer.json splits.

    transformers does not read from a GGUF file how the text is split; it takes GPT-2's way.
    """
    pytest.importorskip("torch", reason="transformers reads GGUF files with PyTorch alone")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer([DIGITS, GPT2])
    return tokenizer


@pytest.fixture(scope="module")
def known_bytes(smollm2_tokenizer):
    """The bytes that are tokens: not all of them are."""
    vocabulary = smollm2_tokenizer.get_vocab()
    return {byte for byte, letter in bytes_to_unicode().items() if letter in vocabulary}


@hypothesis.given(text=texts_with_special)
@tries
def test_the_real_tokenizer_is_the_published_one(smollm2_tokenizer, published, known_bytes, text):
    ids = smollm2_tokenizer(text)["input_ids"]
    assert ids == published(text)["input_ids"]
    if known_bytes.issuperset(text.encode()):
        assert smollm2_tokenizer.decode(ids) == text


def test_the_real_special_tokens_are_the_published_ones(smollm2_tokenizer, published):
    assert len(smollm2_tokenizer) == 49152
    assert smollm2_tokenizer.bos_token == "<|im_start|>"
    assert smollm2_tokenizer.eos_token == smollm2_tokenizer.pad_token == "<|im_end|>"
    chat = [{"role": "user", "content": "Hello"}]
    ours, theirs = (
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for tokenizer in (smollm2_tokenizer, published)
    )
    assert ours == theirs
    assert smollm2_tokenizer.decode(ours).endswith("<|im_start|>assistant\n")


# Byte-level tokenizers of the other kinds.

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"  # the pre-tokenizer Digits, of individual ones
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def naive_byte_level(
    vocabulary: dict[str, int], merges: list[str], pattern: str, whole_tokens: bool
) -> Callable[[str], list[int]]:
    """Byte-pair encoding as its definition reads: the best-ranked pair first, one at a time.

    Bytes that are no token are left out, before what stands beside them is merged.
    """
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    letters = bytes_to_unicode()

    @functools.cache
    def encode(piece: str) -> list[int]:
        word = "".join(letters[byte] for byte in piece.encode())
        if whole_tokens and word in vocabulary:
            return [vocabulary[word]]
        parts = [letter for letter in word if letter in vocabulary]
        while len(parts) > 1:
            rank, at = min(
                (ranks.get(pair, len(ranks)), at)
                for at, pair in enumerate(itertools.pairwise(parts))
            )
            if rank == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [vocabulary[part] for part in parts]

    return lambda text: [i for piece in regex.findall(pattern, text) for i in encode(piece)]


@pytest.fixture(scope="module", params=[("llama-bpe", LLAMA3, True), ("gpt-2", GPT2, False)])
def other_kind(request, smollm2_gguf, tmp_path_factory):
    """SmolLM2's vocabulary under another split, with a token that no merges make."""
    pre, pattern, whole_tokens = request.param
    metadata = open_gguf_file(smollm2_gguf).metadata
    tokens = [*metadata["tokenizer.ggml.tokens"], "Theß".replace("ß", "ÃŁ")]
    types = [*metadata["tokenizer.ggml.token_type"], 1]
    merges = metadata["tokenizer.ggml.merges"]
    path = tmp_path_factory.mktemp("kind") / "model.gguf"
    write(path, "gpt2", tokens, types, pre=pre, merges=merges, bos_token_id=1, eos_token_id=2)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    naive = naive_byte_level(vocabulary, merges, pattern, whole_tokens)
    return load_gguf_tokenizer(path), naive


@hypothesis.given(text=texts)
@hypothesis.example("/\x16/")
@tries
def test_other_splits_are_those_of_the_naive_reference(other_kind, text):
    hypothesis.assume(not any(token in text for token in SPECIAL))
    tokenizer, naive = other_kind
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == naive(text)


def test_a_piece_that_is_a_token_is_taken_whole_where_the_kind_says_so(other_kind):
    tokenizer, naive = other_kind
    ids = tokenizer("Theß", add_special_tokens=False)["input_ids"]
    assert ids == naive("Theß")
    assert (ids == [49152]) == (tokenizer("a")["input_ids"][0] == 1)  # both of Llama 3's kind


# SentencePiece.


@pytest.fixture(scope="module", params=[True, False], ids=["space_prefix", "no_space_prefix"])
def pieces(request, tmp_path_factory):
    """A SentencePiece model of Llama's kind, and the tokenizer of a GGUF file made of it."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_prefix=str(folder / "model"),
        vocab_size=1000,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=request.param,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))
    ids = range(model.get_piece_size())
    kinds = [(model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6)]
    types = [next((type_ for test, type_ in kinds if test(i)), 1) for i in ids]
    path = write(
        folder / "model.gguf",
        "llama",
        [model.id_to_piece(i) for i in ids],
        types,
        scores=[model.get_score(i) for i in ids],
        add_space_prefix=request.param,
    )
    return model, load_gguf_tokenizer(path)


@hypothesis.given(text=texts)
@tries
def test_sentencepiece_is_sentencepiece(pieces, text):
    hypothesis.assume(not any(token in text for token in ("<unk>", "<s>", "</s>")))
    model, tokenizer = pieces
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == model.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_a_sentencepiece_tokenizer_adds_bos_and_knows_control_tokens(pieces):
    model, tokenizer = pieces
    assert tokenizer("a")["input_ids"] == [1, *model.encode("a")]
    assert tokenizer("</s>")["input_ids"][-1] == 2
    assert tokenizer.unk_token_id == 0


def test_without_types_bytes_still_stand_for_what_is_no_token(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    path = write(tmp_path / "model.gguf", "llama", tokens, None, scores=[0.0] * len(tokens))
    tokenizer = load_gguf_tokenizer(path)
    ids = tokenizer.encode("aé", add_special_tokens=False)
    assert ids == [259, 260, *(3 + byte for byte in "é".encode())]
    assert tokenizer.decode(ids) == "aé"


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_spaces_after_most_of_phi3s_special_tokens_are_dropped(architecture, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<0x0A>", "<|endoftext|>", "<|user|>"]
    scores = [0.0] * 3 + [-2.0, -3.0, -1.0, 0.0, -1000.0, -1000.0]
    path = tmp_path / "model.gguf"
    write(path, "llama", tokens, [2, 3, 3, 1, 1, 1, 6, 3, 3], architecture, scores=scores)
    tokenizer = load_gguf_tokenizer(path)
    ids = tokenizer("<|user|>\n a<|endoftext|>\n a", add_special_tokens=False)["input_ids"]
    kept = [3, 6, 5]  # of "\n a"
    assert ids == [8, *([5] if architecture == "phi3" else kept), 7, *kept]


# What the file asks for.

BYTE_TOKENS = sorted(bytes_to_unicode().values())
SMALL = {
    "tokens": ["<s>", "</s>", *BYTE_TOKENS, "ab", "<user>"],
    "types": [3, 3, *[1] * 257, 4],
    "merges": ["a b"],
    "pre": "gpt-2",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def small(path: pathlib.Path, model: str | None = "gpt2", without=(), **changes) -> pathlib.Path:
    options = {key: value for key, value in {**SMALL, **changes}.items() if key not in without}
    return write(path, model, options.pop("tokens"), options.pop("types"), **options)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_the_file_says_which_tokens_are_added(tmp_path, add_bos, add_eos):
    path = small(tmp_path / "model.gguf", add_bos_token=add_bos, add_eos_token=add_eos)
    tokenizer = load_gguf_tokenizer(path)
    text = [SMALL["tokens"].index("ab")]
    assert tokenizer("ab")["input_ids"] == [0] * add_bos + text + [1] * add_eos
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == text


def test_scores_may_be_whole_numbers(tmp_path):
    """As files have them that were made from Mistral's own format (Magistral, Devstral)."""
    said = {"pre": "tekken", "scores": [0] * len(SMALL["tokens"])}
    tokenizer = load_gguf_tokenizer(small(tmp_path / "whole.gguf", **said))
    plain = load_gguf_tokenizer(small(tmp_path / "none.gguf", pre="tekken"))
    assert sinkjax.tokenizer_digest(tokenizer) == sinkjax.tokenizer_digest(plain)


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path):
    tokenizer = load_gguf_tokenizer(small(tmp_path / "model.gguf"))
    ids = tokenizer("</s><user>ab", add_special_tokens=False)["input_ids"]
    assert ids == [1, 259, 258]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<user>ab"


@pytest.mark.parametrize("kind", ["real", "small", "llama-bpe"])
def test_saved_beside_a_checkpoint_it_is_the_same(kind, tmp_path, smollm2_tokenizer):
    if kind == "real":
        tokenizer = smollm2_tokenizer
    else:
        pre = {"pre": "gpt-2" if kind == "small" else kind}
        path = small(tmp_path / "model.gguf", **pre, add_eos_token=kind == "small")
        tokenizer = load_gguf_tokenizer(path)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = sinkjax.load_tokenizer(tmp_path / "saved")
    assert sinkjax.tokenizer_digest(loaded) == sinkjax.tokenizer_digest(tokenizer)
    for text in ("The  capital 123", "</s>ab<user>", ""):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template


def test_a_sentencepiece_tokenizer_saved_beside_a_checkpoint_is_the_same(pieces, tmp_path):
    model, tokenizer = pieces
    tokenizer.save_pretrained(tmp_path)
    loaded = sinkjax.load_tokenizer(tmp_path)
    assert sinkjax.tokenizer_digest(loaded) == sinkjax.tokenizer_digest(tokenizer)
    assert loaded(" The  capital\n")["input_ids"] == [1, *model.encode(" The  capital\n")]


# How the text is split, by the expressions that the models' tokenizer.json have.

ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
QWEN2 = ENGLISH + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PUBLISHED = {
    "midm-2.0": [LLAMA3],
    "trillion": [GPT2],
    "olmo": [GPT2],
    "dbrx": [LLAMA3],
    "minerva-7b": [DIGITS, GPT2],
    "qwen2": [QWEN2],
    "deepseek-r1-qwen": [QWEN2],
    "megrez": [QWEN2],
    "gpt-4o": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve"
        r"|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s"
        r"|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "seed-coder": [
        ENGLISH + "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
    "viking": [r" ?[^(\s|[.,!?…。，、।۔،])]+", DIGITS],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGITS],
    "deepseek-llm": [
        *("[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$"),
        *(DEEPSEEK_CJK, DIGITS),
    ],
}
borders = [
    chr(ord(letter) + step) for letter in DEEPSEEK_LETTERS for step in (-1, 0, 1) if letter > "z"
]
scripts = st.lists(
    st.sampled_from([*PIECES, *borders, *"()|[]।۔、。，龥一ࠀ가힣퟿〇〡‘‟　。！～", " one", "1a2"]),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen", "llama-bpe"])
def test_qwens_text_is_composed_first(tmp_path, pre):
    tokenizer = load_gguf_tokenizer(small(tmp_path / "model.gguf", pre=pre))
    apart, together = (tokenizer.tokenize(text) for text in ("e\u0301", "\u00e9"))
    assert (apart == together) == ("qwen" in pre)


@pytest.mark.parametrize("pre", PUBLISHED)
def test_splits_are_the_published_ones(tmp_path, pre):
    """Against two engines: tokenizers' own, with its pre-tokenizers, and the package regex."""
    published = pre_tokenizer(PUBLISHED[pre])
    patterns = [regex.compile(f"({pattern})", regex.V1) for pattern in PUBLISHED[pre]]
    tokenizer = load_gguf_tokenizer(small(tmp_path / "model.gguf", pre=pre))
    ours = tokenizer.backend_tokenizer.pre_tokenizer

    @hypothesis.given(text=texts | scripts)
    @hypothesis.settings(deadline=None, max_examples=200)
    @hypothesis.example("".join(f"a{letter} {letter}1 " for letter in borders))
    @hypothesis.example("In 1969, don't\r\n\n  (wait)  1234  \t|x|  ")
    @hypothesis.example("a\u0295b A\u0295B")  # a small letter until Unicode 16
    def check(text):
        pieces = ours.pre_tokenize_str(text)
        assert pieces == published.pre_tokenize_str(text)
        categories = {letter: unicodedata.category(letter) for letter in text}
        if "Cn" in categories.values() or not all(
            regex.fullmatch(rf"\p{{{category}}}", letter) for letter, category in categories.items()
        ):
            return  # the two engines know different versions of Unicode
        expected = [text]
        for pattern in patterns:
            expected = [piece for whole in expected for piece in pattern.splititer(whole) if piece]
        assert [text[start:end] for _, (start, end) in pieces] == expected

    check()


# Where an answer ends.


@pytest.mark.parametrize(
    ("model", "keys", "expected"),
    [
        ("gpt2", {"eos_token_id": 1}, (1,)),
        ("gpt2", {"eos_token_id": 1, "eot_token_id": 5, "eom_token_id": 4}, (1, 5, 4)),
        ("gpt2", {"eos_token_id": 1, "eot_token_id": 1}, (1,)),
        ("gpt2", {"without": ("eos_token_id",)}, ()),
        ("gpt2", {"eos_token_id": 1, "more": ["<|im_end|>", "<|eom_id|>"]}, (1, 260, 261)),
        ("gpt2", {"eos_token_id": 260, "more": ["<|eot_id|>"]}, (260,)),
        ("gpt2", {"eos_token_id": 1, "more": ["<end_of_turn>", "im_end"]}, (1, 260)),
        ("llama", {"without": ("eos_token_id",)}, (2,)),  # SentencePiece's own
        ("gpt2", {"eos_token_id": 10**6}, ()),
    ],
)
def test_an_answer_ends_at_the_ids_of_eos_eot_eom_and_known_texts(tmp_path, model, keys, expected):
    keys = dict(keys)
    more = keys.pop("more", [])
    tokens, types = SMALL["tokens"] + more, SMALL["types"] + [3] * len(more)
    path = small(tmp_path / "model.gguf", model, tokens=tokens, types=types, **keys)
    ids = end_tokens(open_gguf_file(path).metadata)
    config = from_hf_config({"eos_token_id": ids, "vocab_size": len(tokens)})
    assert config.eos_token_ids == expected


# Refusals.


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"model": None}, ["tokenizer.ggml.model is None; 'gpt2' and 'llama' are read"]),
        ({"model": "bert"}, ["tokenizer.ggml.model is 'bert'"]),
        (
            {"pre": "jais", "merges": ["a b", "a ü", "x yz"], "bos_token_id": 999},
            ["pre is 'jais'", "2 merge(s)", "('x', 'yz')", "bos_token_id is 999; the ids are 0"],
        ),
        (
            {"without": ("merges", "eos_token_id"), "add_eos_token": True},
            ["merges is missing", "eos_token_id is missing, and the tokenizer adds"],
        ),
        (
            {"tokens": [*SMALL["tokens"][:-1], "ab"], "types": [1, 1]},
            ["1 token(s) more than once, 'ab'", "token_type has 2 entries for 260 tokens"],
        ),
        (
            {"pre": 3, "add_bos_token": "yes"},
            ["pre must be of type str", "add_bos_token must be of type bool"],
        ),
        ({"model": "llama"}, ["scores is missing"]),
        ({"tokenizer.chat_template": ["a"]}, ["tokenizer.chat_template must be of type str"]),
        (
            {"tokenizer.chat_template": 5, "pre": "jais"},
            ["tokenizer.chat_template must be of type str", "tokenizer.ggml.pre is 'jais'"],
        ),
    ],
)
def test_everything_that_is_wrong_is_listed_at_once(tmp_path, changes, mentions):
    path = small(tmp_path / "model.gguf", **changes)
    with pytest.raises(InputError) as caught:
        load_gguf_tokenizer(path)
    assert len(caught.value.problems) == len([m for m in mentions if not m.startswith("(")])
    for mention in mentions:
        assert mention in str(caught.value)
    assert all(str(path) in str(problem) for problem in caught.value.problems)
    assert all("tokenizer.json instead" in str(problem) for problem in caught.value.problems)
