"""Questions whose answers stand in a long text, generated: RULER's tasks in words of our own.

The tasks are those of Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context
Language Models?", by their names there, with the counts that are published; every sentence is
another one, so that no prompt is byte-equal to RULER's and no score is to be read as RULER's.

  niah_single_1    a number for a name, hidden among a few sentences that are repeated
  niah_prose       the same in real prose: as niah_single_2, but of the text that is given
  niah_multikey_2  the same among as many other names with their numbers as there is room for
  niah_multikey_3  the same, names and numbers being UUIDs
  vt               variable tracking: five variables, set to a number one by another; an example is
                   in front
  cwe              common words: the ten words of a numbered list that come ten times as often as
                   others (six times as often below 4,096 tokens); an example is in front
  fwe              frequent words: the three code words that come most often, frequencies being
                   those of a zeta distribution with exponent 2; the most frequent are dots

Names are two English words with a hyphen, as in RULER; they and the words of `cwe` are those of
four to nine letters that both shipped novels use, and no package's list, which another version of
it would change.
"""

import dataclasses
import functools
import itertools
import re
import string
import uuid
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import zeta

from sinkjax import shipped
from sinkjax.errors import InputError, Problem

LISTS = ("vt", "cwe", "fwe")
"""Tasks whose answers are lists: a model may write more than the answer, or in another order."""

_NOVELS = "mansfield-park.txt", "moby-dick.txt"  # by name: other texts would change the words
_STREAM = 5  # tells these draws from others of the same seed
_ROOM = 2  # new tokens for a list, as a multiple of the longest that is asked for
_SHORT = 4096  # tokens below which common words come less often, as in RULER

_NIAH = (
    "Somewhere in the text below, a secret {kind} is given for a name. Remember it: you will be "
    "asked for it at the end.\n\n{text}\n\nWhich secret {kind} does the text give for {key}? The "
    "secret {kind} for {key} is"
)
_NEEDLE = "The secret {kind} for {key} is {value}."
_NOISE = (
    "Rain fell on the roof.",
    "A cart stood by the gate.",
    "Nobody came up the road.",
    "The dog slept in the hall.",
    "Later a lamp was lit.",
)
_VT = (
    "In the text below, one variable is set to a number, and others to a variable that was set "
    "before. Follow which variables have the number in the end.\n\n{text}\n\nQuestion: which "
    "variables have the number {value}?\nAnswer: the five variables that have the number {value} "
    "are"
)
_SET = "Set {name} to {value}."
_CWE = (
    "In the numbered list below, some words come more often than others. Remember the most "
    "frequent ones.\n\n{text}\n\nQuestion: which ten words come most often in the list?\n"
    "Answer: the ten most frequent words are:"
)
_FWE = (
    "The text below is written in code words. Keep count of each of them.\n\n{text}\n\nQuestion: "
    "dots left out, which three code words come most often?\nAnswer: the three most frequent code "
    "words are:"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Excerpts that end in a question and its answer, of at most T tokens each.

    Attributes:
      tokens: int32 [W, T], right-padded.
      lengths: int [W], tokens of each, its answer included.
      answer_tokens: int [W], how many of those, the last ones, are its answer.
      answers: the words that each is asked for; one but for `LISTS`.
      new_tokens: that a model may write in answer to any of them, within T.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    answer_tokens: np.ndarray
    answers: tuple[tuple[str, ...], ...]
    new_tokens: int

    @property
    def predicting(self) -> np.ndarray:
        """Bool [W, T], the positions at which the answers' tokens are predicted."""
        at = np.arange(self.tokens.shape[1]) + 1
        ends = self.lengths[:, None]
        return (at >= ends - self.answer_tokens[:, None]) & (at < ends)

    def part(self, rows: slice) -> "Questions":
        """Some of the questions."""
        arrays = (self.tokens[rows], self.lengths[rows], self.answer_tokens[rows])
        return Questions(*arrays, self.answers[rows], self.new_tokens)

    def prompts(self) -> list[np.ndarray]:
        """The tokens of each before its answer."""
        ends = self.lengths - self.answer_tokens
        return [row[:end] for row, end in zip(self.tokens, ends, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A question that grows with the number of units of its filler."""

    prompt: Callable[[int], str]  # of a number of units; the answer follows it
    answer: str
    answers: tuple[str, ...]  # its words
    least: int  # units
    most: int = 1 << 30


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What one question is drawn from."""

    seed: tuple[int, ...]  # of its draws, which the length does not change
    length: int  # T
    depth: float  # how much of the filler comes before what is hidden, from 0 to 1
    filler: Sequence[str]  # the words of a text, from where this question's begin

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def ask(
    encode: Callable[[str], list[int]],
    task: str,
    length: int,
    *,
    count: int,
    seed: int,
    depth: float = 0.5,
    text: str = "",
) -> Questions:
    """Questions of one task, each as long as its units of filler allow, at most T tokens.

    Names, numbers and words depend on seed, task and depth alone: at all lengths the same things
    are asked for, and at each depth others, so that its answers count as answers of their own.

    Args:
      encode: text to tokens, whatever stands in front of a text included.
      task: one of `TASKS`.
      length: T.
      count: W.
      seed: not negative.
      depth: of what is hidden; ignored by `LISTS`.
      text: that `niah_prose` takes its filler from, at W places evenly apart.

    Raises:
      InputError: where T has no room for the least filler that makes the task one, with the least
        T that has.
    """
    words = text.split()
    starts = [at for at in _sentences(words) if at < len(words)] or [0]
    stream = (_STREAM, seed) if task in LISTS else (_STREAM, seed, round(1e6 * depth))
    turn = np.random.default_rng(stream).integers(max(1, len(words)))
    drafts = []
    for row in range(count):
        at = (turn + row * len(words) // count) % max(1, len(words))
        start = starts[np.searchsorted(starts, at) % len(starts)]
        seeds, filler = (*stream, list(TASKS).index(task), row), words[start:] + words[:start]
        drafts.append(TASKS[task](_Draw(seeds, length, depth, filler)))
    answer_tokens = [len(_split(encode, draft, draft.least)[1]) for draft in drafts]
    new_tokens = max(answer_tokens) * (_ROOM if task in LISTS else 1)
    sizes = [
        functools.cache(
            lambda n, draft=draft, spare=new_tokens - own: (
                spare + len(encode(draft.prompt(n) + draft.answer))
            )
        )
        for draft, own in zip(drafts, answer_tokens, strict=True)
    ]
    needed = max(size(draft.least) for size, draft in zip(sizes, drafts, strict=True))
    if needed > length:
        advice = f"{task} needs {needed:,} tokens or more; give these, or leave the task out"
        raise InputError(Problem("lengths", length, advice))
    rows = [
        _split(encode, draft, _units(size, draft, length))
        for size, draft in zip(sizes, drafts, strict=True)
    ]
    tokens = np.zeros((count, length), np.int32)
    for row, (prompt, answer) in zip(tokens, rows, strict=True):
        row[: len(prompt) + len(answer)] = prompt + answer
    return Questions(
        tokens,
        np.array([len(prompt) + len(answer) for prompt, answer in rows]),
        np.array([len(answer) for _, answer in rows]),
        tuple(draft.answers for draft in drafts),
        new_tokens,
    )


def share_of_words(text: str, answers: Sequence[str]) -> float:
    """The share of the words that stand in a text, whatever their case: RULER's measure."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


_Haystack = tuple[Callable[[int], list[str]], int, str]
"""Units by their number; the least number; what stands between two."""


def _niah(
    draw: _Draw,
    haystack: Callable[[_Draw, Callable[[], str]], _Haystack],
    key: Callable[[np.random.Generator], str],
    value: Callable[[np.random.Generator], str],
    kind: str = "number",
) -> _Draft:
    """A needle in a haystack of units."""
    rng = draw.rng()
    name, secret = key(rng), value(rng)

    def needle(name: str, secret: str) -> str:
        return _NEEDLE.format(kind=kind, key=name, value=secret)

    def another() -> str:
        """A needle of another name."""
        other = next(filter(name.__ne__, (key(rng) for _ in itertools.count())))
        return needle(other, value(rng))

    units, least, between = haystack(draw, another)

    def prompt(count: int) -> str:
        hay = units(count)
        # In prose between two sentences, else between two units.
        places = _sentences(hay) if haystack is _prose else range(len(hay) + 1)
        at = min(places, key=lambda place: abs(place - draw.depth * len(hay)))
        text = between.join([*hay[:at], needle(name, secret), *hay[at:]])
        return _NIAH.format(kind=kind, text=text, key=name)

    return _Draft(prompt, f" {secret}", (secret,), least)


def _noise(draw: _Draw, another: Callable[[], str]) -> _Haystack:
    return lambda count: list(itertools.islice(itertools.cycle(_NOISE), count)), len(_NOISE), " "


def _prose(draw: _Draw, another: Callable[[], str]) -> _Haystack:
    words = draw.filler
    return lambda count: list(itertools.islice(itertools.cycle(words), count)), 30, " "


def _needles(draw: _Draw, another: Callable[[], str]) -> _Haystack:
    drawn: list[str] = []

    def units(count: int) -> list[str]:
        drawn.extend(another() for _ in range(count - len(drawn)))
        return drawn[:count]

    return units, 2, "\n"


def _variables(draw: _Draw) -> _Draft:
    rng = draw.rng()

    def chain(letters: int) -> tuple[list[str], str, list[str]]:
        """Names, the number that they have, and the lines that say so."""
        names: dict[str, None] = {}
        while len(names) < 5:
            names["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
        value = str(rng.integers(10_000, 100_000))
        pairs = itertools.pairwise([value, *names])
        return list(names), value, [_SET.format(name=name, value=of) for of, name in pairs]

    def prompt(lines: list[str], value: str, hay: list[str], places: Sequence[float]) -> str:
        parts = list(hay)
        for place, line in sorted(zip(places, lines, strict=True), reverse=True):
            parts.insert(round(place * len(hay)), line)
        return _VT.format(text=" ".join(parts), value=value)

    shown, number, lines = chain(3)
    example = prompt(lines, number, list(_NOISE), np.linspace(0.1, 0.9, 5))
    names, value, lines = chain(5)
    places = sorted(rng.random(5))
    units = _noise(draw, str)[0]
    return _Draft(
        lambda count: (
            f"{example} {', '.join(shown)}.\n\n" + prompt(lines, value, units(count), places)
        ),
        f" {', '.join(names)}",
        tuple(names),
        len(_NOISE),
    )


def _common_words(draw: _Draw) -> _Draft:
    words = draw.rng().permutation(_english()).tolist()

    def prompt(words: list[str], often: int, seldom: int) -> str:
        drawn = draw.rng().permutation(words[:10] * often + words[10:] * seldom)
        numbered = " ".join(f"{n}. {word}" for n, word in enumerate(drawn, 1))
        return _CWE.format(text=numbered)

    def answer(words: list[str]) -> str:
        return "".join(f" {n}. {word}" for n, word in enumerate(words[:10], 1))

    short = draw.length < _SHORT
    shown, asked = words[: 20 if short else 40], words[40:]
    example = prompt(shown, *((3, 1) if short else (10, 3))) + answer(shown)
    often, seldom = (6, 1) if short else (30, 3)
    return _Draft(
        lambda count: f"{example}\n\n{prompt(asked[: 10 + count], often, seldom)}",
        answer(asked),
        tuple(asked[:10]),
        least=10,
        most=len(asked) - 10,
    )


def _frequent_words(draw: _Draw) -> _Draft:
    rng = draw.rng()
    words = {"...": None}
    while len(words) < max(10, draw.length // 50):  # RULER's number of code words
        words["".join(rng.choice(list(string.ascii_lowercase), 6))] = None
    frequencies = np.arange(1, len(words) + 1) ** -2.0 / zeta(2)

    def prompt(count: int) -> str:
        each = np.repeat(list(words), (count * frequencies).astype(int))
        return _FWE.format(text=" ".join(draw.rng().permutation(each)))

    answers = tuple(words)[1:4]
    # From 60 words on, each of the first four comes more often than the next one.
    return _Draft(prompt, f" {', '.join(answers)}", answers, least=60)


def _pair(rng: np.random.Generator) -> str:
    return "-".join(rng.choice(_english(), 2))


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(10**6, 10**7))


def _uuid(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


TASKS: dict[str, Callable[[_Draw], _Draft]] = {
    "niah_single_1": functools.partial(_niah, haystack=_noise, key=_pair, value=_number),
    "niah_prose": functools.partial(_niah, haystack=_prose, key=_pair, value=_number),
    "niah_multikey_2": functools.partial(_niah, haystack=_needles, key=_pair, value=_number),
    "niah_multikey_3": functools.partial(
        _niah, haystack=_needles, key=_uuid, value=_uuid, kind="code"
    ),
    "vt": _variables,
    "cwe": _common_words,
    "fwe": _frequent_words,
}
"""What makes a question of each task; the order is part of the seeds."""


@functools.cache
def _english() -> list[str]:
    """The words of four to nine small letters that both novels use, by the alphabet."""
    texts = [(shipped.FOLDER / "texts" / name).read_text("utf-8") for name in _NOVELS]
    novels = [set(re.findall(r"(?<![\w’'-])[a-z]{4,9}(?![\w’'-])", text)) for text in texts]
    return sorted(set.intersection(*novels))


def _sentences(words: Sequence[str]) -> list[int]:
    """Where sentences begin, the place behind the last word included."""
    ends = (n for n, word in enumerate(words, 1) if word.rstrip("\"'”’)_")[-1:] in tuple(".!?"))
    return [0, *(end for end in ends if end < len(words)), len(words)]


def _split(
    encode: Callable[[str], list[int]], draft: _Draft, count: int
) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of its answer.

    The answer begins where its presence first shows, should it merge with the prompt's end.
    """
    prompt = draft.prompt(count)
    alone, whole = encode(prompt), encode(prompt + draft.answer)
    pairs = enumerate(zip(alone, whole, strict=False))
    same = next((n for n, (before, after) in pairs if before != after), min(len(alone), len(whole)))
    return whole[:same], whole[same:]


def _units(size: Callable[[int], int], draft: _Draft, room: int) -> int:
    """The greatest number of units that fits, from the least on, sizes growing about linearly."""
    least, count = draft.least, draft.least + 8
    for _ in range(2):
        unit = (size(count) - size(least)) / (count - least)
        guess = least + int((room - size(least)) / max(unit, 0.1))
        count = min(max(guess, least + 1), draft.most)
    while count > least and size(count) > room:
        count -= 1
    while count < draft.most and size(count + 1) <= room:
        count += 1
    return count
