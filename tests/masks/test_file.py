"""Masks' files: read back, and refused after every kind of damage."""

import dataclasses
import hashlib
import json
import os
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from masks import CONFIG, MEANS, masks, problems_of
from safetensors.numpy import save_file

import sinkjax
from sinkjax import Full, InputError, Provenance, Sink, SinkMask, load_mask, save_mask
from sinkjax.files import json_digest
from sinkjax.masks.file import SCHEMA

pytestmark = pytest.mark.quick

L, N, K, H = CONFIG.num_layers, CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim
several = settings(deadline=None, max_examples=50)
drawn = masks(L, N, K)

PROVENANCE = Provenance(
    model="tiny",
    model_digest="a" * 64,
    tokenizer_digest="b" * 64,
    bos="always",
    text="prose",
    text_sha256="c" * 64,
    lengths=(8, 64),
    definition="mean",
    threshold=0.9,
    selection={"kind": "consistent", "min_share": 0.9},
)
QUALITY = {"kl": {"value": 0.1 + 0.2, "low": 0.25}, "lengths": [24, 256], "note": "§ 3"}
MEAN_MASK = MEANS[0]
NEEDED = ([1, 1, 3], [0, 1, 5])


def some_fills():
    return np.random.default_rng(0).normal(size=(L, N, H)).astype(np.float32)


def saved(folder, mask=MEAN_MASK, **more):
    options = {"provenance": PROVENANCE, "quality": QUALITY, "fills": some_fills(), **more}
    return sinkjax.save_mask(folder / "mask.json", mask, **options)


def edit(folder, sign=False, **changes):
    """Changes keys of the JSON; `...` deletes. With `sign` the digest is made to fit."""
    path = folder / "mask.json"
    fields = {**json.loads(path.read_text()), **changes}
    fields = {key: value for key, value in fields.items() if value is not ...}
    if sign:
        rest = {key: fields[key] for key in fields if key != "digest"}
        canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        fields["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(fields))


def refusal(folder):
    problems = problems_of(sinkjax.load_mask, folder / "mask.json")
    assert all(str(folder) in problem for problem in problems)
    return "\n".join(problems)


@several
@given(drawn)
def test_files_read_back(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("masks")
    digest = saved(folder, mask)
    loaded = sinkjax.load_mask(folder / "mask.json")
    assert loaded.mask == mask
    assert loaded.provenance == PROVENANCE
    assert loaded.quality == QUALITY
    assert loaded.digest == digest
    means = np.array([[path == Sink("mean") for path in layer] for layer in mask.heads])
    assert (loaded.fills is not None) == means.any() == (len(list(folder.iterdir())) == 2)
    if means.any():
        assert loaded.fills.dtype == np.float32
        np.testing.assert_array_equal(
            loaded.fills, np.where(means[..., None], some_fills(), np.float32(0))
        )


def test_equal_contents_are_equal_bytes_and_fills_of_other_heads_do_not_count(tmp_path):
    other = np.full((L, N, H), np.nan, np.float32)
    other[NEEDED] = some_fills()[NEEDED]
    for name, fills in (("one", some_fills()), ("two", jnp.asarray(other))):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, fills=fills)
    for file in ("mask.json", "mask.fills.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_file_is_written_for_people(tmp_path):
    saved(tmp_path)
    text = (tmp_path / "mask.json").read_text()
    fields = json.loads(text)
    assert fields["schema"] == SCHEMA
    assert fields["mask_digest"] == MEAN_MASK.digest
    assert fields["heads"] == str(MEAN_MASK).split(" | ")
    assert len(text.splitlines()) < 50


def test_what_a_file_can_hold_is_written_again_however_deeply_it_is_nested(tmp_path):
    deep: list = []
    for _ in range(700):
        deep = [deep]
    saved(tmp_path, provenance=Provenance(selection={"deep": deep}))
    again = load_mask(tmp_path / "mask.json")
    content = (tmp_path / "mask.json").read_bytes()
    saved(tmp_path, provenance=again.provenance)
    assert (tmp_path / "mask.json").read_bytes() == content


def test_saving_again_replaces_both_files(tmp_path):
    saved(tmp_path)
    baseline = SinkMask.full(CONFIG)
    saved(tmp_path, baseline)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]
    assert sinkjax.load_mask(tmp_path / "mask.json").mask == baseline


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    saved(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON compliant"):
        saved(tmp_path, SinkMask.full(CONFIG), quality={"kl": float("nan")})
    with pytest.raises(InputError, match=r"^quality: it is not JSON: .*object is not"):
        saved(tmp_path, SinkMask.full(CONFIG), quality={"kl": object()})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    assert "No space left" in problems_of(saved, tmp_path, quality={})[0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_paths_that_cannot_hold_a_mask_are_refused(tmp_path):
    baseline = SinkMask.full(CONFIG)
    assert "end in .json" in problems_of(sinkjax.save_mask, tmp_path / "mask", baseline)[0]
    (tmp_path / "file").touch()
    problems_of(sinkjax.save_mask, tmp_path / "file" / "mask.json", baseline)
    sinkjax.save_mask(tmp_path / "new" / "folder" / "mask.json", baseline)
    assert sinkjax.load_mask(tmp_path / "new" / "folder" / "mask.json").provenance == Provenance()


@pytest.mark.parametrize(
    ("fills", "said"),
    [
        (None, "3 heads are sink\\(mean\\): their fills are needed"),
        (some_fills()[:-1], r"float32 \[4, 6, H\] is needed"),
        (some_fills()[..., 0], r"float32 \[4, 6, H\] is needed"),
        (some_fills().astype(np.float64), "float64"),
        (np.full((L, N, H), np.inf, np.float32), "not all finite"),
    ],
)
def test_fills_that_do_not_fit_are_not_saved(tmp_path, fills, said):
    with pytest.raises(ValueError, match=said):
        saved(tmp_path, fills=fills)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": ["L0-3: 6f"]}, "was changed after it was written"),
        ({"quality": {"kl": 0}}, "was changed after it was written"),
        ({"provenance": {}}, "was changed after it was written"),
        ({"digest": "0" * 64}, "its digest is 000"),
        ({"fills_sha256": "0" * 64}, "was changed after it was written"),
        ({"schema": SCHEMA + 1}, f"has schema {SCHEMA + 1}, and this version of sinkjax reads"),
        ({"schema": ...}, "has no 'schema'"),
        ({"heads": ...}, "'heads' is missing"),
        ({"digest": ...}, "'digest' is missing"),
        ({"head": []}, "'head' is unknown"),
    ],
)
def test_a_tampered_file_is_refused(tmp_path, changes, said):
    saved(tmp_path)
    edit(tmp_path, **changes)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": "L0-3: 6f"}, "'heads' is no list of layers"),
        ({"heads": ["L0: 6f", "L2: 6f"]}, "comes where L1 has to begin"),
        ({"heads": ["L0: 6f", "L1: 5f"]}, "layer 1 has 5 heads"),
        ({"heads": ["L0: 6s(zero)", "L1: 6c(0,0)"]}, "only `full` and `window` can be copied"),
        ({"heads": ["L0-3: 6f"]}, "though no head is sink(mean)"),
        ({"heads": ["L0-3: 6f"], "fills_sha256": None}, "'mask_digest' is not that of its heads"),
        ({"fills_sha256": None}, "though 3 heads are sink(mean)"),
        ({"provenance": {"modle": "x"}}, "'provenance.modle' is unknown"),
        ({"provenance": []}, "'provenance' is no object"),
        ({"provenance": {"lengths": 3}}, "'provenance.lengths' is no list"),
        ({"provenance": {"lengths": [8, "9"]}}, "'provenance.lengths' has what is no whole number"),
        ({"provenance": {"model": 5}}, "'provenance.model' is no text"),
        ({"provenance": {"text_sha256": ["a"]}}, "'provenance.text_sha256' is no text"),
        ({"provenance": {"threshold": "0.9"}}, "'provenance.threshold' is no number"),
        ({"provenance": {"selection": [1]}}, "'provenance.selection' is no object"),
        ({"quality": []}, "'quality' is no object"),
    ],
)
def test_what_is_wrong_is_said_where_the_digest_fits(tmp_path, changes, said):
    saved(tmp_path)
    edit(tmp_path, sign=True, **changes)
    problems = refusal(tmp_path)
    assert said in problems
    assert "was changed" not in problems


def test_all_that_is_wrong_with_a_file_is_listed(tmp_path):
    saved(tmp_path)
    (tmp_path / "mask.fills.safetensors").unlink()
    edit(tmp_path, extra=1, quality=[], provenance={"modle": ""})
    assert len(refusal(tmp_path).splitlines()) == 5


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "mask.json"
    content = path.read_bytes()
    for size in range(len(content) - 1):  # the last byte is the newline
        path.write_bytes(content[:size])
        assert "is no JSON" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no mask"),
        (b"{}", "is no mask"),
        (b"null", "is no mask"),
        (b'{"schema": 1, "schema": 1}', "a key is there twice"),
        (b'{"schema": 1, "quality": {"kl": NaN}}', "is no JSON"),
        (b'{"schema": 1, "quality": {"kl": 1e999}}', "is no JSON"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, content, said):
    (tmp_path / "mask.json").write_bytes(content)
    assert said in refusal(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "swapped"])
def test_fills_that_are_not_the_masks_own_are_refused(tmp_path, damage):
    saved(tmp_path)
    path = tmp_path / "mask.fills.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        (tmp_path / "other").mkdir()
        saved(tmp_path / "other", fills=-some_fills())
        shutil.copy(tmp_path / "other" / path.name, path)
    problem = refusal(tmp_path)
    assert str(path) in problem
    assert (
        "keep the two files together" if damage == "missing" else "holds other fills"
    ) in problem


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": np.zeros((3, H), np.float32)},
        {"means": np.zeros((2, H), np.float32)},
        {"means": np.zeros((3, H), np.float64)},
        {"means": np.zeros(3, np.float32)},
    ],
)
def test_fills_of_another_shape_are_refused_where_their_sha256_fits(tmp_path, tensors):
    saved(tmp_path)
    path = tmp_path / "mask.fills.safetensors"
    save_file(tensors, path)
    edit(tmp_path, sign=True, fills_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert "does not hold float32 means of 3 heads" in refusal(tmp_path)


def test_few_means_do_not_become_fills_that_no_memory_holds(tmp_path):
    """Of 100,000 heads one has a mean, of 10,000 numbers: in all that would be 4 GB of zeros."""
    mask = SinkMask.from_text("L0: s(mean) 9998f | L1-9: 9999f")
    fills = np.broadcast_to(np.float32(0), (10, 9_999, 10_000))
    save_mask(tmp_path / "mask.json", mask, fills=fills)
    assert "of all 99,990 heads they would be 10,000 each" in refusal(tmp_path)


def test_a_file_of_more_bytes_than_any_mask_has_is_refused(tmp_path):
    saved(tmp_path)
    os.truncate(tmp_path / "mask.json", 2**24 + 1)
    assert "the mask cannot be read (it has 16,777,217 bytes, and at most" in refusal(tmp_path)
    saved(tmp_path)
    os.truncate(tmp_path / "mask.fills.safetensors", 10**11)
    assert "its fills cannot be read" in refusal(tmp_path)


def test_a_saved_mask_of_another_models_shape_is_refused(tmp_path):
    saved(tmp_path)
    loaded = sinkjax.load_mask(tmp_path / "mask.json")
    loaded.check(CONFIG)
    wider = dataclasses.replace(CONFIG, head_dim=2 * H)
    assert f"size {H}" in problems_of(loaded.check, wider)[0]
    deeper = dataclasses.replace(CONFIG, num_layers=L + 1)
    assert f"{L + 1} layers" in problems_of(loaded.check, deeper)[0]


def test_windows_beyond_what_a_program_can_count_are_refused(tmp_path):
    saved(tmp_path)
    edit(tmp_path, sign=True, heads=["L0: 4w(0,2147483648)", "L1: 4f"])
    assert "recent of window is 2147483648; it has to be at least 1 and at most 1000000000" in (
        refusal(tmp_path)
    )


def test_a_window_wider_than_any_context_is_refused(tmp_path):
    """Its digest is right: no version that writes one has such windows."""
    save_mask(tmp_path / "m.json", SinkMask.from_text("L0: 4w(0,5) | L1: 4f"))
    for numbers in ("0,2147483648", "1000000001,1", "0,1" + "0" * 5000, "0,-5", "99999999999,7"):
        text = f"L0: 4w({numbers})"
        fields = json.loads((tmp_path / "m.json").read_text())
        del fields["digest"]
        fields["heads"][0] = text
        fields["mask_digest"] = hashlib.sha256(f"{text} | L1: 4f".encode()).hexdigest()
        path = tmp_path / "wide.json"
        path.write_text(json.dumps({"digest": json_digest(fields), **fields}))
        with pytest.raises(InputError, match="no path") as caught:
            load_mask(path)
        assert len(caught.value.problems) == 1
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "heads", [["L0-9999: 9999f"], ["L0-999: " + "9999f " * 999 + "f"], ["L0-9999: 101f"]]
)
def test_a_mask_of_more_heads_than_any_model_has_is_refused_at_once(heads):
    start = time.process_time()
    with pytest.raises(InputError, match="more than 1,000,000 heads"):
        SinkMask.from_text(" | ".join(heads))
    with pytest.raises(InputError, match="more than 1,000,000 heads"):
        SinkMask(((Full(),) * 9_999,) * 9_999)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": ' * 100_000, "9" * 5000])
def test_json_that_no_reader_takes_is_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(InputError, match="is no JSON"):
        load_mask(tmp_path / "m.json")


@pytest.mark.parametrize("name", ["pipe.json", "a\0b.json", "9" * 5000])
def test_a_mask_that_is_no_file_is_refused_and_never_waited_for(name, tmp_path):
    if name == "pipe.json":
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"the mask cannot be read \(.*; give a file that"):
        load_mask(tmp_path / name)
