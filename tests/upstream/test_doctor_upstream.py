"""`headforce doctor` on checkouts: the breaks that are there, and that the adapter removes all of them."""

from pathlib import Path

import pytest

from .child import checkout_of, needs_diffusers, printed_by

TARGETS = {
    "self_forcing": "self-forcing",
    "causal_forcing": "causal-forcing",
    "causvid": "causvid",
    "longlive": "longlive-1",
}


@needs_diffusers
@pytest.mark.parametrize("target", TARGETS)
def test_the_diagnosis_of_a_repository(target: str) -> None:
    checkout = checkout_of(TARGETS[target])
    seen = printed_by("headforce", "doctor", f"tests/upstream/doctor_targets.py:{target}", "--json")
    own = [site for site in seen["sites"] if site["verdict"] == "owned"]
    assert [site["name"] for site in own] == ["blocks.0.self_attn", "blocks.1.self_attn"]
    assert {site["code"] for site in seen["sites"]} == {"", "HF-CROSS"}
    assert all(site["bare"].startswith("HF-") for site in own)
    assert "headforce.prepare" in seen["notes"][0]
    found = [broken["found"] for broken in seen["breaks"]]
    assert {".item()", ".tolist()"} <= {broken["cause"] for broken in found}
    assert all(broken["removed"] for broken in seen["breaks"])
    for broken in found:
        file, _, line = broken["where"].rpartition(":")
        assert Path(file).name == "causal_model.py"
        assert checkout in Path(file).parents
        assert Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == broken["source"]
        if broken["cause"] in (".item()", ".tolist()"):
            assert broken["cause"] in broken["source"]
    assert seen["prepared"]["breaks"] == []
    assert sum(seen["prepared"]["graphs"]) <= 5
    assert sum(seen["bare"]["graphs"]) >= 20
