"""The command `sinkjax`, and how scripts begin and end."""

import io
import logging
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import jax
import pytest
from absl import flags as absl_flags
from scripts import ROOT, load_script, refused, start

import sinkjax
from sinkjax import shipped
from sinkjax.cli import flags
from sinkjax.cli.main import COMMANDS, main

_WITHOUT_PYTORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from sinkjax.cli import flags

def main():
    import transformers
    print(transformers.utils.is_torch_available())

flags.run(main)
"""


def sinkjax_says(monkeypatch, capsys, *arguments: str):
    """The status, stdout and stderr of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["sinkjax", *arguments])
    return main(), *capsys.readouterr()


def test_every_command_is_a_script_of_experiments():
    assert set(COMMANDS) == {path.stem for path in (ROOT / "experiments").glob("*.py")}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--helpshort"]])
def test_help_lists_every_command_in_a_line(arguments, monkeypatch, capsys):
    status, out, err = sinkjax_says(monkeypatch, capsys, *arguments)
    assert (status, err) == (0, "")
    assert tuple(re.findall(r"^  (\w+) +\S.*[.?]$", out, re.MULTILINE)) == COMMANDS


def test_the_version_is_the_packages(monkeypatch, capsys):
    says = sinkjax_says(monkeypatch, capsys, "--version")
    assert says == (0, f"sinkjax {sinkjax.__version__}\n", "")


def test_an_unknown_command_is_refused_with_those_there_are(monkeypatch, capsys):
    status, out, err = sinkjax_says(monkeypatch, capsys, "swep", "--help")
    assert (status, out) == (1, "")
    assert err.startswith("error: swep ")
    assert err.count("\n") == 1
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize(
    ("script", "flag", "words"),
    [
        ("sweep", "--help", ["=quickstart.flags", "\n  --lengths:", "--[no]dry_run:", "shipped"]),
        ("convert", "-h", ["convert --model=", "\n  --output_dir:", "\n  --format:"]),
        ("mask", "--helpshort", []),
    ],
)
def test_help_of_a_script_teaches_and_is_no_failure(script, flag, words):
    process = start(f"experiments.{script}", flag)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    for word in (f"python -m experiments.{script} --", "\n  --model:", *words):
        assert word in out, word


def test_a_flag_file_that_is_not_there_is_refused_with_those_that_ship(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sinkjax sweep", "--flagfile", "quick.flags"])
    with pytest.raises(SystemExit) as ended:
        flags.run(lambda: None)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: --flagfile=quick.flags: ")
    assert all(name in err for name in shipped.names("", ".flags"))


@pytest.mark.parametrize(
    ("script", "old", "new"),
    [
        ("mask", "path=s(first)", "paths"),
        ("mask", "groups", "units"),
        ("mask", "share=0.5", "shares"),
        ("inspect", "target=cpu", "targets"),
        ("search", "batch_size=2", "batch_sizes"),
        ("search", "rounds=2", "growth_rounds"),
        ("gates", "warmup=0.2", "warmup_share"),
        ("repair", "warmup=0.2", "warmup_share"),
        ("gates", "path=f", "paths"),
        ("gates", "text=book.txt", "judge_text"),
        ("convert", "output=folder", "output_dir"),
        ("mask", "output=mask.json", "mask_file"),
    ],
)
def test_an_old_flag_is_refused_with_its_name_of_today(script, old, new, tmp_path):
    file = tmp_path / "old.flags"
    file.write_text(f"--{old}\n")
    name, _, value = old.partition("=")
    ways = [f"--{old}"], [f"--flagfile={file}"], [f"--{name}", *filter(None, [value])]
    for arguments in ways:
        said = refused(f"experiments.{script}", *arguments)
        assert said == f"error: --{name} is called --{new} now; --help shows all flags\n"


def test_a_script_knows_the_old_names_of_its_flags():
    """In a process of its own, as a user starts it."""
    process = start("experiments.gates", "--text", "book.txt")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err == "error: --text is called --judge_text now; --help shows all flags\n"


def test_a_missing_pytorch_is_no_news_to_a_scripts_user():
    """Models are JAX's: transformers is there for tokenizers alone."""
    command = [sys.executable, "-c", _WITHOUT_PYTORCH]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")


HOSTILE = {
    "missing.flags": None,
    "latin.flags": b"--seed=1\n# \xe9t\xe9\n",
    "nul.flags": b"--output_dir=a\0b\n",
    "itself.flags": b"--seed=1\n--flagfile=itself.flags\n",
    "circle.flags": b"--flagfile=circle2.flags\n",
    "circle2.flags": b"--flagfile circle.flags\n",
    "lost.flags": b"--flagfile=none.flags\n",
    "waits.flags": b"--flagfile=pipe\n",
    "surrogate.flags": "--output_dir=a\udc80b\n".encode("utf-8", "surrogatepass"),
}
REFUSED = {
    "missing.flags": "there is no such file; those that ship are",
    "latin.flags": "it is not UTF-8",
    "nul.flags": r"error: '--output_dir=a\\x00b' holds a NUL character",
    "itself.flags": "includes itself",
    "circle.flags": "includes itself",
    "lost.flags": "error: --flagfile=none.flags: there is no such file",
    "waits.flags": "error: --flagfile=pipe: .*it is a pipe or a device",
    "surrogate.flags": "it is not UTF-8",
    "pipe": "it is a pipe or a device",
    "folder": "Is a directory",
    "": "Is a directory",
    "a\0b": "no path holds a NUL",
    "a" * 300: "there is no such file",
    "\udcff.flags": "there is no such file",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_file_that_cannot_be_read_is_an_error_in_a_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for file, content in HOSTILE.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for arguments in ([f"--flagfile={name}"], ["--flagfile", name]):
        monkeypatch.setattr(sys, "argv", ["sinkjax sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            flags.run(lambda: None)
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
        assert re.search(REFUSED[name], err)


def test_flag_files_may_include_each_other_and_hold_comments(tmp_path):
    (tmp_path / "one.flags").write_text("\ufeff# first\n\n  --lengths=2,4  \n// and\n--seed=1\n")
    (tmp_path / "two.flags").write_text(f"--flagfile={tmp_path}/one.flags\r\n--seed=2")
    given = ["sinkjax sweep", "--a", f"--flagfile={tmp_path}/two.flags", "-flagfile", "quality"]
    first, *rest = flags._expanded(given)
    assert (first, rest[:4]) == ("sinkjax sweep", ["--a", "--lengths=2,4", "--seed=1", "--seed=2"])
    assert any(line.startswith("--") for line in rest[4:])  # of the file that ships


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_of_a_flag_file_ends_where_an_editor_ends_it(end, tmp_path):
    """Not at characters of a text that only Python's own `splitlines` takes for ends."""
    lines = ["--prompt=one\u2028two\x0cthree\x85four\x1cfive", "--seed=1"]
    (tmp_path / "own.flags").write_bytes(end.join([*lines, ""]).encode())
    assert list(flags._expanded([f"--flagfile={tmp_path}/own.flags"])) == lines


def test_a_tilde_is_the_home_folder_wherever_a_path_begins(monkeypatch, tmp_path):
    """No shell makes it so behind a =, and it would be made as a folder of that name."""
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "own.flags").write_text("--text=~/book.txt")
    wanted = {
        "--output_dir=~/out": "--output_dir=/home/me/out",
        "--mask=~/a.json,b~/c.json,~/d.json": "--mask=/home/me/a.json,b~/c.json,/home/me/d.json",
        "--model=~": "--model=/home/me",
        "--text=~me/book.txt": "--text=~me/book.txt",
        "--prompt=~/bin is": "--prompt=~/bin is",
        f"--flagfile={tmp_path}/own.flags": "--text=/home/me/book.txt",
    }
    assert list(flags._expanded(wanted)) == list(wanted.values())


@pytest.mark.parametrize("flag", ["output_dir", "model", "text", "prompts", "choose_text"])
@pytest.mark.parametrize("value", [b"\xff\xfe/a", b"a\xed\xb2\x80b"])
def test_bytes_that_are_no_text_in_any_flag_are_an_error_in_a_line(
    flag, value, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["sinkjax sweep", f"--{flag}={os.fsdecode(value)}"])
    with pytest.raises(SystemExit) as ended:
        flags.run(lambda: None)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert re.fullmatch(rf"error: '--{flag}=.*' holds a NUL .*not UTF-8; flags take .*\n", err)


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\n more"),
        MemoryError("Unable to allocate 7. EiB"),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice_is_an_error_in_a_line(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(sys, "argv", ["sinkjax sweep"])
    with pytest.raises(SystemExit) as ended:
        flags.run(fail)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    said = f" ({str(error).splitlines()[0]})" if str(error) else ""
    assert err.startswith(f"error: memory does not suffice{said}; ask for fewer rows")
    assert err.count("\n") == 1


def test_what_is_logged_of_a_file_has_no_codes_that_a_terminal_obeys(monkeypatch, capsys):
    logger = logging.getLogger("sinkjax")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(sys, "argv", ["sinkjax sweep"])
    with pytest.raises(SystemExit):
        flags.run(lambda: logger.warning("%s is damaged", "a\x1b[31mb\nerror: c"))
    assert capsys.readouterr().err == "a\\x1b[31mb\\nerror: c is damaged\n"


@pytest.mark.parametrize("platform", ["nonsense", *([] if find_spec("jax_plugins") else ["cuda"])])
def test_devices_that_are_not_here_are_an_error_in_a_line(platform):
    code = "import jax; from sinkjax.cli import flags; flags.run(jax.devices)"
    env = {**os.environ, "JAX_PLATFORMS": platform}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert (ended.returncode, ended.stdout) == (1, b"")
    said = rb"error: JAX finds no devices of JAX_PLATFORMS.*; unset it, or install .*\n"
    assert re.fullmatch(said, ended.stderr)


def test_letters_that_an_outputs_encoding_lacks_are_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["sinkjax generate"])
    with pytest.raises(SystemExit) as ended:
        flags.run(lambda: print("é漢", flush=True))
    assert (ended.value.code, out.buffer.getvalue()) == (None, b"\xe9\\u6f22\n")


def test_a_flag_that_is_given_twice_says_which_is_taken(monkeypatch, capsys, tmp_path):
    script = load_script("experiments.quality")
    (tmp_path / "own.flags").write_text("--dtype=bfloat16")
    once = ["--mask=a", "--mask=b", "--seed=1", f"--flagfile={tmp_path}/own.flags"]
    twice = ["--text=c.txt", "--dtype=float32", "--text=d.txt", "--seed=1"]
    monkeypatch.setattr(sys, "argv", ["sinkjax quality", *once, *twice])
    taken = []
    with pytest.raises(SystemExit) as ended:
        flags.run(lambda: taken.append(absl_flags.FLAGS.text), script.module, script.renamed)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, taken) == (None, "", ["d.txt"])
    assert err == "warning: --text is given more than once; d.txt is taken, the last\n"
