"""Every format that is read: valid files, the library's reading, and another that shares no code.

A format is a function that writes valid files to a folder and returns a `Format`; it is listed in
`FORMATS` by its name.
"""

import pathlib
from collections.abc import Callable, Iterator

from tests.fuzz import configs, masks, results, texts, tokens, weights
from tests.fuzz.format import Format

FORMATS: dict[str, Callable[[pathlib.Path], Format]] = {
    "GGUF": weights.gguf_file,
    "safetensors": weights.safetensors_file,
    "index of shards": weights.index,
    "config": configs.config,
    "configs of families": configs.family_configs,
    "tokenizer.json": tokens.tokenizer_json,
    "tokenizer.model": tokens.sentencepiece_model,
    "tokenizer in GGUF": tokens.gguf_tokenizer,
    "chat template": tokens.chat_template,
    "chat template in a config": tokens.configured_template,
    "Orbax": weights.orbax,
    "mask and fills": results.mask,
    "plan": masks.plan,
    "published masks": masks.published,
    "mask and card on the Hub": masks.hub,
    "repair": masks.repair,
    "checkpoint of training": masks.training,
    "records": results.records,
    "records (resumed)": results.resumed,
    "report (old records)": results.report,
    "prompts (.jsonl)": texts.prompts_jsonl,
    "prompts (.txt)": texts.prompts_txt,
    "text": texts.text,
    "flag file": texts.flag_file,
}


def formats(folder: pathlib.Path, names: tuple[str, ...]) -> Iterator[tuple[str, Format]]:
    """Writes each format's valid files to a folder of its name, and yields it."""
    for number, name in enumerate(names):
        base = folder / f"{number}"
        base.mkdir(parents=True)
        yield name, FORMATS[name](base)
