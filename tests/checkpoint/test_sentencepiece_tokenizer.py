"""Small SentencePiece models of any kind, against SentencePiece: its tokens, or refused.

Letters may be no pieces, scores equal, pieces unused, user-defined, or such as no merges make.
"""

import collections
import dataclasses
import random

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from sinkjax.checkpoint.sentencepiece_tokenizer import (
    SentencePiece,
    TokenType,
    sentencepiece_problems,
    sentencepiece_tokenizer,
)

LETTERS = "abc▁é"
MODELS, TEXTS = 150, 25


def model(unigram: bool, rows: list[tuple[str, float, int]], byte_fallback: bool = False):
    """A model of three tokens and these, for SentencePiece and for here."""
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    bytes_ = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256 * byte_fallback)]
    proto = ModelProto()
    for piece, score, type_ in (rows := [*special, *bytes_, *rows]):
        proto.pieces.add(piece=piece, score=score, type=type_)
    proto.trainer_spec.model_type = 1 if unigram else 2
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    its = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return its, SentencePiece(*zip(*rows, strict=True), 0, None, unigram=unigram)


def drawn(chance: random.Random, unigram: bool):
    scores = {letter: -chance.randrange(20) for letter in LETTERS if chance.random() < 0.9}
    types = dict.fromkeys(scores, TokenType.NORMAL)
    kind = chance.choice(("joined", "any", "tied"))
    odd = (TokenType.USER_DEFINED, TokenType.UNUSED) if chance.random() < 0.5 else ()
    for number in range(chance.randrange(1, 10)):
        parts = list(scores) if kind == "joined" else LETTERS
        piece = "".join(chance.choices(parts or LETTERS, k=chance.randrange(2, 4)))
        if piece not in scores:
            scores[piece] = -number // 4 if kind == "tied" else -20 - number
            is_odd = odd and chance.random() < 0.2
            types[piece] = chance.choice(odd) if is_odd else TokenType.NORMAL
    rows = [(piece, score, types[piece]) for piece, score in scores.items()]
    return model(unigram, rows, byte_fallback=chance.random() < 0.7)


@pytest.mark.parametrize("unigram", [False, True])
def test_tokens_are_those_of_sentencepiece_or_the_model_is_refused(unigram):
    outcomes = collections.Counter()
    for seed in range(MODELS):
        chance = random.Random(seed)
        its, spec = drawn(chance, unigram)
        if sentencepiece_problems(spec):
            outcomes["refused"] += 1
            continue
        outcomes["equal"] += 1
        tokenizer = sentencepiece_tokenizer(spec)
        for _ in range(TEXTS):
            text = "".join(chance.choices("abc é", k=chance.randrange(1, 9)))
            ids = [tokenizer.encode(text).ids, its.encode(text)]
            if unigram:  # of equal sums any is right
                ids = [(sorted(row), round(sum(spec.scores[i] for i in row), 6)) for row in ids]
                ids = [total if ids[0][1] == ids[1][1] else row for row, total in ids]
            assert ids[0] == ids[1], (seed, text)
    assert min(outcomes["equal"], outcomes["refused"]) > MODELS // 10


def spaces(*counts: int) -> list[tuple[str, float, int]]:
    """Tokens of so many spaces, of one score below all others, as Llama 2's and Mistral's."""
    return [("▁" * count, -1e9, TokenType.NORMAL) for count in counts]


NORMAL, USER, UNUSED = TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED
A_B_C = [("a", -1.0, NORMAL), ("b", -2.0, NORMAL), ("c", -3.0, NORMAL)]


@pytest.mark.parametrize(
    ("unigram", "rows", "why"),
    [
        (False, [*A_B_C[:2], ("bc", -4.0, NORMAL)], "makes 'bc' of what are no pieces"),
        (False, [*A_B_C, ("bc", -4.0, UNUSED)], "makes unused pieces, 'bc'"),
        (False, [*A_B_C, ("bc", -4.0, NORMAL), ("ab", -4.0, NORMAL)], "orders 'ab' and 'bc', of"),
        (False, [*A_B_C, ("abc", -4.0, NORMAL), ("ca", -5.0, USER)], "never makes, 'abc'"),
        (False, [*A_B_C, *spaces(1, 2, 3, 7)], "orders '▁▁▁' and '▁▁', of equal scores"),
        (False, [("▁▁▁▁", -4.0, NORMAL), *spaces(1, 2, 3)], "orders '▁▁▁' and '▁▁▁▁', of equ"),
        (False, [*A_B_C, ("▁▁a", -4.0, NORMAL), *spaces(1, 2, 3)], "orders '▁▁' and '▁▁a', of"),
        (False, [*A_B_C, ("ab", float("nan"), NORMAL)], "scores that are not finite"),
        (True, [*A_B_C, ("bc", -4.0, UNUSED)], "has unused pieces, 'bc'"),
    ],
)
def test_what_only_sentencepiece_does_is_refused_with_the_reason(unigram, rows, why):
    _, spec = model(unigram, rows)
    (problem,) = sentencepiece_problems(spec)
    assert why in problem


@pytest.mark.parametrize(
    "counts", [range(1, 17), [*range(1, 15), 16], [1, 2], [1, 2, 4], [1, 2, 3, 5, 6]], ids=str
)
def test_runs_of_spaces_grow_from_their_beginning(counts):
    """The first two are Llama 2's and Mistral's, which differ from joining halves beyond 16."""
    joined = [("ab", -4.0, NORMAL), ("▁a", -5.0, NORMAL), ("▁ab", -6.0, NORMAL)]
    its, spec = model(False, [*A_B_C, *joined, *spaces(*counts)])
    assert not sentencepiece_problems(spec)
    tokenizer = sentencepiece_tokenizer(spec)
    for count in range(1, 70):
        run = " " * count
        for text in (run, f"ab{run}ab{run[3:]}c{run[5:]}b"):
            assert tokenizer.encode(text).ids == its.encode(text), text


def test_an_empty_piece_that_is_found_everywhere_is_refused():
    """As SentencePiece itself refuses any empty piece: it would part all text."""
    spec = SentencePiece(["<unk>", "a", ""], [0.0, -1.0, -2.0], [2, 1, USER], 0, None)
    assert sentencepiece_problems(spec) == ["has an empty user-defined piece"]
    assert not sentencepiece_problems(dataclasses.replace(spec, types=[2, 1, NORMAL]))


@pytest.mark.parametrize(
    "rows",
    [
        [*A_B_C, ("ab", -4.0, NORMAL), ("ac", -4.0, NORMAL)],  # equal, but never beside each other
        [*A_B_C, ("cdab", -4.0, NORMAL), ("efg", -5.0, UNUSED)],  # never made
        [*A_B_C, ("d", -4.0, USER)],
    ],
)
def test_what_changes_no_token_is_not_refused(rows):
    its, spec = model(False, rows)
    assert not sentencepiece_problems(spec)
    tokenizer = sentencepiece_tokenizer(spec)
    for text in ("abcabc", "cdab", "ddabd", "efg", "acab"):
        assert tokenizer.encode(text).ids == its.encode(text)
