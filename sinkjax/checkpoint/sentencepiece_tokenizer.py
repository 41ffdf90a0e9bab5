"""SentencePiece models as tokenizers of the `tokenizers` package, with the same tokens.

A model comes from a GGUF file's metadata or from a folder's `tokenizer.model`. Its text is not
split, spaces are "▁", and characters outside the vocabulary become their UTF-8 bytes.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from gguf import TokenType  # whose numbers are also those of SentencePiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's "▁"
ADDED_SCORE = -1000.0
"""The score of tokens that are not SentencePiece's, but added to it; as llama.cpp's converter."""


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
    """The tokenizer of a model of which `sentencepiece_problems` has nothing to say.

    Control tokens are special, and no BOS or EOS is added.
    """
    own = _user_defined(spec)
    tokenizer = Tokenizer(models.Unigram(*_unigram(spec)) if spec.unigram else _bpe(spec))
    added = {}
    for token, type_ in zip(spec.tokens, spec.types, strict=True):
        if type_ in (TokenType.CONTROL, TokenType.UNKNOWN):
            added[token] = True
        elif type_ == TokenType.USER_DEFINED and token not in own:
            added[token] = False
    _set_normalizer(tokenizer, spec, own)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", left=1)] if spec.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(steps)
    add_tokens(tokenizer, added, spec.closed)
    return tokenizer


def sentencepiece_problems(spec: SentencePiece) -> list[str]:
    """What has SentencePiece give other tokens than `sentencepiece_tokenizer` does."""
    if not all(map(math.isfinite, spec.scores)):
        return ["has scores that are not finite"]
    if "" in _user_defined(spec):
        return ["has an empty user-defined piece"]
    if not spec.unigram:
        return _bpe_problems(spec)
    unused = _of_type(spec, TokenType.UNUSED)
    return [f"has unused pieces, {_few(unused)}"] if unused else []


def _of_type(spec: SentencePiece, wanted: TokenType) -> dict[str, float]:
    """The tokens of a kind, each with its score."""
    rows = zip(spec.tokens, spec.scores, spec.types, strict=True)
    return {token: score for token, score, type_ in rows if type_ == wanted}


def _user_defined(spec: SentencePiece) -> list[str]:
    """The user-defined tokens of SentencePiece itself, which finds them in the normalized text."""
    own = _of_type(spec, TokenType.USER_DEFINED)
    return [token for token, score in own.items() if score > ADDED_SCORE]


def _unigram(spec: SentencePiece) -> tuple[list[tuple[str, float]], int, bool]:
    """The arguments of a model of scores: the vocabulary, the unknown token, and bytes for it.

    A character outside the vocabulary costs what the worst token does and 10, so none may be worse
    than the normal ones. User-defined tokens score as SentencePiece 0.2.3 is seen to score them.
    """
    normal = _of_type(spec, TokenType.NORMAL)
    worst = min(normal.values(), default=0.0)
    whole = {token: (len(token) - 1) / 10 for token in _user_defined(spec)}
    vocabulary = dict.fromkeys(spec.tokens, worst) | normal | whole
    return list(vocabulary.items()), spec.unknown_id, True


def _bpe(spec: SentencePiece) -> models.BPE:
    return models.BPE(
        {token: i for i, token in enumerate(spec.tokens)},
        _scored_merges(spec),
        unk_token=spec.tokens[spec.unknown_id],
        fuse_unk=True,
        byte_fallback=True,
    )


def _bpe_problems(spec: SentencePiece) -> list[str]:
    """What a list of merges between tokens cannot say."""
    normal, unused = _of_type(spec, TokenType.NORMAL), _of_type(spec, TokenType.UNUSED)
    own, parts = _user_defined(spec), normal.keys() | unused.keys()
    made = {  # also of letters that are no pieces, and of pieces that are parted again in the end
        token: [
            (left, right)
            for left, right in _cuts(token)
            if all(part in parts or (len(part) == 1 and part not in own) for part in (left, right))
        ]
        for token in parts
    }
    problems = []
    if odd := [t for t, pairs in made.items() if any(p not in normal for q in pairs for p in q)]:
        problems.append(f"makes {_few(odd)} of what are no pieces")
    if odd := [token for token in unused if made[token]]:
        problems.append(f"makes unused pieces, {_few(odd)}")
    if tied := None if problems else _tied(normal, made):
        first, second = map(repr, tied)
        problems.append(f"orders {first} and {second}, of equal scores, by their places in a text")
    if own and not problems:  # where user-defined ones are, whatever is between them is taken whole
        tokenizer = Tokenizer(_bpe(spec))
        encoded = zip(normal, tokenizer.encode_batch(list(normal)), strict=True)
        if odd := [token for token, encoding in encoded if encoding.tokens != [token]]:
            problems.append(f"has pieces that it never makes, {_few(odd)}")
    return problems


def _tied(
    normal: Mapping[str, float], made: Mapping[str, list[tuple[str, str]]]
) -> tuple[str, str] | None:
    """Two tokens of equal scores of which one may begin with the end of the other.

    Or one that scores above its part, which then decides whether what is beside it is joined first.
    """
    spaces = _growing(normal)
    counts = collections.Counter(score for token, score in normal.items() if made[token])
    ended = collections.defaultdict(set)
    for token, score in normal.items():
        for _, right in made[token]:
            ended[score, right].add(token)
    for token, score in normal.items():
        for left, right in made[token]:
            others = ended[score, left] - {token} - (spaces if token in spaces else set())
            if others:
                return min(others), token
            for part in (left, right):
                if counts[normal[part]] > 1 and normal[part] < score and made[part]:
                    return part, token
    return None


def _growing(normal: Mapping[str, float]) -> set[str]:
    """The tokens of spaces alone, if they are of one score and merges join them all the same.

    Llama 2's and Mistral's are. SentencePiece joins the leftmost two that it can, so that a run of
    spaces grows from its beginning until there is no longer token, and again behind that. So it
    does by merges of which those of longer left parts come first, unless two of what has grown can
    be joined.
    """
    spaces = {len(token): score for token, score in normal.items() if _is_spaces(token)}
    longest = next(count for count in itertools.count(1) if count + 1 not in spaces)
    scores = {score for count, score in spaces.items() if count > 1}
    grow = len(scores) == 1 and max(spaces) <= 2 * longest
    return {_SPACE * count for count in spaces} if grow else set()


def _is_spaces(token: str) -> bool:
    return not token.strip(_SPACE)


def _cuts(token: str) -> list[tuple[str, str]]:
    return [(token[:cut], token[cut:]) for cut in range(1, len(token))]


def _few(tokens: Iterable[str]) -> str:
    first, more = sorted(tokens)[:3], len(list(tokens)) - 3
    return ", ".join(map(repr, first)) + (f" and {more:,} more" if more > 0 else "")


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
    if user_defined and not spec.unigram:  # found in the normalized text, and never joined
        longest_first = sorted(user_defined, key=len, reverse=True)
        splits.append(
            pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
        )
        tokenizer.model.ignore_merges = True  # no merges make them
    if user_defined or spec.unigram:  # else the text "<0x41>" would be the token of the byte
        splits.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)


def _scored_merges(spec: SentencePiece) -> list[tuple[str, str]]:
    """The merges that scores stand for, best first.

    SentencePiece joins the two neighbours whose union scores best, the leftmost of equals. A list
    of merges orders pairs, not places, so equals are taken in the order of their ids, which is that
    of training, and with the longer left part first; but for tokens of spaces alone (`_growing`).
    """
    normal = _of_type(spec, TokenType.NORMAL)
    ranks = {
        token: (-normal[token], 0 if _is_spaces(token) else i)
        for i, token in enumerate(spec.tokens)
        if token in normal
    }
    merges = [
        (rank, -len(left), (left, right))
        for token, rank in ranks.items()
        for left, right in _cuts(token)
        if left in ranks and right in ranks
    ]
    return [pair for _, _, pair in sorted(merges)]
