"""Every format that is read: valid files, the library's reading, and another that shares no code.

A format is a function that writes valid files to a folder and returns a `Format`; it is listed in
`FORMATS` by its name.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import gguf
import ml_dtypes
import numpy as np
import scripts
import tiny
from flax import nnx

import sinkjax
from benchmarks.write_gguf import write_gguf
from sinkjax.checkpoint import weights
from sinkjax.cli import flags as cli
from sinkjax.errors import InputError
from sinkjax.masks.file import Provenance, load_mask, save_mask
from sinkjax.studies import texts
from sinkjax.studies.results import Results, read_records

PROSE = texts.choose_text(None, 1, seed=0).text[:50_000]
PROBES = ("", " ", " Hello", "Hello  world", PROSE[2000:2200], "é漢字🎉\n\t1234", "<s></s>ab")


@dataclasses.dataclass(frozen=True)
class Format:
    """Valid files of a format, in a folder of their own.

    Attributes:
      damaged: the names of files that are damaged, one of them an input.
      read: what the library reads from the folder; InputError where it refuses.
      expected: what it is to read if it reads something: by the files as they are, and by what it
        read of the undamaged ones. Any exception: it should have refused, but for what changes
        nothing. By default what the undamaged files gave: the format has checksums.
    """

    damaged: tuple[str, ...]
    read: Callable[[pathlib.Path], Any]
    expected: Callable[[pathlib.Path, Any], Any] = lambda folder, original: original


# Weights. A tensor is known by its sorted elements: no layout is asked for.


def _elements(array: np.ndarray) -> str:
    return hashlib.sha256(np.sort(np.asarray(array, np.float32).ravel().view("u4"))).hexdigest()


def _model(path: pathlib.Path) -> dict[str, Any]:
    model = sinkjax.load(path)
    arrays = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        "config": dataclasses.asdict(model.config),
        "tensors": {".".join(map(str, path)): _elements(value[...]) for path, value in arrays},
    }


def _expected_model(original: dict, tensors: dict[str, str], config: dict[str, Any]) -> dict:
    """What the model is, of a file in which tensors that had these elements have others.

    Args:
      original: the undamaged model, as `_model` gives it.
      tensors: what each of its tensors' elements have become.
      config: fields of the config as another reader finds them.
    """
    changed = {name: tensors[elements] for name, elements in original["tensors"].items()}
    return {"config": {**original["config"], **config}, "tensors": changed}


def _safetensors(path: pathlib.Path) -> dict[str, str]:
    """Tensors' elements by name, as the format's definition reads."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    end, tensors = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, next_end = entry["data_offsets"]
        assert start == end, "a hole"
        end = next_end
        array = np.frombuffer(data[start:end], dtypes[entry["dtype"]])
        tensors[name] = _elements(array.reshape(entry["shape"]))
    assert end == len(data), "bytes that are no tensor's"
    return tensors


def safetensors_file(folder: pathlib.Path) -> Format:
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    before = _safetensors(folder / "model.safetensors")

    def expected(folder: pathlib.Path, original: dict) -> dict:
        after = _safetensors(folder / "model.safetensors")
        assert after.keys() == before.keys()
        return _expected_model(original, {before[name]: after[name] for name in after}, {})

    return Format(("model.safetensors",), _model, expected)


def index(folder: pathlib.Path) -> Format:
    shard_bytes, weights._SHARD_BYTES = weights._SHARD_BYTES, 40_000
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    weights._SHARD_BYTES = shard_bytes
    assert (folder / "model-00002-of-00003.safetensors").exists()
    # The index places tensors and says nothing of them: nothing it says may change the model.
    return Format(("model.safetensors.index.json",), _model)


_CONFIG = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_eps",
    "hidden_act": "activation",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
_LLAMA3 = {
    "rope_type": "type",
    "rope_theta": "theta",
    "original_max_position_embeddings": "original_max_length",
    **{name: name for name in ("factor", "low_freq_factor", "high_freq_factor")},
}
# transformers' own where a config does not say; of tokens, none.
_DEFAULTS: dict[str, Any] = dict(
    vocab_size=32000,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    initializer_range=0.02,
    bos_token_id=None,
    pad_token_id=None,
)


def config(folder: pathlib.Path) -> Format:
    model = tiny.make(num_layers=2, rope=tiny.LLAMA3, bos_token_id=1, eos_token_ids=(2, 3))
    sinkjax.save_safetensors(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5], "top_k": 4}))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        config = dataclasses.asdict(sinkjax.load_config(folder))
        with contextlib.suppress(InputError):  # tensors of other shapes
            sinkjax.load(folder)
        return config

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        said = json.loads((folder / "config.json").read_bytes())
        generation = folder / "generation_config.json"
        more = json.loads(generation.read_bytes()) if generation.exists() else {}
        assert said.get("model_type", "llama") in ("llama", "mistral")
        shape = {**_DEFAULTS, **{key: said[key] for key in _CONFIG if key in said}}
        heads = shape["num_attention_heads"]
        if shape.get("num_key_value_heads") is None:
            shape["num_key_value_heads"] = heads
        if shape.get("head_dim") is None:
            shape["head_dim"] = shape["hidden_size"] // heads
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            **{k: v for k, v in (said.get("rope_parameters") or {}).items() if v is not None},
        }
        if rope["rope_type"] == "default":  # which has no more
            rope = {name: rope[name] for name in ("rope_type", "rope_theta")}
        else:
            rope.setdefault("original_max_position_embeddings", shape["max_position_embeddings"])
        ends = [*_listed(said.get("eos_token_id")), *_listed(more.get("eos_token_id"))]
        tokens = [token for token in ends if token is not None]
        tokens = tuple(dict.fromkeys(t for t in tokens if 0 <= t < shape["vocab_size"]))
        # Whole numbers beyond float64's are read as the nearest of its.
        of_rope = {name: _number(rope.get(key)) for key, name in _LLAMA3.items()}
        return {
            **original,
            **{name: _number(shape[key]) for key, name in _CONFIG.items()},
            "rope": {**original["rope"], **of_rope},
            "eos_token_ids": tokens,
        }

    return Format(("config.json", "config.json", "generation_config.json"), read, expected)


def _number(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_GGUF_KEYS = {
    "context_length": "max_length",
    "embedding_length": "embed_dim",
    "block_count": "num_layers",
    "feed_forward_length": "mlp_dim",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}


def _gguf(path: pathlib.Path) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Tensors' elements by name, fields of the config, and all metadata, as `gguf` reads them."""
    reader = gguf.GGUFReader(path)
    end = 0
    for tensor in reader.tensors:
        offset = int(tensor.field.parts[-1][0])
        assert offset == end, "not the running padded size"
        end = offset + -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment
    tensors = {tensor.name: _elements(tensor.data) for tensor in reader.tensors}
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = {name: metadata[f"llama.{key}"] for key, name in _GGUF_KEYS.items()}
    config["norm_eps"] = _decimal(config["norm_eps"])
    return tensors, config, metadata


def _decimal(value: float) -> float:
    """The number that float32 holds in its fewest digits."""
    return float(str(np.float32(value)))


def gguf_file(folder: pathlib.Path) -> Format:
    write_gguf(tiny.make(num_layers=2), folder / "model.gguf")
    before = _gguf(folder / "model.gguf")[0]

    def expected(folder: pathlib.Path, original: dict) -> dict:
        after, fields, metadata = _gguf(folder / "model.gguf")
        assert after.keys() == before.keys()
        theta = _decimal(metadata.get("llama.rope.freq_base", 10000.0))
        config = {**fields, "rope": {**original["config"]["rope"], "theta": theta}}
        named = ("attention.key_length", "rope.dimension_count")
        sizes = [metadata[f"llama.{key}"] for key in named if f"llama.{key}" in metadata]
        config["head_dim"] = [*sizes, fields["embed_dim"] // fields["num_heads"]][0]
        return _expected_model(original, {before[name]: after[name] for name in after}, config)

    return Format(("model.gguf",), lambda folder: _model(folder / "model.gguf"), expected)


def orbax(folder: pathlib.Path) -> Format:
    sinkjax.save_orbax(tiny.make(num_layers=2), folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [str(file.relative_to(folder)) for file in files]
    return Format((*names, *["sinkjax.json"] * len(names)), _model)


# Tokenizers: the tokens of some texts, and the special ones.


def _tokens(path: pathlib.Path) -> dict[str, Any]:
    tokenizer = sinkjax.load_tokenizer(path)
    full, bare = (
        [tokenizer.encode(t, add_special_tokens=s) for t in PROBES] for s in (True, False)
    )
    tokenizer.decode(bare[4])
    return {"bare": bare, "full": full, "ends": [tokenizer.bos_token, tokenizer.eos_token]}


def _with_tokens(original: dict[str, Any], encode: Callable[[str], list[int]]) -> dict[str, Any]:
    """What is expected of tokens without special ones; of the rest, what it is."""
    return {**original, "bare": [list(encode(text)) for text in PROBES]}


def _bare_alone(original: dict[str, Any]) -> dict[str, Any]:
    return {"bare": original["bare"]}


def tokenizer_json(folder: pathlib.Path) -> Format:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROSE.split("\n"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(named))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        return _bare_alone(_tokens(folder))

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        its = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return _with_tokens(original, lambda text: its.encode(text, add_special_tokens=False).ids)

    return Format(("tokenizer.json", "tokenizer_config.json"), read, expected)


def _train_sentencepiece(folder: pathlib.Path) -> Any:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=600,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def sentencepiece_model(folder: pathlib.Path) -> Format:
    import sentencepiece

    _train_sentencepiece(folder)
    pieces = [i for i, text in enumerate(PROBES) if not re.search("<s>|</s>", text)]

    def read(folder: pathlib.Path) -> list[list[int]]:
        tokens = _tokens(folder)["bare"]
        return [tokens[i] for i in pieces]  # of special tokens, SentencePiece itself knows none

    def expected(folder: pathlib.Path, original: list) -> list[list[int]]:
        its = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return [its.encode(PROBES[i]) for i in pieces]

    return Format(("tokenizer.model",), read, expected)


def gguf_tokenizer(folder: pathlib.Path) -> Format:
    trained = _train_sentencepiece(folder)
    (folder / "tokenizer.model").unlink()
    ids = range(trained.vocab_size())
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([trained.id_to_piece(i) for i in ids])
    writer.add_token_scores([trained.get_score(i) for i in ids])
    writer.add_token_types(
        [
            2
            if trained.is_unknown(i)
            else 3
            if trained.is_control(i)
            else 6
            if trained.is_byte(i)
            else 1
            for i in ids
        ]
    )
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def tokenizer_metadata(path: pathlib.Path) -> dict[str, Any]:
        metadata = _metadata(path)
        return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}

    before = tokenizer_metadata(folder / "model.gguf")

    def read(folder: pathlib.Path) -> dict[str, Any]:
        return {**_tokens(folder / "model.gguf"), "metadata": before}

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        """The metadata that is there is another tokenizer's: nothing else says what it is."""
        after = tokenizer_metadata(folder / "model.gguf")
        if after == before:
            return original
        return {**_tokens(folder / "model.gguf"), "metadata": before}

    return Format(("model.gguf",), read, expected)


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


# Masks.


def mask(folder: pathlib.Path) -> Format:
    model = tiny.make(num_layers=2)
    chosen = sinkjax.SinkMask.from_text("L0: 2f 2s(mean) 2w(1,4) | L1: 3s(zero) 3s(mean)")
    save_mask(
        folder / "mask.json",
        chosen,
        provenance=Provenance(
            model="tiny", lengths=(8, 16), threshold=0.9, selection={"by": "share"}
        ),
        quality={"kl": 0.25, "notes": ["é"]},
        fills=tiny.make_fills(model),
    )

    def read(folder: pathlib.Path) -> tuple:
        saved = load_mask(folder / "mask.json")
        fills = None if saved.fills is None else saved.fills.tobytes()
        said = dataclasses.asdict(saved.provenance)
        saved.check(model.config)
        return str(saved.mask), said, saved.quality, fills, saved.digest

    return Format(("mask.json", "mask.json", "mask.fills.safetensors"), read)


# Results.


@functools.cache
def _sweep() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The specification and the records of a small sweep."""
    from tests.studies import conftest

    model = conftest.describe_model(num_layers=2, num_heads=2, num_kv_heads=1)
    source = conftest.describe_source("short", (2, 8))
    few = dict(models=[model], sources=[source], num_prompts=3, study=False, definitions=("mean",))
    return conftest.build_sweep(**few)


def _write_results(folder: pathlib.Path) -> None:
    specification, records = _sweep()
    with Results(folder, specification) as results:
        for record in records:
            results.append(record)
        results.put_arrays("scores", mean=np.arange(6, dtype=np.float32))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


_RESULTS = ("records.jsonl", "records.jsonl", "records.sha256", "run.json", "measured/scores.npz")


def _present(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(name for name in _RESULTS if (folder / name).exists())


def _all_or_untorn(written: bytes) -> Callable[[pathlib.Path, Any], Any]:
    """Expects all records, or all but a last one of whose line or digest only a part is there.

    Args:
      written: the lines of the records, undamaged.
    """

    def expected(folder: pathlib.Path, original: Any) -> Any:
        specification, records, *more = original
        digests = folder / "records.sha256"
        whole = (folder / "records.jsonl").read_bytes().startswith(written)
        if digests.exists():
            whole = whole and digests.read_bytes().count(b"\n") > len(records)
        return original if whole else [specification, records[:-1], *more]

    return expected


def records(folder: pathlib.Path) -> Format:
    _write_results(folder)

    def read(folder: pathlib.Path) -> Any:
        return _plain(read_records(folder))

    return Format(_present(folder), read, _all_or_untorn((folder / _RESULTS[0]).read_bytes()))


def resumed(folder: pathlib.Path) -> Format:
    _write_results(folder)

    def read(folder: pathlib.Path) -> Any:
        with Results(folder, _sweep()[0]) as results:
            arrays = results.arrays("scores")  # None where damaged: they are measured again
            assert arrays is None or arrays["mean"].tolist() == [0, 1, 2, 3, 4, 5]
            return _plain([_sweep()[0], list(results)])

    return Format(_present(folder), read, _all_or_untorn((folder / _RESULTS[0]).read_bytes()))


def report(folder: pathlib.Path) -> Format:
    """Of records without digests, as earlier versions wrote: read or refused, of whatever shape."""
    from sinkjax.cli.study import write_report
    from sinkjax.report.canvas import Picture, Sheet

    _write_results(folder)
    (folder / "records.sha256").unlink(missing_ok=True)

    def drawn(sheet: Sheet, name: str, alt: str, caption: str) -> Picture:
        return Picture(name, b"", (1, 1), alt, caption)  # to draw takes seconds, and reads nothing

    def read(folder: pathlib.Path) -> bool:
        with mock.patch.object(Sheet, "picture", drawn):
            return write_report(folder).stat().st_size > 10_000

    return Format(("records.jsonl",) * 5 + ("run.json",), read)


# Prompts, texts and flag files.


def prompts_jsonl(folder: pathlib.Path) -> Format:
    lines = [
        "A first prompt",
        {"prompt": "A second, é漢字"},
        {"text": "a third", "id": 3},
        "\\n \n",
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def expected(folder: pathlib.Path, original: Any) -> list[str]:
        content = (folder / "prompts.jsonl").read_bytes().decode("utf-8-sig")
        values = [json.loads(line) for line in re.split("\r\n|\r|\n", content) if line.strip()]
        values = [v.get("prompt", v.get("text")) if isinstance(v, dict) else v for v in values]
        assert values
        assert all(value.strip() and value.encode() for value in values)
        return values

    return Format(
        ("prompts.jsonl",), lambda f: list(texts.read_prompts(f / "prompts.jsonl").texts), expected
    )


def prompts_txt(folder: pathlib.Path) -> Format:
    (folder / "prompts.txt").write_text("# a comment\nA first prompt\n\n  A second, é漢字\nthird\n")

    def expected(folder: pathlib.Path, original: Any) -> list[str]:
        content = (folder / "prompts.txt").read_bytes().decode("utf-8-sig")
        lines = re.split("\r\n|\r|\n", content)
        lines = [line for line in lines if line.strip() and line[0] != "#"]
        assert lines
        return lines

    return Format(
        ("prompts.txt",), lambda f: list(texts.read_prompts(f / "prompts.txt").texts), expected
    )


def text(folder: pathlib.Path) -> Format:
    (folder / "text.txt").write_text(PROSE[:3000] + "é漢字\r\nend\r\n")

    def expected(folder: pathlib.Path, original: Any) -> str:
        content = (folder / "text.txt").read_bytes().decode("utf-8-sig")
        assert content.strip()
        return re.sub("\r\n|\r", "\n", content)

    return Format(("text.txt",), lambda f: texts.read_text(f / "text.txt", 2, 0).text, expected)


_FLAGS = {
    "lengths": "2,4",
    "num_prompts": "7",
    "thresholds": "0.3,0.9",
    "bos": "never",
    "seed": "3",
}


def flag_file(folder: pathlib.Path) -> Format:
    lines = ["# of a sweep", "", *(f"--{name}={value}" for name, value in _FLAGS.items())]
    (folder / "fuzz.flags").write_text("\n".join([*lines, "--study=false"]) + "\n")
    kinds = {"lengths": int, "thresholds": float, "bos": str}

    def read(folder: pathlib.Path) -> dict[str, Any]:
        from sinkjax.cli.settings import read_settings
        from sinkjax.studies.sweep.study import Sweep

        command, settings = scripts.load_script("experiments.sweep"), []
        printed, argv = io.StringIO(), sys.argv
        sys.argv = ["sweep", f"--flagfile={folder / 'fuzz.flags'}"]
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
                cli.run(lambda: settings.append(read_settings(Sweep)), command.module)
        except SystemExit as end:
            if end.code not in (None, 0):
                said = end.code if isinstance(end.code, str) else printed.getvalue()
                errors = said.strip().splitlines()
                assert all(line.startswith("error: ") for line in errors), said
                raise InputError(*errors) from None
        finally:
            sys.argv = argv
        return {name: getattr(settings[0], name) for name in (*_FLAGS, "study")}

    def expected(folder: pathlib.Path, original: Any) -> dict[str, Any]:
        content = (folder / "fuzz.flags").read_bytes().decode()
        given = dict(_defaults)
        for line in map(str.strip, content.split("\n")):
            if line == "--":  # the end of flags
                break
            if line and not line.startswith(("#", "//")):
                match = re.fullmatch(r"--?(\w+)(?:=(.*))?", line, re.DOTALL)
                given[match[1]] = match[2]
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name in kinds and isinstance(value, str):
                found[name] = (
                    tuple(kinds[name](part.strip()) for part in value.split(",")) if value else ()
                )
            elif name in ("seed", "num_prompts") and isinstance(value, str):
                found[name] = int(value, 0)
            elif name in ("study", "nostudy"):
                found["study"] = name == "study" and value in (None, True, "true", "1", "t")
            else:
                found[name] = value
        return found

    from sinkjax.studies.sweep.study import Sweep

    _defaults = {
        f.name: f.default for f in dataclasses.fields(Sweep) if f.name in (*_FLAGS, "study")
    }
    return Format(("fuzz.flags",), read, expected)


FORMATS: dict[str, Callable[[pathlib.Path], Format]] = {
    "GGUF": gguf_file,
    "safetensors": safetensors_file,
    "index of shards": index,
    "config": config,
    "tokenizer.json": tokenizer_json,
    "tokenizer.model": sentencepiece_model,
    "tokenizer in GGUF": gguf_tokenizer,
    "Orbax": orbax,
    "mask and fills": mask,
    "records": records,
    "records (resumed)": resumed,
    "report (old records)": report,
    "prompts (.jsonl)": prompts_jsonl,
    "prompts (.txt)": prompts_txt,
    "text": text,
    "flag file": flag_file,
}


def formats(folder: pathlib.Path, names: tuple[str, ...]) -> Iterator[tuple[str, Format]]:
    """Writes each format's valid files to a folder of its name, and yields it."""
    for number, name in enumerate(names):
        base = folder / f"{number}"
        base.mkdir(parents=True)
        yield name, FORMATS[name](base)
