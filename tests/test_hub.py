"""What the Hub's client raises, as problems: each of its kinds, without a network."""

import types

import pytest
from huggingface_hub import errors

from sinkjax.errors import InputError
from sinkjax.hub import hub_problems, why_not

pytestmark = pytest.mark.quick


def answer(status: int, kind: type = errors.HfHubHTTPError) -> Exception:
    """As little of an answer as the client's errors keep, whichever HTTP library it has."""
    return kind(
        "it says no", response=types.SimpleNamespace(status_code=status, headers={}, request=None)
    )


def told(error: Exception, **more: str) -> str:
    """The one problem that is made of what is raised inside."""
    with pytest.raises(InputError) as caught, hub_problems("acme/model", "failed", **more):
        raise error
    (problem,) = map(str, caught.value.problems)
    return problem


@pytest.mark.parametrize(
    ("error", "mention"),
    [
        (answer(401), "does not take the token"),
        (answer(403), "forbids this to the token"),
        (answer(429), "wait some minutes"),
        (answer(500), "failed (HfHubHTTPError: it says no); run the command again"),
        (answer(404, errors.RevisionNotFoundError), "has no revision v1; give one of its branches"),
        (errors.OfflineModeIsEnabled(), "failed: HF_HUB_OFFLINE is set; unset it"),
        (errors.LocalEntryNotFoundError("none"), "revision v1 is not, or not wholly, in the cache"),
        (errors.EntryNotFoundError("none"), "it lacks a file"),
        (errors.HFValidationError("none"), "write USER/NAME"),
        (OSError("the disk\nis full"), "failed (OSError: the disk"),
    ],
    ids=str,
)
def test_every_kind_says_what_to_do(error, mention):
    problem = told(error, revision="v1", missing="it lacks a file")
    assert mention in problem
    assert problem.isprintable()


@pytest.mark.parametrize("revision", ["", "a/../../b", "-v", "a b", "a\nb"])
def test_a_revision_that_is_no_name_is_refused_before_anything_is_asked(revision):
    asked = []
    with (
        pytest.raises(InputError, match="is no name of a branch, tag or commit"),
        hub_problems("acme/model", "failed", revision=revision),
    ):
        asked.append(revision)
    assert not asked


def test_problems_of_ours_and_memory_stay_what_they_are():
    ours = InputError("our own")
    for error in (ours, MemoryError()):
        with pytest.raises(type(error)) as caught, hub_problems("acme/model", "failed"):
            raise error
        assert caught.value is error


def test_a_token_that_cannot_be_sent_is_never_quoted():
    """The client quotes it, also in what an error came from."""
    outer = RuntimeError("no connection")
    outer.__cause__ = ValueError("Illegal header value b'Bearer hf_secret'")
    for error in (outer, outer.__cause__):
        for said in (told(error), why_not(error)):
            assert "hf_secret" not in said
            assert "holds what no token does" in said


def test_why_not_is_one_line():
    assert why_not(answer(503)) == "it answers 503"
    assert why_not(OSError("gone\nand more")) == "OSError: gone"
