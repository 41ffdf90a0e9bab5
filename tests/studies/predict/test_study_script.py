"""The predictor from its flags to its records and tables."""

import numpy as np
import pytest
from markupsafe import escape
from scripts import as_flags, run_main

from sinkjax import InputError
from sinkjax.report.page import render_page
from sinkjax.studies.predict.study import Predict
from sinkjax.studies.predict.tables import prediction_tables
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep import study as sweep

PREDICT = "experiments.predict"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    words = ["the", "sea", "was", "calm", "and", "an", "old", "man", "looked", "out", "over", "it"]
    rows = [" ".join(np.random.default_rng(i).permutation(words)) for i in range(12)]
    file.write_text("\n".join(rows) + "\n")
    return file


def arguments(model, prompts, folder, /, **more):
    flags = {
        "model": model,
        "prompts": prompts,
        "lengths": "2,4",
        "held_out_lengths": "4",
        "thresholds": "0.6",
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


def test_the_terminal_shows_what_the_records_say(tiny, prompts, tmp_path, capsys, monkeypatch):
    run_main(PREDICT, *arguments(tiny, prompts, tmp_path / "out"))
    out = " ".join(capsys.readouterr().out.split())  # wherever lines break
    _, (record,) = read_records(tmp_path / "out")
    assert record["kind"] == "prediction"
    assert record["held_out_lengths"] == [4]
    assert record["result"]["prompts"] == {"fitted": 7, "held_out": 5}
    predictors = record["result"]["lengths_held_out"]["predictors"]
    for name in ("all", "rate_at_length", "same_index"):
        assert f"{predictors[name]['brier']['value']:.4f}" in out
    assert "Good enough to act on: " in out
    html, _ = render_page(Predict.page(*read_records(tmp_path / "out")))
    for title in ("held-out lengths", "calibration of", "by length", "acting on"):
        assert title in out
        assert title in html
    # Of five prompts percentiles are too narrow, and other estimates have none.
    assert out.count("of fewer than 8 prompts intervals are too narrow; in parentheses: ") == 5
    for table in prediction_tables([record]):
        assert all(f">{escape(cell)}<" in html for row in table.rows for cell in row)
    # The same command again finds the record, and another folder's scores are not measured again.
    run_main(PREDICT, *arguments(tiny, prompts, tmp_path / "out"))
    assert read_records(tmp_path / "out")[1] == [record]
    monkeypatch.setattr(sweep, "measure_sinks", None)
    more = {"results": tmp_path / "out"}
    run_main(PREDICT, *arguments(tiny, prompts, tmp_path / "again", **more))
    assert read_records(tmp_path / "again")[1] == [record]


BAD = {
    "unknown": ({"held_out_lengths": "3"}, ["--held_out_lengths=3", "2,4"]),
    "none": ({"held_out_lengths": ""}, ["--held_out_lengths: it is empty"]),
    "all": ({"held_out_lengths": "2,4"}, ["leaves no length"]),
    "share": ({"held_out_share": "1.5"}, ["--held_out_share=1.5"]),
    "few": ({"held_out_share": "0.1"}, ["12 prompts", "1 are held out"]),
    "seed": ({"seed": "-1"}, ["--seed=-1"]),
    "results": ({"results": "/nowhere"}, ["--results: /nowhere holds no results that can be read"]),
    "threshold": ({"thresholds": "2"}, ["--thresholds=2"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, tiny, prompts, tmp_path):
    more, mentions = BAD[what]
    with pytest.raises(InputError) as error:
        run_main(PREDICT, *arguments(tiny, prompts, tmp_path / "out", **more))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()
