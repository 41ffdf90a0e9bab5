"""Arguments of public functions that are of another kind than they have to be, from Python."""

import dataclasses
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import sinkjax
from sinkjax import Copy, HeadStats, InputError, Plan, Provenance, Sink, SinkMask, Stage, Window
from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.instruments.compare import compare
from sinkjax.masks.published import GroupScores, read_published, write_published
from sinkjax.programs.targets import target_device
from sinkjax.studies.repair.repair import repair_path
from sinkjax.studies.results import Results, output_folder, read_records

pytestmark = pytest.mark.quick

MASK = SinkMask.from_text("L0: 3f w(2,6) 2s(mean)")


@pytest.fixture(scope="module")
def model():
    return tiny.make(num_layers=1)


@pytest.mark.parametrize("given", [None, "L0: 6f", 3, {}])
def test_what_is_no_mask_no_plan_and_no_model_is_named(given, model, tmp_path):
    kind = type(given).__name__
    for call, named in (
        (lambda: sinkjax.specialize(model, given), "mask: "),
        (lambda: sinkjax.specialize(given, MASK), "model: "),
        (lambda: sinkjax.save_mask(tmp_path / "mask.json", given), "mask: "),
        (lambda: sinkjax.compile(given), "model: "),
        (lambda: sinkjax.compile_plan(model, given), "plan: "),
        (lambda: sinkjax.compile_plan(given, Plan((Stage(MASK),))), "model: "),
        (lambda: Plan((Stage(given),)), "stage 0: mask: "),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(named)
        assert f"is needed, not {kind}" in str(error.value)
    with pytest.raises(InputError, match="a plan is made of stages"):
        Plan((given,))


@pytest.mark.parametrize("given", [None, 3, MASK])
def test_what_is_no_text_and_no_file_is_named(given, tmp_path):
    kind = type(given).__name__
    with pytest.raises(InputError, match=f"^path: a mask's name is needed, not {kind}$"):
        sinkjax.load_mask(given)
    with pytest.raises(InputError, match=f"^path: a file's name is needed, not {kind}$"):
        sinkjax.save_mask(given, MASK)
    with pytest.raises(InputError, match=f"^text: a mask's text, .* is needed, not {kind}$"):
        SinkMask.from_text(given)


def test_an_empty_name_is_not_the_folder_at_hand(tmp_path, monkeypatch):
    """Which holds what is asked for."""
    monkeypatch.chdir(tmp_path)
    Results(tmp_path, {"a": 1}).close()
    write_published(tmp_path, SinkMask.from_text("L0: 4f 2w(1,4)"), 3)
    for call in (
        read_records,
        output_folder,
        read_published,
        sinkjax.load_mask,
        repair_path,
        lambda name: write_published(name, MASK, 3),
        lambda name: sinkjax.save_mask(name, MASK),
    ):
        with pytest.raises(InputError, match=r"^\w+=: a (folder|file|mask)'s name is needed$"):
            call("")


def test_fills_may_be_lists(model):
    fills = tiny.make_fills(model)
    tokens = tiny.tokens_of(model, (1, 4))
    logits, wanted = (
        tiny.call(sinkjax.specialize(model, MASK, fills=of), tokens)
        for of in (fills.tolist(), fills)
    )
    np.testing.assert_array_equal(logits, wanted)
    with pytest.raises(ValueError, match=r"fills have shape \(2,\)"):
        sinkjax.specialize(model, MASK, fills=[1, 2])


@pytest.mark.parametrize("lengths", [3, [3], [3, 3, 3], [[3, 3]], [1.5, 2.0], [True, True]])
def test_lengths_of_other_rows_than_the_tokens_are_refused(lengths, model):
    """They were broadcast, or cut to whole numbers."""
    tokens = tiny.tokens_of(model, (2, 4))
    for call in (
        lambda: model(tokens, lengths=lengths),
        lambda: model.prefill(tokens, lengths=lengths, max_length=8),
    ):
        with pytest.raises(InputError, match=r"lengths: they are .*; a whole number for each row"):
            call()


@pytest.mark.parametrize("tokens", [[[1, 2]], "text", None, jnp.ones((1, 2))])
def test_every_call_of_a_model_refuses_what_is_no_batch_of_ids(tokens, model):
    _, cache = model.prefill(tiny.tokens_of(model, (1, 2)), max_length=8)
    for call in (
        lambda: model.prefill(tokens, max_length=8),
        lambda: model.extend(tokens, cache, lengths=[4]),
    ):
        with pytest.raises(InputError, match=r"an array \[B, T\] of whole numbers"):
            call()


# Any argument of the public interface that may be odd: called with a model and the odd value.
ODD = {
    "nothing": None,
    "no text": "",
    "text": "x",
    "half a surrogate": "\ud800",
    "bytes": b"x",
    "below": -1,
    "a part": 2.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "huge": 10**30,
    "true": True,
    "array of true": np.array(True),
    "float32": np.float32(1),
    "complex": 1j,
    "object": object(),
    "function": print,
    "no items": [],
    "texts": ["x"],
    "parts": [2.5],
    "NaNs": [float("nan")],
    "nothings": [None],
    "ragged": [[1], [1, 2]],
    "array": np.array([1, 2]),
    "array of texts": np.array(["x"]),
    "array of JAX": jnp.array([1.5, 2.0]),
    "no fields": {},
    "fields": {1: 2},
}
SCORES = np.linspace(0, 1, 6, dtype=np.float32)[None]
PLAN = Plan.hybrid(MASK, up_to=4)
STAGE = {"up_to": None, "mask": str(MASK)}
MEANS, PLAIN = (SinkMask.from_text(text) for text in ("L0: 6s(mean)", "L0: 6f"))
PUBLISHED = GroupScores(SCORES[:, :2], Window(1, 2), {})
TOKENS = np.array([[1, 2, 3]])
STATS = HeadStats(np.zeros((7, 2, 1, 1, 6)), np.zeros((1, 1, 6)), (0, 1), 4)


def made(model, **changes):
    return sinkjax.Llama(dataclasses.replace(model.config, **changes), rngs=nnx.Rngs(0))


def scored(scores=SCORES, **given):
    return SinkMask.from_scores(scores, **{"threshold": 0.5, "path": Sink(), **given})


def ranked(scores=SCORES, **given):
    return SinkMask.from_quantile(scores, **{"quantile": 0.5, "path": Sink(), **given})


def measured(model, tokens=TOKENS, **given):
    return sinkjax.measure_sinks(model, tokens, **given)


def compared(model, excerpts=TOKENS, **given):
    return compare(model, model, excerpts, **given)


def saved(mask=PLAIN, **given):
    """A mask's file as it is read again, which has to be possible."""
    sinkjax.save_mask("mask.json", mask, **given)
    return sinkjax.load_mask("mask.json")


CALLS = {
    "heads": lambda model, v: SinkMask(v),
    "heads of a layer": lambda model, v: SinkMask([v]),
    "config of full": lambda model, v: SinkMask.full(v),
    "chosen": lambda model, v: SinkMask.where(v, Sink()),
    "path": lambda model, v: SinkMask.where(MASK.masked, v),
    "chosen copies": lambda model, v: SinkMask.copy_first_layer(v),
    "scores": lambda model, v: scored(v),
    "threshold": lambda model, v: scored(threshold=v),
    "definition": lambda model, v: scored(definition=v),
    "min_share": lambda model, v: scored(min_share=v),
    "num_kv_heads": lambda model, v: scored(num_kv_heads=v),
    "ranked scores": lambda model, v: ranked(v),
    "quantile": lambda model, v: ranked(quantile=v),
    "ranked num_kv_heads": lambda model, v: ranked(num_kv_heads=v),
    "length of a text": lambda model, v: SinkMask.from_text("L0: w(4,2+L/2)", v),
    "path of replaced": lambda model, v: MASK.replaced(v, [0]),
    "of_layers": lambda model, v: MASK.replaced(lambda path, of: path, v),
    "windows": lambda model, v: MASK.within(v),
    "a window": lambda model, v: MASK.hiding([v]),
    "config": lambda model, v: MASK.check(v),
    "counted num_kv_heads": lambda model, v: MASK.group_counts(v),
    "chips": lambda model, v: MASK.balanced(v, 2),
    "balanced num_kv_heads": lambda model, v: MASK.balanced(1, v),
    "costs": lambda model, v: MASK.balanced(2, 2, costs=v),
    "layer of a copy": lambda model, v: Copy(v, 0),
    "sinks": lambda model, v: Window(v, 4),
    "recent": lambda model, v: Window(1, v),
    "within": lambda model, v: Window(1, 4, v),
    "fill": lambda model, v: Sink(v),
    "stages": lambda model, v: Plan(v),
    "a stage": lambda model, v: Plan([v]),
    "crossing": lambda model, v: Plan([Stage(MASK)], v),
    "mask of hybrid": lambda model, v: Plan.hybrid(v, up_to=3),
    "up_to": lambda model, v: Plan.hybrid(MASK, up_to=v),
    "length": lambda model, v: PLAN.mask(v),
    "lengths of reached": lambda model, v: PLAN.reached(v, 3),
    "num_tokens": lambda model, v: PLAN.reached([3], v),
    "masks": lambda model, v: Plan.by_length(v),
    "fields": lambda model, v: Plan.from_dict(v),
    "stages of fields": lambda model, v: Plan.from_dict({"crossing": "stay", "stages": v}),
    "crossing of fields": lambda model, v: Plan.from_dict({"crossing": v, "stages": [STAGE]}),
    "up_to of fields": lambda model, v: Plan.from_dict(
        {"crossing": "stay", "stages": [{**STAGE, "up_to": v}, STAGE]}
    ),
    "mask of save_mask": lambda model, v: saved(v),
    "provenance": lambda model, v: saved(provenance=v),
    "quality": lambda model, v: saved(quality=v),
    "a quality": lambda model, v: saved(quality={"kl": v}),
    "fills of save_mask": lambda model, v: saved(MEANS, fills=v),
    "path of save_mask": lambda model, v: sinkjax.save_mask(v, PLAIN),
    "path of load_mask": lambda model, v: sinkjax.load_mask(v),
    **{
        f"{name} of a provenance": lambda model, v, name=name: saved(
            provenance=Provenance(**{name: v})
        )
        for name in vars(Provenance())
    },
    "records": lambda model, v: Provenance.from_records(v),
    "model of model_digest": lambda model, v: sinkjax.model_digest(v),
    "tokenizer": lambda model, v: sinkjax.tokenizer_digest(v),
    "model of save_orbax": lambda model, v: sinkjax.save_orbax(v, "orbax"),
    "model of save_safetensors": lambda model, v: sinkjax.save_safetensors(v, "folder"),
    "folder of save_orbax": lambda model, v: sinkjax.save_orbax(model, v),
    "folder of save_safetensors": lambda model, v: sinkjax.save_safetensors(model, v),
    "dtype": lambda model, v: sinkjax.load("nomodel", dtype=v),
    "mesh": lambda model, v: sinkjax.load("nomodel", mesh=v),
    "model of load_config": lambda model, v: sinkjax.load_config(v),
    "config of a model": lambda model, v: sinkjax.Llama(v, rngs=nnx.Rngs(0)),
    "num_heads": lambda model, v: made(model, num_heads=v),
    "embed_dim": lambda model, v: made(model, embed_dim=v),
    "rope": lambda model, v: made(model, rope=v),
    "rope type": lambda model, v: made(model, rope=sinkjax.RopeConfig(type=v)),
    "activation": lambda model, v: made(model, activation=v),
    "max_length of prefill": lambda model, v: model.prefill(TOKENS, max_length=v),
    "final_lengths": lambda model, v: model.prefill(TOKENS, max_length=8, final_lengths=v),
    "cache": lambda model, v: model.decode([1], v),
    "cache of extend": lambda model, v: model.extend(TOKENS, v, lengths=[6]),
    "model of measure_sinks": lambda model, v: measured(v),
    "tokens": measured,
    "lengths": lambda model, v: measured(model, lengths=v),
    "key_positions": lambda model, v: measured(model, key_positions=v),
    "a key position": lambda model, v: measured(model, key_positions=(v,)),
    "tail": lambda model, v: measured(model, tail=v),
    "definition of a score": lambda model, v: STATS.score(v),
    "key_position": lambda model, v: STATS.score("mean", v),
    "fills": lambda model, v: sinkjax.specialize(model, MEANS, fills=v),
    "device": lambda model, v: None if v is None else sinkjax.compile(model, device=v),
    "layers of compile": lambda model, v: sinkjax.compile(model, layers=v),
    "attention": lambda model, v: sinkjax.compile(model, attention=v),
    "fills of a plan": lambda model, v: sinkjax.compile_plan(model, Plan([Stage(MEANS)]), fills=v),
    "excerpts": compared,
    "score_from": lambda model, v: compared(model, score_from=v),
    "generated": lambda model, v: compared(model, generated=v),
    "batch_size": lambda model, v: compared(model, score_from=0, batch_size=v),
    "folder of read_records": lambda model, v: read_records(v),
    "folder of read_published": lambda model, v: read_published(v),
    "config of scores": lambda model, v: PUBLISHED.mask(v, share=0.5),
    "share of scores": lambda model, v: PUBLISHED.mask(model.config, share=v),
    "window of scores": lambda model, v: PUBLISHED.mask(model.config, share=0.5, window=v),
    "target": lambda model, v: target_device(v),
    "config of saved_over_chips": lambda model, v: saved_over_chips(v, MASK, Workload(8)),
    "mask of saved_over_chips": lambda model, v: saved_over_chips(model.config, v, Workload(8)),
}


@pytest.mark.parametrize("argument", CALLS)
def test_what_is_odd_is_refused_here_or_can_be_used(argument, model, tmp_path, monkeypatch):
    """No error of Python, NumPy or JAX comes through, which would not name the argument."""
    monkeypatch.chdir(tmp_path)
    library = str(pathlib.Path(sinkjax.__file__).parent)
    raw = []
    for name, value in ODD.items():
        try:
            CALLS[argument](model, value)
        except Exception as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            here = last.filename.startswith(library) and last.line.startswith("raise ")
            if not here or not isinstance(error, ValueError | TypeError):
                raw.append(f"{name}: {error!r}")
    assert not raw


WHOLE = (
    "num_kv_heads", "ranked num_kv_heads", "length of a text", "a window", "counted num_kv_heads",
    "chips", "balanced num_kv_heads", "layer of a copy", "sinks", "recent", "within",
    "num_heads", "embed_dim", "up_to", "length", "num_tokens", "max_length of prefill",
    "a key position", "key_position",
    "tail", "score_from", "generated", "batch_size",
)  # fmt: skip


@pytest.mark.parametrize("argument", WHOLE)
@pytest.mark.parametrize("value", [True, np.array(True), 1.0, 2.5, "1", float("nan")])
def test_what_is_no_whole_number_is_not_taken_for_one(argument, value, model):
    with pytest.raises((ValueError, TypeError)):
        CALLS[argument](model, value)


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("heads", None, "heads: layers of paths are needed, such as"),
        ("config of full", None, "config: a model's config, such as .* is needed, not NoneType"),
        ("threshold", "x", "threshold is x; it has to lie between 0 and 1"),
        ("definition", "log-odds", "definition 'log-odds' is unknown; known are mean, "),
        ("num_kv_heads", 2.0, "num_kv_heads=2: so many key/value heads do not divide 6"),
        ("scores", [[True] * 6], "scores are bool; real numbers are needed"),
        ("a window", 2.5, "windows=2.5: whole numbers from 1 on are allowed"),
        ("windows", [4, 4], "windows: they are 2; one for each of 1 layers is needed"),
        ("costs", [[1.0]], r"costs: they are float64 \(1, 1\); numbers \[1, 6\] are needed"),
        ("recent", True, "recent of window is True; a whole number is needed"),
        ("stages", None, "stages: a sequence of stages is needed"),
        ("lengths of reached", [], "lengths=: one length or more is needed"),
        ("masks", {}, r"masks=\{\}: a mask for each length is needed"),
        ("fields", [], 'a plan has "crossing" and a list of "stages"'),
        ("provenance", None, "provenance: a Provenance is needed, not NoneType"),
        ("lengths of a provenance", (2.5,), "'provenance.lengths' has what is no whole number"),
        ("model of a provenance", 5, "'provenance.model' is no text"),
        ("quality", {"kl": float("nan")}, "quality: it is not JSON: Out of range"),
        ("quality", {1: 0, "1": 0}, "quality: it is not JSON: a key is there twice"),
        ("folder of save_safetensors", "", "folder=: a folder's name is needed"),
        ("tokenizer", None, "tokenizer=NoneType: a fast tokenizer is needed"),
        ("key_positions", 2, "key_positions=2: give one or more of 0 to 7"),
        ("a key position", 2.5, "key_positions=2.5: whole numbers from 0 to 7 are allowed"),
        ("tail", None, "tail: whole numbers from 1 on are allowed"),
        ("key_position", "x", "key position x was not measured"),
        ("fills", [[1], [1, 2]], "fills: it makes no array: "),
        (
            "device",
            "cpu",
            "device: a jax.Device, .* or none, is needed, not str",
        ),
        ("rope type", "lineer", "rope type=lineer: allowed are default, linear"),
        ("num_heads", 5, "num_kv_heads=2: so many key/value heads do not divide 5"),
        ("cache", None, "cache: a cache, such as prefill gives, is needed, not NoneType"),
    ],
)
def test_what_is_refused_is_named(argument, value, said, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=said):
        CALLS[argument](model, value)


def test_whole_numbers_may_be_of_any_type():
    for number in (np.int64(2), np.array(2), jnp.int32(2)):
        assert Window(number, 4) == Window(2, 4)
        assert MASK.group_counts(number) == MASK.group_counts(2)
        assert PLAN.stage(number) == 0
        assert Plan.by_length({2: MASK}).stages == (Stage(MASK),)
        assert STATS.score("mean", number - 1).shape == (1, 1, 6)


def test_weights_and_tokens_without_values_are_refused(model, tmp_path, monkeypatch):
    """Under `jax.jit`, `vmap` and `grad`, by what compiles, runs programs, or reads values."""
    monkeypatch.chdir(tmp_path)
    made_for = Provenance(model_digest=sinkjax.model_digest(model))
    sinkjax.save_mask("mask.json", PLAIN, provenance=made_for)
    own, program = sinkjax.load_mask("mask.json"), sinkjax.compile(model, prefill_lengths=(4,))
    for call in (
        sinkjax.compile,
        sinkjax.model_digest,
        lambda model: sinkjax.compile_plan(model, PLAN),
        lambda model: sinkjax.specialize(model, own),
        lambda model: sinkjax.save_orbax(model, "orbax"),
        lambda model: sinkjax.save_safetensors(model, "folder"),
    ):
        with pytest.raises(InputError, match=r"^model: its weights are traced: .* outside of jax"):
            jax.jit(call)(model)
    for call in (
        jax.jit(program.generate),
        jax.vmap(program.generate),
        jax.jit(lambda tokens: program.generate(list(tokens))),
        jax.jit(lambda tokens: program.generate([tokens[0], [1]])),
    ):
        with pytest.raises(InputError, match=r"^prompts: they are traced: .* prefill and decode"):
            call(TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


@pytest.mark.parametrize("save", [sinkjax.save_orbax, sinkjax.save_safetensors])
def test_a_specialized_model_is_not_saved_as_the_model_that_its_config_says(save, model, tmp_path):
    """One could not be read again, the other deleted the model that the folder had."""
    save(model, tmp_path / "whole")
    fast = sinkjax.specialize(model, MASK, fills=tiny.make_fills(model))
    for folder in (tmp_path / "whole", tmp_path / "new"):
        with pytest.raises(InputError, match=r"^model: it is specialized: save the model that"):
            save(fast, folder)
    assert sinkjax.model_digest(sinkjax.load(tmp_path / "whole")) == sinkjax.model_digest(model)
    assert not (tmp_path / "new").exists()


def test_a_cache_of_another_model_mask_or_dtype_is_refused(model):
    """Where shapes differ JAX said so of arrays that no caller knows; where not, nobody did."""
    ring, other = (sinkjax.specialize(model, SinkMask.from_text(f"L0: 6w({n},4)")) for n in (2, 1))
    wider = sinkjax.specialize(model, SinkMask.from_text("L0: 6w(1,5)"))  # as many slots as `ring`
    full = sinkjax.specialize(model, PLAIN)
    half, deeper = tiny.make(num_layers=1, dtype=jnp.bfloat16), tiny.make(num_layers=2)
    models = [model, ring, other, wider, half, deeper]
    prefill = lambda model: jax.eval_shape(lambda: model.prefill(TOKENS, max_length=16))[1]  # noqa: E731
    caches = list(map(prefill, models))
    token = np.ones(1, np.int32)
    for at, reader in enumerate(models):
        for of, cache in enumerate(caches):
            calls = [
                lambda reader=reader, cache=cache: reader.decode(token, cache),
                lambda reader=reader, cache=cache: reader.extend(TOKENS, cache, lengths=[6]),
            ]
            for call in calls if at != of else ():
                with pytest.raises(InputError, match=r"^cache: it is of another model, mask or "):
                    call()
    for reader, cache in ((model, prefill(full)), (full, caches[0])):  # one program
        jax.eval_shape(lambda cache, reader=reader: reader.decode(token, cache), cache)


def test_what_is_loaded_in_a_dtype_of_jax_is_in_it(model, tmp_path):
    """As Llama takes them; it had to be its name."""
    sinkjax.save_safetensors(model, tmp_path)
    for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        assert sinkjax.load(tmp_path, dtype=dtype).embedding.dtype == jnp.bfloat16
    with pytest.raises(InputError, match=r"^dtype=.*float64.*: allowed are float32, bfloat16"):
        sinkjax.load(tmp_path, dtype=np.float64)


def test_an_error_does_not_show_a_whole_model(model):
    for load in (sinkjax.load, sinkjax.load_config, sinkjax.load_tokenizer):
        with pytest.raises(InputError, match=r"^model: a name or a path is needed, not Llama$"):
            load(model)


def test_what_makes_no_array_is_told_what_would(model):
    with pytest.raises(
        InputError, match=r"^tokens: it makes no array: .*; give rows of one length"
    ):
        sinkjax.measure_sinks(model, [[1, 2], [1, 2, 3]])
    with pytest.raises(InputError, match=r"^scores: .*; give its values, outside of jax\.jit"):
        jax.jit(scored)(SCORES)
