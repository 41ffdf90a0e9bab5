"""Prompts, texts and flag files."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import sys
from typing import Any

import scripts

from sinkjax.cli import flags as cli
from sinkjax.errors import InputError
from sinkjax.studies import texts
from tests.fuzz.format import PROSE, Format


def prompts_jsonl(folder: pathlib.Path) -> Format:
    lines = [
        "A first prompt",
        {"prompt": "A second, é漢字"},
        {"text": "a third", "id": 3},
        "\\n \n",
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def expected(folder: pathlib.Path, original: Any) -> list[str]:
        content = (folder / "prompts.jsonl").read_bytes().decode("utf-8-sig")
        values = [json.loads(line) for line in re.split("\r\n|\r|\n", content) if line.strip()]
        values = [v.get("prompt", v.get("text")) if isinstance(v, dict) else v for v in values]
        assert values
        assert all(value.strip() and value.encode() for value in values)
        return values

    return Format(
        ("prompts.jsonl",), lambda f: list(texts.read_prompts(f / "prompts.jsonl").texts), expected
    )


def prompts_txt(folder: pathlib.Path) -> Format:
    (folder / "prompts.txt").write_text("# a comment\nA first prompt\n\n  A second, é漢字\nthird\n")

    def expected(folder: pathlib.Path, original: Any) -> list[str]:
        content = (folder / "prompts.txt").read_bytes().decode("utf-8-sig")
        lines = re.split("\r\n|\r|\n", content)
        lines = [line for line in lines if line.strip() and line[0] != "#"]
        assert lines
        return lines

    return Format(
        ("prompts.txt",), lambda f: list(texts.read_prompts(f / "prompts.txt").texts), expected
    )


def text(folder: pathlib.Path) -> Format:
    (folder / "text.txt").write_text(PROSE[:3000] + "é漢字\r\nend\r\n")

    def expected(folder: pathlib.Path, original: Any) -> str:
        content = (folder / "text.txt").read_bytes().decode("utf-8-sig")
        assert content.strip()
        return re.sub("\r\n|\r", "\n", content)

    return Format(("text.txt",), lambda f: texts.read_text(f / "text.txt", 2, 0).text, expected)


_FLAGS = {
    "lengths": "2,4",
    "num_prompts": "7",
    "thresholds": "0.3,0.9",
    "bos": "never",
    "seed": "3",
}


def flag_file(folder: pathlib.Path) -> Format:
    lines = ["# of a sweep", "", *(f"--{name}={value}" for name, value in _FLAGS.items())]
    (folder / "fuzz.flags").write_text("\n".join([*lines, "--study=false"]) + "\n")
    kinds = {"lengths": int, "thresholds": float, "bos": str}

    def read(folder: pathlib.Path) -> dict[str, Any]:
        from sinkjax.cli.settings import read_settings
        from sinkjax.studies.sweep.study import Sweep

        command, settings = scripts.load_script("experiments.sweep"), []
        printed, argv = io.StringIO(), sys.argv
        sys.argv = ["sweep", f"--flagfile={folder / 'fuzz.flags'}"]
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
                cli.run(lambda: settings.append(read_settings(Sweep)), command.module)
        except SystemExit as end:
            if end.code not in (None, 0):
                said = end.code if isinstance(end.code, str) else printed.getvalue()
                errors = said.strip().splitlines()
                assert all(line.startswith("error: ") for line in errors), said
                raise InputError(*errors) from None
        finally:
            sys.argv = argv
        return {name: getattr(settings[0], name) for name in (*_FLAGS, "study")}

    def expected(folder: pathlib.Path, original: Any) -> dict[str, Any]:
        content = (folder / "fuzz.flags").read_bytes().decode("utf-8-sig")
        given = dict(_defaults)
        for line in map(str.strip, re.split("\r\n|\r|\n", content)):
            if line == "--":  # the end of flags
                break
            if line and not line.startswith(("#", "//")):
                match = re.fullmatch(r"--?(\w+)(?:=(.*))?", line, re.DOTALL)
                given[match[1]] = match[2]
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name in kinds and isinstance(value, str):
                values[name] = (
                    tuple(kinds[name](part.strip()) for part in value.split(",")) if value else ()
                )
            elif name in ("seed", "num_prompts") and isinstance(value, str):
                values[name] = int(value, 0)
            elif name in ("study", "nostudy"):
                values["study"] = name == "study" and value in (None, True, "true", "1", "t")
            else:
                values[name] = value
        return values

    from sinkjax.studies.sweep.study import Sweep

    _defaults = {
        f.name: f.default for f in dataclasses.fields(Sweep) if f.name in (*_FLAGS, "study")
    }
    return Format(("fuzz.flags",), read, expected)
