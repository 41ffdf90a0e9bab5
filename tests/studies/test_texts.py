"""What the experiments read: files of prompts, long texts, and the defaults of both."""

import functools
import hashlib
import json
import os
import re
import unicodedata

import numpy as np
import pytest

from sinkjax import shipped
from sinkjax.errors import InputError
from sinkjax.studies import texts as inputs

pytestmark = pytest.mark.quick


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_prompts_are_lines_as_they_stand(tmp_path):
    content = "# a comment\n  two spaces in front\n\n \nü and \t tab \n#also a comment\nlast # kept"
    read = inputs.read_prompts(write(tmp_path / "mine.txt", content))
    assert read.name == "mine.txt"
    assert read.texts == ("  two spaces in front", "ü and \t tab ", "last # kept")
    assert read.sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_are_no_part_of_prompts(end, mark, tmp_path):
    read = inputs.read_prompts(write(tmp_path / "mine.txt", mark + end.join(["one", "two", ""])))
    assert read.texts == ("one", "two")
    read = inputs.read_text(write(tmp_path / "book", mark + end.join(["one", "two", ""])), 1, 0)
    assert read.text == "one\ntwo\n"


def test_json_prompts(tmp_path):
    lines = ["a\nb", {"prompt": "from prompt", "text": "x"}, {"text": "from text", "id": 3}, "ü😀"]
    content = "\n\n".join(json.dumps(line) for line in lines)
    read = inputs.read_prompts(write(tmp_path / "mine.jsonl", content))
    assert read.texts == ("a\nb", "from prompt", "from text", "ü😀")


def test_json_lines_that_hold_no_prompt_are_all_named(tmp_path):
    content = '"good"\n{oops\n3\n{"prompt": ""}\n{"prompt": 4, "text": "x"}\n[]\nnull\n"\\ud83d"\n'
    path = write(tmp_path / "mine.jsonl", content)
    with pytest.raises(InputError) as caught:
        inputs.read_prompts(path)
    problems = list(map(str, caught.value.problems))
    assert [problem.split(" ")[1:3] for problem in problems] == [
        ["line", str(number)] for number in range(2, 9)
    ]
    assert all(problem.startswith(f"prompts={path}: line ") for problem in problems)
    assert "is not JSON" in problems[0]
    assert all("holds no prompt: write a JSON string" in problem for problem in problems[1:-1])
    assert "half a surrogate pair" in problems[-1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.txt", "# nothing\n\n", "holds no prompts: give at least one"),
        ("mine.jsonl", "\n", "holds no prompts: give at least one"),
        ("mine.csv", "a", r"its name has to end in \.txt .* or \.jsonl .*; rename it"),
        ("mine", "a", r"its name has to end in \.txt"),
        ("mine.txt", b"ok\nbad \xff here\n", "line 2 is not UTF-8 .*: save the file as UTF-8"),
    ],
)
def test_prompt_files_that_cannot_be_used_are_refused(name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        inputs.read_prompts(path)
    assert str(caught.value).startswith(f"prompts={path}: ")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^prompts=.*: No such file or directory; give the path"):
        inputs.read_prompts(tmp_path / "none.txt")
    os.mkdir(tmp_path / "folder.txt")
    with pytest.raises(InputError, match=r"^prompts=.*: Is a directory; give the path"):
        inputs.read_prompts(tmp_path / "folder.txt")
    with pytest.raises(InputError, match=r"^text=.*: No such file or directory"):
        inputs.read_text(tmp_path / "none.txt", 1, 0)
    with pytest.raises(InputError, match=r"^text=.* is empty: give a file of prose"):
        inputs.read_text(write(tmp_path / "blank.txt", " \n\n"), 1, 0)
    with pytest.raises(InputError, match=r"^text=.*: line 3 is not UTF-8"):
        inputs.read_text(write(tmp_path / "bad.txt", b"a\nb\n\xe9\n"), 1, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 2 is not JSON: it is nested too deeply"),
        ('{"prompt": ' * 100_000, "line 2 is not JSON: it is nested too deeply"),
        ("9" * 5000, "line 2 is not JSON: Exceeds the limit"),
        ('{"prompt": ["a"]}', "line 2 holds no prompt"),
    ],
)
def test_json_that_no_parser_takes_is_named_by_its_line(line, message, tmp_path):
    path = write(tmp_path / "mine.jsonl", f'"a prompt"\n{line}\n')
    with pytest.raises(InputError, match=message):
        inputs.read_prompts(path)


def test_pipes_and_names_that_no_file_has_are_refused_and_never_waited_for(tmp_path):
    for name, message in [("pipe.txt", "a pipe or a device"), ("a\0b.txt", "a NUL character")]:
        if "\0" not in name:
            os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=rf"^prompts=.*{message}.*give the path of a file"):
            inputs.read_prompts(tmp_path / name)
        for field in ("choose_text", "judge_text"):
            with pytest.raises(InputError, match=rf"^{field}=.*{message}.*give the path of a file"):
                inputs.read_text(str(tmp_path / name), 1, 0, field)


def test_a_text_keeps_what_its_excerpts_are_cut_by(tmp_path):
    content = b"Some prose.\nMore of it.\n"
    read = inputs.read_text(write(tmp_path / "book.txt", content), 5, 3)
    assert (read.name, read.text) == ("book.txt", content.decode())
    assert (read.count, read.seed) == (5, 3)
    assert read.sha256 == hashlib.sha256(content).hexdigest()


def test_the_default_prompts_are_long_enough_and_begin_apart(smollm2_tokenizer):
    """Sinks fall on the first token, so it has to vary."""
    prompts = inputs.default_prompts()
    assert prompts.name == "short"
    assert len(prompts.texts) >= 100
    assert len(set(prompts.texts)) == len(prompts.texts)
    rows = prompts.at_length(smollm2_tokenizer, "never", 70)
    assert rows.shape == (len(prompts.texts), 70)
    assert len({tuple(text.split()[:2]) for text in prompts.texts}) == len(prompts.texts)
    assert len(set(rows[:, 0].tolist())) > 60
    assert len({tuple(row) for row in rows[:, :2].tolist()}) == len(rows)


def test_the_founding_studys_prompts_have_its_numbers_of_tokens(smollm2_tokenizer):
    short, long = inputs.study_prompts()
    assert short.texts == ("Hello world",)
    assert [len(row) for row in short.whole(smollm2_tokenizer, "never")] == [2]
    assert [len(row) for row in long.whole(smollm2_tokenizer, "never")] == [24]
    assert short.name != long.name
    assert short.sha256 != long.sha256
    assert "stand-in" in long.name  # the study does not say which sentence it was


NAMED = {name: functools.partial(inputs.read_text, name) for name in inputs.SHIPPED}
DEFAULTS = NAMED[inputs.CHOOSE], NAMED[inputs.JUDGE]


@pytest.mark.parametrize("name", NAMED)
def test_a_shipped_text_has_room_for_many_excerpts_of_every_length(name, smollm2_tokenizer):
    default = NAMED[name]
    text = default(count=100, seed=0)
    text.check(smollm2_tokenizer, "tokenizer", {2: 100, 512: 100, 2048: 32, 8192: 8})
    assert text.sha256 == default(count=7, seed=1).sha256
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    rows = text.at_length(smollm2_tokenizer, "tokenizer", 8)
    assert len(np.unique(rows[:, 0])) > 30


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_shipped_novel_is_prose_without_repeats_markup_or_a_publishers_words(default):
    text = default(count=1, seed=0).text
    paragraphs = text.removesuffix("\n").split("\n\n")
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 40]
    assert len(set(long)) > 0.999 * len(long)  # but for a refrain
    assert sum(paragraph.count(" ") for paragraph in long) > 90_000
    assert all(paragraph == " ".join(paragraph.split()) != "" for paragraph in paragraphs)
    assert unicodedata.is_normalized("NFC", text)
    assert not re.search(r"[<>\[\]{}|_*=#]|gutenberg|standard ebooks", text, re.I)


def test_the_shipped_texts_are_those_that_their_readme_describes():
    folder = shipped.FOLDER / "texts"
    table = re.findall(
        r"`(\S+\.txt)` \| (.+?) \|.*`([0-9a-f]{64})`", (folder / "README.md").read_text()
    )
    files = [(path.name, inputs.read_text(path, 1, 0).sha256) for path in folder.glob("*.txt")]
    assert sorted(files) == sorted((file, sha256) for file, _, sha256 in table)
    named = {name: default(count=1, seed=0) for name, default in NAMED.items()}
    assert {f"{name}.txt": text.sha256 for name, text in named.items()} == {
        file: sha256 for file, _, sha256 in table
    }
    assert [default(count=1, seed=0).name for default in DEFAULTS] == [n for _, n, _ in table[:2]]


def test_what_is_chosen_on_is_in_no_text_that_is_judged_on():
    chosen = NAMED["five-kinds"](count=1, seed=0).text
    lines = {line for line in chosen.split("\n") if len(line) > 60}
    assert len(lines) > 2_000
    for name in ("moby-dick", "code", "dialogue", "encyclopaedia", "technical"):
        assert not lines & set(NAMED[name](count=1, seed=0).text.split("\n"))
