"""The benchmark of kernels and crops measures each point once, keeps it, and leaves out points that take too long."""

import json

import pytest
from conftest import assert_one_line

from benchmarks import kernel_size
from benchmarks.kernel_size import draw, expected_seconds, main, measure, parse_args, points
from engine.runtime.errors import run

TINY = ["--feat_size", "2", "2", "2", "2", "--kernel_sizes", "3", "--crops", "32", "--repeats", "1"]


def row(way, kernel, crop, step_s):
    return {"way": way, "kernel_size": kernel, "crop": crop, "step_s": step_s, "peak_bytes": 1, "reason": None}


@pytest.mark.slow
def test_benchmark_measures_each_point_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_size, "CROP", 32)
    output = tmp_path / "new" / "result.json"
    results = main(parse_args([*TINY, "--output", str(output)]))
    assert json.loads(output.read_text()) == results
    found = [(row["way"], row["kernel_size"], row["crop"]) for row in results["rows"]]
    assert found == [("here", 3, 32), ("here", 21, 32), ("native", 3, 32), ("native", 21, 32)]
    assert all(row["reason"] is None and row["peak_bytes"] > 1e8 for row in results["rows"])
    assert "native" in capsys.readouterr().out

    monkeypatch.setattr(kernel_size, "measure_step", lambda *_, **__: pytest.fail("measured again"))
    assert main(parse_args([*TINY, "--output", str(output)]))["rows"] == results["rows"]


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_foreign_output_file_is_one_line(content, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.mkdir() if content is None else path.write_text(content)
    assert_one_line((run(main, parse_args([*TINY, "--output", str(path)])), "", capsys.readouterr().err), path)
    assert content is None or path.read_text() == content


def test_points_vary_either_kernel_or_crop():
    found = points((21, 3), (160, 96), 96)
    assert found[:3] == [("here", 3, 96), ("here", 21, 96), ("here", 21, 160)]
    assert [point[0] for point in found] == ["here"] * 3 + ["native"] * 3


def test_a_point_expected_to_take_too_long_is_left_out():
    known = [row("native", 11, 96, 5.0), row("native", 15, 96, 20.0)]
    assert expected_seconds(("native", 31, 96), known) == pytest.approx(20 * (31 / 15) ** 3)
    assert expected_seconds(("here", 21, 160), [row("here", 21, 96, 10.0)]) == pytest.approx(10 * (160 / 96) ** 3)
    asked = []

    def measure_point(point):
        asked.append(point)
        return {"step_s": 60.0, "steps_s": [60.0], "peak_bytes": 1, "reason": None}

    found = list(measure([("native", 21, 96), ("native", 31, 96)], known, measure_point, limit_s=100))
    assert asked == [("native", 21, 96)]
    assert found[1]["step_s"] is None
    assert found[1]["reason"] == "left out: about 193 s expected, limit 100 s"


def test_the_plot_has_a_panel_for_kernels_and_one_for_crops():
    rows = [row("here", 3, 96, 10.0), row("here", 21, 96, 11.0), row("here", 21, 64, 3.0), row("native", 21, 96, 300.0)]
    rows.append({**row("native", 31, 96, None), "reason": "left out"})
    figure = draw([{"device": "a CPU", "batch_size": 1, "rows": rows}])
    kernels, crops = figure.axes
    assert [list(line.get_xdata()) for line in kernels.lines] == [[21], [3, 21]]
    assert [list(line.get_ydata()) for line in crops.lines] == [[300.0], [3.0, 11.0]]
    assert "a CPU" in kernels.get_title(loc="left")
