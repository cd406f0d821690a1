"""The report of a run: its content, whatever is missing, names with special characters, and bad input."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import prediction_arguments, write_nifti
from torch.utils.tensorboard import SummaryWriter

import test_seg as predict_script
from engine.data.cases import make_case
from engine.data.datasets import DATASETS
from engine.data.labels import to_file_values
from engine.evaluation.metrics import DiceTable
from engine.prediction.settings import digest_weights
from engine.report.case_pictures import choose_extremes, draw_case
from engine.report.run_folder import Predictions
from engine.report.scores import read_dice
from engine.runtime.errors import run
from engine.runtime.versions import software_versions
from tools import report

SECTIONS = [
    *("What was trained", "Warnings", "Curves", "Dice by class", "Best and worst cases", "Masks", "Time"),
    *("Arguments", "Versions"),
]
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Page as parsed: its elements, and its text; fails if an element is not closed."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text()
        self.open, self.elements, self.words = [], [], []
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += [data] if "style" not in self.open else []

    def attributes(self, tag, name):
        return [attributes.get(name) for found, attributes in self.elements if found == tag]


@pytest.fixture
def write(tmp_path):
    """Write a report in this process and parse it."""

    def make(*words, status=0):
        path = tmp_path / "page.html"
        assert run(report.main, report.parse_args([*map(str, words), "--output", str(path)])) == status
        return Page(path)

    return make


@pytest.fixture
def copy(trained, tmp_path):
    """A run that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "a run"))


def refused(capsys, *words):
    """Return the line with which a command ends."""
    capsys.readouterr()
    assert run(report.main, report.parse_args([*map(str, words)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_report_has_everything(write, trained, predicted):
    page = write(trained, predicted)
    assert re.findall(r"<h2>(.*)</h2>", page.source) == SECTIONS
    assert f"Report of {trained.name}" in page.text
    for words in (
        *("network REP3D", "dataset boxes (MRI)", "classes background, left, right", "training cases 3"),
        *(
            "validation cases 2",
            "crop, voxels 32 x 32 x 16",
            "split folders, hash ",
            "iterations done 60",
            "skipped steps 0",
            "precision float32",
        ),
        *("Predictions of 3 cases, on the grid of each image", "box_0", "mean of the classes", "The worst:"),
        *(
            "rep3d.stages.3.1",
            "% of the time of all steps",
            "--kernel_size 5",
            "--lr 0.01",
            f"torch {software_versions()['torch']}",
        ),
    ):
        assert words in page.text, words
    table = DiceTable(["left", "right"])
    for name, row in json.loads((predicted / "dice.json").read_text())["cases"].items():
        table.add(name, np.array([row["left"], row["right"]]))
    means = table.means()
    assert re.search(
        rf"left 3 {means['left']:.3f} .*right 3 {means['right']:.3f} .*classes {means['mean']:.3f}", page.text
    )


def test_a_page_needs_nothing_else(write, trained, predicted):
    page = write(trained, predicted)
    assert page.attributes("script", "src") == []
    sources, texts = page.attributes("img", "src"), page.attributes("img", "alt")
    assert len(sources) == 3 + 1 + 3 + 1 + 2
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/webp;base64,")) for source in sources)
    assert all(len(text) > 10 for text in texts)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page.source)
    anchors = [link.removeprefix("#") for link in page.attributes("a", "href")]
    assert anchors == page.attributes("section", "id")
    assert len(set(anchors)) == len(SECTIONS)
    assert len(page.source) < 2_000_000


def test_the_same_folders_give_the_same_page_which_replaces_itself(write, trained, predicted):
    assert write(trained, predicted).source == write(trained, predicted).source


def test_the_page_is_in_the_run_by_default(copy, capsys):
    assert run(report.main, report.parse_args([str(copy)])) == 0
    assert "report.html" in capsys.readouterr().out
    assert Page(copy / "report.html").source.startswith("<!DOCTYPE html>")


def test_without_predictions_the_validation_is_shown(write, trained):
    page = write(trained)
    assert "No predictions were given. This is the latest validation: 2 cases" in page.text
    assert "No predictions were given, so the best and the worst cases are not drawn." in page.text
    assert sum(source.startswith("data:image/png") for source in page.attributes("img", "src")) == 1


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("args.json", "The run has no args.json"),
        ("versions.json", "The run has no versions.json"),
        ("best_metric_model.pth", "The run has no best_metric_model.pth; what it would tell is left out."),
        ("last_checkpoint.pth", "The run has no last_checkpoint.pth; what it would tell is left out."),
        ("tensorboard", "There are no curves"),
        ("dice.csv", "There is no Dice: no validation is finished, and no predictions were given."),
    ],
)
def test_what_is_missing_is_said(write, copy, missing, said):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = write(copy)
    assert said in page.text
    assert re.findall(r"<h2>(.*)</h2>", page.source) == SECTIONS


@pytest.mark.parametrize("left", ["args.json", "best_metric_model.pth", "last_checkpoint.pth", "tensorboard"])
def test_a_run_of_one_file_has_a_report(write, copy, left):
    for path in copy.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert re.findall(r"<h2>(.*)</h2>", write(copy).source) == SECTIONS


def test_a_run_in_progress_whose_last_step_is_half_logged_has_a_report(write, tmp_path):
    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        for step in (1, 2, 3):
            writer.add_scalar("train/data_wait_s", 0.25, step)
        for step in (1, 2):
            writer.add_scalar("train/compute_s", 0.75, step)
    page = write(tmp_path / "run")
    assert "waiting for data 25.0 % of the time of all steps" in page.text
    assert "The steps waited for data during 25 % of their time" in page.text


def change_checkpoint(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_warnings_of_the_training(write, copy):
    def spoil(content):
        content["progress"] |= {"iteration": 40, "best_iteration": 40, "skipped": 3}

    change_checkpoint(copy / "last_checkpoint.pth", spoil)
    (copy / "damaged_checkpoint.pth").touch()
    page = write(copy)
    warnings = [attributes for tag, attributes in page.elements if tag == "p" and attributes.get("class") == "warning"]
    assert len(warnings) >= 4
    assert "The run is not finished: iteration 40 of 60." in page.text
    assert "not finite: 3." in page.text
    assert "The best validation is the last one, at iteration 40" in page.text
    assert "a checkpoint was damaged" in page.text


def test_the_split_is_described(write, copy):
    def divide(content):
        content["split"] |= {"name": "ours", "folds": 5, "fold": 3, "hash": "0123456789abcdef", "test": ["a", "b"]}

    change_checkpoint(copy / "last_checkpoint.pth", divide)
    expected = "training cases 3 validation cases 2 test cases 2 split ours, fold 3 of 5, hash 0123456789ab crop"
    assert expected in write(copy).text
    (copy / "last_checkpoint.pth").unlink()
    assert "training cases 3 validation cases 2 split folders, hash" in write(copy).text  # of the best weights


def test_a_run_of_an_earlier_version_has_only_its_training_cases(write, copy):
    def forget(content):
        content["cases"] = content.pop("split")["training"]

    change_checkpoint(copy / "last_checkpoint.pth", forget)
    text = write(copy).text
    assert "training cases 3 crop" in text


def test_predictions_of_other_weights_are_warned_of(write, copy, predicted, tmp_path):
    page = write(copy, predicted)
    assert "The predictions" not in page.text
    change_checkpoint(copy / "best_metric_model.pth", lambda content: content.update(iteration=1))
    assert (
        f"The predictions in {predicted} were made with weights that are not in {copy}." in write(copy, predicted).text
    )
    settings = json.loads((predicted / "settings.json").read_text())
    other = Path(shutil.copytree(predicted, tmp_path / "other"))
    settings["trained_weights"] = digest_weights([str(copy / "last_checkpoint.pth")])
    (other / "settings.json").write_text(json.dumps(settings))
    expected = "The predictions were made with last_checkpoint.pth, not with best_metric_model.pth."
    assert expected in write(copy, other).text


def test_images_that_have_moved_are_found_by_root(write, trained, predicted, box_template, tmp_path, boxes):
    moved = Path(shutil.copytree(predicted, tmp_path / "moved"))
    settings = json.loads((moved / "settings.json").read_text())
    for name, source in settings["sources"].items():
        source["paths"] = [f"/gone/imagesTr/{name}.nii.gz"]
    (moved / "settings.json").write_text(json.dumps(settings))
    page = write(trained, moved)
    assert page.text.count("its image was not found, expected --root with the dataset folder") == 3
    page = write(trained, moved, "--root", boxes)
    assert page.text.count("solid: prediction, dashed: label") == 3
    for source in settings["sources"].values():
        del source["paths"]  # as earlier versions wrote it
    (moved / "settings.json").write_text(json.dumps(settings))
    assert write(trained, moved).text.count("solid: prediction, dashed: label") == 3


def test_a_case_that_cannot_be_drawn_is_named(write, trained, predicted, tmp_path):
    damaged = Path(shutil.copytree(predicted, tmp_path / "damaged"))
    (damaged / "box_0_seg.nii.gz").write_bytes(b"nothing")
    write_nifti(damaged / "box_1_seg.nii.gz", np.zeros((4, 4, 4), np.uint8))
    page = write(trained, damaged)
    assert re.search(r"No picture of box_0 \(mean Dice 0\.\d+\): .*box_0_seg.nii.gz: cannot be read", page.text)
    assert re.search(r"No picture of box_1 .*found the shape \(36, 28, 18\), expected \(4, 4, 4\)", page.text)
    assert page.text.count("solid: prediction") == 1


def test_an_image_without_intensities_is_named(write, trained, predicted, box_template, tmp_path):
    root = Path(shutil.copytree(box_template, tmp_path / "root"))
    write_nifti(root / "imagesTr" / "box_0.nii.gz", np.full((36, 28, 18), np.nan, np.float32))
    page = write(trained, predicted, "--root", root)
    assert re.search(r"No picture of box_0 .*imagesTr/box_0.nii.gz: found NaN in all voxels", page.text)
    assert page.text.count("solid: prediction") == 2


def test_settings_that_make_no_sense_are_as_none(write, trained, predicted, tmp_path):
    """A page is written of what there is, and names the images that it lacks."""
    changed = Path(shutil.copytree(predicted, tmp_path / "changed"))
    settings = json.loads((changed / "settings.json").read_text())
    settings |= {"trained_weights": 5, "sources": {name: {"paths": 5} for name in settings["sources"]}}
    (changed / "settings.json").write_text(json.dumps(settings))
    assert "were made with weights that are not in" in write(trained, changed).text


def test_predictions_of_other_software_need_no_settings_and_no_images(write, copy, tmp_path):
    """A folder with the scores of tools.evaluate alone, on a machine without the dataset of the training."""
    (copy / "args.json").write_text(json.dumps(json.loads((copy / "args.json").read_text()) | {"root": "/gone"}))
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "scores.csv").write_text("case,class,dice\none,left,0.5\none,right,0.7\none,both,0.9\n")
    page = write(copy, scored)
    assert "No picture of one (mean Dice 0.600): its image was not found, expected --root" in page.text  # without both
    (copy / "args.json").unlink()
    assert "its image was not found, expected --root" in write(copy, scored).text


def test_measures_of_evaluate_are_shown(write, trained, predicted, tmp_path):
    scored = Path(shutil.copytree(predicted, tmp_path / "scored"))
    rows = [f"box_{number},{name},0.5,{number}" for number in range(3) for name in ("left", "right")]
    (scored / "scores.csv").write_text("\n".join(["case,class,dice,hd95_mm", *rows]) + "\n")
    assert "left 3 0.5 1 right 3 0.5 1" in write(trained, scored).text
    (scored / "dice.csv").unlink()
    assert "mean of the classes 0.500" in write(trained, scored).text


HOSTILE = ['<b>&"$x_$', "</section><script>alert(1)</script>"]


def test_names_are_escaped_and_are_no_formulas(write, copy, box_template, tmp_path):
    def rename(content):
        names = ["background", *HOSTILE]
        content["description"]["labels"] = dict(zip(names, range(3), strict=True))

    change_checkpoint(copy / "best_metric_model.pth", rename)
    root, output = tmp_path / "<root> & $", tmp_path / "<predictions> & $\\frac$"
    for kind in ("images", "labels"):
        for number, name in enumerate(("<i>&amp;$\\frac$", "b$_$")):
            target = root / f"{kind}Tr" / f"{name}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(box_template / f"{kind}Tr" / f"box_{number}.nii.gz", target)
    words = prediction_arguments(root, output, copy, "--preview")
    assert run(predict_script.main, predict_script.parse_args(words)) == 0
    page = write(copy, output)
    assert page.attributes("script", "src") == page.attributes("b", "id") == page.attributes("i", "id") == []
    assert "<i>&amp;$\\frac$" in page.text
    assert f"classes background, {', '.join(HOSTILE)}" in page.text
    assert page.text.count("solid: prediction, dashed: label") == 2
    charts = [source for source in page.attributes("img", "src") if source.startswith("data:image/svg")]
    texts = [base64.b64decode(source.partition(",")[2]).decode() for source in charts]
    assert any("&lt;b&gt;&amp;" in text and "$x_$" in text for text in texts)
    assert not any("<script" in text for text in texts)


def test_a_ct_keeps_the_page_small(tmp_path):
    """Six pictures of large noisy volumes fit in the 5 MB that a page may have."""
    rng, description = np.random.default_rng(0), DATASETS["amos"]
    image, labels = rng.normal(50, 100, (512, 512, 40)), np.zeros((512, 512, 40), np.uint8)
    for value in range(16):
        labels[30 * value : 30 * value + 25, 100:400, 5:35] = value
    write_nifti(tmp_path / "ct.nii.gz", image.astype(np.float32))
    write_nifti(tmp_path / "ct_seg.nii.gz", to_file_values(labels, description.labels))
    case = make_case("ct", str(tmp_path / "ct.nii.gz"), str(tmp_path / "ct_seg.nii.gz"))
    uri = draw_case(case, Predictions(tmp_path, {}, description, None, None), description)
    assert 20_000 < len(uri) < 700_000


def test_the_extremes_do_not_overlap(tmp_path):
    for count in (1, 4, 9):
        table = DiceTable(["left"])
        for number in range(count):
            table.add(str(number), np.array([number / 10]))
        table.write(tmp_path)
        worst, best = choose_extremes(read_dice(tmp_path / "dice.csv"))
        assert worst == list(range(min(count, 3)))
        assert best == list(range(count - 1, -1, -1))[: max(0, min(3, count - 3))]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            lambda folder: (folder / "best_metric_model.pth").write_bytes(b"x"),
            "best_metric_model.pth is no plain",
        ),
        (
            lambda folder: (folder / "last_checkpoint.pth").write_bytes(b"x"),
            "last_checkpoint.pth is no plain",
        ),
        (lambda folder: torch.save({"model": {}}, folder / "last_checkpoint.pth"), "holds no training state"),
        (lambda folder: (folder / "args.json").write_text("{"), "args.json: cannot be read"),
        (lambda folder: (folder / "args.json").write_text("[]"), "args.json: holds a list"),
        (lambda folder: (folder / "dice.csv").write_text("a,b\n1,2\n"), "dice.csv: holds no Dice of cases"),
        (lambda folder: (folder / "report.html").write_text("mine"), "exists and is no report of this command"),
        (lambda folder: (folder / "report.html").mkdir(), "report.html cannot be read (Is a directory)"),
    ],
)
def test_a_damaged_run_is_one_line(copy, capsys, damage, found):
    damage(copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    line = refused(capsys, copy)
    assert found in line
    assert "expected" in line
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_folders_that_are_none_are_one_line(trained, predicted, tmp_path, capsys):
    missing, page = tmp_path / "missing", ("--output", tmp_path / "page.html")
    assert f"RUN: {missing} not found" in refused(capsys, missing, *page)
    assert f"in {tmp_path}, expected a folder of main_train.py" in refused(capsys, tmp_path, *page)
    assert f"PREDICTIONS: {missing} not found" in refused(capsys, trained, missing, *page)
    assert "expected a folder of test_seg.py" in refused(capsys, trained, tmp_path, *page)
    assert "--root: found it without PREDICTIONS" in refused(capsys, trained, "--root", missing, *page)
    assert f"--root: {missing} not found" in refused(capsys, trained, predicted, "--root", missing, *page)
    assert list(tmp_path.iterdir()) == []
