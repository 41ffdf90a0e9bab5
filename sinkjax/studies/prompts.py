"""Prompts as tokens, cut to every length that a sweep asks for.

`PromptList` holds short texts, each of them cut from its beginning. `TextExcerpts` holds one long
text and cuts excerpts out of it that begin at seeded places. Both are nested: what they give at
length T is the beginning of what they give at any greater length, so that a comparison of lengths
is not a comparison of contents.

Nothing here reads a file: texts come in as strings, with the name and the digest of where they came
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from sinkjax.checkpoint.folder_tokenizer import around
from sinkjax.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BosPolicy = Literal["tokenizer", "always", "never"]
BOS_POLICIES: tuple[str, ...] = get_args(BosPolicy)

BOS = (
    "Whether a BOS, the token for the beginning of a text, goes in front of each {}; tokenizer "
    "leaves it to the model's tokenizer"
)
"""Help for a setting of such a policy."""

_MOST = 10_000  # excerpts of which a text of any length may be asked, most of which do not fit


def encode(tokenizer: PreTrainedTokenizerBase, text: str, bos: str) -> list[int]:
    """Tokenizes `text` under a BOS policy. An EOS is never added.

    Args:
      tokenizer: any tokenizer of transformers.
      text: the prompt. A BOS written out in it belongs to the text and is kept.
      bos: "tokenizer" puts in front whatever the tokenizer puts there by itself; "always" makes
        sure of a BOS, added unless the text already begins with it; "never" adds none.

    Raises:
      InputError: an unknown policy, or "always" with a tokenizer that has no BOS token.
    """
    return _in_front(_prefix(tokenizer, bos), _bare(tokenizer, text), bos)


def adds_bos(tokenizer: PreTrainedTokenizerBase, bos: str) -> bool:
    """Whether a BOS policy puts a BOS in front of a text."""
    return len(encode(tokenizer, "a", bos)) > len(encode(tokenizer, "a", "never"))


@dataclass(frozen=True)
class PromptList:
    """Texts that are prompts as they stand, or cut from their beginnings.

    Attributes:
      name: where they came from, for records and messages.
      sha256: hex digest of the bytes they came from.
      texts: the prompts, P of them.
    """

    name: str
    sha256: str
    texts: tuple[str, ...]
    _bare_tokens: dict[PreTrainedTokenizerBase, list[list[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def at_length(
        self, tokenizer: PreTrainedTokenizerBase, bos: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """The first `length` tokens, BOS included, of the first `count` prompts (None: of all).

        Returns:
          int32 [P, T].
        """
        self.check(tokenizer, bos, {length: count})
        rows = [tokens[:length] for tokens in self._encoded(tokenizer, bos)[:count]]
        return np.array(rows, dtype=np.int32)

    def whole(self, tokenizer: PreTrainedTokenizerBase, bos: str) -> list[np.ndarray]:
        """Every prompt as it stands: one int32 [T] each, of its own length.

        Raises:
          InputError: a prompt without a token.
        """
        self.check(tokenizer, bos, {1: None})
        return [np.array(tokens, dtype=np.int32) for tokens in self._encoded(tokenizer, bos)]

    def check(
        self, tokenizer: PreTrainedTokenizerBase, bos: str, counts: Mapping[int, int | None]
    ) -> None:
        """Checks, before any long work, that there is text enough for each length.

        Args:
          counts: the prompts wanted by length, None for all of them.

        Raises:
          InputError: more prompts are wanted than there are, or prompts have fewer tokens than
            their lengths need: one problem for each such prompt.
        """
        problems = [
            Problem(
                "prompts",
                self.name,
                f"it holds {len(self.texts)} prompts, {count} are wanted at length {length}: ask "
                "for fewer, or give more",
            )
            for length, count in counts.items()
            if count is not None and count > len(self.texts)
        ]
        for number, tokens in enumerate(self._encoded(tokenizer, bos), start=1):
            needing = [
                length
                for length, count in sorted(counts.items())
                if length > len(tokens) and (count is None or number <= count)
            ]
            if needing:
                text = (
                    f"prompt {number} of {self.name} ({_opening(self.texts[number - 1])!r}) "
                    f"has {len(tokens)} tokens with bos={bos}, too few: leave these out, or "
                    "give a longer prompt"
                )
                problems.append(Problem("lengths", needing, text))
        if problems:
            raise InputError(*problems)

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, bos: str) -> list[list[int]]:
        prefix = _prefix(tokenizer, bos)
        if tokenizer not in self._bare_tokens:
            self._bare_tokens[tokenizer] = [_bare(tokenizer, text) for text in self.texts]
        return [_in_front(prefix, tokens, bos) for tokens in self._bare_tokens[tokenizer]]


@dataclass(frozen=True)
class TextExcerpts:
    """Excerpts of one long text that begin at seeded places and do not overlap.

    Overlapping excerpts would be counted as independent prompts when prompts are resampled, and the
    intervals would come out too narrow. So a length at which not all excerpts fit gives fewer.

    The text is taken as a ring: an excerpt that reaches its end goes on at its beginning. That
    keeps the places the same for every length. They are evenly spaced, turned by the seed, and each
    is moved on to the next beginning of a line where one is near.

    Attributes:
      name: where the text came from, for records and messages.
      sha256: hex digest of the bytes it came from.
      text: the text. It is tokenized once for each tokenizer.
      count: the most excerpts that any length will ask for.
      seed: where the excerpts begin.
    """

    name: str
    sha256: str
    text: str
    count: int
    seed: int
    _layouts: dict[PreTrainedTokenizerBase, _Layout] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def at_length(
        self, tokenizer: PreTrainedTokenizerBase, bos: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """The first `count` excerpts (None: as many as fit) of `length` tokens, BOS included.

        Returns:
          int32 [P, T]: row i begins, after the BOS, at `starts(tokenizer)[i]`.
        """
        self.check(tokenizer, bos, {length: count})
        prefix, tokens = _prefix(tokenizer, bos), self._layout(tokenizer).tokens
        if count is None:
            count = self.fits(tokenizer, length)
        places = self.starts(tokenizer)[:count, None] + np.arange(length)
        excerpts = np.take(tokens, places, mode="wrap").tolist()
        rows = [_in_front(prefix, excerpt, bos)[:length] for excerpt in excerpts]
        return np.array(rows, dtype=np.int32)

    def check(
        self, tokenizer: PreTrainedTokenizerBase, bos: str, counts: Mapping[int, int | None]
    ) -> None:
        """Checks, before any long work, that the excerpts fit.

        Args:
          counts: the excerpts wanted by length, None for as many as fit, at least one.

        Raises:
          InputError: the text is too short: one problem for each length concerned; or far more
            excerpts are to be laid out than it has tokens.
          ValueError: more excerpts are wanted than `count`.
        """
        _prefix(tokenizer, bos)
        if any(wanted is not None and wanted > self.count for wanted in counts.values()):
            raise ValueError(f"these excerpts were laid out for {self.count} a length: {counts}")
        problems = []
        for length, wanted in sorted(counts.items()):
            fits = self.fits(tokenizer, length)
            least = 1 if wanted is None else wanted
            if fits < least:
                text = (
                    f"{self.name} has {len(self._layout(tokenizer).tokens)} tokens: of the "
                    f"{least} excerpts wanted, {fits} fit without overlap: give a longer text, "
                    "shorter lengths or ask for fewer"
                )
                problems.append(Problem("lengths", length, text))
        if problems:
            raise InputError(*problems)

    def fits(self, tokenizer: PreTrainedTokenizerBase, length: int) -> int:
        """How many of the excerpts, from the first on, do not overlap at `length` tokens."""
        return int(np.count_nonzero(self._layout(tokenizer).gaps >= length))

    def starts(self, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """Where the excerpts begin, in tokens of the text without BOS: int64 [`count`]."""
        return self._layout(tokenizer).starts

    def _layout(self, tokenizer: PreTrainedTokenizerBase) -> _Layout:
        if tokenizer not in self._layouts:
            tokens = np.array(_bare(tokenizer, self.text), dtype=np.int32)
            if self.count > max(len(tokens), _MOST):
                raise InputError(
                    f"{self.name}: {self.count} excerpts of a text of {len(tokens)} tokens; ask "
                    "for fewer"
                )
            lines = _line_starts(tokenizer, tokens)
            self._layouts[tokenizer] = _lay_out(tokens, lines, self.count, self.seed)
        return self._layouts[tokenizer]


PromptSet = PromptList | TextExcerpts


class _Layout(NamedTuple):
    """A tokenized text and its excerpts.

    Attributes:
      tokens: int32 [tokens of the text], without BOS.
      starts: int64 [count], the places where excerpts begin.
      gaps: int64 [count], gaps[i] is the least distance round the ring between the first i + 1
        starts.
    """

    tokens: np.ndarray
    starts: np.ndarray
    gaps: np.ndarray


def _lay_out(tokens: np.ndarray, line_starts: np.ndarray, count: int, seed: int) -> _Layout:
    size = len(tokens)
    if size == 0 or count < 1:
        return _Layout(tokens, *np.zeros((2, max(count, 0)), np.int64))
    turn = np.random.default_rng(seed).integers(size)
    places = (turn + np.array(_spread(count), np.int64) * size // count) % size
    # Moving on to a line's beginning takes room from the excerpt before: an eighth of the spacing
    # at most, so that excerpts which together are seven eighths of the text always fit.
    ahead = np.append(line_starts, size)
    near = ahead[np.searchsorted(ahead, places)]
    starts = np.where(near - places <= size // (8 * count), near, places) % size

    gaps = np.full(count, size, np.int64)
    for i in range(1, count):
        onward = (starts[i] - starts[:i]) % size
        gaps[i] = min(gaps[i - 1], np.minimum(onward, size - onward).min())
    return _Layout(tokens, starts, gaps)


def _spread(count: int) -> list[int]:
    """0 to count - 1 in the order of halves, quarters, eighths (van der Corput's sequence).

    However many are taken from the front, they lie spread over the whole range: few long excerpts
    and many short ones can share their starts.
    """
    bits = (count - 1).bit_length()
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return list(dict.fromkeys(fraction * count >> bits for fraction in reversed_bits))


def _line_starts(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> np.ndarray:
    """The places, ascending, of tokens that begin a line which is not indented."""
    if len(tokens) == 0:
        return np.zeros(0, np.int64)
    vocabulary, index = np.unique(tokens, return_inverse=True)
    pieces = [tokenizer.decode([token]) for token in vocabulary.tolist()]
    ends_line = np.array([piece.endswith("\n") for piece in pieces])[index]
    is_space = np.array([piece[:1].isspace() for piece in pieces])[index]
    after_line = np.concatenate([[True], ends_line[:-1]])
    return np.flatnonzero(after_line & ~is_space)


def _prefix(tokenizer: PreTrainedTokenizerBase, bos: str) -> list[int]:
    """The tokens that a BOS policy puts in front of a text."""
    if bos == "never":
        return []
    if bos == "always":
        if tokenizer.bos_token_id is None:
            name = tokenizer.name_or_path or ""
            text = f"the tokenizer {name} has no BOS token; use tokenizer or never"
            raise InputError(Problem("bos", bos, text))
        return [tokenizer.bos_token_id]
    if bos != "tokenizer":
        raise InputError(Problem("bos", bos, f"use one of {', '.join(BOS_POLICIES)}"))
    return around(tokenizer)[0]


def _in_front(prefix: list[int], tokens: list[int], bos: str) -> list[int]:
    already_there = bos == "always" and tokens[:1] == prefix
    return tokens if already_there else prefix + tokens


def _bare(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Quiet: a text longer than the model's context is what excerpts are cut from.
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _opening(text: str, words: int = 5) -> str:
    first = text.split(maxsplit=words)
    return " ".join(first[:words]) + (" ..." if len(first) > words else "")
