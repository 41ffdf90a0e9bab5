"""Chat templates: programs that come with a tokenizer, and that anybody may have written.

transformers keeps them from files and from Python's internals, but not from running for ever or
filling the memory. So they run in a process of their own, which can be killed.
"""

import contextlib
import multiprocessing
import pathlib
import resource
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from sinkjax.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0
"""Time that one text may take."""

_MOST_MEMORY = 1 << 30  # bytes that a template may add to what its process begins with
_MOST_LETTERS = 10_000_000  # of a text, above those of its messages


class ChatTemplate:
    """The chat template of a tokenizer, in a process that it begins with the first text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", name: str):
        """Begins no process yet.

        Args:
          tokenizer: that has the template.
          name: of the model that it belongs to, for messages.
        """
        self._tokenizer, self._name = tokenizer, name
        self._process: Any = None
        self._pipe: Connection

    def __call__(self, messages: Sequence[Mapping[str, str]], **how: bool) -> str:
        """The text of a chat.

        Args:
          messages: each with its `role` and `content`.
          how: of transformers' `apply_chat_template`.

        Raises:
          InputError: for a template that fails, gives no text, takes longer than `SECONDS` or asks
            for gigabytes.
        """
        if self._process is None:
            self._begin()
        self._pipe.send((self._tokenizer.chat_template, messages, how))
        done, answer = False, f"it takes more than {SECONDS:g} s"
        try:
            if self._pipe.poll(SECONDS):
                done, answer = self._pipe.recv()
        except EOFError:
            answer = "it ended its process"
        finally:  # also where it is interrupted, of which an answer would belong to the next chat
            if not done:
                self.close()
        if done:
            return answer
        raise InputError(
            f"the chat template of {self._name} fails ({answer}); mend it in the model's files, "
            "or do without it"
        )

    def close(self) -> None:
        """Ends the process; another text begins a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _begin(self) -> None:
        # Forked, since a new Python would import transformers for seconds. What threads of this
        # process, such as JAX's, hold is of no use to the other: it runs Python alone.
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        arguments = (self._pipe, other, self._tokenizer)
        self._process = context.Process(target=_answer, args=arguments, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._process.start()
        other.close()


def _answer(asking: Connection, pipe: Connection, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Answers each chat with whether it has a text, and the text or else why not."""
    asking.close()  # so that the other process's end is seen
    with contextlib.suppress(OSError, ValueError):  # elsewhere than on Linux, or less is allowed
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            tokenizer.chat_template, messages, how = pipe.recv()
            pipe.send(_text(tokenizer, messages, how))


def _text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    how: Mapping[str, bool],
) -> tuple[bool, str]:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
        text.encode()  # half a surrogate pair has no tokens
    except Exception as error:
        return False, first_line(error) or type(error).__name__
    most = _MOST_LETTERS + len(str(messages))
    return len(text) <= most, text if len(text) <= most else f"it gives {len(text):,} letters"
