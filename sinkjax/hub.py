"""What the Hub's client raises, as problems that say what to do; none of them holds a token."""

import contextlib
import re
from collections.abc import Iterator

import huggingface_hub
from huggingface_hub import errors

from sinkjax.errors import InputError, first_line

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_REFUSED = {
    401: f"the Hub does not take the token that is set, or asks for one: {_LOG_IN} to one that is "
    "valid",
    403: f"the Hub forbids this to the token that is set, or without one: {_LOG_IN} to one that "
    "may, or name a repository of its account",
    429: f"the Hub takes no more calls from here for now: wait some minutes, or {_LOG_IN}, for it "
    "takes more from accounts",
}
_OFFLINE = "HF_HUB_OFFLINE is set; unset it"
_NO_TOKEN = (
    "the token that is set holds what no token does, such as quotes or letters with accents: "
    f"{_LOG_IN} to the token alone"
)
# It names a file in the cache too, and none that leads out of it.
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/@-]*")


def what_of(revision: str | None) -> str:
    """Returns what messages call a revision; None is the main branch."""
    return f"revision {revision}" if revision else "its main branch"


@contextlib.contextmanager
def hub_problems(
    repo_id: str, failed: str, *, revision: str | None = None, missing: str = "", instead: str = ""
) -> Iterator[None]:
    """Makes a problem of what huggingface-hub refuses inside.

    Args:
      repo_id: of the repository.
      failed: what does not succeed then, such as "its main branch cannot be downloaded".
      revision: branch, tag or commit that was asked for; None for the main branch.
      missing: what to say where the repository has not a file.
      instead: what else can be done where there is no network, such as ", or give a folder".

    Raises:
      InputError: one problem.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InputError(f"{revision!r} is no name of a branch, tag or commit")
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of any class: its own, its libraries', what an odd answer leads to
        if _tells_token(error):
            raise InputError(_NO_TOKEN) from None
        raise InputError(_text(error, repo_id, failed, revision, missing, instead)) from error


def why_not(error: Exception) -> str:
    """Says in one line why the Hub did not give what can be had elsewhere."""
    if _tells_token(error):
        return _NO_TOKEN
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"it answers {status}" if status else f"{type(error).__name__}: {first_line(error)}"


def _text(
    error: Exception, repo_id: str, failed: str, revision: str | None, missing: str, instead: str
) -> str:
    match error:
        case errors.LocalTokenNotFoundError():
            return f"there is no token: {_LOG_IN} to one that may write"
        case errors.GatedRepoError():
            return (
                f"it is gated: accept its licence on https://huggingface.co/{repo_id}, then "
                f"{_LOG_IN} to a token of that account"
            )
        case errors.RepositoryNotFoundError():
            return (
                "the Hub has no such repository, or it is private; check the spelling, and for a "
                f"private one {_LOG_IN}"
            )
        case errors.RevisionNotFoundError():
            return (
                f"the repository has no revision {revision}; give one of its branches, tags or "
                "commits, or none for the main branch"
            )
        case errors.OfflineModeIsEnabled():
            return f"{failed}: {_OFFLINE}"
        case errors.LocalEntryNotFoundError():
            said = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
            reason = _refused(error.__cause__)
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                reason = _OFFLINE
            return (
                f"{what_of(revision)} is not, or not wholly, in the cache "
                f"{huggingface_hub.constants.HF_HUB_CACHE}, and "
                f"{reason or f'the Hub cannot be reached{said}; check the network'}{instead}"
            )
        case errors.EntryNotFoundError():
            return missing
        case errors.HFValidationError():
            return "it is no name of a repository: write USER/NAME"
    return _refused(error) or (
        f"{failed} ({type(error).__name__}: {first_line(error)}); run the command again, which "
        "goes on from what is there"
    )


def _refused(error: BaseException | None) -> str | None:
    """What to do about the status of the Hub's answer; None where that alone says nothing."""
    return _REFUSED.get(getattr(getattr(error, "response", None), "status_code", 0))


def _tells_token(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is of a token that cannot be sent, and quotes it."""
    if error is None:
        return False
    quotes = isinstance(error, UnicodeEncodeError) or "Bearer " in str(error)
    return quotes or _tells_token(error.__cause__ or error.__context__)
