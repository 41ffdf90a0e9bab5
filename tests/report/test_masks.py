"""The mask's heat map, read back from its pixels."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Sink, Window
from sinkjax.report.masks import COLOURS, mask_map

pytestmark = pytest.mark.quick

SHAPES = [(30, 9, 3), (16, 32, 8), (80, 64, 8), (1, 1, 1)]


def some_mask(num_layers, num_heads):
    """Every path, spread at random; copies only of layer 0, which is `full` there."""
    rng = np.random.default_rng(0)
    paths = [Full(), Window(4, 16), Window(4, 128), Sink("first"), Copy(0, 0)]
    drawn = rng.integers(len(paths), size=(num_layers, num_heads))
    drawn[0] = 0
    return SinkMask([[paths[number] for number in layer] for layer in drawn])


def pixels_at_heads(figure, num_layers, num_heads):
    """The colour in the middle of each head's square, [L, N, 3] in [0, 1]."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    (axes,) = figure.axes
    layer, head = np.indices((num_layers, num_heads))
    # Off the middle, so as not to hit a line that was drawn half a pixel aside.
    at = axes.transData.transform(np.stack([head.ravel() + 0.6, layer.ravel() + 0.6], axis=1))
    x, y = at.astype(int).T
    return pixels[len(pixels) - 1 - y, x].reshape(num_layers, num_heads, 3)


@pytest.mark.parametrize(("num_layers", "num_heads", "num_kv_heads"), SHAPES)
def test_every_heads_square_has_the_colour_of_its_path(num_layers, num_heads, num_kv_heads):
    mask = some_mask(num_layers, num_heads)
    colours = pixels_at_heads(mask_map(mask, "tiny", num_kv_heads), num_layers, num_heads)
    wanted = [[to_rgb(COLOURS[path.kind]) for path in layer] for layer in mask.heads]
    np.testing.assert_allclose(colours, wanted, atol=1 / 255)


@pytest.mark.parametrize(("num_layers", "num_heads", "num_kv_heads"), SHAPES)
def test_nothing_written_overlaps_or_leaves_the_figure(num_layers, num_heads, num_kv_heads):
    figure = mask_map(some_mask(num_layers, num_heads), "tiny", num_kv_heads)
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    texts = [*figure.texts, *legend.get_texts(), axes.xaxis.label, axes.yaxis.label]
    texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 4
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not box.overlaps(axes.get_window_extent())
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)


def test_the_legend_names_the_paths_that_occur_and_counts_their_heads():
    mask = SinkMask.from_text("L0: 3f w(0,4) | L1: f w(0,4) w(0,8) s(zero)")
    (legend,) = mask_map(mask, "tiny", 1).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["full: 4", "window (2 kinds): 3", "sink(zero): 1"]
    colours = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert colours == [to_rgb(COLOURS[kind]) for kind in ("full", "window", "sink")]


def test_the_headline_counts_and_the_digest_names_the_mask():
    mask = some_mask(6, 4)
    texts = " ".join(text.get_text() for text in mask_map(mask, "tiny $x_1$", 2).texts)
    assert f"{mask.masked.sum()} of 24" in texts
    assert "tiny $x_1$" in texts
    assert mask.digest[:16] in texts


def test_groups_that_do_not_divide_the_heads_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        mask_map(some_mask(2, 4), "tiny", 3)
