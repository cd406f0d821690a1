"""The loading benchmark measures every way of loading, and writes its results."""

import json

import numpy as np
import pytest

from benchmarks.data_loading import main, parse_args
from benchmarks.synthetic_ct import ellipsoid

TINY = ["--cases", "2", "--shape", "40", "40", "24", "--roi_size", "8", "8", "8", "--epochs", "2", "--num_workers", "0"]


def test_benchmark_measures_each_way(tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    results = main(parse_args([*TINY, "--folder", str(tmp_path), "--output", str(output)]))
    assert json.loads(output.read_text()) == results
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # the CTs and the cache are gone
    rates = results["crops_per_s"]
    assert rates.keys() == {"published", "cache_rate", "cache_dir", "cache_dir_cold"}
    assert results["cache_dir_over_published"] == rates["cache_dir"] / rates["published"]
    assert results["data_s_per_two_crops"] == pytest.approx(2 / rates["cache_dir"])
    assert results["least_step_s_for_wait_share"] == pytest.approx(2 / rates["cache_dir"] / 1.05)
    voxels = 40 * 40 * 24 * 0.8**2 * 2.5 / (1.5**2 * 2)  # before the foreground crop
    assert 0.3 * 5 * voxels < results["cache_bytes_per_case"] < 6 * voxels
    assert f"{rates['published']:.2f}" in capsys.readouterr().out


def test_ellipsoid_has_its_volume():
    mask = ellipsoid((60, 50, 40), (0.1, -0.1, 0), (0.5, 0.6, 0.7))
    assert mask.shape == (60, 50, 40)
    assert mask.mean() == pytest.approx(4 / 3 * np.pi * 0.5 * 0.6 * 0.7 / 8, rel=0.1)
