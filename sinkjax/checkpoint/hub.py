"""Downloads from the Hub, with huggingface-hub's token: models into its cache, parts of files."""

import pathlib
import queue
import threading
from collections.abc import Iterator

import huggingface_hub
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS, index_files
from sinkjax.checkpoint.folder_tokenizer import TOKENIZER_FILES
from sinkjax.errors import InputError
from sinkjax.hub import hub_problems, what_of, why_not

_PATIENCE = 3.0  # seconds in which the Hub has to say what a file is


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


def find(repo_id: str, file: str, sha256: str) -> str:
    """The address of a large file of a repository's main branch, asked for once and not for long.

    Raises:
      InputError: saying why there is none: the Hub does not answer in time, or refuses, or its
        file has another hash.
    """
    url = huggingface_hub.hf_hub_url(repo_id, file)
    answers: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(huggingface_hub.get_hf_file_metadata(url).etag)
        except Exception as error:
            answers.put(error)

    # By a thread that can be left behind: no timeout ends a look-up of a name, and each of a name's
    # addresses has one of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_PATIENCE)
    except queue.Empty:
        raise InputError(f"it does not answer within {_PATIENCE:g} s") from None
    if isinstance(answer, Exception):
        raise InputError(why_not(answer)) from None
    if answer != sha256:
        raise InputError(f"{file} of {repo_id} is another file there")
    return url


def read(url: str, start: int, size: int) -> Iterator[bytes]:
    """What the Hub sends for a range of a file's bytes, with a progress bar in a terminal.

    Whoever asks has to check it: a server that knows no ranges sends all of the file.

    Raises:
      InputError: saying why it ended early, or never began.
    """
    headers = {
        **build_hf_headers(),
        "Range": f"bytes={start}-{start + size - 1}",
        "Accept-Encoding": "identity",
    }
    timeout = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
                for content in response.iter_raw(1 << 20):
                    bar.update(len(content))
                    yield content
    except Exception as error:  # of any class, as in `hub_problems`
        raise InputError(why_not(error)) from None
