"""Continuations over a mesh: rows that its devices have alike, and the tokens of one device."""

import numpy as np
import tiny

from sinkjax import SinkMask
from sinkjax.distributed import make_mesh
from sinkjax.models.sharding import shard
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.quality import measure
from sinkjax.studies.quality.measure import compile_continuations

MASK = SinkMask.from_text("L0: s(first) 5f | L1: 6w(2,4)")


def test_each_device_of_data_has_as_many_rows_as_one_has_alone(monkeypatch):
    """Room for two rows at a time, of six; five of them would have been whole on each of four."""
    monkeypatch.setattr(measure, "CACHE_TOKENS", 24)
    model, prompts = tiny.make(num_layers=2), list(tiny.tokens_of(tiny.make(), (5, 8)))
    candidate = Candidate.of_mask("mask", MASK, (8,), None)
    tokens, rows = [], []
    for of in (model, shard(model, make_mesh({"data": 4, "model": 2}))):
        programs = compile_continuations(of, candidate, (8,), len(prompts), 4)
        rows += {program.batch_size for program in programs.programs}
        tokens.append(np.stack(programs.generate(prompts, max_new_tokens=4)))
    assert rows == [2, 8]
    np.testing.assert_array_equal(*tokens)
