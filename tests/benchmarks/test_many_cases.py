"""The benchmark of many cases runs every command, and tells a quadratic time from a linear one."""

import json

import pytest

import main_train
import test_seg
from benchmarks.many_cases import PARTS, growth, main, measure_parts, parse_args, write_cases
from engine.runtime.errors import InputError, run
from tools import check_data

MAINS = {"tools.check_data": check_data, "main_train.py": main_train, "test_seg.py": test_seg}


def test_every_part_runs(tmp_path, monkeypatch):
    """In this process, because each start of PyTorch takes seconds."""
    write_cases(tmp_path, 2, seed=0)
    monkeypatch.chdir(tmp_path)
    for part, command in PARTS.items():
        script, *words = [word for word in command if word != "-m"]
        assert run(MAINS[script].main, MAINS[script].parse_args(words)) == 0, part
    assert len(list((tmp_path / "predictions").glob("*_seg.nii.gz"))) == 2


def test_parts_are_measured_as_processes_of_their_own(tmp_path, monkeypatch):
    write_cases(tmp_path, 1, seed=0)
    parts = {name: PARTS[name] for name in ("check, headers", "training start, no cache")}
    monkeypatch.setattr("benchmarks.many_cases.PARTS", parts)
    found = measure_parts(tmp_path)
    assert list(found) == list(parts)
    assert all(
        part["seconds"] > 0 and part["cpu_s"] > 0.5 and 2e7 < part["peak_bytes"] < 4e9 for part in found.values()
    )
    assert (tmp_path / "run" / "best_metric_model.pth").exists()


def test_a_part_that_fails_ends_the_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.many_cases.PARTS", {"check, voxels": ["-c", "import sys; sys.exit('no disk')"]})
    with pytest.raises(InputError, match=r"check, voxels: found exit status 1 \(no disk\), expected 0"):
        measure_parts(tmp_path)


def test_results_are_a_table_and_a_file(tmp_path, capsys, monkeypatch):
    def linear(folder):
        cases = len(list((folder / "data" / "imagesTs").iterdir()))
        return {part: {"seconds": 1 + cases / 10, "cpu_s": 2 * cases, "peak_bytes": 1e9} for part in PARTS}

    monkeypatch.setattr("benchmarks.many_cases.measure_parts", linear)
    output = tmp_path / "new" / "result.json"
    results = main(parse_args(["--cases", "2", "4", "8", "--folder", str(tmp_path), "--output", str(output)]))
    assert json.loads(output.read_text()) == results
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # the datasets are gone
    row = next(line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("prediction, again"))
    assert row.split()[2:] == ["1.2", "1.4", "1.8", "100.0", "1.00", "1.00"]


def test_growth():
    cases = [250, 500, 1000]
    assert growth(cases, [1 + 0.01 * count for count in cases]) == pytest.approx(1)
    assert growth(cases, [1 + 1e-5 * count**2 for count in cases]) == pytest.approx(2)
    assert growth(cases, [1, 1.01, 1.02]) is None


@pytest.mark.parametrize("cases", [["5", "6"], ["3", "2", "1"], ["1", "1", "2"]])
def test_too_few_numbers_of_cases(cases, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--cases", *cases])
    assert stop.value.code == 2
    assert "--cases: found" in capsys.readouterr().err
