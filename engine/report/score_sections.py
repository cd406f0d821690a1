"""Sections of a report about scores: Dice by class, other measures, the best and the worst cases."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from engine.data.datasets import DatasetDescription
from engine.evaluation.metrics import format_dice, mean_over_cases, mean_over_classes
from engine.evaluation.scores import TITLES
from engine.report.case_pictures import choose_extremes, draw_case, find_images
from engine.report.charts import chart_dice
from engine.report.figures import CHARTS, drawing, encode_svg, to_uri
from engine.report.page import Block, Picture, Pictures, Section, Table, Text
from engine.report.run_folder import Predictions, Run, choose_description
from engine.report.scores import DiceScores, MeasuredScores
from engine.runtime.errors import InputError
from engine.runtime.wording import count_of

LISTED_CASES = 100  # rows of the table of cases
VALIDATION_CASE = "validation case"  # name of the picture in the log


def choose_dice(run: Run, predictions: Predictions | None) -> DiceScores | None:
    """Return the Dice that a report shows: of the predictions if they are scored, otherwise of the validation."""
    if predictions is None:
        return run.dice
    if predictions.dice is not None or predictions.scores is None:
        return predictions.dice
    description = choose_description(run, predictions)
    return predictions.scores.to_dice(description.classes[1:] if description else ())


def show_dice(run: Run, predictions: Predictions | None, regions: Collection[str]) -> Section:
    """Show the Dice by class and by case, and other measures if there are any."""
    dice, blocks = choose_dice(run, predictions), list[Block]()
    if dice is None:
        blocks.append(Text(explain_no_dice(predictions)))
    else:
        blocks += [Text(describe_origin(dice, predictions)), *show_scores(dice, regions)]
    if predictions is not None and predictions.scores is not None:
        blocks.append(tabulate_measures(predictions.scores))
    return Section("Dice by class", blocks)


def explain_no_dice(predictions: Predictions | None) -> str:
    """Explain that there are no scores."""
    if predictions is None:
        return "There is no Dice: no validation is finished, and no predictions were given."
    return f"There is no Dice: the predictions in {predictions.folder} are not scored, perhaps for want of labels."


def describe_origin(dice: DiceScores, predictions: Predictions | None) -> str:
    """Describe what was scored."""
    cases = count_of(len(dice.cases), "case")
    if predictions is None:
        where = "on the resampled grid, not on that of the images"
        return f"No predictions were given. This is the latest validation: {cases}, {where} ({dice.path})."
    return f"Predictions of {cases}, on the grid of each image ({dice.path})."


def show_scores(dice: DiceScores, regions: Collection[str]) -> list[Block]:
    """Draw and tabulate the Dice; regions are not part of the mean over classes."""
    rows = [[name, *summarise(values)] for name, values in zip(dice.structures, dice.dice.T, strict=True)]
    classes = [place for place, name in enumerate(dice.structures) if name not in regions]
    mean = mean_over_classes(mean_over_cases(list(dice.dice[:, classes])))
    rows.append(["mean of the classes", "", f"{mean:.3f}", "", "", "", ""])
    with drawing(CHARTS):
        chart = encode_svg(chart_dice(dice))
    caption = "A point is a case; the box holds the middle half of them, the line in it is the median."
    note = "A class in neither label nor prediction of a case has no Dice there. SD: over the cases."
    return [
        Pictures([Picture(chart, "Dice of each class, a point per case", caption)]),
        Table(["class", "cases", "mean", "SD", "median", "lowest", "highest"], rows, note),
        tabulate_cases(dice),
    ]


def summarise(values: np.ndarray) -> list[str]:
    """Return number, mean, standard deviation, median, lowest and highest of the finite values, as text."""
    known = values[np.isfinite(values)]
    if not known.size:
        return ["0", *["-"] * 5]
    spread = f"{known.std(ddof=1):.3f}" if known.size > 1 else "-"
    others = (f"{value:.3f}" for value in (np.median(known), known.min(), known.max()))
    return [str(known.size), f"{known.mean():.3f}", spread, *others]


def tabulate_cases(dice: DiceScores) -> Table:
    """Tabulate the Dice of the cases, the worst first."""
    ranked = dice.ranked()[:LISTED_CASES]
    rows = [[dice.cases[index], *map(format_dice, (*dice.dice[index], dice.means[index]))] for index in ranked]
    number = len(dice.cases)
    which = f"The {len(rows)} cases with the lowest mean, of {number}" if number > len(rows) else "All cases"
    return Table(["case", *dice.structures, "mean"], rows, f"{which}, the lowest mean first", folded=True)


def tabulate_measures(scores: MeasuredScores) -> Table:
    """Tabulate the mean of every measure by structure, over the cases in which it is finite; "cases" have a Dice."""
    rows, dice = [], scores.measures.index("dice")
    for name, cases in scores.rows.items():
        columns = np.array(list(cases.values())).T
        finite = [column[np.isfinite(column)] for column in columns]
        rows.append(
            [name, str(finite[dice].size), *(f"{column.mean():.4g}" if column.size else "-" for column in finite)]
        )
    caption = f"Means over the cases in which a measure is defined and finite ({scores.path})."
    titles = [TITLES.get(name, name.replace("_", " ")) for name in scores.measures]
    return Table(["class", "cases", *titles], rows, caption)


def show_cases(
    run: Run, predictions: Predictions | None, description: DatasetDescription | None, root: Path | None
) -> Section:
    """Show the worst and the best cases with their contours."""
    title, dice = "Best and worst cases", choose_dice(run, predictions)
    if predictions is None:
        return Section(title, show_validation_case(run))
    if dice is None or description is None:
        missing = explain_no_dice(predictions) if dice is None else "It is not known what was predicted."
        return Section(title, [Text(f"No pictures. {missing}")])
    former_root = Path(str(run.args["root"])) if run.args.get("root") else None
    images = find_images(predictions, root, former_root, description)
    blocks: list[Block] = []
    for name, indices in choose_extremes(dice)._asdict().items():
        pictures = []
        for index in indices:
            case, mean = dice.cases[index], f"{dice.means[index]:.3f}"
            try:
                if case not in images:
                    raise InputError("its image was not found, expected --root with the dataset folder")
                uri = draw_case(images[case], predictions, description)
            except InputError as error:
                blocks.append(Text(f"No picture of {case} (mean Dice {mean}): {error}", warning=True))
                continue
            lines = "solid: prediction" + (", dashed: label" if "label" in images[case] else "; no label was found")
            caption = f"{case}: mean Dice {mean} ({lines})."
            pictures.append(Picture(uri, f"Three planes of {case} with contours of the segmentation", caption))
        if pictures:
            blocks += [Text(f"The {name}:"), Pictures(pictures, wide=True)]
    return Section(title, blocks or [Text("No case has a mean Dice.")])


def show_validation_case(run: Run) -> list[Block]:
    """Show the case that was drawn in training, in place of predictions."""
    note = Text("No predictions were given, so the best and the worst cases are not drawn.")
    if VALIDATION_CASE not in run.logs.pictures:
        return [note]
    uri = to_uri("image/png", run.logs.pictures[VALIDATION_CASE])
    caption = "The first validation case at the latest validation (solid: prediction, dashed: label)."
    return [note, Pictures([Picture(uri, "Three planes of a validation case with contours", caption)], wide=True)]
