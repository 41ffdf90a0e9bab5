"""Downloads what a Llama needs from the Hub, through huggingface-hub's cache and token."""

import pathlib

import huggingface_hub
from huggingface_hub import errors

from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS, index_files
from sinkjax.errors import InputError, first_line

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def fetch(repo_id: str, revision: str | None, *, weights: bool) -> pathlib.Path:
    """The folder of a repository's snapshot in the Hub's cache, downloaded where it is not there.

    Config and tokenizer, and of the weights the safetensors alone: no second format, no original.

    Args:
      repo_id: `owner/name`.
      revision: branch, tag or commit; None for the main branch.
      weights: whether to download them, too.

    Raises:
      InputError: if it does not exist, may not be read, cannot be reached, or has no safetensors.
    """
    named = f"revision {revision}" if revision else "its main branch"
    try:
        files = [CONFIG, GENERATION_CONFIG, *_TOKENIZER, *([INDEX] if weights else [])]
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=files)
        )
        if weights:
            indexed = (folder / INDEX).exists()
            for file in sorted(set(index_files(folder).values())) if indexed else [WEIGHTS]:
                # By its commit, so that a branch that moves meanwhile mixes nothing.
                huggingface_hub.hf_hub_download(repo_id, file, revision=folder.name)
    except errors.GatedRepoError as error:
        raise InputError(
            f"it is gated: accept its licence on https://huggingface.co/{repo_id}, then log "
            "in with `hf auth login` or set HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            "the Hub has no such repository, or it is private; check the spelling, and "
            "for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"the repository has no revision {revision}; give one of its branches, tags or "
            "commits, or leave revision out for the main branch"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        said = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        reason = (
            "HF_HUB_OFFLINE is set; unset it"
            if huggingface_hub.constants.HF_HUB_OFFLINE
            else f"the Hub cannot be reached{said}; check the network"
        )
        raise InputError(
            f"{named} is not, or not wholly, in the cache {huggingface_hub.constants.HF_HUB_CACHE},"
            f" and {reason}, or give a folder or a .gguf file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"the repository has neither {WEIGHTS} nor {INDEX}, or not all the files that "
            "the index names; only safetensors are read. Choose a repository that has them"
        ) from error
    except InputError:
        raise
    except (errors.HTTPError, OSError, ValueError) as error:  # HTTPError: the HTTP library's own
        raise InputError(
            f"{named} cannot be downloaded ({type(error).__name__}: {first_line(error)}); "
            "run the command again, which goes on from what is there"
        ) from error
    return folder
