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


def test_differences_of_ensembles_are_visible():
    one, two = "a" * 64, "b" * 64
    text = records.describe_difference("trained_weights", [one, two], one)
    assert text == f"trained_weights {'a' * 21}... and {'b' * 21}... (now {'a' * 21}...)"
    text = records.describe_difference("roi_size", [[32, 48, 32], [16, 16, 16]], [32, 48, 32])
    assert text == "roi_size 32 48 32 and 16 16 16 (now 32 48 32)"
