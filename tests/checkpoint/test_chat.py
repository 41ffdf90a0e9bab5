"""Chat templates that fail, never end or eat all memory, against those that do their work."""

import multiprocessing
import time

import pytest

from sinkjax.checkpoint import chat
from sinkjax.checkpoint.chat import ChatTemplate
from sinkjax.errors import InputError

CHAT = [{"role": "user", "content": "Hi"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
TWICE = (
    "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)


@pytest.fixture
def template(small_tokenizer, monkeypatch):
    rendered = ChatTemplate(small_tokenizer, "tiny")

    def render(text, **how):
        monkeypatch.setattr(small_tokenizer, "chat_template", text)
        return rendered(CHAT, **how)

    yield render
    rendered.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LOOPS + "{% endfor %}" * 3, "it takes more than 1 s"),
        ("{{ 10 ** (messages | length * 10**8) % 3 }}", "it takes more than 1 s"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "maximum recursion depth"),
        ("{{ range(10 ** 12) | list }}", "Range too big"),
        ("{{ 'x' * 10 ** 12 }}", "MemoryError"),
        ("{{ 'x' * 20_000_000 }}", "it gives 20,000,000 letters"),
        (TWICE, "MemoryError|more than 1 s"),
        ("{{ messages.__class__.__mro__ }}", "'__class__' of 'list' object is unsafe"),
        ("{{ raise_exception.__globals__.os }}", "'__globals__' of 'function' object is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader for this environment"),
        ("{{ missing.content }}", "'missing' is undefined"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{{ raise_exception('not this') }}", "not this"),
        ("{% for m in messages %}{{ m.content", "unexpected end of template"),
        ("{% endfor %}", "unknown tag 'endfor'"),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "."),
    ],
)
def test_what_gives_no_text_is_refused_in_one_line_and_others_are_not(
    template, text, why, monkeypatch
):
    began, fails = time.monotonic(), rf"the chat template of tiny fails \(.*{why}"
    with monkeypatch.context() as patch:
        if "1 s" in why:  # the others end by themselves, on a busy machine not within a second
            patch.setattr(chat, "SECONDS", 1.0)
        with pytest.raises(InputError, match=fails) as error:
            template(text)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 20
    assert template("<{{ messages[0].content }}>") == "<Hi>"


def test_a_text_is_that_of_transformers(template, small_tokenizer):
    text = "{{ bos_token }}{{ messages | tojson }}\n{% if add_generation_prompt %}é>{% endif %}"
    for add in (True, False):
        its = small_tokenizer.apply_chat_template(
            CHAT, chat_template=text, tokenize=False, add_generation_prompt=add
        )
        assert template(text, add_generation_prompt=add) == its


def test_the_process_ends_with_what_began_it(small_tokenizer, monkeypatch):
    monkeypatch.setattr(small_tokenizer, "chat_template", "{{ messages[0].content }}")
    rendered = ChatTemplate(small_tokenizer, "tiny")
    assert rendered(CHAT) == "Hi"
    (process,) = multiprocessing.active_children()
    del rendered
    process.join(10)
    assert process.exitcode == 0
