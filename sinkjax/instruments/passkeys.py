"""A number hidden in a long text, and asked for at its end (passkey retrieval).

As in Mohtashami and Jaggi 2023, "Landmark Attention", with a real text around the number. A model
has retrieved it if greedy decoding gives it back whole: that is, if each of its tokens is the
likeliest after those before it, which one teacher-forced pass over the excerpt says.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from sinkjax.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HIDDEN = "\n\nThe secret number is {key}. Keep it in mind: {key} is the secret number.\n\n"
_ASKED = "\n\nWhat is the secret number? The secret number is"
_KEYS = (10_000, 100_000)  # five digits
_STREAM = 2  # tells these draws from others of the same seed


@dataclasses.dataclass(frozen=True, eq=False)
class Passkeys:
    """Excerpts that hide a number and end in it.

    Attributes:
      tokens: int32 [W, T].
      answer_tokens: int [W], how many tokens at each excerpt's end are its number.
    """

    tokens: np.ndarray
    answer_tokens: np.ndarray

    @property
    def score_from(self) -> int:
        """The first position of any excerpt from which a token of its number is predicted."""
        return self.tokens.shape[1] - 1 - int(self.answer_tokens.max())


def hide_passkeys(
    tokenizer: "PreTrainedTokenizerBase", excerpts: np.ndarray, depth: float, seed: int
) -> Passkeys:
    """Hides a number of five digits in each excerpt, in place of as much text at its end.

    The first token stays, so that a BOS stays in front. The numbers do not depend on the depth.

    Args:
      tokenizer: the excerpts' own.
      excerpts: int32 [W, T], the text around the numbers.
      depth: how much of the text comes before the number, from 0 to 1.
      seed: of the numbers.

    Raises:
      InputError: for excerpts that are too short to hold number and question, or another depth.
    """
    if not 0 <= depth <= 1:
        raise InputError(Problem("passkey", depth, "depths lie between 0 and 1, both included"))
    count, length = excerpts.shape
    parts = _parts(tokenizer, count, seed)
    if length < (needed := _length(parts)):
        text = f"excerpts of {length} tokens cannot hold a number and the question for it; give "
        raise InputError(Problem("passkey", None, f"{text}lengths of at least {needed}"))
    rows = []
    for excerpt, (hidden, asked, answer) in zip(excerpts.tolist(), parts, strict=True):
        room = length - len(hidden) - len(asked) - len(answer)
        before = max(1, round(depth * room))  # at least the first token
        rows.append(excerpt[:before] + hidden + excerpt[before:room] + asked + answer)
    answer_tokens = np.array([len(answer) for *_, answer in parts])
    return Passkeys(np.array(rows, np.int32), answer_tokens)


def shortest_excerpt(tokenizer: "PreTrainedTokenizerBase", count: int, seed: int) -> int:
    """The least T at which `hide_passkeys` has room in `count` excerpts."""
    return _length(_parts(tokenizer, count, seed))


def _length(parts: list[tuple[list[int], ...]]) -> int:
    return max(sum(map(len, row)) for row in parts) + 1  # the excerpt's first token


def _parts(
    tokenizer: "PreTrainedTokenizerBase", count: int, seed: int
) -> list[tuple[list[int], list[int], list[int]]]:
    """Tokens of the text with the number, of the question, and of the number as its answer."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    question, parts = encode(_ASKED), []
    rng = np.random.default_rng((_STREAM, seed))
    for key in rng.integers(*_KEYS, size=count).tolist():
        whole = encode(f"{_ASKED} {key}")
        # The answer begins where its presence first shows, should it merge with the question's end.
        pairs = zip(question, whole, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(question))
        parts.append((encode(_HIDDEN.format(key=key)), whole[:same], whole[same:]))
    return parts
