"""Other projects' masks: read by each rule, refused where they do not fit, written, read back."""

import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import EARLIER, problems_of, windows, write_scores
from scripts import ROOT

from sinkjax import Full, SinkMask, Window, load_mask, shipped
from sinkjax.masks.published import read_published, write_published
from sinkjax.programs.dispatch import Plan

pytestmark = pytest.mark.quick

L, N, K = 3, 6, 2
SHAPE = types.SimpleNamespace(num_layers=L, num_heads=N, num_kv_heads=K, head_dim=8)
SCORES = [[0.5, -0.001], [1.0, 1.0], [0.25, 1.002]]
WINDOW = Window(2, 3)
PUBLISHED = [
    folder for parent in ROOT.parents for folder in parent.glob("shared/data/published-masks")
]
"""Where they are, beside a checkout; not part of the project."""


def groups(mask: SinkMask) -> list[list[int]]:
    """Of each group 1 where it is on the window and 0 where it is full; nothing else is allowed."""
    numbers = {(Full(),) * (N // K): 0, (WINDOW,) * (N // K): 1}
    halves = [(layer[: N // K], layer[N // K :]) for layer in mask.heads]
    return [[numbers[half] for half in layer] for layer in halves]


@pytest.fixture
def scores(tmp_path):
    write_scores(tmp_path, SCORES, WINDOW)
    return read_published(tmp_path)


@pytest.mark.parametrize(
    ("rule", "masked"),
    [
        ({"threshold": 0.5}, [[0, 1], [0, 0], [1, 0]]),  # a head at the threshold is full
        ({"threshold": 1}, [[1, 1], [0, 0], [1, 0]]),  # 1.002 is 1
        ({"threshold": 0}, [[0, 0], [0, 0], [0, 0]]),  # and -0.001 is 0
        ({"quantile": 0.5}, [[1, 1], [0, 0], [1, 0]]),  # of the six scores it is 0.75
        ({"quantile": 0.9}, [[1, 1], [0, 0], [1, 0]]),  # heads that tie with it are full
        ({"quantile": 0}, [[0, 0], [0, 0], [0, 0]]),
        ({"quantile": 1}, [[1, 1], [1, 1], [1, 1]]),
        ({"share": 0.5}, [[1, 1], [0, 0], [1, 0]]),
        ({"share": 0.85}, [[1, 1], [1, 1], [1, 0]]),  # of heads that tie, the first go
    ],
)
def test_key_value_heads_are_masked_by_each_rule(scores, rule, masked):
    assert groups(scores.mask(SHAPE, **rule)) == masked


def test_the_window_is_the_folders_or_the_one_that_is_given(scores, tmp_path):
    assert Window(16, 64) in scores.mask(SHAPE, share=0.5, window=Window(16, 64)).heads[0]
    (tmp_path / "rlkv").mkdir()
    np.savetxt(tmp_path / "rlkv" / "adapter_weights.tsv", SCORES, delimiter="\t")
    rlkv = read_published(tmp_path / "rlkv")
    assert groups(rlkv.mask(SHAPE, threshold=0.5, window=WINDOW)) == [[0, 1], [0, 0], [1, 0]]
    assert "give a window" in problems_of(rlkv.mask, SHAPE, threshold=0.5)[0]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "give a threshold, a quantile or a share"),
        ({"share": 0.5, "threshold": 0.5}, "give a threshold, a quantile or a share"),
        ({"share": 1.5}, "share=1.5: give one from 0 to 1"),
        ({"quantile": float("nan")}, "quantile=nan: give one from 0 to 1"),
    ],
)
def test_no_rule_or_several_are_refused(scores, rule, said):
    assert said in problems_of(scores.mask, SHAPE, **rule)[0]


def test_another_models_masks_are_refused_with_both_shapes(scores, tmp_path):
    other = types.SimpleNamespace(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)
    (said,) = problems_of(scores.mask, other, share=0.5)
    assert "3 layers of 2 key/value heads, the model has 30 layers of 3" in said
    (tmp_path / "moa").mkdir()
    plan = {"alphas": [[0.0] * N] * L, "betas": [[0.5] * N] * L}
    (tmp_path / "moa" / "moa_alpha_beta.json").write_text(json.dumps(plan))
    (said,) = problems_of(read_published(tmp_path / "moa").mask, other, 512)
    assert "3 layers of 6 heads, the model has 30 layers of 9" in said


def test_spans_are_windows_for_one_length(tmp_path):
    alphas, betas = [[0, -1024, 2048, 100.5]] * 2, [[0.125, 0.75, 0, 0.25], [1, 0.9, 0.3, 0]]
    plan = {"alphas": alphas, "betas": betas}
    (tmp_path / "moa_alpha_beta.json").write_text(json.dumps(plan))
    spans = read_published(tmp_path)
    shape = types.SimpleNamespace(num_layers=2, num_heads=4, head_dim=8)
    # As MoA's caches: whole tokens, 128 at least, whole blocks of 64, of which the first is sinks.
    for length, sizes in {
        1024: [[128, 128, None, 384], [None, 128, None, 128]],
        4096: [[512, 2048, 2048, 1152], [None, 2688, 3328, 128]],
    }.items():
        wanted = [[Full() if n is None else Window(64, n - 64) for n in row] for row in sizes]
        assert spans.mask(shape, length).heads == tuple(map(tuple, wanted))
    assert spans.mask(shape, 100) == SinkMask.full(shape)
    for length in (0, 10**10):
        assert "length=" in problems_of(spans.mask, shape, length)[0]


@pytest.mark.parametrize(
    "content",
    [
        "0.5\t-0.001\r\n1.0\t1\r\n.25\t1.002\r\n",
        "\ufeff0.5\t-1e-3\n1\t1\n0.25\t1.002",
        "5E-1\t-1.0000e-03\r1e0\t1.\r2.5e-01\t+1.002\r",
        "\n 0.50 \t -0.001\n\n1.000000000000000000e+00\t1\n25e-2\t10\n\n",
    ],
)
def test_tables_are_read_as_programs_of_tables_write_them(content, tmp_path):
    write_scores(tmp_path, SCORES, WINDOW)
    (tmp_path / "full_attention_heads.tsv").write_bytes(content.encode())
    assert groups(read_published(tmp_path).mask(SHAPE, threshold=0.5)) == [[0, 1], [0, 0], [1, 0]]


def test_spans_make_plans_and_their_texts(tmp_path):
    spans = {"alphas": [[0, -1024, 2048, 100.5]] * 2, "betas": [[0.125, 0.75, 0, 0.25]] * 2}
    (tmp_path / "moa_alpha_beta.json").write_text(json.dumps(spans))
    shape = types.SimpleNamespace(num_layers=2, num_heads=4, head_dim=8)
    masks = {n: read_published(tmp_path).mask(shape, n) for n in (64, 1024, 4096, 10**9)}
    plan = Plan.by_length(masks)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert {n: again.mask(n) for n in masks} == masks


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has none of full_attention_heads.tsv, adapter_weights.tsv, moa_alpha_beta.json"),
        (
            {"adapter_weights.tsv": "1\n", "moa_alpha_beta.json": "{}"},
            "has adapter_weights.tsv and moa_alpha_beta.json of",
        ),
        ({"adapter_weights.tsv": ""}, "it is empty"),
        ({"adapter_weights.tsv": "1\t0\n1\n"}, "number of columns"),
        ({"adapter_weights.tsv": "1\tfull\n"}, "could not convert string 'full'"),
        ({"adapter_weights.tsv": "1\tnan\n"}, "not all scores are finite"),
        ({"adapter_weights.tsv": "1\t-inf\n"}, "not all scores are finite"),
        ({"adapter_weights.tsv": "1,0\n"}, "could not convert string '1,0'"),
        ({"adapter_weights.tsv": "0,5\t1\n"}, "could not convert string '0,5'"),
        ({"adapter_weights.tsv": "1\t0\t\n"}, "could not convert string ''"),
        ({"adapter_weights.tsv": "0\n" * (2**23 + 1)}, "it has 16,777,218 bytes, and at most"),
        ({"adapter_weights.tsv": b"\xff\xfe1"}, "can't decode byte"),
        ({"adapter_weights.tsv": "1\n", "config.json": "{"}, "config.json has no whole sink_size"),
        ({"adapter_weights.tsv": "1\n", "config.json": "[4]"}, "config.json has no whole sink_"),
        (
            {"adapter_weights.tsv": "1\n", "config.json": '{"sink_size": 4, "recent_size": 1.5}'},
            "they are [4, 1.5]",
        ),
        (
            {"adapter_weights.tsv": "1\n", "config.json": '{"sink_size": 4, "recent_size": 0}'},
            "recent of window is 0",
        ),
        ({"moa_alpha_beta.json": "{"}, "moa_alpha_beta.json cannot be read"),
        ({"moa_alpha_beta.json": '{"alphas": [[1]]}'}, "betas is no list"),
        ({"moa_alpha_beta.json": '{"alphas": [[1]], "betas": [[1], [1, 2]]}'}, "of [1, 2] heads"),
        ({"moa_alpha_beta.json": '{"alphas": [[1]], "betas": [[1, 2]]}'}, "betas (1, 2)"),
        ({"moa_alpha_beta.json": '{"alphas": [["1"]], "betas": [[1]]}'}, "alphas are numbers"),
        ({"moa_alpha_beta.json": '{"alphas": [[true]], "betas": [[1]]}'}, "alphas are numbers"),
        ({"moa_alpha_beta.json": f'{{"alphas": [[1{"0" * 400}]], "betas": [[1]]}}'}, "too large"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = problems_of(read_published, tmp_path)
    assert said in problem
    assert str(tmp_path) in problem


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=L * K, max_size=L * K), windows(), st.floats(1e-9, 1))
def test_what_is_written_reads_back_as_the_same_mask(tmp_path_factory, masked, window, threshold):
    chosen = np.repeat(np.reshape(masked, (L, K)), N // K, axis=1)
    mask = SinkMask.where(chosen, window)
    folder = tmp_path_factory.mktemp("published") / "new"
    write_published(folder, mask, K)
    assert read_published(folder).mask(SHAPE, threshold=threshold) == mask
    assert read_published(folder).mask(SHAPE, share=np.mean(masked)) == mask
    config = json.loads((folder / "config.json").read_text())
    assert not any(masked) or config == {"sink_size": window.sinks, "recent_size": window.recent}
    table = np.loadtxt(folder / "full_attention_heads.tsv", delimiter="\t", ndmin=2)
    np.testing.assert_array_equal(table, 1 - np.reshape(masked, (L, K)))


_GROUPS = {"smollm2-135m": 3, "qwen2.5-coder-0.5b": 2}


@pytest.mark.parametrize(
    "file", sorted([*(shipped.FOLDER / "masks").glob("*.json"), *EARLIER.glob("*.json")])
)
def test_masks_that_ship_are_written_and_read_back_or_say_what_does_not_fit(file, tmp_path):
    saved = load_mask(file)
    num_kv_heads = _GROUPS[saved.provenance.model]
    mask = saved.mask
    shape = types.SimpleNamespace(
        num_layers=mask.num_layers, num_heads=mask.num_heads, num_kv_heads=num_kv_heads, head_dim=8
    )
    masked = {path for layer in mask.heads for path in layer} - {Full()}
    if mask.in_groups(num_kv_heads) and len(masked) == 1 and isinstance(*masked, Window):
        write_published(tmp_path, mask, num_kv_heads)
        assert read_published(tmp_path).mask(shape, threshold=0.5) == mask
    else:
        assert "the format has" in problems_of(write_published, tmp_path, mask, num_kv_heads)[0]
    # And whatever the paths of its heads are, those of its groups that are masked whole.
    whole = mask.masked.reshape(mask.num_layers, num_kv_heads, -1).all(axis=2)
    mask = SinkMask.where(np.repeat(whole, mask.num_heads // num_kv_heads, axis=1), WINDOW)
    write_published(tmp_path / "whole", mask, num_kv_heads)
    assert read_published(tmp_path / "whole").mask(shape, threshold=0.5) == mask
    assert read_published(tmp_path / "whole").mask(shape, share=whole.mean()) == mask


def test_every_group_that_does_not_fit_the_format_is_listed(tmp_path):
    mask = SinkMask.from_text(
        "L0: 3w(4,8) 3f | L1: 2w(4,8) f 3s(zero) | L2: 3w(4,16) 3c(0,3) | L3: 3w(4,8) 3w(4,8)"
    )
    assert list(problems_of(write_published, tmp_path / "new", mask, K)) == [
        "layer 1, key/value head 0 has heads on several paths (2 window(4,8), 1 full); the format "
        "has one for all",
        "layer 1, key/value head 1 is on sink(zero); the format has full and one window, "
        "window(4,8)",
        "layer 2, key/value head 0 is on window(4,16); the format has full and one window, "
        "window(4,8)",
        "layer 2, key/value head 1 is on copy(0,3); the format has full and one window, "
        "window(4,8)",
    ]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["adapter_weights.tsv", "moa_alpha_beta.json"])
def test_nothing_is_written_beside_what_another_project_published(tmp_path, name):
    """Of two such files in a folder, which is meant is not known: neither could be read again."""
    (tmp_path / name).write_text("1\t0\n")
    mask = SinkMask.from_text("L0-2: 3w(4,8) 3f")
    assert f"has {name} of something else" in problems_of(write_published, tmp_path, mask, K)[0]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_writing_again_replaces_and_a_models_config_stays(tmp_path):
    for mask in (SinkMask.from_text(f"L0: 3{path} 3f") for path in ("w(4,8)", "w(2,16)")):
        write_published(tmp_path / "mine", mask, K)
    assert read_published(tmp_path / "mine").window == Window(2, 16)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "give another folder" in problems_of(write_published, tmp_path, mask, K)[0]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'
    (tmp_path / "file").touch()
    assert "cannot be written" in problems_of(write_published, tmp_path / "file", mask, K)[0]


@pytest.mark.skipif(not PUBLISHED, reason="the published files are not here")
def test_published_files_are_read(tmp_path):
    folders = sorted(PUBLISHED[0].glob("duo-attention/*/"))
    assert folders
    for folder in folders:
        scores = read_published(folder)
        layers, kv_heads = scores.scores.shape
        shape = types.SimpleNamespace(
            num_layers=layers, num_heads=32, num_kv_heads=kv_heads, head_dim=128
        )
        mask = scores.mask(shape, share=0.5)
        assert scores.window == Window(128, 256)
        assert mask.masked.sum() == layers * 32 / 2
        write_published(tmp_path / folder.name, mask, kv_heads)
        assert read_published(tmp_path / folder.name).mask(shape, threshold=0.5) == mask
    for folder in PUBLISHED[0].glob("moa/*/"):
        spans = read_published(folder)
        layers, heads = spans.alphas.shape
        shape = types.SimpleNamespace(num_layers=layers, num_heads=heads, head_dim=128)
        mask = spans.mask(shape, 8192)
        paths = [path for layer in mask.heads for path in layer]
        seen = [8192 if path == Full() else path.sinks + path.recent for path in paths]
        assert 0.3 < np.mean(seen) / 8192 < 0.7  # each plan is for a density of a half
