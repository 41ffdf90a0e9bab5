"""Masks to the Hub, through huggingface-hub's token; `load_mask` reads them from there.

A repository has the mask's file, its fills where it has some, and a card for readers:

  mask.json  mask.fills.safetensors  README.md
"""

import pathlib
import tempfile

import huggingface_hub

from sinkjax.errors import InputError
from sinkjax.hub import hub_problems
from sinkjax.masks.file import ON_HUB, SavedMask, save_mask


def push_mask(repo_id: str, saved: SavedMask, card: str) -> str:
    """Uploads a mask in one commit, to a repository that is made, public, where it is missing.

    Args:
      repo_id: `owner/name`.
      saved: the mask, as a file of which it is uploaded.
      card: Markdown for README.md.

    Returns:
      The address of the commit.

    Raises:
      InputError: where there is no token, or one that may not write there; where the Hub cannot be
        reached.
    """
    if repo_id.count("/") != 1:  # the account's own need no USER elsewhere
        raise InputError("it is no name of a repository: write USER/NAME")
    with tempfile.TemporaryDirectory() as folder:
        save_mask(
            pathlib.Path(folder, ON_HUB),
            saved.mask,
            provenance=saved.provenance,
            quality=saved.quality,
            fills=saved.fills,
        )
        pathlib.Path(folder, "README.md").write_text(card, encoding="utf-8")
        with hub_problems(repo_id, "the mask cannot be uploaded"):
            api = huggingface_hub.HfApi(token=True)
            api.create_repo(repo_id, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Mask {saved.mask.digest[:16]} by sinkjax",
            )
    return commit.commit_url
