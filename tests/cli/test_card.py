"""Cards of masks: all that their files say, and commands that make them again."""

import ast
import dataclasses
import json
import re
import shlex

import pytest
from absl import flags
from masks import EARLIER, MEANS

import sinkjax
from sinkjax import Provenance, load_mask
from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.cli.card import mask_card
from sinkjax.cli.mask import MakeMask
from sinkjax.cli.settings import define_settings, read_settings
from sinkjax.models.shapes import SHAPES
from sinkjax.studies.gates.study import Gates
from sinkjax.studies.search.study import Search
from sinkjax.studies.settings import values

pytestmark = pytest.mark.quick

SETTINGS = {"search": Search, "gates": Gates, "mask": MakeMask}


def commands_of(card: str) -> dict:
    """The settings that the card's commands give to each study or tool."""
    (block,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    read = {}
    for command in block.replace("\\\n", "").splitlines():
        program, name, *arguments = shlex.split(command)
        assert program == "sinkjax"
        values = flags.FlagValues()
        define_settings(SETTINGS[name], flag_values=values)
        own = [text for text in arguments if not text.startswith("--output_dir=")]  # a script's
        assert values([name, *own]) == [name]
        read[name] = read_settings(SETTINGS[name], values)
    return read


def test_a_card_says_what_a_mask_costs_beside_its_controls():
    saved = load_mask(EARLIER / "512-gates.json")
    card = mask_card("ada/gates", saved)
    assert card.startswith("---\nlibrary_name: sinkjax\n")
    assert "250 of 270 heads (30 layers of 9) are masked: 250 window(4,128)" in card
    assert 'sinkjax.load_mask("hf://ada/gates")' in card
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line[:2] == "| "]
    for measured in saved.quality["quality"]:
        (row,) = (row for row in rows if row[0] == measured["text"])
        assert row[1:3] == ["512", str(measured["num_windows"])]
        assert row[4].startswith(f"{measured['kl']['mean']['value']:.4f} [")
    for name, texts in saved.quality["controls"].items():
        for control in texts:
            (row,) = (row for row in rows if row[:2] == [name, control["text"]])
            assert row[2].startswith(f"{control['kl']['value']:.4f} [")
    for digest in ("model_digest", "tokenizer_digest", "text_sha256"):
        assert getattr(saved.provenance, digest) in card


def test_a_card_says_what_is_saved_on_the_fullest_of_several_chips():
    saved = load_mask(EARLIER / "512-groups.json")
    assert "chips" not in mask_card("ada/mask", saved)
    rows = saved_over_chips(SHAPES["smollm2-135m"], saved.mask, Workload(512))
    quality = {**saved.quality, "over_chips": rows}
    saved.provenance.selection.update(chips=3, num_windows=[4, 6])
    card = mask_card("ada/mask", dataclasses.replace(saved, quality=quality))
    assert commands_of(card)["search"].chips == 3
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line[:2] == "| "]
    (one,), (three,) = ([row for row in lines if row[0] == n] for n in ("1, nominal", "3"))
    assert (one[1], three[1]) == ("234", "180")
    cache = [rows[0]["saved"]["cache_bytes"], rows[1]["saved"]["cache_bytes"]]
    assert [one[-1], three[-1]] == [f"{100 * share:.1f}%" for share in cache]
    assert cache[0] > cache[1]


@pytest.mark.parametrize(
    "name",
    [
        EARLIER / "24-sinks.json",
        EARLIER / "4096-windows.json",
        EARLIER / "512-groups.json",
        EARLIER / "512-savings.json",
    ],
)
def test_the_commands_of_shipped_masks_make_what_their_files_say(name):
    saved = load_mask(name)
    card = mask_card("ada/mask", saved)
    assert "The file does not say: --rank_excerpts, --hold_excerpts." in card
    saved.provenance.selection["num_windows"] = [4, 6]  # as masks have them now
    how = saved.provenance.selection
    asked = {"tasks": ["niah_prose"], "depths": [0.3], "train_questions": 2}
    asked |= {"train_on": "tasks", "judge_questions": 3}
    if how["ranking"] == "gates":
        how["gates"]["asked"] = asked
    card = mask_card("ada/mask", saved)
    assert "does not say" not in card
    commands = commands_of(card)
    search = commands["search"]
    assert (search.rank_excerpts, search.hold_excerpts) == (4, 6)
    described = search.__class__(**{**vars(search), "ranking": "error", "gates": None}).settings
    for key, value in {**described.describe(), "ranking": search.ranking}.items():
        if key not in ("gates", "workload", "budget_on"):
            assert value == how[key], key
    assert dataclasses.asdict(described.workload) == how["workload"]
    assert search.budget_on == "mean"  # all that there was
    assert (search.model, search.lengths) == ("smollm2-135m", saved.provenance.lengths)
    assert search.choose_text == saved.provenance.text
    if how["ranking"] == "gates":
        assert commands["gates"].train.describe() == how["gates"]["train"]
        assert str(commands["gates"].path) == how["gates"]["path"]
        assert commands["gates"].units == how["gates"]["units"]
        assert values(commands["gates"], *asked) == asked


@pytest.mark.parametrize(
    ("made_from", "settings"),
    [
        (
            Provenance(
                model="tiny",
                text="short",
                bos="never",
                lengths=(2, 4),
                definition="last",
                threshold=0.3,
                selection={"by": "consistent", "min_share": 0.6, "unit": "group", "path": "w(1,4)"},
            ),
            {"model": "tiny", "source": "short", "bos": "never", "lengths": (2, 4)}
            | {"definitions": "last", "thresholds": 0.3, "min_share": 0.6, "units": "group"}
            | {"paths": "w(1,4)"},
        ),
        (
            Provenance(
                model="/home/ada/models/tiny",
                selection={"method": "published", "folder": "duo heads", "share": 0.5},
            ),
            {"model": "tiny", "from_folder": "duo heads", "shares": 0.5},
        ),
    ],
)
def test_the_commands_of_this_tools_masks_give_its_settings(made_from, settings):
    saved = dataclasses.replace(load_mask(EARLIER / "512-gates.json"), provenance=made_from)
    card = mask_card("ada/mask", saved)
    assert commands_of(card) == {"mask": MakeMask(**settings)}
    assert "/home" not in card
    assert ("does not say: --results" in card) == ("from_folder" not in settings)


def test_a_file_that_says_other_things_is_quoted(tmp_path):
    mask, fills = MEANS
    how, quality = {"method": "by hand", "note": "a | b"}, {"quality": [{"kl": 3}], "speed": 2}
    for selection in (how, {"method": "KL budget"}):  # without what a search says
        sinkjax.save_mask(
            tmp_path / "m.json",
            mask,
            fills=fills,
            provenance=Provenance(selection=selection),
            quality=quality,
        )
        card = mask_card("ada/m", load_mask(tmp_path / "m.json"))
        blocks = re.findall(r"```json\n(.*?)\n```", card, re.DOTALL)
        assert list(map(json.loads, blocks)) == [quality, selection]
    ratio = dict.fromkeys(("value", "low", "high"), 0)
    no_time = {"timing": [{"stage": "decode", "batch_size": 1, "prompt_length": 2, "ratio": ratio}]}
    sinkjax.save_mask(tmp_path / "m.json", mask, fills=fills, quality=no_time)
    card = mask_card("ada/m", load_mask(tmp_path / "m.json"))
    assert json.loads(re.findall(r"```json\n(.*?)\n```", card, re.DOTALL)[0]) == no_time
    sinkjax.save_mask(tmp_path / "m.json", mask, fills=fills)
    assert "says of nothing that was measured" in mask_card("ada/m", load_mask(tmp_path / "m.json"))


def test_what_a_file_quotes_stays_in_its_line():
    """Others may have written it: a line end would end a list, a table, a block of code."""
    line = "\ud800😀\n```\n# Title\n| a | \x1b[31m\u202e"
    published = {"method": "published", "folder": line, "share": 0.5}
    quality = {"quality": [{"text": line, "length": 8}], line: line}
    for selection in ({line: [line]}, published):
        made_from = Provenance(model=line, text=line, bos=line, selection=selection)
        saved = load_mask(EARLIER / "512-gates.json")
        card = mask_card("ada/m", dataclasses.replace(saved, provenance=made_from, quality=quality))
        lines = card.encode().decode().split("\n")
        assert all(line.isprintable() for line in lines)
        assert [line for line in lines if line.startswith("# ")] == ["# m"]
        assert lines.count("```") * 2 == sum(line.startswith("```") for line in lines)
        (call,) = re.findall(r"^model = sinkjax.load\((.*)\)$", card, re.MULTILINE)
        assert ast.literal_eval(call) == line
