"""SentencePiece models as tokenizers of the `tokenizers` package, with the same tokens.

A model comes from a GGUF file's metadata or from a folder's `tokenizer.model`. Its text is not
split, spaces are "▁", and characters outside the vocabulary become their UTF-8 bytes.
"""

import dataclasses
import enum
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's "▁"
ADDED_SCORE = -1000.0
"""The score of tokens that are not SentencePiece's, but added to it; as llama.cpp's converter."""


class TokenType(enum.IntEnum):
    """The kinds of a token, by the numbers that SentencePiece and GGUF share."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model.

    Attributes:
      tokens, scores, types: one each for every id.
      unknown_id: of the token for what is none.
      dummy_prefix: what is given a space in front: "always" each stretch of text between special
        tokens; "first" only one that begins the text; None nothing.
      unigram: whether a text's tokens are those of the best sum of scores, not of merges.
      charsmap: SentencePiece's compiled table of characters to be replaced first.
      remove_extra_spaces: whether spaces at the ends are dropped, and runs of them made one.
      closed: added tokens after which the text's spaces and line ends are dropped.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unknown_id: int
    dummy_prefix: Literal["always", "first"] | None
    unigram: bool = False
    charsmap: bytes = b""
    remove_extra_spaces: bool = False
    closed: Collection[str] = ()


def add_tokens(
    tokenizer: Tokenizer, tokens: Mapping[str, bool], closed: Collection[str] = ()
) -> None:
    """Has tokens matched whole in the text, before anything else is done to it.

    Args:
      tokenizer: that has them in its vocabulary.
      tokens: in the order of their ids; whether each is special, so that decoding can skip it.
      closed: as of `SentencePiece`.
    """
    tokenizer.add_tokens(
        [
            AddedToken(token, special=special, normalized=False, rstrip=token in closed)
            for token, special in tokens.items()
        ]
    )


def sentencepiece_tokenizer(spec: SentencePiece) -> Tokenizer:
    """The tokenizer of a model; control tokens are special, and no BOS or EOS is added."""
    if spec.unigram:
        vocabulary = list(zip(spec.tokens, spec.scores, strict=True))
        model = models.Unigram(vocabulary, spec.unknown_id, byte_fallback=True)
    else:
        model = models.BPE(
            {token: i for i, token in enumerate(spec.tokens)},
            _scored_merges(spec.tokens, spec.scores, spec.types),
            unk_token=spec.tokens[spec.unknown_id],
            fuse_unk=True,
            byte_fallback=True,
        )
    tokenizer = Tokenizer(model)
    added, own = {}, []
    for token, type_, score in zip(spec.tokens, spec.types, spec.scores, strict=True):
        if type_ in (TokenType.CONTROL, TokenType.UNKNOWN):
            added[token] = True
        elif type_ == TokenType.USER_DEFINED:
            if score > ADDED_SCORE:
                own.append(token)
            else:
                added[token] = False
    _set_normalizer(tokenizer, spec, own)
    tokenizer.decoder = _decoder(spec)
    add_tokens(tokenizer, added, spec.closed)
    return tokenizer


def _set_normalizer(tokenizer: Tokenizer, spec: SentencePiece, user_defined: list[str]) -> None:
    steps: list[normalizers.Normalizer] = []
    if spec.charsmap:
        steps.append(normalizers.Precompiled(spec.charsmap))
    if spec.remove_extra_spaces:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.dummy_prefix == "always":
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    splits: list[pre_tokenizers.PreTokenizer] = []
    if spec.dummy_prefix == "first":
        # Metaspace alone knows what is first, but puts no replacement before another one; as no
        # space is left, it takes a space for the replacement and then the space for a space.
        splits += [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False),
        ]
    if user_defined:  # SentencePiece finds them in the normalized text, and puts no space after
        longest_first = sorted(user_defined, key=len, reverse=True)
        splits.append(
            pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
        )
        if not spec.unigram:
            tokenizer.model.ignore_merges = True  # no merges make them
    if user_defined or spec.unigram:  # else the text "<0x41>" would be the token of the byte
        splits.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)


def _decoder(spec: SentencePiece) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.dummy_prefix:
        steps.append(decoders.Strip(" ", left=1))
    return decoders.Sequence(steps)


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
        if type_ == TokenType.NORMAL
    }
    merges = [
        (rank, -cut, (token[:cut], token[cut:]))
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [pair for _, _, pair in sorted(merges)]
