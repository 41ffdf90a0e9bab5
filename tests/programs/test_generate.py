"""Generated tokens: against transformers, and against themselves however they are computed."""

import dataclasses
from pathlib import Path

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf import torch

import sinkjax
from sinkjax.models.abstract import abstract_model
from sinkjax.models.sampling import make_sampler
from sinkjax.programs.compile import LAYERS, Program, choose_sizes, compile
from sinkjax.programs.generate import MAX_STOP_TOKENS, decode_steps

pytestmark = pytest.mark.default_compilation

NEW = 13
SAMPLING = {"temperature": 1.3, "top_k": 40, "top_p": 0.95}
PROMPTS = Path(__file__).parents[2] / "configs" / "prompts.txt"


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    """Ragged, on both sides of the smaller bucket, one more than fits two calls of two rows."""
    return [hf.random_tokens((n,), seed=n) for n in (7, 1, 33, 16, 17)]


@pytest.fixture(scope="module")
def program(tiny) -> Program:
    """Two rows; a number of steps that divides nothing."""
    return compile(tiny[0], batch_size=2, prefill_lengths=(40, 16), max_length=56, steps_per_call=5)


@pytest.fixture(scope="module")
def alone(tiny) -> Program:
    """One row, one bucket, one step a call: the plainest program that there is."""
    return compile(tiny[0], prefill_lengths=(40,), max_length=60, steps_per_call=1)


def _greedy(oracle, tokens: np.ndarray, count: int) -> np.ndarray:
    """transformers' own generation with its cache."""
    inputs = torch.as_tensor(tokens[None], dtype=torch.long)
    options = dict(do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        out = oracle.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, **options
        )
    return out[0, len(tokens) :].numpy()


def test_greedy_tokens_of_ragged_prompts_equal_transformers(tiny, program, prompts):
    new = program.generate(prompts, max_new_tokens=NEW)
    for tokens, ours in zip(prompts, new, strict=True):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, _greedy(tiny[1], tokens, NEW))


def test_greedy_tokens_of_the_real_model_equal_transformers(smollm2, smollm2_tokenizer, hf_smollm2):
    lines = [line for line in PROMPTS.read_text().splitlines() if line and line[0] != "#"]
    texts = [" ".join(line.split()[: 3 + 3 * i]) for i, line in enumerate(lines[::10][:10])]
    rows = [smollm2_tokenizer(text)["input_ids"] for text in texts]
    assert len({len(row) for row in rows}) > 3
    program = compile(smollm2, batch_size=10, prefill_lengths=(64,), max_length=128)
    for row, new in zip(rows, program.generate(rows, max_new_tokens=64), strict=True):
        # Theirs, too, if each is the likeliest after those before it: one pass instead of 64 steps.
        logits = hf.logits(hf_smollm2, np.array([[*row, *new]]))[0]
        np.testing.assert_array_equal(new, logits[len(row) - 1 : -1].argmax(axis=-1))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, SAMPLING])
def test_tokens_do_not_depend_on_batch_bucket_or_steps_a_call(program, alone, prompts, sampling):
    together = program.generate(prompts, max_new_tokens=NEW, seed=11, **sampling)
    for index, tokens in enumerate(prompts):
        single = alone.generate(tokens, max_new_tokens=NEW, seed=11 + index, **sampling)
        np.testing.assert_array_equal(together[index], single)


def test_seeds_can_be_given_one_by_one(program, prompts):
    first = program.generate(prompts, max_new_tokens=4, seed=[5, 5, 9, 5, 5], **SAMPLING)
    again = program.generate(prompts[::-1], max_new_tokens=4, seed=[5, 5, 9, 5, 5], **SAMPLING)
    for tokens, repeated in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(tokens, repeated)
    other = program.generate(prompts, max_new_tokens=4, seed=[6, 6, 8, 6, 6], **SAMPLING)
    assert any((tokens != others).any() for tokens, others in zip(first, other, strict=True))


@pytest.mark.parametrize("place", [0, 1, 5, NEW - 1])
def test_a_row_ends_with_its_stop_token_and_the_others_go_on(program, prompts, place):
    whole = program.generate(prompts, max_new_tokens=NEW)
    stop = int(whole[2][place])
    for full, cut in zip(
        whole, program.generate(prompts, max_new_tokens=NEW, stop_tokens=[stop, 100]), strict=True
    ):
        ends = np.flatnonzero(np.isin(full, [stop, 100]))
        np.testing.assert_array_equal(cut, full[: ends[0] + 1] if ends.size else full)


def test_tokens_are_streamed_as_they_come_the_first_one_alone(program, prompts):
    calls: list[tuple[int, list[int]]] = []
    new = program.generate(
        prompts, max_new_tokens=NEW, on_tokens=lambda row, tokens: calls.append((row, tokens))
    )
    for index, tokens in enumerate(new):
        own = [piece for row, piece in calls if row == index]
        assert [token for piece in own for token in piece] == tokens.tolist()
        assert list(map(len, own)) == [1, 5, 5, 2]


def test_prompts_may_be_arrays_lists_one_or_many(program):
    tokens = hf.random_tokens((2, 9))
    rows = program.generate(tokens, max_new_tokens=3)
    for form in (tokens.tolist(), list(tokens), jnp.asarray(tokens)):
        np.testing.assert_array_equal(program.generate(form, max_new_tokens=3), rows)
    for form in (tokens[0], tokens[0].tolist(), jnp.asarray(tokens[0])):
        np.testing.assert_array_equal(program.generate(form, max_new_tokens=3), rows[0])
    assert program.generate(tokens[0], max_new_tokens=1).tolist() == rows[0][:1].tolist()
    assert program.generate(tokens[:0], max_new_tokens=1) == []


@pytest.mark.default_compilation(False)
@pytest.mark.parametrize("layers", LAYERS)
def test_prompts_beyond_every_bucket_come_in_pieces(tiny, prompts, layers):
    """Rows of a call end in different pieces; the last fills all the room that there is."""
    program = compile(tiny[0], batch_size=2, prefill_lengths=(3, 7), max_length=46, layers=layers)
    assert "extend" not in vars(program)  # nobody has asked for it
    whole = compile(tiny[0], batch_size=2, prefill_lengths=(33,), max_length=46, layers=layers)
    for sampling in ({}, SAMPLING):
        settings = dict(max_new_tokens=NEW, seed=5, **sampling)
        tokens, wanted = (p.generate(prompts, **settings) for p in (program, whole))
        for ours, theirs in zip(tokens, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert program.extend.name == "extend 7"
    built = [*program.executables, program.extend]
    assert program.compile_seconds == sum(e.lowering_seconds + e.compile_seconds for e in built)


def test_a_prompt_may_fill_all_the_room_there_is(tiny, program):
    tokens = hf.random_tokens((40,))
    ours = program.generate(tokens, max_new_tokens=16)
    np.testing.assert_array_equal(ours, _greedy(tiny[1], tokens, 16))


def test_everything_that_is_wrong_with_a_request_is_named(program):
    bad = [[], [3, 101], hf.random_tokens((57,)).tolist(), hf.random_tokens((40,)).tolist()]
    with pytest.raises(sinkjax.InputError) as error:
        program.generate(
            bad, max_new_tokens=17, top_k=0, temperature=0.5, stop_tokens=range(33), seed=[1]
        )
    text = str(error.value)
    for part in (
        "prompt 0 is empty",
        "prompt 1 holds token 101",
        "prompt 2 has 57 tokens, which with max_new_tokens 17 is more than max_length, 56",
        "prompt 3 has 40 tokens, which with max_new_tokens 17 is more than max_length, 56",
        f"stop_tokens={','.join(map(str, range(33)))}: at most 32",
        "seed=1: give one for each of the 4 prompts",
        "top_k=0: ",
    ):
        assert part in text
    with pytest.raises(sinkjax.InputError, match="max_new_tokens=0: "):
        program.generate([1, 2], max_new_tokens=0)


@pytest.mark.parametrize(
    ("prompts", "settings", "named"),
    [
        ([], {}, "the prompt is empty"),
        ("text", {}, "gives, are needed, not str"),
        (
            7,
            {},
            'prompts: token ids, such as tokenizer(text)["input_ids"] gives, are needed, not int',
        ),
        (["one", "two"], {}, "prompt 1 is text; token ids, such as tokenizer(text)"),
        ([1.5, 2.0], {}, "the prompt is float64"),
        ([True], {}, "the prompt is bool"),
        ([[1, [2]]], {}, "prompt 0 is object"),
        ([[1], [2**70]], {}, "prompt 1 is object"),
        ([-1], {}, "the prompt holds token -1"),
        ([1], {"max_new_tokens": 2.5}, "max_new_tokens=2.5: "),
        ([1], {"max_new_tokens": True}, "max_new_tokens=True: "),
        ([1], {"max_new_tokens": "3"}, "max_new_tokens=3: "),
        ([1], {"max_new_tokens": 2**40}, "more than max_length, 56. Ask for at most 55, or"),
        ([1] * 60, {}, "more than max_length, 56. Give a shorter one, or"),
        ([1], {"stop_tokens": [2**40]}, "stop_tokens=1099511627776: the vocabulary has ids 0 to"),
        ([1], {"stop_tokens": [3, -1]}, "stop_tokens=-1: "),
        ([1], {"stop_tokens": [2.0]}, "stop_tokens=2: "),
        ([1], {"stop_tokens": np.ones((2, 2), int)}, "stop_tokens=[1 1]: "),
        ([1], {"stop_tokens": None}, "stop_tokens: the vocabulary has ids 0 to"),
        ([1], {"stop_tokens": [[1]]}, "stop_tokens=1: the vocabulary has ids 0 to"),
        ([1, [2]], {}, "the prompt is object"),
        ([1], {"seed": 1.5}, "seed=1.5: a whole number"),
        ([1], {"seed": jax.random.key(0)}, "a whole number is needed"),
        ([1], {"on_tokens": 3}, "on_tokens=3: a function"),
        ([1], {"seed": True}, "seed=True: a whole number"),
        ([1], {"temperature": True}, "temperature=True: "),
        ([1], {"temperature": "1"}, "temperature=1: "),
        ([1], {"temperature": 1.0, "top_k": 2.0}, "top_k=2: "),
        ([1], {"temperature": 1.0, "top_k": True}, "top_k=True: "),
    ],
)
def test_a_request_that_is_none_is_refused(program, prompts, settings, named):
    with pytest.raises(sinkjax.InputError) as error:
        program.generate(prompts, **{"max_new_tokens": 3, **settings})
    assert named in str(error.value)


def test_numbers_may_be_of_any_type_and_size(program):
    settings = {"max_new_tokens": 4, "temperature": 0.7, "seed": 5}
    plain = program.generate([1, 2], **settings)
    typed = {"max_new_tokens": np.int64(4), "temperature": np.float32(0.7), "seed": np.uint8(5)}
    for more in ({}, {"top_k": 2**31}, {"top_k": 2**70}, {"top_k": np.int16(101), "top_p": 1}):
        np.testing.assert_array_equal(program.generate([1, 2], **typed, **more), plain)
    for stop in (plain[1:2], jnp.asarray(plain[1:2]), jnp.int32(plain[1])):
        tokens = program.generate([jnp.int32(1), jnp.int32(2)], **settings, stop_tokens=stop)
        assert tokens.tolist() == plain[:2].tolist()


def _damaged(program: Program, name: str, value: jax.Array) -> Program:
    """The same executables with another array."""
    return dataclasses.replace(program, parameters={**program.parameters, name: value})


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, SAMPLING])
def test_logits_that_are_not_finite_give_no_token(program, sampling):
    """A damaged row of the embedding is met by a token that was drawn, and then by a prompt."""
    settings = {"max_new_tokens": NEW, "seed": 3, **sampling}
    drawn = program.generate([5, 6], **settings).tolist()
    place = next(i for i, token in enumerate(drawn) if token not in (5, 6))
    embedding = program.parameters["embedding"].at[drawn[place], 0].set(jnp.nan)
    damaged = _damaged(program, "embedding", embedding)
    seen = []
    with pytest.raises(sinkjax.InputError) as error:
        damaged.generate([5, 6], on_tokens=lambda _, new: seen.extend(new), **settings)
    message = f"logits are not finite after {3 + place} tokens of prompt 0: activations outgrow"
    assert str(error.value).startswith(message)
    assert seen == drawn[: len(seen)]
    settings["max_new_tokens"] = place + 1
    assert damaged.generate([5, 6], **settings).tolist() == drawn[: place + 1]
    settings["max_new_tokens"] = 1
    with pytest.raises(
        sinkjax.InputError, match="logits are not finite after 2 tokens of prompt 1: "
    ):
        damaged.generate([[5], [5, drawn[place]]], **settings)


@pytest.mark.parametrize("name", ["layers.0.attention.v", "layers.2.mlp.up", "norm.scale", "head"])
def test_no_damaged_weight_gives_tokens(program, name):
    array = program.parameters[name]
    damaged = _damaged(program, name, array.at[(0,) * array.ndim].set(jnp.nan))
    with pytest.raises(
        sinkjax.InputError, match="logits are not finite after 33 tokens of prompt 0: "
    ):
        damaged.generate(hf.random_tokens((33,)), max_new_tokens=3)


@pytest.mark.default_compilation(False)
def test_float16_that_overflows_gives_no_token(tmp_path):
    hf.save_llama(tmp_path)
    model = sinkjax.load(tmp_path, dtype="float16")
    down = model.layers[1].mlp.down
    down.set_value(down[...] * 6e4)
    program = compile(model, prefill_lengths=(8,), max_length=32)
    with pytest.raises(sinkjax.InputError, match=r"not finite.*use bfloat16 or float32"):
        program.generate([5, 6, 7], max_new_tokens=3)


@pytest.mark.default_compilation(False)
def test_sizes_that_nobody_gives_are_no_more_than_the_model_has(tiny):
    program = compile(tiny[0], layers="scanned")
    assert (program.max_length, [*program.prefill]) == (64, [64])
    assert choose_sizes(tiny[0], None, 48) == ([48], 48)
    assert choose_sizes(tiny[0], (8, 4, 8), None) == ([4, 8], 64)


def test_everything_that_cannot_be_compiled_is_named(tiny):
    with pytest.raises(sinkjax.InputError) as error:
        compile(tiny[0], batch_size=0, prefill_lengths=(8, 99), max_length=70, steps_per_call=0)
    for part in (
        "batch_size=0: ",
        "steps_per_call=0: ",
        "prefill_lengths=99: more than",
        "made for 64 tokens",
    ):
        assert part in str(error.value)
    with pytest.raises(sinkjax.InputError) as error:
        compile(tiny[0], batch_size=2.5, prefill_lengths=(8.5,), max_length=True)
    for part in ("batch_size=2.5: ", "prefill_lengths=8.5: ", "max_length=True: "):
        assert part in str(error.value)
    with pytest.raises(sinkjax.InputError) as error:
        compile(tiny[0], batch_size=2**31, prefill_lengths=(8,), steps_per_call=2**40)
    for part in ("batch_size=2147483648: whole numbers from 1 to", "steps_per_call=1099511627776:"):
        assert part in str(error.value)
    with pytest.raises(sinkjax.InputError, match="prefill_lengths: give at least one bucket"):
        compile(tiny[0], prefill_lengths=(), max_length=64)
    with pytest.raises(sinkjax.InputError, match="prefill_lengths=8: a sequence of buckets is nee"):
        compile(tiny[0], prefill_lengths=8, max_length=64)
    for other, named in (
        ({}, "max_length=64: whole"),
        ({"prefill_lengths": [8, "a"]}, "hs=a: whole"),
    ):
        with pytest.raises(sinkjax.InputError, match=named):
            compile(tiny[0], max_length="64", **other)
    numbers = jnp.asarray([8, 4, 8])
    assert choose_sizes(tiny[0], numbers, jnp.int32(48)) == ([4, 8], 48)


def test_the_device_stops_by_itself_when_every_row_is_done():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Count:
        lengths: jax.Array

    def decode(token, cache):
        """The successor of each token is the likeliest next one."""
        return jax.nn.one_hot(token + 1, 50), Count(cache.lengths + 1)

    stops = jnp.asarray([9] + [-1] * (MAX_STOP_TOKENS - 1), jnp.int32)
    steps = decode_steps(
        decode,
        20,
        jnp.asarray([3, 5, 40], jnp.int32),
        Count(jnp.zeros(3, jnp.int32)),
        jnp.asarray([10, 2, 0], jnp.int32),
        make_sampler([0, 0, 0]),
        stops,
    )
    assert steps.cache.lengths.tolist() == [6, 6, 6]  # 3 went to 9, and nobody went further
    assert steps.drawn.tolist() == [6, 2, 0]
    assert steps.remaining.tolist() == [0, 0, 0]
    assert steps.tokens[0, :6].tolist() == [4, 5, 6, 7, 8, 9]
    assert steps.tokens[1, :2].tolist() == [6, 7]


def test_weights_are_arguments_and_the_cache_is_updated_in_place(tiny, program):
    size = sum(array.nbytes for array in program.parameters.values())
    config = tiny[0].config
    cache = 2 * 4 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 56
    assert program.decode.memory.aliased >= cache
    for executable in program.executables:
        assert executable.memory.arguments >= size
        assert executable.memory.temporary < size
    for name, array in program.parameters.items():
        path = name.split(".")
        assert any(f"parameters['{name}']" in a.name for a in program.decode.module.arguments), path
        assert array.unsafe_buffer_pointer() in {
            leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny[0])
        }


def test_what_compiling_took_is_kept(program):
    assert [e.name for e in program.executables] == ["prefill 16", "prefill 40", "decode"]
    for executable in program.executables:
        assert executable.lowering_seconds > 0
        assert executable.compile_seconds > 0
        assert executable.from_cold
        assert executable.flops > 0
        assert executable.bytes_accessed > 0
    total = sum(e.lowering_seconds + e.compile_seconds for e in program.executables)
    assert program.compile_seconds == total


def test_a_program_without_weights_can_be_read_but_not_run(tiny, program):
    abstract = abstract_model(tiny[0].config, jnp.dtype("float32"))
    reading = compile(abstract, batch_size=2, prefill_lengths=(16,), max_length=56)
    assert reading.decode.flops == program.decode.flops
    with pytest.raises(ValueError, match="to be read"):
        reading.generate([1, 2, 3], max_new_tokens=4)
