"""Long texts that a process has tokenized, it does not tokenize again.

A study begins by tokenizing whole texts, by default novels of which the tests use some lines; each
run of one in the tests has read its tokenizer anew.
"""

import hashlib

from transformers import PreTrainedTokenizerFast

from sinkjax.studies import prompts

_LONG = 50_000  # characters
_tokenize = prompts._bare
_tokens: dict[tuple[bytes, str], list[int]] = {}  # of a tokenizer, by its content, and a text


def _remembered(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    if len(text) < _LONG:
        return _tokenize(tokenizer, text)
    content = tokenizer.backend_tokenizer.to_str().encode()
    key = hashlib.sha256(content).digest(), text
    if key not in _tokens:
        _tokens[key] = _tokenize(tokenizer, text)
    return _tokens[key]


def remember() -> None:
    """From now on."""
    prompts._bare = _remembered
