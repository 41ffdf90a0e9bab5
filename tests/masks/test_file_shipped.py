"""The masks in configs/masks/: whole, for the model that they name, and with what they cost."""

import pathlib

import pytest
from masks import EARLIER

import sinkjax
from sinkjax import InputError, load_mask, shipped
from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.models.shapes import SHAPES

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "configs" / "masks").glob("*.json"))
MASKS = [*SHIPPED, *sorted(EARLIER.glob("*.json"))]


_digests: list[str] = []


@pytest.fixture
def digests(smollm2, smollm2_tokenizer) -> tuple[str, ...]:
    if not _digests:
        _digests.append(sinkjax.model_digest(smollm2))
        _digests.append(sinkjax.tokenizer_digest(smollm2_tokenizer))
    return tuple(_digests)


def of_the_default_model(path) -> bool:
    return path.stem.startswith("smollm2-135m-")


# Those of other models are held to them in tests/checkpoint/test_registry_large.py.
@pytest.mark.parametrize("path", [*filter(of_the_default_model, MASKS)], ids=lambda path: path.stem)
def test_a_shipped_mask_is_for_the_real_model(path, smollm2, digests):
    saved = load_mask(path)
    saved.check(smollm2.config)
    assert (saved.provenance.model_digest, saved.provenance.tokenizer_digest) == digests


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_a_shipped_mask_costs_less_than_controls(path):
    saved = load_mask(path)  # which refuses a file whose digest is not that of what it says
    saved.check(SHAPES[saved.provenance.model])
    assert saved.mask.masked.any()
    measured = saved.quality["quality"]
    assert len({entry["text_sha256"] for entry in measured}) >= 2
    for entry in measured:
        assert entry["length"] in saved.provenance.lengths
        kl = entry["kl"]["mean"]
        assert kl["low"] <= kl["value"] <= kl["high"]
        # All heads on the path that costs them least save less than a mask chosen by savings.
        by_heads = saved.provenance.selection["objective"] == "heads"
        controls = saved.quality["controls"]
        names = {"random control", "random, as chosen", "sink score"} & set(controls)
        assert len(names) == 2
        for name in names | ({"sink score, widest"} if by_heads else set()):
            of_text = [control for control in controls[name] if control["text"] == entry["text"]]
            assert of_text or entry is not measured[0]  # else judged on the first text alone
            assert all(kl["value"] < control["kl"]["value"] for control in of_text)


def test_shipped_masks_keep_the_promises_of_their_files():
    promised = [saved for path in SHIPPED if "budget_on" in (saved := load_mask(path)).quality]
    assert len(promised) >= 2
    for saved in promised:
        quality = saved.quality
        assert (quality["budget_on"], quality["over_budget"]) == ("largest", [])
        assert quality["kl_budget"] <= 0.05
        for entry in quality["quality"]:
            parts = [entry[part]["value"] for part in ("kl_acting", "kl_late", "kl_generated")]
            parts += [kl for shorter in entry["shorter"].values() for kl in shorter.values()]
            assert max(parts) <= quality["kl_budget"]
        for answers in quality.get("retrieval", ()):
            # At 8,000 tokens the model itself answers at two depths of three: no promise is made.
            assert answers["kept"] or (answers["kept"] is None and answers["length"] == 8000)
            for asked in answers["asked"] if answers["kept"] else ():
                assert asked["nll_rise"]["value"] <= answers["nll_budget"] == 0.1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_mask_says_what_it_saves_on_the_fullest_of_several_chips(path):
    saved = load_mask(path)
    workload = Workload(**saved.provenance.selection["workload"])
    config = SHAPES[saved.provenance.model]
    rows = saved_over_chips(config, saved.mask, workload)
    assert [row["chips"] for row in rows] == [1, config.num_kv_heads]
    assert saved.quality["over_chips"] == rows


@pytest.mark.parametrize(
    "name",
    [  # of every version so far; none is ever to go
        "qwen2.5-coder-0.5b-2048",
        "smollm2-135m-10-sinks",
        "smollm2-135m-2048",
        "smollm2-135m-24",
        "smollm2-135m-24-sinks",
        "smollm2-135m-4096-windows",
        "smollm2-135m-512",
        "smollm2-135m-512-gates",
        "smollm2-135m-512-groups",
        "smollm2-135m-512-savings",
        "smollm2-135m-512-windows",
        "smollm2-135m-8000",
    ],
)
def test_names_of_shipped_masks_stay(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)  # from any folder
    named = load_mask(name)
    assert named.digest == load_mask(f"configs/masks/{name}.json").digest
    assert named.mask.masked.any()
    instead = shipped.REPLACED.get(name)
    assert (instead is None) == (not caplog.records)
    if instead is not None:
        assert named.digest == load_mask(instead).digest
        assert f"{name} no longer ships" in caplog.text


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InputError) as refused:
        load_mask("smollm2-135m-511")
    assert all(path.stem in str(refused.value) for path in SHIPPED)
