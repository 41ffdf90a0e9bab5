"""What tables of quality count."""

import numpy as np
import pytest
import tiny

from sinkjax import SinkMask
from sinkjax.instruments.judge import Judge
from sinkjax.studies.quality.summary import summarize_quality
from sinkjax.studies.quality.tables import masked_heads

pytestmark = pytest.mark.quick


def test_a_head_from_which_its_window_hides_nothing_is_not_counted_as_masked():
    """In a layer with a window of the model's own a wider one is as good as `full`."""
    model = tiny.make(num_heads=2, num_kv_heads=1, layer_windows=(5, None, 5))
    tokens = np.random.default_rng(1).integers(0, 61, (2, 16)).astype(np.int32)
    mask = SinkMask.from_text("L0: w(1,5) f | L1: f w(2,8) | L2: w(0,7) w(3,4)")
    stats = Judge(model, tokens).stats(mask, 0)
    result = summarize_quality(stats, mask.hiding(model.config.layer_windows), seed=0)
    record = {"candidate": {"heads": mask.counts()}, "result": result}
    assert masked_heads(record) == "2/6"
    del result["heads"]  # as in records of earlier versions
    assert masked_heads(record) == "4/6"
