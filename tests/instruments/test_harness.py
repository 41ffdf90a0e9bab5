"""The adapter for lm-evaluation-harness, against the harness's own for transformers."""

import json

import hf
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
    found = lm_eval.simple_evaluate(lm, tasks=tasks, bootstrap_iters=0)
    answers = {
        task: [sample["filtered_resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return found["results"], answers


def test_tasks_give_what_they_give_with_transformers(folder, tasks, smollm2_tokenizer):
    from lm_eval.models.huggingface import HFLM

    from sinkjax.instruments.harness import HarnessLM

    ours = HarnessLM(sinkjax.load(folder), smollm2_tokenizer, batch_size=3)
    theirs = HFLM(pretrained=hf.load_llama(folder), tokenizer=smollm2_tokenizer, max_length=128)
    found, answers = evaluated(ours, tasks)
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
    assert found["facts"]["acc,none"] == wanted["facts"]["acc,none"]


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
