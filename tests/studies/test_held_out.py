"""Excerpts to choose on and excerpts to judge on, of one text."""

import numpy as np
import pytest

from sinkjax.studies.copies.study import Copies

CHOSEN = JUDGED = 4


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"Line {n}, {n * n} steps from home." for n in range(40)))
    return path


def places(rows, tokens):
    """Which of the text's tokens each row has, of a text in which no excerpt is there twice."""
    ring = np.concatenate([tokens, tokens])
    at = np.arange(len(tokens))[:, None] + np.arange(rows.shape[1])
    matches = [np.flatnonzero((ring[at] == row).all(axis=1)) for row in rows]
    assert [len(starts) for starts in matches] == [1] * len(rows)
    return [set((at[start] % len(tokens)).tolist()) for (start,) in matches]


@pytest.mark.parametrize("called", ["text.txt", "./text.txt"])
@pytest.mark.parametrize(("share", "generated", "read"), [(0.5, 8, 8), (7 / 8, 40, 0)])
def test_excerpts_of_one_text_and_what_follows_them_never_overlap(
    tiny, text, small_tokenizer, called, share, generated, read
):
    """Of eight excerpts; what would reach into one of the others is not read."""
    tokens = np.array(small_tokenizer.encode(text.read_text(), add_special_tokens=False))
    length = int(share * (len(tokens) // 8))
    study = Copies(
        model=str(tiny),
        choose_text=str(text),
        judge_text=f"{text.parent}/{called}",
        lengths=(length,),
        choose_excerpts=CHOSEN,
        judge_excerpts=JUDGED,
    )
    chosen, judged = study.chosen_on.tokens[length], study.judged_rows(length, generated)
    assert chosen.shape == (CHOSEN, length)
    assert judged.shape == (JUDGED, length + read)
    of_excerpts = [*places(chosen, tokens), *places(judged, tokens)]
    assert len(set().union(*of_excerpts)) == sum(map(len, of_excerpts))
