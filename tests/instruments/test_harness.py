"""The adapter for lm-evaluation-harness, against the harness's own for transformers."""

import copy
import json
import runpy
import sys

import hf
import numpy as np
import pytest

import sinkjax
from sinkjax import SinkMask
from sinkjax.programs.compile import compile
from sinkjax.specialize.build import specialize

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

SEA = "The sea was calm, and the old man looked out over it for a long while. "
FACTS = [
    ("The capital of France is", [" Paris", " a river", " Rome, the capital of Italy"], 0),
    ("Two and two make", [" five", " four"], 1),
    (SEA * 12 + "Then he saw", [" a sail", " nothing at all", " the harbour of his town"], 2),
    ("", ["No context at all", "None"], 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2_tokenizer):
    """A random Llama of 128 positions, with the real model's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    size = len(smollm2_tokenizer)
    hf.save_llama(folder, vocab_size=size, initializer_range=0.5, max_position_embeddings=128)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task of each kind of request that the harness makes."""
    file = tmp_path_factory.mktemp("data") / "facts.jsonl"
    docs = [{"question": q, "choices": c, "gold": g} for q, c, g in FACTS]
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    return [
        {
            **common,
            "task": "facts",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        {
            **common,
            "task": "text",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": SEA * 20 + "{{question}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        {
            **common,
            "task": "words",
            "output_type": "generate_until",
            "doc_to_text": SEA + "{{question}}",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 9, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    ]


def evaluated(lm, tasks):
    """The harness's results, and what the model answered to every request of every task."""
    evaluation = lm_eval.simple_evaluate(lm, tasks=tasks, bootstrap_iters=0)
    answers = {
        task: [sample["filtered_resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in evaluation["samples"].items()
    }
    return evaluation["results"], answers


def test_tasks_give_what_they_give_with_transformers(folder, tasks, smollm2_tokenizer):
    from lm_eval.models.huggingface import HFLM

    from sinkjax.instruments.harness import HarnessLM

    ours = HarnessLM(sinkjax.load(folder), smollm2_tokenizer, batch_size=3)
    theirs = HFLM(pretrained=hf.load_llama(folder), tokenizer=smollm2_tokenizer, max_length=128)
    results, answers = evaluated(ours, tasks)
    wanted, oracle = evaluated(theirs, tasks)
    for mine, its in zip(answers["facts"], oracle["facts"], strict=True):
        assert len(mine) >= 2
        for (nll, greedy), (expected, is_greedy) in zip(mine, its, strict=True):
            assert nll == pytest.approx(expected, rel=1e-4)
            assert greedy == is_greedy
    for mine, its in zip(answers["text"], oracle["text"], strict=True):
        assert mine == pytest.approx(its, rel=1e-4)
    assert answers["words"] == oracle["words"]
    assert len({tuple(texts) for texts in answers["words"]}) > 1
    assert results["facts"]["acc,none"] == wanted["facts"]["acc,none"]


def test_a_mask_changes_what_it_should(folder, tasks, smollm2_tokenizer):
    from sinkjax.instruments.harness import HarnessLM

    model = sinkjax.load(folder)
    sinks = SinkMask.from_text("L0: 6f | L1-2: 3s(first) 3w(1,4)")
    of_baseline, of_full, of_sinks = (
        evaluated(HarnessLM(m, smollm2_tokenizer), tasks[:1])[1]["facts"]
        for m in (
            model,
            specialize(model, SinkMask.full(model.config)),
            specialize(model, sinks),
        )
    )
    assert of_full == of_baseline
    assert of_sinks != of_baseline


def test_what_greedy_decoding_says_is_said_to_be_greedy(folder, smollm2_tokenizer):
    from sinkjax.instruments.harness import HarnessLM

    model = sinkjax.load(folder)
    context = smollm2_tokenizer.encode(SEA)
    program = compile(model, prefill_lengths=[len(context)], max_length=64)
    said = program.generate(context, max_new_tokens=5).tolist()
    other = [*said[:-1], said[-1] + 1]
    right, wrong = HarnessLM(model, smollm2_tokenizer)._loglikelihood_tokens(
        [(None, context, said), (None, context, other)], disable_tqdm=True
    )
    assert right[1]
    assert not wrong[1]
    assert right[0] > wrong[0]


LONG = SEA * 9
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a river, or so they say"),
    ("Two and two make ", "four"),
    ("", "No context at all"),
    ("", "<|endoftext|> then more"),
    (LONG, " and he saw a sail"),
    (LONG + SEA, LONG[:300]),
]
STOPS = [
    [],
    ["e"],
    ["<|im_start|>"],
    ["<repo_name>", "th"],
    ["on", "<|im_start|>", "<file_sep>", "\n\n"],
    "<jupyter_start>",
]
"""Ordinary texts and special tokens, which the model below often says."""


@pytest.fixture(scope="module")
def talkative(tmp_path_factory, small_tokenizer):
    """A random Llama that says special tokens often, and transformers' reading of it."""
    folder = tmp_path_factory.mktemp("talkative")
    shape = dict(vocab_size=len(small_tokenizer), num_hidden_layers=2, initializer_range=0.5)
    oracle = hf.save_llama(folder, max_position_embeddings=128, eos_token_id=0, **shape)
    oracle.lm_head.weight.data[:17] *= 2.5
    oracle.save_pretrained(folder, max_shard_size="40KB")
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(talkative, small_tokenizer):
    """The harness's own model, a row at a time: of several it goes on until all have stopped."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=hf.load_llama(talkative), tokenizer=small_tokenizer, max_length=128)


@pytest.fixture(scope="module")
def ours(talkative, small_tokenizer):
    from sinkjax.instruments.harness import HarnessLM

    model = sinkjax.load(talkative)
    return {size: HarnessLM(model, small_tokenizer, batch_size=size) for size in (1, 3)}


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


@pytest.mark.parametrize("size", [1, 3])
def test_likelihoods_are_those_of_the_harness_own_model(size, ours, theirs):
    requests = instances("loglikelihood", *PAIRS)
    scores, wanted = (lm.loglikelihood(requests, True) for lm in (ours[size], theirs))
    for (score, greedy), (expected, is_greedy) in zip(scores, wanted, strict=True):
        assert score == pytest.approx(expected, rel=1e-4)
        assert greedy == is_greedy
    rolling = instances("loglikelihood_rolling", (SEA,), (LONG * 2,), ("",), ("a",))
    scores, wanted = (lm.loglikelihood_rolling(rolling, True) for lm in (ours[size], theirs))
    assert scores == pytest.approx(wanted, rel=1e-4)
    assert scores[2] == 0


@pytest.mark.parametrize("size", [1, 3])
def test_continuations_are_those_of_the_harness_own_model(size, ours, theirs):
    contexts = ["The sea", SEA, "", "x", LONG * 2]
    more = {"max_gen_toks": 24, "do_sample": False, "top_p": 0.9, "num_beams": 1}
    requests = instances(
        "generate_until",
        *(
            ("Once upon" if c == "" else c, {"until": stops, **more})
            for stops in STOPS
            for c in contexts
        ),
    )
    texts, wanted = (lm.generate_until(requests, True) for lm in (ours[size], theirs))
    assert texts == wanted
    by_stop = [texts[start : start + 5] for start in range(0, len(texts), 5)]
    assert len(set(map(tuple, by_stop))) > 3  # stops matter


def test_a_special_token_ends_a_text_wherever_it_stands(ours, small_tokenizer):
    lm = ours[1]
    ids = small_tokenizer.encode("He saw<|im_end|> a<file_sep>\n<|im_start|>user and more")

    def text(*stops: str) -> str:
        return lm._text(ids, {small_tokenizer.convert_tokens_to_ids(stop) for stop in ends}, stops)

    ends = ()
    assert text() == "He saw a\nuser and more"
    assert text("<|im_start|>") == "He saw a\n"
    assert text("\n<|im_start|>user") == "He saw a"
    assert text("\n<|im_start|>user", "<|im_end|> a") == "He saw"
    assert text("saw a") == "He "
    assert text("<repo_name>", "nothing") == "He saw a\nuser and more"
    ends = ("<file_sep>",)
    assert text("user") == "He saw a"
    spelled = [i for c in "so <|im_end|> it" for i in small_tokenizer.encode(c)]
    assert lm._text(spelled, set(), ["<|im_end|>"]) == "so "


def test_a_stop_that_is_a_special_token_ends_the_work(ours, monkeypatch):
    asked = []
    generate = sinkjax.Program.generate
    monkeypatch.setattr(
        sinkjax.Program,
        "generate",
        lambda self, *given, **how: (
            asked.append(how["stop_tokens"]) or generate(self, *given, **how)
        ),
    )
    until = ["<|im_end|>", "e", "<file_sep>"]
    ours[1].generate_until(instances("generate_until", (SEA, {"until": until, "max_gen_toks": 3})))
    assert asked == [[0, 2, ours[1].tokenizer.convert_tokens_to_ids("<file_sep>")]]


def test_a_stop_that_the_command_made_a_number_is_its_text(ours):
    requests = [
        instances("generate_until", (SEA, {"until": [until], "max_gen_toks": 9}))
        for until in (5, "5")
    ]
    number, text = (ours[1].generate_until(request, True) for request in requests)
    assert number == text


def test_a_context_of_spaces_alone_is_an_empty_one(ours):
    spaces, empty = ours[3].loglikelihood(
        instances("loglikelihood", (" ", "No context"), ("", " No context")), True
    )
    assert spaces == pytest.approx(empty)


def test_an_empty_context_needs_a_bos_or_an_eos(ours, monkeypatch):
    lm = ours[3]
    empty = instances("loglikelihood", ("", "No context"))
    monkeypatch.setattr(lm, "tokenizer", copy.deepcopy(lm.tokenizer))
    lm.tokenizer.bos_token = None
    assert lm.prefix_token_id == lm.tokenizer.eos_token_id
    lm.loglikelihood(empty, True)
    lm.tokenizer.eos_token = None
    with pytest.raises(sinkjax.InputError, match="the tokenizer has neither: set its bos_token"):
        lm.loglikelihood(empty, True)


def test_requests_that_cannot_be_answered_are_refused(ours, talkative, small_tokenizer, tmp_path):
    from sinkjax.instruments.harness import HarnessLM

    lm = ours[3]

    def refused(match: str, call, *given) -> None:
        with pytest.raises(sinkjax.InputError, match=match):
            call(*given)

    pairs = ("a", " b"), ("a", LONG * 2)
    refused(
        r"request 1 has a continuation of \d+ tokens, of more than the 128 that the model",
        lm.loglikelihood,
        instances("loglikelihood", *pairs),
    )
    refused(
        "request 0 has a continuation without a token",
        lm.loglikelihood,
        instances("loglikelihood", ("a", "")),
    )
    for how, match in (
        ({"max_gen_toks": 128}, "max_gen_toks=128: it has to leave room"),
        ({"num_beams": 4, "min_p": 0.1}, "num_beams=4: .*\nmin_p=0.1: "),
        ({"do_sample": True}, "temperature: with do_sample one above 0 is needed"),
    ):
        refused(match, lm.generate_until, instances("generate_until", ("a", {"until": [], **how})))
    hf.save_llama(tmp_path, vocab_size=300, max_position_embeddings=128)
    small = HarnessLM(sinkjax.load(tmp_path), small_tokenizer)
    for call, request in (
        (small.loglikelihood, instances("loglikelihood", ("The capital", " of France"))),
        (small.loglikelihood_rolling, instances("loglikelihood_rolling", (SEA,))),
        (
            small.generate_until,
            instances("generate_until", (SEA, {"until": [], "max_gen_toks": 9})),
        ),
    ):
        refused("holds token .* the vocabulary has ids 0 to 299", call, request)
    model = sinkjax.load(talkative)
    model.norm.scale.set_value(model.norm.scale[...].at[0].set(np.nan))
    damaged = HarnessLM(model, small_tokenizer)
    refused("not finite", damaged.loglikelihood, instances("loglikelihood", ("a", " b")))
    refused(
        "max_length=200: the model is made for 128", lambda: HarnessLM(model, None, max_length=200)
    )
    refused("batch_size=0: ", lambda: HarnessLM(model, None, batch_size=0))


def test_sampling_is_as_a_task_says(ours):
    how = {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 0.9, "top_k": 0}
    several = instances("generate_until", *[(SEA, how)] * 3)
    texts = ours[3].generate_until(several, True)
    assert len(set(texts)) == 3
    assert ours[1].generate_until(several, True) == texts


def test_a_chat_template_that_takes_no_system_message_has_none(ours, monkeypatch):
    lm = ours[1]
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "<{{ m.content }}>{% endfor %}"
    )
    monkeypatch.setattr(lm.tokenizer, "chat_template", template)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(chat) == "<Hi>"
    monkeypatch.setattr(lm.tokenizer, "chat_template", "{{ nothing.at.all }}")
    with pytest.raises(sinkjax.InputError, match=r"the chat template .* fails"):
        lm.apply_chat_template(chat)


def test_a_model_is_made_of_names(talkative, tasks, tmp_path, small_tokenizer):
    from lm_eval.api.registry import get_model

    from sinkjax.instruments.harness import HarnessLM

    model = sinkjax.load(talkative)
    sinks = SinkMask.from_text("L0: 6f | L1: 3s(first) 3w(1,4)")
    sinkjax.save_mask(tmp_path / "mask.json", sinks)
    named = f"pretrained={talkative},mask={tmp_path / 'mask.json'},dtype=float32,max_length=100"
    made = get_model("sinkjax").create_from_arg_string(named, {"batch_size": "2", "device": None})
    assert (made.batch_size, made.max_length) == (2, 100)
    wanted = HarnessLM(specialize(model, sinks), small_tokenizer, batch_size=2, max_length=100)
    request = instances("loglikelihood", *PAIRS[:3])
    assert made.loglikelihood(request, True) == wanted.loglikelihood(request, True)
    made = HarnessLM.create_from_arg_obj({"pretrained": talkative}, {"batch_size": "auto:4"})
    assert made.batch_size == 8
    for arguments, match in (
        (f"pretrained={talkative},peft=x", "peft=x: it is unknown; known are pretrained, mask,"),
        ("mask=x", "pretrained: name a model"),
        (f"pretrained={talkative},batch_size=many", "batch_size=many: "),
        (f"pretrained={talkative},batch_size=auto,max_batch_size=many", "batch_size=many: "),
        (f"pretrained={talkative},seed=one", "seed=one: a whole number is needed"),
        (f"pretrained={talkative},dtype=int8", "dtype is 'int8'"),
    ):
        with pytest.raises(sinkjax.InputError, match=match):
            HarnessLM.create_from_arg_string(arguments)


def test_the_harness_own_command_takes_the_name(talkative, tasks, tmp_path, monkeypatch):
    (tmp_path / "facts.yaml").write_text(json.dumps(tasks[0]))
    command = ["lm_eval", "--model", "sinkjax", "--tasks", "facts", "--batch_size", "2"]
    command += ["--model_args", f"pretrained={talkative},dtype=float32"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_module("sinkjax.instruments.harness", run_name="__main__")
    (file,) = (tmp_path / "out").rglob("results*.json")
    evaluation = json.loads(file.read_text())
    by_hand = lm_eval.simple_evaluate(
        model="sinkjax",
        model_args={"pretrained": str(talkative)},
        tasks=[tasks[0]],
        bootstrap_iters=0,
    )
    assert evaluation["results"]["facts"]["acc,none"] == by_hand["results"]["facts"]["acc,none"]
    assert evaluation["config"]["model"] == "sinkjax"
