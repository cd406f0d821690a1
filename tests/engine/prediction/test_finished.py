"""Settings of a folder of predictions."""

import json

import pytest

from engine.prediction import finished


@pytest.mark.parametrize(("former", "name"), [("bfloat16", "bf16"), ("float16", "fp16"), ("off", "off")])
def test_precisions_written_by_earlier_versions_are_recognised(tmp_path, former, name):
    path = tmp_path / finished.SETTINGS
    path.write_text(json.dumps({"amp": former, finished.SOURCES: {}}))
    known = finished._read_settings(path)
    assert finished.differing_settings({"amp": name}, known) == []
    assert finished.differing_settings({"amp": "another"}, known) == ["amp"]
