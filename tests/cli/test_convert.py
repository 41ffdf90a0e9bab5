"""`python -m experiments.convert`, as a user runs it."""

import os
import pathlib
import shutil
import subprocess
import sys

import hf
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
import tokenizers
import transformers

import sinkjax
from sinkjax.checkpoint.orbax import MANIFEST
from sinkjax.cli import convert as convert_command
from sinkjax.errors import InputError
from sinkjax.files import PARTIAL


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model's folder, with a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    hf.save_llama(folder, tie_word_embeddings=True, eos_token_id=2)
    bpe = tokenizers.models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(bpe), bos_token="<s>", add_bos_token=True
    ).save_pretrained(folder)
    return folder


def convert(*arguments: str) -> None:
    scripts.run_main("experiments.convert", *arguments)


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        convert(*arguments)
    return str(caught.value)


def finish(*arguments: str) -> tuple[int, str, str]:
    process = scripts.start("experiments.convert", *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_checkpoint_stands_for_its_source(source, tmp_path):
    output = tmp_path / "new" / "converted"
    status, out, err = finish(f"--model={source}", f"--output_dir={output}")
    assert status == 0, err
    assert f'sinkjax.load("{output}")' in out
    assert "3 layers, 6 heads, 2 key/value heads, float32, orbax" in out
    assert "I1" not in err  # of Orbax's and JAX's own logs, nothing
    assert (output / MANIFEST).exists()
    before, after = sinkjax.load(source), sinkjax.load(output)
    assert sinkjax.model_digest(after) == sinkjax.model_digest(before)
    assert sinkjax.load_config(output) == sinkjax.load_config(source)
    ours, theirs = sinkjax.load_tokenizer(output), sinkjax.load_tokenizer(source)
    assert sinkjax.tokenizer_digest(ours) == sinkjax.tokenizer_digest(theirs)
    assert ours("abba")["input_ids"] == [0, 3, 2, 1]


def test_a_checkpoint_can_be_converted_to_safetensors_for_transformers(source, tmp_path, capsys):
    orbax, safetensors = tmp_path / "orbax", tmp_path / "safetensors"
    convert(f"--model={source}", f"--output_dir={orbax}", "--dtype=bfloat16")
    convert(
        f"--model={orbax}",
        f"--output_dir={safetensors}",
        "--dtype=bfloat16",
        "--format=safetensors",
    )
    assert "bfloat16, safetensors" in capsys.readouterr().out
    theirs = hf.load_llama(safetensors)
    tokens = hf.random_tokens((2, 20))
    ours = sinkjax.load(orbax)(jnp.asarray(tokens))
    np.testing.assert_allclose(ours, hf.logits(theirs, tokens), rtol=0, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(safetensors)("ab")["input_ids"] == [0, 3]


def test_the_real_model_is_converted_by_default(tmp_path, smollm2):
    convert(f"--output_dir={tmp_path}", "--dtype=float32")
    assert sinkjax.model_digest(sinkjax.load(tmp_path)) == sinkjax.model_digest(smollm2)
    tokenizer = sinkjax.load_tokenizer(tmp_path)
    assert tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]


# Refusals, before any long work.


def test_an_unknown_model_is_named(tmp_path):
    assert "--model=smollm: it is no file" in refusal(
        "--model=smollm", f"--output_dir={tmp_path / 'o'}"
    )


def test_a_folder_that_is_in_use_is_left_alone(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert f"--output_dir={tmp_path}: it exists and is no empty folder" in refusal(
        f"--model={source}", f"--output_dir={tmp_path}"
    )
    assert f"--output_dir={tmp_path / 'file'}: it exists" in refusal(
        f"--model={source}", f"--output_dir={tmp_path / 'file'}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Interrupted.


def kill_at(step: int, *arguments: str) -> bool:
    """Converts, and ends it as a kill does before the n-th change of the folder; whether it did."""
    left = [step]

    def may_die(function, cost=1):
        def call(*args, **kwargs):
            left[0] -= cost
            if left[0] < 0:  # also whatever comes after
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_orbax", "save_safetensors"):
            patch.setattr(sinkjax, name, may_die(getattr(sinkjax, name)))
        patch.setattr(pathlib.Path, "rename", may_die(pathlib.Path.rename))
        patch.setattr(convert_command, "replace_file", may_die(convert_command.replace_file))
        patch.setattr(convert_command, "sync_folder", may_die(convert_command.sync_folder))
        patch.setattr(convert_command, "_clear", may_die(convert_command._clear, cost=0))
        try:
            convert(*arguments)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("format_", ["orbax", "safetensors"])
def test_killed_at_any_step_it_says_so_and_starts_anew(source, tmp_path, format_):
    arguments = [f"--model={source}", f"--format={format_}"]
    interrupted = 0
    for step in range(20):
        output = tmp_path / str(step)
        killed = kill_at(step, *arguments, f"--output_dir={output}")
        if not any((output / name).exists() for name in (MANIFEST, "config.json")):
            with pytest.raises(InputError, match="interrupted"):
                sinkjax.load_config(output)
            interrupted += 1
            (output / "mine.txt").write_text("mine")
            message = refusal(
                *arguments, f"--output_dir={output}"
            )  # what it did not make is not its
            assert "it exists and is no empty folder" in message
            (output / "mine.txt").unlink()
            convert("--model=" + str(source), "--format=orbax", f"--output_dir={output}")
            names = {path.name for path in output.iterdir()}
            assert MANIFEST in names
            assert not names & {PARTIAL, "config.json", "model.safetensors"}
        assert sinkjax.load_config(output) == sinkjax.load_config(source)
        assert sinkjax.load_tokenizer(output)("ab")["input_ids"] == [0, 3]
        if not killed:
            break
    assert interrupted >= 5
    assert not killed


def test_two_do_not_convert_to_one_folder_at_once(source, tmp_path):
    output = tmp_path / "output"
    with convert_command._whole(output):
        assert "another process converts to it" in refusal(
            f"--model={source}", f"--output_dir={output}"
        )
    convert(f"--model={source}", f"--output_dir={output}")
    assert PARTIAL not in {path.name for path in output.iterdir()}


def test_a_model_without_a_tokenizer_is_converted_when_asked(source, tmp_path):
    bare, output = tmp_path / "bare", tmp_path / "output"
    shutil.copytree(source, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    message = refusal(f"--model={bare}", f"--output_dir={output}")
    assert "holds no tokenizer" in message
    assert "--notokenizer" in message
    assert not output.exists()
    convert(f"--model={bare}", f"--output_dir={output}", "--notokenizer")
    assert sinkjax.model_digest(sinkjax.load(output)) == sinkjax.model_digest(sinkjax.load(source))


def test_a_disk_without_the_space_is_named_first(source, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(1 << 30, 1 << 30, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    message = refusal(f"--model={source}", f"--output_dir={tmp_path / 'output'}")
    assert "needs 232,704 bytes" in message
    assert "1,000 free" in message


@pytest.mark.parametrize("format_", ["orbax", "safetensors"])
def test_a_disk_that_fills_meanwhile_is_named(source, tmp_path, format_):
    output = tmp_path / "output"
    command = f"ulimit -f 48; {sys.executable} -m experiments.convert"  # files of 48 KiB at most
    arguments = f"--model={source} --output_dir={output} --format={format_}"
    # The cache of compiled programs, which other tests read, isn't to be cut off.
    done = subprocess.run(
        ["bash", "-c", f"{command} {arguments}"],
        cwd=scripts.ROOT,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    # Orbax's threads log more before it, and may still do when it is written.
    _, found, said = done.stderr.partition(f"error: {output} cannot be written")
    assert found, done.stderr
    assert "File too large" in said.splitlines()[0], done.stderr
    with pytest.raises(InputError):
        sinkjax.load(output)


def test_what_a_user_gets_wrong_ends_as_messages_and_status_1(source, tmp_path):
    for arguments, mentions in [
        ([], ["error: --output_dir: name the folder to write"]),
        ([f"--output_dir={tmp_path / 'o'}", "smollm2-135m"], ["error: smollm2-135m is no flag"]),
    ]:
        status, _, err = finish(*arguments)
        assert status == 1
        assert all(mention in err for mention in mentions), err
        assert "Traceback" not in err
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "sliding_window": 3, "colour": 1}'
    )
    (tmp_path / "model.safetensors").write_bytes((source / "config.json").read_bytes())
    status, _, err = finish(
        f"--output_dir={tmp_path / 'o'}", f"--model={tmp_path}", "--notokenizer"
    )
    assert status == 1
    assert [line.split(": ")[2].split(" =")[0] for line in err.splitlines()] == [
        "unknown attribute colour",
        "unknown attribute sliding_window",
    ]
