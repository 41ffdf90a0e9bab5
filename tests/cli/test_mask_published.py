"""Masks of other projects' files, through the flags: what they compute, and what is refused."""

import json

import hf
import jax.numpy as jnp
import numpy as np
import pytest
from masks import counts_per_layer, write_scores
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, SinkMask, Window, load_mask, save_mask
from sinkjax.masks.published import read_published

MASK = "experiments.mask"
L, N, K = 3, 6, 2
SCORES = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
SINKS, RECENT = 2, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    hf.save_llama(folder)
    return folder


@pytest.fixture
def scores(tmp_path):
    folder = tmp_path / "duo"
    folder.mkdir()
    write_scores(folder, SCORES, Window(SINKS, RECENT))
    return folder


def run(*arguments: str, **flags):
    run_main(MASK, *as_flags(flags), *arguments)


def explicit_logits(oracle, tokens: np.ndarray, full: np.ndarray) -> np.ndarray:
    """transformers' logits with each head's pattern given to it, key by key.

    Args:
      full: bool [L, K], of the key/value heads that see all; others see first and last tokens.
    """
    length = tokens.shape[1]
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    near = (key < SINKS) | (query - key < RECENT)
    for layer, of_layer in zip(oracle.model.layers, full, strict=True):
        seen = (near | np.repeat(of_layer, N // K)[:, None, None]) & (key <= query)
        pattern = hf.torch.as_tensor(np.where(seen, 0.0, -1e30)[None], dtype=hf.torch.float32)
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, pattern=pattern: (args, {**kwargs, "attention_mask": pattern}),
            with_kwargs=True,
        )
    return hf.logits(oracle, tokens)


def test_an_imported_mask_computes_what_its_explicit_pattern_does(model, scores, tmp_path):
    run(from_folder=scores, model=model, thresholds=0.5, mask_file=tmp_path / "m.json")
    tokens = hf.random_tokens((2, 16))
    loaded = sinkjax.load(model)
    fast = sinkjax.specialize(loaded, load_mask(tmp_path / "m.json"))
    ours = fast(jnp.asarray(tokens))
    wanted = explicit_logits(hf.load_llama(model), tokens, np.array(SCORES) >= 0.5)
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
    assert np.abs(ours - loaded(jnp.asarray(tokens))).max() > 0.1


def test_the_mask_says_where_it_is_from_and_has_a_control_of_groups(model, scores, tmp_path):
    run(from_folder=scores, model=model, shares=0.5, mask_file=tmp_path / "m.json", seed=1)
    saved, control = (load_mask(tmp_path / f"{name}.json") for name in ("m", "m.control"))
    published = read_published(scores)
    assert saved.mask == published.mask(sinkjax.load_config(model), share=0.5)
    assert saved.provenance.model == str(model)
    assert saved.provenance.selection == {
        "method": "published",
        "folder": "duo",
        "files": dict(published.files),
        "share": 0.5,
    }
    assert counts_per_layer(control.mask) == counts_per_layer(saved.mask)
    assert control.mask.group_counts(K)["mixed"] == 0
    assert control.provenance.selection["control_of"] == saved.mask.digest
    run(from_folder=scores, model=model, quantile=0.4, paths="w(1,4)")
    saved = load_mask(scores / "mask.json")
    assert saved.mask.counts()["window"] == 6
    assert saved.provenance.selection["path"] == "window(1,4)"


def test_spans_need_the_length_of_the_inputs(model, tmp_path):
    plan = {"alphas": [[0] * N] * L, "betas": [[1, 0.5] * 3] * L}
    (tmp_path / "moa_alpha_beta.json").write_text(json.dumps(plan))
    run(from_folder=tmp_path, model=model, lengths=512)
    saved = load_mask(tmp_path / "mask.json")
    assert saved.mask == SinkMask.from_text("L0-2: f w(64,192) f w(64,192) f w(64,192)")
    assert saved.provenance.lengths == (512,)
    for lengths in ("", "512,1024"):
        with pytest.raises(InputError, match=r"--lengths.*inputs of one length"):
            run(from_folder=tmp_path, model=model, lengths=lengths)
    with pytest.raises(InputError, match=r"^--lengths=0: give the tokens of an input"):
        run(from_folder=tmp_path, model=model, lengths=0)
    with pytest.raises(InputError, match=r"^the spans are of 3 layers .* give the model that"):
        run(from_folder=tmp_path, model="shape:llama-3.2-1b", lengths=512)
    with pytest.raises(InputError, match=r"--shares=0\.5: MoA's spans leave no choice"):
        run(from_folder=tmp_path, model=model, lengths=512, shares=0.5)


def test_a_mask_that_there_is_is_written_for_others(model, scores, tmp_path):
    mask = SinkMask.from_text("L0: 3f 3w(4,8) | L1: 3w(4,8) 3f | L2: 6f")
    save_mask(tmp_path / "m.json", mask, provenance=sinkjax.Provenance(model=str(model)))
    run(mask=tmp_path / "m.json", to_folder=tmp_path / "out")
    back = read_published(tmp_path / "out").mask(sinkjax.load_config(model), threshold=0.5)
    assert back == mask
    run(from_folder=scores, model=model, shares=0.5, to_folder=tmp_path / "other")
    assert read_published(tmp_path / "other").scores.tolist() == [[1, 0], [0, 1], [1, 0]]
    mixed = SinkMask.from_text("L0-2: 2f w(4,8) 3f")
    save_mask(tmp_path / "m.json", mixed)
    with pytest.raises(InputError) as error:
        run(mask=tmp_path / "m.json", to_folder=tmp_path / "third", model=model)
    assert [problem.field for problem in error.value.problems] == [None] * L  # flags are in front
    assert "layer 2, key/value head 0 has heads on several paths" in str(error.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"from_folder": "/nowhere", "shares": 1}, ["--model: name the model"]),
        ({"from_folder": "/nowhere", "model": ...}, ["--from_folder: /nowhere has none of"]),
        ({"from_folder": ..., "model": ...}, ["give a threshold, a quantile or a share"]),
        ({"from_folder": ..., "model": ..., "thresholds": 0}, ["no head is chosen in"]),
        ({"from_folder": ..., "model": ..., "shares": 2}, ["--shares=2"]),
        ({"from_folder": ..., "model": ..., "shares": 1, "paths": "s(zero)"}, ["--paths=s(zero)"]),
        (
            {"from_folder": ..., "model": "shape:llama-3.2-1b", "shares": 1},
            ["3 layers of 2 key/value heads, the model has 16 layers of 8"],
        ),
        (
            {"from_folder": ..., "source": "short", "min_share": 0.5},
            ["--source=short: --from_folder makes no use", "--min_share=0.5: --from_folder makes"],
        ),
        ({"shares": 0.5}, ["--shares=0.5: --results makes no use of it"]),
        ({"mask": "m.json", "from_folder": ...}, ["--mask and --from_folder are two masks"]),
        ({"mask": "m.json", "lengths": "8"}, ["--lengths=8: --mask makes no use", "--to_folder"]),
        ({"mask": "/nowhere.json", "to_folder": "x"}, ["--mask: /nowhere.json: the mask cannot"]),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(flags, said, model, scores, tmp_path):
    known = {"from_folder": scores, "model": model}
    flags = {name: known[name] if value is ... else value for name, value in flags.items()}
    with pytest.raises(InputError) as error:
        run(**flags)
    for part in said:
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["duo"]
    assert not (scores / "mask.json").exists()
