"""The tables show the results of each card under its name, and mark everything that was not measured."""

import json

import pytest

from benchmarks import readme
from engine.runtime.errors import InputError

MACHINE = {"cpu": "a CPU", "threads": 16, "torch": "2.11.0", "date": "2026-12-01", "reduced": False}
STEPS = {
    "machine": {
        "copy_rate": 3e12,
        "matrix_rate": 8e14,
        "python": "3.12",
        "versions": {"torch": "2.11.0", "triton": None},
    },
    "training_step": {
        "large_convolutions_s": 0.004,
        "rows": [
            {"name": name, "step_s": seconds, "peak_bytes": 10**10, "matrix_share": 0.21, "reason": None}
            for name, seconds in (("large kernel", 0.0428), ("kernel 3", 0.04))
        ],
    },
    "training_run": {"rows": [{"num_workers": 2, "reason": "main_train.py ended with status 2"}]},
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Folder with the results of the CPU and of two cards."""
    for path in readme.RESULTS.glob("*_cpu.json"):
        (tmp_path / path.name).write_text(path.read_text())
    for folder, card in (("h100", "NVIDIA H100 80GB HBM3"), ("h200", "NVIDIA H200")):
        (tmp_path / folder).mkdir()
        for step, found in STEPS.items():
            content = {"device": card, **MACHINE, "step": step, "rows": [], **found}
            (tmp_path / folder / f"{step}_cuda.json").write_text(json.dumps(content))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_each_card_has_a_column(results):
    header, _, *rows = readme.claims_table(readme.read_cards())
    assert cells(header) == ["ratio", "target", "CPU", "NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    found = {cells(row)[0]: cells(row)[3] for row in rows}
    assert found["training step, kernel 21³ over kernel 3³"] == "1.07"
    assert found["training step, share of the measured bf16 matrix rate"] == "21%"
    assert found["the eight large convolutions, all passes, share of a training step"] == "9.3%"
    assert found["training step, published recipe over ours"] == "not measured"  # the step ended before this variant
    assert (
        found["`main_train.py`, share of time spent waiting for data"] == "not measured"
    )  # the row has a reason in place of results
    traffic = found["the eight large convolutions, all passes, over the time of their own memory traffic"]
    assert traffic == "not measured"  # the step was not run
    assert found["prediction without the network, published method over ours"] == ""  # measured on CPUs only
    assert any(
        "NVIDIA H200, 16 CPU threads, torch 2.11.0, 2026-12-01" in line for line in readme.machines(readme.read_cards())
    )


def test_each_card_has_a_table_of_its_own(results):
    section = readme.cards_section(readme.read_cards())
    assert section.count("```text") == 2
    assert "### NVIDIA H200" in section
    assert "3.00 TB/s copied, 800.0 TFLOP/s in bf16" in section
    assert "2 workers: main_train.py ended with status 2" in section


@pytest.mark.parametrize("content", ["{", '{"step": "machine"}', "[]"])
def test_a_damaged_file_is_named(content, results):
    path = results / "h100" / "machine_cuda.json"
    path.write_text(content)
    with pytest.raises(InputError, match=str(path)):
        readme.read_cards()


def test_results_of_one_card_in_two_folders_are_refused(results):
    (results / "h100").rename(results / "again")
    content = json.loads((results / "again" / "machine_cuda.json").read_text())
    (results / "h200" / "networks_cuda.json").write_text(json.dumps({**content, "step": "networks"}))
    with pytest.raises(InputError, match=f"h200: found results of NVIDIA H100.*all of them in {results / 'again'}"):
        readme.read_cards()


def test_without_results_everything_is_marked_as_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.read_cards() == {}
    assert cells(readme.claims_table({})[0]) == ["ratio", "target", "CPU", "GPU"]
    assert cells(readme.claims_table({})[2])[2:] == ["not measured", "not measured"]
    assert "No results from a GPU yet" in readme.cards_section({})
