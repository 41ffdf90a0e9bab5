"""Every example, run as it is."""

import re

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from scripts import ROOT

from examples import export, finetune, gradients, mesh, models, perplexity
from sinkjax.specialize.build import specialize


def test_every_example_is_tested_and_in_the_readme():
    shown = {"call_exported", "export", "finetune", "gradients", "mesh", "perplexity"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*shown, "models"}
    readme = (ROOT / "README.md").read_text()
    assert [name for name in shown if f"examples/{name}.py" not in readme] == []


def test_the_tiny_model_has_every_path():
    kinds = {path.kind for layer in models.MASK.heads for path in layer}
    assert kinds == {"full", "copy", "window", "sink"}


@pytest.mark.default_compilation
def test_perplexity_of_the_real_model_by_a_scan(smollm2_gguf):
    perplexities = perplexity.main()
    assert 5 < perplexities["baseline"] < perplexities["windows"] < 500


def test_gradients_of_each_row_are_its_slopes():
    """Along its own gradient a row's loss rises by the gradient's norm, every path included."""
    fast, tokens, by_row = gradients.main()
    parts = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(by_row)) if "attention" in path}
    assert {"q", "k", "v", "o", "first_o", "other_o"} <= parts
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_row))

    def slope(model, gradient, row):
        norm, small = optax.tree.norm(gradient), 0.003
        at = lambda step: gradients.loss(  # noqa: E731
            jax.tree.map(lambda p, g: p + step / norm * g, model, gradient), row
        )
        return norm, (at(small) - at(-small)) / (2 * small)

    norms, slopes = tiny.quick_jit(jax.vmap(slope, in_axes=(None, 0, 0)))(fast, by_row, tokens)
    np.testing.assert_allclose(slopes, norms, rtol=2e-3)


def test_an_exported_file_runs_without_sinkjax(capfd):
    """On this platform, in a process that would fail if it had imported sinkjax."""
    here, there = export.main()
    assert "exported for cpu, tpu, cuda" in capfd.readouterr().out  # said by that process
    np.testing.assert_allclose(there["logits"], here["logits"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(there["tokens"], here["tokens"])
    assert here["tokens"].shape == (export.ROWS, export.NEW)


def test_fine_tuning_does_not_bring_removed_slices_back():
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies schedules and counts
        baseline, tuned, losses = finetune.main()
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    original = models.tiny_llama()
    fresh = specialize(original, models.MASK)
    assert jax.tree.structure(tuned) == jax.tree.structure(fresh)
    for after, before in zip(jax.tree.leaves(tuned), jax.tree.leaves(fresh), strict=True):
        assert after.shape == before.shape
        assert not np.array_equal(after, before)
    for after, before in zip(jax.tree.leaves(baseline), jax.tree.leaves(original), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_mesh_of_the_callers_own_changes_nothing():
    by_mesh = mesh.main()
    assert set(by_mesh) == {"one device", "heads", "rows"}
    for logits in by_mesh.values():
        np.testing.assert_allclose(logits, by_mesh["one device"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("page", ["README.md", "docs/atlas.md"])
def test_python_that_a_page_prints_runs_with_the_real_model(
    page, smollm2_gguf, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    made = {}
    exec(block, made)
    assert made["mask"].masked.any()
