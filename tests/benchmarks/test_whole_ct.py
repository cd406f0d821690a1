"""The benchmark of a network on a whole CT measures every precision and overlap."""

import json

import pytest

from benchmarks import prediction
from benchmarks.whole_ct import main, parse_args


@pytest.mark.parametrize("amx", [True, False])
def test_every_way_has_a_row(amx, tmp_path, monkeypatch, capsys):
    stand_in, output = prediction.make_network, tmp_path / "new" / "result.json"
    monkeypatch.setattr(prediction, "make_network", lambda name, *others: stand_in(None, *others))
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": amx})
    small = ["--shape", "64", "64", "24", "--roi_size", "16", "16", "16", "--overlaps", "0.5", "0"]
    results = main(parse_args([*small, "--output", str(output)]))
    assert json.loads(output.read_text()) == json.loads(json.dumps(results))
    ways = [("off", 0.5), ("bf16", 0.5), ("bf16", 0.0)] if amx else [("off", 0.5), ("off", 0.0)]
    assert [(row["amp"], row["overlap"]) for row in results["rows"]] == ways
    for row in results["rows"]:
        assert row["seconds"] > 0 < row["cpu_seconds"]
        assert 0 < row["computed"] <= row["windows"]
    assert results["rows"][0]["windows"] > results["rows"][-1]["windows"]
    assert f"resampled to {' x '.join(map(str, results['grid']))}" in capsys.readouterr().out
