"""Tables and figures of an experiment from its CSV tables."""

import numpy as np
import pytest
from conftest import assert_one_line

from engine.runtime.errors import run
from engine.runtime.files import write_csv
from experiments import report
from experiments.experiment import FOLDER, NAMES, SCALES, read_experiment
from experiments.figures import draw_validation
from experiments.results import read_table


def score_rows(scores):
    """Make rows of results.csv from arm -> seeds -> (cases, classes)."""
    return [
        [arm, seed, "c1", f"c{case}", label, None if np.isnan(dice) else dice]
        for arm, runs in scores.items()
        for seed, table in enumerate(runs)
        for case, line in enumerate(table)
        for label, dice in zip(("left", "right"), line, strict=True)
    ]


def write_scores(folder, scores):
    write_csv(folder / "results.csv", ["arm", "seed", "code", "case", "class", "dice"], score_rows(scores))
    return folder / "results.csv"


def make_tables(folder, scores, arms, *further):
    """Make the tables of scores as cells; every arm is compared with the first one."""
    rows = read_table(write_scores(folder, scores), arms)
    text = report.format_tables(*report.collect(rows), arms, [*((arm, arms[0]) for arm in arms[1:]), *further], {})
    return [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for table in text.split("\n\n")
    ]


def test_tables_by_hand(tmp_path):
    scores = {
        "plain": [[[0.8, 0.6], [0.7, 0.5]], [[0.8, 0.6], [0.7, 0.5]]],
        "better": [[[0.9, 0.7], [0.8, 0.6]], [[0.9, 0.9], [0.8, np.nan]]],
        "begun": [[[0.4, 0.2], [0.3, 0.1]]],
    }
    own, differences = make_tables(tmp_path, scores, ["plain", "better", "begun", "waiting"], ("begun", "better"))
    assert own == [
        ["plain", "2 of 3, unfinished", "0.650 ± 0.000", "0.750 ± 0.000", "0.550 ± 0.000"],
        # Means: 0.75, and 0.875 of 0.85 and 0.9, since a case without a class does not count for it.
        ["better", "2 of 3, unfinished", "0.812 ± 0.088", "0.850 ± 0.000", "0.775 ± 0.177"],
        ["begun", "1 of 3, unfinished", "0.250", "0.350", "0.150"],
        ["waiting", "0 of 3, unfinished", "", "", ""],
    ]
    assert differences == [
        # Differences by seed: 0.1, and 0.2 of 0.1 (left) and 0.3 (right). By case: 0.1 and 0.2, 0.1 and 0.1.
        ["better", "plain", "+0.125 ± 0.071 (+0.100 to +0.150)", "1.000"],
        ["begun", "plain", "-0.400 (-0.400 to -0.400)", "1.000"],
        ["begun", "better", "-0.500 (-0.500 to -0.500)", "1.000"],
    ]


def test_table_of_masks_by_hand():
    """The median over blocks and seeds, the largest and the smallest, at the last iteration; fixed masks have none."""
    head = ("arm", "iteration", "quantity", "value")
    values = [
        *(("b", "10", "correction", "9"), ("b", "10", "smallest", "-9"), ("a", "100", "mask", "1")),
        *(("b", "100", "correction", value) for value in ("0.1", "0.4", "0.2")),
        *(("b", "100", "smallest", value) for value in ("0.05", "-0.25", "0.01")),
    ]
    table = report.make_mask_table([dict(zip(head, row, strict=True)) for row in values], ["a", "b"])
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]] == ["b", "0.200", "0.400", "-0.250"]
    assert len(table.splitlines()) == 3


def test_table_of_taps_by_hand():
    """At iteration 100 of 500, the mean over a stage's blocks, and the spread over the seeds."""
    head = ("arm", "seed", "iteration", "block", "quantity", "distance", "value")
    values = [
        *(("a", seed, "100", f"s.stages.0.{block}", "remaining", "2", value)
          for seed, block, value in (("0", 0, "0.2"), ("0", 1, "0.4"), ("1", 0, "0.5"), ("1", 1, "0.7"))),
        ("a", "0", "100", "s.stages.1.0", "remaining", "12", "0.9"),
        ("a", "0", "100", "s.stages.1.0", "gradient", "12", "7"),
        ("a", "0", "500", "s.stages.0.0", "remaining", "2", "0"),
    ]  # fmt: skip
    table = report.make_tap_table([dict(zip(head, row, strict=True)) for row in values], ["a", "b"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0][0] == "share of the way left at iteration 100"
    assert cells[2:] == [["a", "0.450 ± 0.212", "", "", "0.900"], ["b", "", "", "", ""]]


def test_dice_over_the_time_of_training_by_hand():
    """The median over the seeds of both axes, at each validation."""
    head = ("arm", "seed", "iteration", "quantity", "value")
    values = [
        *(("a", "0", "5", "minutes", "1"), ("a", "0", "5", "mean Dice", "0.2")),
        *(("a", "1", "5", "minutes", "3"), ("a", "1", "5", "mean Dice", "0.4")),
        *(("a", "0", "10", "minutes", "2"), ("a", "0", "10", "mean Dice", "0.6")),
        *(("a", "1", "10", "minutes", "6"), ("a", "1", "10", "mean Dice", "0.8")),
    ]
    figure = draw_validation([dict(zip(head, row, strict=True)) for row in values], ["a", "begun"])
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_xydata(), [[2, 0.3], [4, 0.7]])
    assert len(lines[1].get_xydata()) == 0


def test_a_class_that_one_arm_lacks_counts_in_neither():
    """The left scores are equal, so there is no difference, however low the right score of one arm."""
    runs, others = ({0: np.array([[0.9, right], [0.8, right]])} for right in (np.nan, 0.3))
    assert report.compare_arms(runs, others).comparison.difference == 0


def test_p_values_are_corrected_for_the_number_of_arms(tmp_path):
    generator = np.random.default_rng(0)
    plain = generator.uniform(0.5, 0.9, (8, 2))
    scores = {"plain": [plain], "up": [plain + 0.01 * np.arange(1, 9)[:, None]], "same": [plain]}
    p_values = [row[-1] for row in make_tables(tmp_path, scores, list(scores))[1]]
    assert p_values == [f"{2 * 2 / 2**8:.3f}", "1.000"]  # the smallest of eight cases, times two arms


def test_an_unfinished_experiment_is_drawn(tmp_path, capsys):
    write_scores(tmp_path, {"W0, x 1": [[[0.8, 0.6]]], "P W0, x 1": [[[0.7, 0.6]]]})
    assert run(report.main, report.parse_args(["rate_or_start", "--results", str(tmp_path)])) == 0
    assert capsys.readouterr().out.count("unfinished") == 5
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_report_of_rows_of_two_commits(tmp_path, capsys):
    path = write_scores(tmp_path, {"W0, x 1": [[[0.8, 0.6]]]})
    path.write_text(path.read_text() + '"W0, x P",0,c2,c0,left,0.5\n')
    status = run(report.main, report.parse_args(["rate_or_start", "--results", str(tmp_path)]))
    assert_one_line((status, *capsys.readouterr()), "rows of other code (c2), expected c1 in every row")


def test_a_report_without_results(tmp_path, capsys):
    status = run(report.main, report.parse_args(["masks", "--results", str(tmp_path)]))
    assert_one_line((status, *capsys.readouterr()), "error: --results: found no", "results.csv")


@pytest.mark.parametrize("name", NAMES)
def test_committed_tables_are_those_of_the_results(name):
    for scale in SCALES:
        results = FOLDER / name / scale / "results.csv"
        if results.exists():
            experiment = read_experiment(name, scale)
            arms = list(experiment.arms)
            scores, classes = report.collect(read_table(results, arms))
            paths = {name: results.with_name(f"{name}.csv") for name in report.MEASURED}
            measured = {name: read_table(path, arms) for name, path in paths.items() if path.exists()}
            tables = report.format_tables(scores, classes, arms, experiment.comparisons, measured)
            assert tables in (FOLDER / name / "README.md").read_text()
