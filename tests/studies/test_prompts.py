"""Prompts at every length: BOS policies, nested prefixes, excerpts that never overlap."""

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sinkjax.errors import InputError
from sinkjax.studies.prompts import BOS_POLICIES, PromptList, TextExcerpts, encode

pytestmark = pytest.mark.quick

BOS, EOS = 256, 257


def make_tokenizer(template=None, bos="<s>"):
    """One token a byte; with a template, special tokens around every text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: token for token, char in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    if template:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>"
    )


PLAIN = make_tokenizer()
ADDS_BOS = make_tokenizer("<s> $A")
ADDS_BOTH = make_tokenizer("<s> $A </s>")
NO_BOS = make_tokenizer(bos=None)


def bare(text):
    return PLAIN.encode(text, add_special_tokens=False)


def prompts(*texts):
    return PromptList("mine.txt", "0" * 64, texts)


def excerpts(text, count, seed=0):
    return TextExcerpts("book.txt", "0" * 64, text, count, seed)


@pytest.mark.parametrize(
    ("tokenizer", "bos", "prefix"),
    [
        (PLAIN, "tokenizer", []),
        (PLAIN, "always", [BOS]),
        (PLAIN, "never", []),
        (ADDS_BOS, "tokenizer", [BOS]),
        (ADDS_BOS, "always", [BOS]),
        (ADDS_BOS, "never", []),
        (ADDS_BOTH, "tokenizer", [BOS]),
        (ADDS_BOTH, "always", [BOS]),
        (ADDS_BOTH, "never", []),
        (NO_BOS, "tokenizer", []),
        (NO_BOS, "never", []),
    ],
)
def test_bos_policies(tokenizer, bos, prefix):
    assert encode(tokenizer, "Hi you", bos) == [*prefix, *bare("Hi you")]
    rows = prompts("Hi you", "a b c d").at_length(tokenizer, bos, 3)
    assert rows.tolist() == [[*prefix, *bare(text)][:3] for text in ("Hi you", "a b c d")]
    rows = excerpts("Hi you\n" * 9, 2).at_length(tokenizer, bos, 3)
    assert [row[: len(prefix)] for row in rows.tolist()] == [prefix, prefix]


@pytest.mark.parametrize("ends", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_vocabulary_without_letters_has_a_bos_as_any_other(ends):
    vocabulary = {str(digit): digit for digit in range(10)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=ends, special_tokens=[("<s>", 10), ("</s>", 11)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert tokenizer.encode("a", add_special_tokens=False) == []
    assert encode(tokenizer, "12", "tokenizer") == [*([10] if "<s>" in ends else []), 1, 2]
    assert encode(tokenizer, "12", "never") == [1, 2]


def test_a_bos_written_in_the_text_is_kept_and_not_doubled_by_always():
    assert encode(PLAIN, "<s>Hi", "always") == [BOS, *bare("Hi")]
    assert encode(PLAIN, "<s>Hi", "never") == [BOS, *bare("Hi")]
    assert encode(PLAIN, "<s>Hi", "tokenizer") == [BOS, *bare("Hi")]
    assert encode(ADDS_BOS, "<s>Hi", "tokenizer") == [BOS, BOS, *bare("Hi")]
    assert ADDS_BOS.encode("<s>Hi") == [BOS, BOS, *bare("Hi")]
    assert encode(PLAIN, "Hi<s>", "always") == [BOS, *bare("Hi"), BOS]


def test_the_real_tokenizer_adds_no_bos_unless_asked(smollm2_tokenizer):
    assert encode(smollm2_tokenizer, "Hello world", "tokenizer") == [19556, 905]
    assert encode(smollm2_tokenizer, "Hello world", "always") == [1, 19556, 905]


def test_policies_that_cannot_be_followed_are_refused():
    with pytest.raises(InputError, match=r"^bos=always: .* has no BOS token; use tokenizer or"):
        encode(NO_BOS, "Hi", "always")
    with pytest.raises(InputError, match=r"^bos=sometimes: use one of tokenizer, "):
        encode(PLAIN, "Hi", "sometimes")
    for bad in (prompts("Hi"), excerpts("Hi you", 1)):
        with pytest.raises(InputError, match=r"^bos=sometimes"):
            bad.check(PLAIN, "sometimes", {1: 1})


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(min_size=6, max_size=12), min_size=1, max_size=4),
    bos=st.sampled_from(BOS_POLICIES),
    tokenizer=st.sampled_from([PLAIN, ADDS_BOS, ADDS_BOTH]),
    data=st.data(),
)
def test_prompts_are_nested_prefixes_of_their_texts(texts, bos, tokenizer, data):
    mine = prompts(*texts)
    count = data.draw(st.integers(1, len(texts)))
    for length in range(1, 7):
        rows = mine.at_length(tokenizer, bos, length, count)
        assert rows.dtype == np.int32
        assert rows.tolist() == [encode(tokenizer, text, bos)[:length] for text in texts[:count]]
    assert mine.at_length(tokenizer, bos, 6).shape == (len(texts), 6)
    whole = mine.whole(tokenizer, bos)
    assert [row.tolist() for row in whole] == [encode(tokenizer, text, bos) for text in texts]


def test_prompts_too_short_are_all_named():
    mine = prompts("one two three four five six seven", "abc", "abcd", "ab")
    with pytest.raises(InputError) as caught:
        mine.check(PLAIN, "always", {4: None, 5: None, 6: 2})
    assert tuple(map(str, caught.value.problems)) == (
        "lengths=5,6: prompt 2 of mine.txt ('abc') has 4 tokens with bos=always, too few: leave "
        "these out, or give a longer prompt",
        "lengths=4,5: prompt 4 of mine.txt ('ab') has 3 tokens with bos=always, too few: leave "
        "these out, or give a longer prompt",
    )
    mine.check(PLAIN, "always", {3: None, 5: 1, 33: 1})


def test_a_long_prompt_is_named_by_its_first_words():
    with pytest.raises(
        InputError, match=r"prompt 1 of mine\.txt \('a b c d e \.\.\.'\) has 13 tokens"
    ):
        prompts("a b c d e f g").at_length(PLAIN, "never", 99)


def test_more_prompts_than_there_are_is_refused():
    with pytest.raises(
        InputError, match=r"^prompts=mine\.txt: it holds 2 prompts, 3 are wanted at length 1: ask"
    ):
        prompts("ab", "cd").at_length(PLAIN, "never", 1, 3)


def test_a_prompt_without_a_token_is_refused():
    with pytest.raises(InputError, match=r"prompt 2 .* has 0 tokens"):
        prompts("a", "").whole(PLAIN, "never")


PROSE = "".join(
    f"Line {n} says so.\n{'  ' * (n % 3)}And more of it, much more.\n" for n in range(60)
)


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.text("abc \n", max_size=30), max_size=30),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
    length=st.integers(1, 60),
)
@example(lines=["a"], count=20, seed=0, length=1)
@example(lines=[], count=1, seed=0, length=1)
def test_excerpts_do_not_overlap(lines, count, seed, length):
    text = "\n".join(lines)
    size = len(bare(text))
    mine = excerpts(text, count, seed)
    fits = mine.fits(PLAIN, length)
    starts = mine.starts(PLAIN)
    assert len(starts) == count
    covered = [(start + i) % size for start in starts[:fits] for i in range(length)]
    assert len(set(covered)) == len(covered)
    if fits < count and size:  # and the next one would overlap, or none fits
        covered = [(start + i) % size for start in starts[: fits + 1] for i in range(length)]
        assert len(set(covered)) < len(covered)
    if count * (length + 1) <= 7 * size // 8:
        assert fits == count


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
    bos=st.sampled_from(BOS_POLICIES),
    tokenizer=st.sampled_from([PLAIN, ADDS_BOS, ADDS_BOTH]),
)
def test_excerpts_are_nested_and_hold_the_text_at_their_starts(count, seed, bos, tokenizer):
    mine = excerpts(PROSE, count, seed)
    ring = bare(PROSE) * 2
    prefix = encode(tokenizer, "", bos)
    starts = mine.starts(tokenizer)
    for length in (1, 2, 9, 50, 120):
        rows = mine.at_length(tokenizer, bos, length)
        assert rows.dtype == np.int32
        assert rows.shape == (mine.fits(tokenizer, length), length)
        wanted = [[*prefix, *ring[start:]][:length] for start in starts]
        assert rows.tolist() == wanted[: len(rows)]
    few = mine.at_length(tokenizer, bos, 9, 1)
    assert few.tolist() == mine.at_length(tokenizer, bos, 9)[:1].tolist()


def test_excerpts_follow_the_seed_alone():
    rows = excerpts(PROSE, 8, seed=3).at_length(PLAIN, "never", 20)
    np.testing.assert_array_equal(rows, excerpts(PROSE, 8, seed=3).at_length(PLAIN, "never", 20))
    assert (rows != excerpts(PROSE, 8, seed=4).at_length(PLAIN, "never", 20)).any()


def test_excerpts_begin_at_lines_that_are_not_indented_where_one_is_near():
    mine = excerpts(PROSE, 4)
    for start in mine.starts(PLAIN):
        assert PROSE[start - 1] == "\n"
        assert not PROSE[start].isspace()
    unbroken = excerpts("word " * 200, 4).starts(PLAIN)
    assert len(set(unbroken)) == 4


def test_few_excerpts_lie_spread_over_the_whole_text():
    starts = excerpts("x" * 1000, 16, seed=5).starts(PLAIN)
    for few in (2, 4, 8, 16):
        places = np.sort(starts[:few])
        gaps = np.diff([*places, places[0] + 1000])
        assert gaps.min() >= 1000 // few - 1000 // (8 * 16) - 1


def test_excerpts_that_do_not_fit_are_refused_for_each_length():
    mine = excerpts("x" * 100, 8)
    with pytest.raises(InputError) as caught:
        mine.check(PLAIN, "never", {5: 8, 40: 4, 101: None, 50: None})
    assert tuple(map(str, caught.value.problems)) == (
        "lengths=40: book.txt has 100 tokens: of the 4 excerpts wanted, 2 fit without overlap: "
        "give a longer text, shorter lengths or ask for fewer",
        "lengths=101: book.txt has 100 tokens: of the 1 excerpts wanted, 0 fit without overlap: "
        "give a longer text, shorter lengths or ask for fewer",
    )
    with pytest.raises(InputError, match="0 fit"):
        excerpts("", 2).at_length(PLAIN, "never", 1)
    with pytest.raises(ValueError, match="laid out for 8"):
        mine.at_length(PLAIN, "never", 1, 9)


@pytest.mark.parametrize("count", [0, -1])
def test_none_asked_for_is_none(count):
    """The settings refuse such a count; here nothing else is said of it."""
    none = excerpts("some text\n" * 20, count)
    none.check(PLAIN, "never", {4: count})
    assert none.starts(PLAIN).shape == (0,)


@pytest.mark.parametrize("count", [10_001, 2**31, 2**63])
def test_far_more_excerpts_than_tokens_are_refused_at_once(count):
    """Laying out so many would not end."""
    text = "a line\n" * 100
    assert excerpts(text, 2000).fits(PLAIN, 100) > 0
    with pytest.raises(
        InputError, match=f"{count} excerpts of a text of 700 tokens; ask for fewer"
    ):
        excerpts(text, count).fits(PLAIN, 100)
