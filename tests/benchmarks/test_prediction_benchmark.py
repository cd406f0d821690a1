"""The benchmark of predictions finds the same label map in both ways."""

import json

import pytest

from benchmarks.prediction import main, parse_args


@pytest.mark.slow
def test_benchmark_compares_the_ways(tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    small = ["--shape", "64", "64", "24", "--roi_size", "32", "32", "32", "--cases", "2", "--num_workers", "1"]
    results = main(parse_args([*small, "--output", str(output)]))
    assert json.loads(output.read_text()) == json.loads(json.dumps(results))
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]
    assert results["differing"] < 1e-3
    assert results["foreground"] > 0.3
    published, lean, loop = results["rows"]
    assert published["rest"] > 0 < lean["rest"]
    assert lean["total"] >= lean["load"] + lean["network"] + lean["rest"]
    assert loop["peak_bytes"] > lean["libraries_bytes"] > 1e8
    assert "Voxels that differ" in capsys.readouterr().out
