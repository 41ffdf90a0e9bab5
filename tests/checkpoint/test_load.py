"""What a name stands for, and what stands for nothing."""

import re

import hf
import pytest

import sinkjax
from sinkjax.checkpoint.folder import CONFIG
from sinkjax.errors import InputError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "name", ["", "no\0thing", "no\ud800thing", "~\0/a", "~nobody-of-that-name/a"]
)
def test_names_that_no_file_has_are_refused(name, tmp_path, monkeypatch):
    hf.save_llama(tmp_path)
    monkeypatch.chdir(tmp_path)  # which no name at all does not stand for
    for load in (sinkjax.load, sinkjax.load_config, sinkjax.load_tokenizer):
        with pytest.raises(InputError, match="it is no file or folder here") as caught:
            load(name)
        assert str(caught.value).isprintable()


def test_a_folder_of_gguf_files_says_which_to_give(tmp_path):
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    for load in (sinkjax.load, sinkjax.load_config, sinkjax.load_tokenizer):
        with pytest.raises(InputError, match=rf"has to be named: give {tmp_path / 'a.gguf'}$"):
            load(tmp_path)


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}")) as caught:
        sinkjax.load(tmp_path)
    assert CONFIG in str(caught.value.problems[0])
    with pytest.raises(InputError, match=r"no file or folder here.*smollm2-135m"):
        sinkjax.load(tmp_path / "missing")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(InputError, match=r"does not end in \.gguf"):
        sinkjax.load(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"float64.*float32, bfloat16, float16"):
        sinkjax.load(tmp_path, dtype="float64")
    with pytest.raises(InputError, match=r"revision=v1: .*not a Hub id"):
        sinkjax.load(tmp_path, revision="v1")
    for load in (sinkjax.load, sinkjax.load_tokenizer):
        with pytest.raises(InputError, match="revision=5: it has to be text"):
            load("owner/name", revision=5)
        with pytest.raises(InputError, match="model: a name or a path is needed, not int"):
            load(5)
