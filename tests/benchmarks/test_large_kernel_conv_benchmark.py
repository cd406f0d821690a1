"""The convolution benchmark measures every method, and finds the float32 paths accurate."""

import json

import pytest

from benchmarks.large_kernel_conv import main, parse_args

OURS = {"fft", "auto"}


@pytest.mark.parametrize(("options", "methods"), [([], {"native", *OURS}), (["--skip_native"], OURS)])
def test_benchmark_measures_each_method(options, methods, tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    command = ["--stages", "3,6", "2,4", "--kernel_size", "5", "--repeats", "1", "--output", str(output), *options]
    results = main(parse_args(command))
    assert json.loads(output.read_text()) == results
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]
    assert "total" in capsys.readouterr().out
    for row in results["rows"]:
        assert methods == row.keys() & {"native", *OURS}
        assert max(row["reference_error"].values()) < 1e-12
        assert all(error < 1e-5 for method in methods for error in row[method]["errors"].values())
        leaves = 4 * row["channels"] * (row["side"] ** 3 + 5**3)
        assert leaves < row["fft"]["kept_bytes"]
        assert min(row["deployed"].values()) > 0
