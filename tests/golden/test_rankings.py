"""The F16 files rank every nano set as the recorded numpy reference engine did, nDCG to the last bit."""

import json

import pytest
from tests.golden.record_rankings import RECORD, differences, ranked

from nestling.evaluation import data


@pytest.mark.slow
@pytest.mark.parametrize("name", data.SHIPPED)
def test_f16_ranks_as_the_reference(name: str) -> None:
    assert differences(ranked(name, "auto"), json.loads(RECORD.read_text("utf-8"))[name]) == []


def test_a_change_of_places_would_be_seen() -> None:
    record = json.loads(RECORD.read_text("utf-8"))["perlfaq-en"]
    changed = {**record, "rankings": [list(reversed(ids)) for ids in record["rankings"]]}
    assert differences(changed, record)
    assert differences({**record, "nDCG@10": [value / 2 for value in record["nDCG@10"]]}, record)
