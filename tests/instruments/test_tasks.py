"""Generated questions, read back as a person would answer them."""

import collections
import functools
import re

import numpy as np
import pytest

from sinkjax import InputError
from sinkjax.instruments.tasks import LISTS, TASKS, ask, share_of_words
from sinkjax.studies.prompts import encode

pytestmark = pytest.mark.quick

DEPTHS = (0.0, 0.3, 0.5, 1.0)
TEXT = " ".join(
    f"Sentence {n} has {'many ' * (n % 7)}words. Is this one, {n}, shorter?" for n in range(400)
)


def letters(text):
    """A token a byte, behind a BOS: what is asked can be read back."""
    return [1, *(byte + 2 for byte in text.encode())]


def read(row):
    return bytes(token - 2 for token in row[1:]).decode()


def texts(questions):
    """The prompt and the answer of each."""
    for prompt, row, length in zip(
        questions.prompts(), questions.tokens, questions.lengths, strict=True
    ):
        assert not row[length:].any()
        yield read(prompt), read(row[:length])[len(prompt) - 1 :]


def asked(task, length, **more):
    return ask(letters, task, length, **{"count": 3, "seed": 0, "text": TEXT, **more})


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("task", [task for task in TASKS if task not in LISTS])
def test_a_needle_lies_at_its_depth_and_is_asked_for_at_the_end(task, depth):
    length = 4000
    longest = {  # unit, with what stands between two
        "niah_prose": 1 + max(map(len, TEXT.split())),
        "niah_single_1": len("The dog slept in the hall. "),
    }.get(task, 120)
    questions = asked(task, length, depth=depth)
    assert (questions.lengths <= length).all()
    assert (questions.lengths > length - longest).all()  # no unit more has room
    for (prompt, answer), (value,) in zip(texts(questions), questions.answers, strict=True):
        assert answer == f" {value}"
        assert prompt.count(value) == 1
        kind, key = re.search(r"The secret (\w+) for (\S+) is$", prompt).groups()
        assert prompt.endswith(
            f"Which secret {kind} does the text give for {key}? The secret {kind} for {key} is"
        )
        needle = f"The secret {kind} for {key} is {value}."
        hay = prompt.split("\n\n")[1]
        before, after = (part.strip() for part in hay.split(needle))
        share = len(before) / (len(before) + len(after))
        assert share == pytest.approx(depth, abs=0.02)
        if task == "niah_prose":
            words = f"{before} {after}".split()
            assert " ".join(words) in f"{TEXT} {TEXT}"
            assert before == "" or after == "" or before[-1] in ".?"  # between two sentences
        elif task == "niah_single_1":
            sentences = re.split(r"(?<=\.) ", f"{before} {after}".strip())
            assert len(set(sentences)) == 5
            assert sentences == (sentences[:5] * len(sentences))[: len(sentences)]
        else:
            form = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
            kinds = {"niah_multikey_2": (r"[a-z]+-[a-z]+", r"\d{7}")}.get(task, (form, form))
            pattern = r"The secret \w+ for ({}) is ({})\.".format(*kinds)
            lines = [re.fullmatch(pattern, line).groups() for line in hay.split("\n")]
            assert len(lines) > 20
            assert len({name for name, _ in lines}) == len(lines)
            assert (key, value) in lines


@pytest.mark.parametrize("task", TASKS)
def test_the_same_is_asked_for_at_all_lengths_and_other_things_at_other_depths(task):
    lengths = (4000, 3500) if task in LISTS else (2000, 1500)
    answers = {
        depth: {
            asked(task, length, depth=depth).answers
            for length in lengths
            if task != "fwe" or length == lengths[0]  # whose number of words depends on the length
        }
        for depth in (0.1, 0.9)
    }
    (first,), (last,) = answers.values()
    assert len(set(first)) == len(set(last)) == 3  # each excerpt's own
    assert set(first).isdisjoint(last) != (task in LISTS)  # which have no depth
    assert asked(task, lengths[0], depth=0.1, seed=1).answers != first
    again = asked(task, lengths[0]), asked(task, lengths[0])
    np.testing.assert_array_equal(*(questions.tokens for questions in again))


def test_prose_at_other_depths_is_other_prose():
    """So that each answer counts as one of its own."""
    near, far = (asked("niah_prose", 2000, depth=depth).tokens for depth in (0.5, 0.500001))
    assert all((one != other).mean() > 0.5 for one, other in zip(near, far, strict=True))


def test_variables_follow_each_other_to_the_number():
    questions = asked("vt", 3000)
    for (prompt, answer), names in zip(texts(questions), questions.answers, strict=True):
        assert answer == f" {', '.join(names)}"
        example, question = (re.split(r"(?=In the text below)", prompt))[1:]
        for part, size in ((example, 3), (question, 5)):
            values = {}
            for name, of in re.findall(r"Set (\w+) to (\w+)\.", part):
                values[name] = values.get(of, of)
            (number,) = set(values.values())
            assert re.fullmatch(r"\d{5}", number)
            assert [len(name) for name in values] == [size] * 5
            assert f"the five variables that have the number {number} are" in part
        assert tuple(values) == names
        assert example.strip().endswith(".")


@pytest.mark.parametrize(("length", "often", "seldom"), [(4000, 6, 1), (9000, 30, 3)])
def test_common_words_come_more_often_than_others(length, often, seldom):
    questions = asked("cwe", length)
    for (prompt, answer), words in zip(texts(questions), questions.answers, strict=True):
        assert answer == "".join(f" {n}. {word}" for n, word in enumerate(words, 1))
        example, listed = prompt.split("In the numbered list below")[1:]
        numbers, listed = zip(*re.findall(r"(\d+)\. (\w+)", listed.split("\n\n")[1]), strict=True)
        assert list(map(int, numbers)) == list(range(1, len(listed) + 1))
        counts = collections.Counter(listed)
        assert {counts.pop(word) for word in words} == {often}
        assert set(counts.values()) == {seldom}
        assert len(counts) >= 10
        counts = collections.Counter(re.findall(r"\d+\. (\w+)", example.split("\n\n")[1]))
        shown = re.findall(r"\d+\. (\w+)", example.split("words are:")[1])
        assert {word for word, _ in counts.most_common(10)} == set(shown)
        assert set(shown).isdisjoint(words)


@pytest.mark.parametrize("length", [800, 8000])
def test_frequent_words_have_the_frequencies_of_a_zeta_distribution(length):
    questions = asked("fwe", length)
    for (prompt, answer), words in zip(texts(questions), questions.answers, strict=True):
        assert answer == f" {', '.join(words)}"
        counts = collections.Counter(prompt.split("\n\n")[1].split())
        (dots, most), *others = counts.most_common()
        assert dots == "..."
        assert tuple(word for word, _ in others[:3]) == words
        assert others[2][1] > others[3][1]  # the third is no tie
        for rank, (_, count) in enumerate(others[:3], start=2):
            assert count == pytest.approx(most / rank**2, abs=1)


@pytest.mark.parametrize("bos", ["never", "always"])
@pytest.mark.parametrize("tokenizer", ["smollm2_tokenizer", "small_tokenizer"])
def test_excerpts_fill_their_length_with_every_tokenizer(tokenizer, bos, request):
    tokenizer = request.getfixturevalue(tokenizer)
    encoder = functools.partial(encode, tokenizer, bos=bos)
    for task in TASKS:
        questions = ask(encoder, task, 1500, count=2, seed=0, text=TEXT)
        assert (questions.lengths <= 1500).all()
        spare = questions.new_tokens - questions.answer_tokens.min()
        assert (questions.lengths > 1500 - spare - 130).all()
        rows = zip(questions.tokens, questions.lengths, questions.prompts(), strict=True)
        for (row, length, prompt), words in zip(rows, questions.answers, strict=True):
            assert (row[0] == tokenizer.bos_token_id) == (bos == "always")
            whole, question = tokenizer.decode(row[:length]), tokenizer.decode(prompt)
            assert whole.startswith(question)
            assert question.rstrip().endswith((" is", " are", " are:"))
            assert share_of_words(whole[len(question) :], words) == 1
            assert len(prompt) + questions.new_tokens <= 1500


@pytest.mark.parametrize("task", TASKS)
def test_the_least_length_is_said_where_there_is_no_room(task):
    with pytest.raises(InputError) as error:
        asked(task, 100)
    least = int(re.search(rf"{task} needs ([\d,]+) tokens", str(error.value))[1].replace(",", ""))
    assert str(error.value).startswith("lengths=100: ")
    asked(task, least)
    with pytest.raises(InputError, match=f"needs {least:,} tokens"):
        asked(task, least - 1)


def test_words_are_found_wherever_they_stand():
    assert share_of_words(" ABC, the xyz.", ("abc", "xyz", "nope")) == 2 / 3
    assert share_of_words("", ("abc",)) == 0


def test_the_same_seed_asks_the_same_questions_in_every_version():
    """A change would make earlier records say something else: words, draws and sentences stay."""
    questions = asked("niah_single_1", 420)
    assert questions.answers == (("4118395",), ("2897202",), ("3988464",))
    assert read(questions.prompts()[0]).endswith(" for pondered-captains is")
