"""Text from the command line: against the library, and what a user sees when something is wrong."""

import json
import shutil
import stat

import hf
import numpy as np
import pytest
from scripts import finish, run_main

import sinkjax
from sinkjax.cli.generate import Generate
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink

GENERATE = "experiments.generate"
PROMPTS = ["The capital of France is", "One, two, three, four, five, six, seven"]
NEW = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_tokenizer):
    """A random Llama of two layers, with a small tokenizer beside it."""
    folder = tmp_path_factory.mktemp("model")
    shape = dict(vocab_size=len(small_tokenizer), num_hidden_layers=2)
    hf.save_llama(folder, initializer_range=0.5, **shape)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """A mask with calibrated means, in a file."""
    path = tmp_path_factory.mktemp("masks") / "mask.json"
    mask = SinkMask.where(np.eye(2, 6, dtype=bool), Sink("mean"))
    fills = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    sinkjax.save_mask(path, mask, fills=fills)
    return path


def _text(folder, tokenizer, prompt: str, model=None, **settings) -> str:
    """The continuation by the library, step by step."""
    model = model or sinkjax.load(folder)
    program = sinkjax.compile(model, prefill_lengths=(16,), max_length=32)
    tokens = tokenizer(prompt)["input_ids"]
    return tokenizer.decode([*tokens, *program.generate(tokens, max_new_tokens=NEW, **settings)])


def _arguments(folder, *prompts: str) -> list[str]:
    return [f"--model={folder}", f"--max_new_tokens={NEW}", *(f"--prompt={p}" for p in prompts)]


def test_the_text_is_the_librarys(folder, small_tokenizer, capsys):
    run_main(GENERATE, *_arguments(folder, *PROMPTS))
    out = capsys.readouterr().out
    for index, prompt in enumerate(PROMPTS):
        assert _text(folder, small_tokenizer, prompt, seed=index) in out
    assert "tokens/s" in out


def test_a_mask_is_shown_beside_the_baseline(folder, mask, small_tokenizer, capsys):
    sampling = ["--temperature=0.7", "--top_p=0.9", "--seed=5"]
    run_main(GENERATE, *_arguments(folder, PROMPTS[0]), f"--mask={mask}", "--compare", *sampling)
    out = capsys.readouterr().out
    saved = sinkjax.load_mask(mask)
    masked = sinkjax.specialize(sinkjax.load(folder), saved.mask, fills=saved.fills)
    texts = [
        _text(folder, small_tokenizer, PROMPTS[0], model, temperature=0.7, top_p=0.9, seed=5)
        for model in (None, masked)
    ]
    assert texts[0] != texts[1]
    assert out.index(texts[0]) < out.index(texts[1])


def test_the_hybrid_and_its_plan_file_agree_in_either_form(folder, mask, small_tokenizer, capsys):
    plan = mask.parent / "plan.json"
    stages = [{"up_to": 7, "mask": mask.name}, {"up_to": None, "mask": "L0-1: 6f"}]
    plan.write_text(json.dumps({"crossing": "prefill", "stages": stages}))
    arguments = _arguments(folder, PROMPTS[0])
    run_main(GENERATE, *arguments, f"--mask={mask}", "--up_to=7", "--crossing=prefill")
    hybrid = capsys.readouterr().out.splitlines()
    run_main(GENERATE, *arguments, f"--plan={plan}", "--layers=scanned")
    planned = capsys.readouterr().out.splitlines()
    ends = [lines.index("on cpu") for lines in (hybrid, planned)]
    assert hybrid[1 : ends[0]] == planned[1 : ends[1]]


def test_a_chat_prompt_goes_through_the_template(folder, small_tokenizer, capsys):
    run_main(GENERATE, *_arguments(folder, "Hi"), "--chat")
    out = capsys.readouterr().out
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" in out


def test_a_new_process_takes_executables_from_a_private_cache(folder, tmp_path):
    cache = tmp_path / "cache"
    arguments = [*_arguments(folder, PROMPTS[0]), f"--compilation_cache={cache}"]
    first = finish(GENERATE, *arguments)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    kept = {path.name for path in cache.iterdir()}
    assert any("prefill" in name for name in kept)
    assert any("decode" in name for name in kept)
    second = finish(GENERATE, *arguments)
    assert first.splitlines()[:2] == second.splitlines()[:2]
    assert {path.name for path in cache.iterdir() if path.name.endswith("-cache")} == {
        name for name in kept if name.endswith("-cache")
    }


def test_a_cache_that_is_open_to_others_is_refused(folder, tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(sinkjax.InputError, match="is open to others"):
        run_main(GENERATE, *_arguments(folder, "a"), f"--compilation_cache={tmp_path}")
    with pytest.raises(sinkjax.InputError, match="has no name"):
        run_main(GENERATE, *_arguments(folder, "a"), "--compilation_cache=")


def test_all_that_is_wrong_is_said_before_the_model_is_loaded(folder, tmp_path):
    with pytest.raises(sinkjax.InputError) as error:
        run_main(
            GENERATE,
            f"--model={folder}",
            "--mask=a.json",
            "--plan=b.json",
            "--top_k=3",
            "--max_new_tokens=0",
        )
    text = str(error.value)
    for part in ("--prompt is missing", "--mask and --plan", "top_k", "--max_new_tokens=0"):
        assert part in text
    with pytest.raises(sinkjax.InputError, match="--up_to"):
        run_main(GENERATE, *_arguments(folder, "a"), "--up_to=3")
    with pytest.raises(sinkjax.InputError, match="cannot be read"):
        run_main(GENERATE, *_arguments(folder, "a"), f"--mask={tmp_path / 'none.json'}")
    with pytest.raises(sinkjax.InputError, match="3 layers of 6 heads"):
        run_main(GENERATE, *_arguments(folder, "a"), "--mask=L0-2: 6f")


def test_a_prompt_beyond_the_models_context_is_refused(folder):
    with pytest.raises(sinkjax.InputError, match="made for 64 tokens") as error:
        run_main(GENERATE, *_arguments(folder, "word " * 80))
    assert "max_length" not in str(error.value)


def test_a_text_may_fill_a_context_of_any_length(tmp_path, small_tokenizer, capsys):
    shape = dict(vocab_size=len(small_tokenizer), num_hidden_layers=1, initializer_range=0.5)
    hf.save_llama(tmp_path, max_position_embeddings=100, **shape)
    small_tokenizer.save_pretrained(tmp_path)
    word = small_tokenizer.encode(" the")
    assert len(word) == 1
    for size, new in ((68, 4), (97, 3)):
        prompt = small_tokenizer.decode(word * size)
        run_main(GENERATE, f"--model={tmp_path}", f"--prompt={prompt}", f"--max_new_tokens={new}")
        assert f"{size} tokens" in capsys.readouterr().out
    with pytest.raises(sinkjax.InputError, match=r"made for 100 tokens, .* it is 101: give a"):
        run_main(GENERATE, f"--model={tmp_path}", f"--prompt={prompt}", "--max_new_tokens=4")


def test_a_plan_may_have_stages_that_no_prompt_comes_to(folder, mask, capsys):
    """Also where there would be no room for them: nothing is compiled for these."""
    plan = mask.parent / "long.json"
    stages = [{"up_to": n, "mask": mask.name} for n in (40, 1000)]
    stages.append({"up_to": None, "mask": "L0-1: 6f"})
    for crossing in ("stay", "prefill"):
        plan.write_text(json.dumps({"crossing": crossing, "stages": stages}))
        shown = []
        for how in (f"--mask={mask}", f"--plan={plan}"):
            run_main(GENERATE, *_arguments(folder, PROMPTS[0]), how)
            shown.append(capsys.readouterr().out.splitlines())
        assert shown[0][1 : shown[0].index("on cpu")] == shown[1][1 : shown[1].index("on cpu")]
    run_main(GENERATE, *_arguments(folder, PROMPTS[0]), f"--mask={mask}", "--up_to=1000")
    last = capsys.readouterr().out.splitlines()
    assert last[1 : last.index("on cpu")] == shown[0][1 : shown[0].index("on cpu")]


def test_a_prompt_of_no_tokens_or_of_unknown_ones_is_refused(folder, tmp_path, small_tokenizer):
    with pytest.raises(sinkjax.InputError, match="--prompt is missing"):
        run_main(GENERATE, *_arguments(folder, ""))
    with pytest.raises(sinkjax.InputError, match="prompt=: it is empty; at least one token"):
        Generate(model=str(folder), prompt=("a", "")).run()
    small_tokenizer.save_pretrained(tmp_path)
    hf.save_llama(tmp_path, vocab_size=300, num_hidden_layers=1)
    with pytest.raises(sinkjax.InputError, match="the vocabulary has ids 0 to 299"):
        run_main(GENERATE, *_arguments(tmp_path, PROMPTS[0]))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('only two users') }}", "only two users"),
        ("{% for message in messages %}{{ message", "unexpected end of template"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_chat_template_that_fails_is_one_line(template, why, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(sinkjax.InputError) as error:
        run_main(GENERATE, *_arguments(tmp_path, "Hi", "Ho"), "--chat")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--chat: the chat template of {tmp_path} fails (")
    assert why in str(error.value)


def test_a_damaged_model_says_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = sinkjax.load(folder)
    model.norm.scale.set_value(model.norm.scale[...].at[2].set(np.nan))
    sinkjax.save_safetensors(model, tmp_path)
    with pytest.raises(sinkjax.InputError, match=r"logits are not finite after .*: activations"):
        run_main(GENERATE, *_arguments(tmp_path, PROMPTS[0]))
