"""Names of devices that are not here: what is refused leads to what there is."""

import importlib.util
import re
import types

import pytest

from sinkjax.errors import InputError
from sinkjax.programs.targets import TARGETS, target_devices, topologies

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("tpu:")])
def test_a_topology_that_a_chip_has_not_is_refused_with_a_target_that_is_one(target, monkeypatch):
    def described(name, platform):
        if name.endswith(":9"):
            raise ValueError("9 is none\nat all")
        return types.SimpleNamespace(devices=[name])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", described)
    with pytest.raises(InputError, match=f"target={target}:9: it has no such topology") as error:
        target_devices(f"{target}:9")
    such = re.search(r"\(9 is none\); give one such as (\S+)$", str(error.value))
    assert target_devices(such[1]) == target_devices(target)
