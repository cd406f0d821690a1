"""Settings of a folder of predictions."""

import json

import pytest

from engine.prediction import records


@pytest.mark.parametrize(("former", "name"), [("bfloat16", "bf16"), ("float16", "fp16"), ("off", "off")])
def test_precisions_written_by_earlier_versions_are_recognised(tmp_path, former, name):
    (tmp_path / records.SETTINGS).write_text(json.dumps({"amp": former, records.SOURCES: {}}))
    known = records.read_record(tmp_path).settings
    assert records.differing_settings({"amp": name}, known) == []
    assert records.differing_settings({"amp": "another"}, known) == ["amp"]


def test_what_is_scored_does_not_change_predictions():
    known, now = ({"dataset": {"spacing": [1, 1, 1], **fields}} for fields in ({}, {"surface_tolerance": 1}))
    assert records.differing_settings(now, known) == []
