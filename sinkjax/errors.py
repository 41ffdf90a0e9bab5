"""The one exception for what a user gave and the library cannot use, and what it quotes."""


class InputError(ValueError):
    """Input that cannot be used, with every problem found in it.

    Attributes:
      problems: one line each; names the flag or file, the value, what is allowed, what to do next.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def first_line(error: BaseException) -> str:
    """What another package's error says, for a problem's one line; empty if it says nothing."""
    return (str(error).splitlines() or [""])[0]
