"""Downloads what a Llama needs from the Hub, through huggingface-hub's cache and token."""

import pathlib

import huggingface_hub

from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS, index_files
from sinkjax.checkpoint.folder_tokenizer import TOKENIZER_FILES
from sinkjax.hub import hub_problems, what_of


def fetch(repo_id: str, revision: str | None, *, weights: bool) -> pathlib.Path:
    """The folder of a repository's snapshot in the Hub's cache, downloaded where it is not there.

    Config and tokenizer, and of the weights the safetensors alone: no second format, no original.

    Args:
      repo_id: `owner/name`.
      revision: branch, tag or commit; None for the main branch.
      weights: whether to download them, too.

    Raises:
      InputError: if it does not exist, may not be read, cannot be reached, or has no config or no
        safetensors.
    """
    with hub_problems(
        repo_id,
        f"{what_of(revision)} cannot be downloaded",
        revision=revision,
        missing=f"the repository has no {CONFIG}, or neither {WEIGHTS} nor {INDEX}, or not all "
        "the files that the index names; only safetensors are read. Choose a repository that has "
        f"them, or of one with GGUF files download one (hf download {repo_id} FILE) and give that",
        instead=", or give a folder or a .gguf file",
    ):
        files = [CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES, *([INDEX] if weights else [])]
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=files)
        )
        needed = [CONFIG]
        if weights:
            indexed = (folder / INDEX).exists()
            needed += sorted(set(index_files(folder).values())) if indexed else [WEIGHTS]
        for file in needed:
            # By its commit, so that a branch that moves meanwhile mixes nothing.
            huggingface_hub.hf_hub_download(repo_id, file, revision=folder.name)
    return folder
