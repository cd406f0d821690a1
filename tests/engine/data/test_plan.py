"""Plans from reports on cases: rules by channel, crop, classes and warnings."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import DESCRIPTION

from engine.data.case_checks import CaseReport
from engine.data.datasets import DatasetDescription
from engine.data.drafts import GIVEN, Draft
from engine.data.foreground import sample_foreground
from engine.data.intensity_checks import Extent
from engine.data.plan import make_plan
from engine.runtime.errors import InputError

SHAPE = (40, 50, 60)
MEMORY = 11.5


def make_case(number=0, split="training", low=-1000.0, channels=1, spacing=(1.0, 1.0, 1.0), left=1000):
    """Report on a case of noise around 100, with ``left`` labelled voxels of one class, and air at one end."""
    rng = np.random.default_rng(number)
    volumes = [rng.normal(100, 20, SHAPE) for _ in range(channels)]
    for volume in volumes:
        volume[:10] = low
    classes = np.zeros(SHAPE, np.uint8)
    classes[10:].reshape(-1)[:left] = 1
    case = CaseReport(f"case_{number}", split, ["file"], shape=list(SHAPE), spacing=list(spacing))
    case.resampled_shape = list(SHAPE)
    case.voxels_by_class = {"background": classes.size - left, "left": left, "right": 0}
    case.foreground = sample_foreground(volumes, classes, Extent.of(volumes))
    return case


def plan(cases, given=(), roi_size=None, memory=MEMORY, **fields):
    description = DatasetDescription.from_json(DESCRIPTION | {"modality": "CT"} | fields, "test")
    reasons = dict.fromkeys(given, GIVEN) | {"spacing": "that of the cases"}
    return make_plan(Draft(description, reasons, {}), cases, roi_size, memory)


def lines(found):
    return {choice.subject: f"{choice.value} ({choice.reason})" for choice in found.choices}


def test_a_ct_gets_the_percentiles_of_the_training_cases():
    cases = [make_case(0), make_case(1), replace(make_case(2, low=-2000), split="validation")]
    found = plan(cases)
    voxels = np.concatenate([case.foreground.intensities[0] for case in cases[:2]])
    (window,) = found.description.windows
    assert window == pytest.approx(np.percentile(voxels, (0.5, 99.5)), abs=2)
    reason = "the modality is CT; 0.5 to 99.5 percentile of 2,000 of 2,000 labelled voxels"
    assert lines(found)["intensity"] == f"window from {window[0]:g} to {window[1]:g} ({reason})"


@pytest.mark.parametrize(
    ("modality", "channel", "low", "is_ct", "reason"),
    [
        ("CT", "portal venous", 0, True, "the modality is CT"),
        ("ct, portal venous", "image", 0, True, "the modality is ct, portal venous"),
        ("MRI", "image", -1000, False, "the modality is MRI"),
        ("MRI", "CT", 0, True, "the channel is a CT"),
        ("", "CT", 0, True, "the channel is a CT"),
        ("", "octane", -1000, False, "the channel is octane, not CT"),
        ("", "T1", -1000, False, "the channel is T1, not CT"),
        ("", "image", -1000, True, "a CT: every training case has values of -500 or less"),
        ("", "channel_0", -500, True, "a CT: every training case has values of -500 or less"),
        ("", "image", -499, False, "no CT: a training case has no value below -499"),
    ],
)
def test_a_ct_is_told_by_channel_modality_or_values(modality, channel, low, is_ct, reason):
    fields = {"channels": [channel]} | ({"modality": modality} if modality else {})
    description = {name: value for name, value in DESCRIPTION.items() if name != "modality"} | fields
    draft = Draft(DatasetDescription.from_json(description, "test"), {}, {})
    cases = [make_case(0, low=-1000), make_case(1, low=low)]
    found = make_plan(draft, cases, None, MEMORY)
    assert (found.description.windows != (None,)) == is_ct
    assert f"({reason}" in lines(found)["intensity"]


def test_channels_have_rules_of_their_own():
    found = plan([make_case(channels=2)], channels=["CT", "PET"])
    assert found.description.windows[0] is not None
    assert found.description.windows[1] is None
    text = lines(found)["intensity"]
    assert text.startswith("CT: window from ")
    assert ", PET: z-score (CT: the channel is a CT; " in text
    assert text.endswith("; PET: the channel is PET, not CT)")


def test_a_given_rule_is_kept():
    found = plan([make_case()], given=["intensity"], intensity={"window": [0, 50]})
    assert found.description.windows == ((0, 50),)
    assert lines(found)["intensity"] == "window from 0 to 50 (as given)"


def test_the_crop_depends_on_the_foreground_of_the_planned_window():
    found = plan([make_case(0), make_case(1)])
    assert [case.cropped_shape for case in found.cases] == [[30, 50, 60]] * 2
    assert found.roi_size == (32, 48, 64)
    text = lines(found)["roi_size"]
    assert text == "32 x 48 x 64 voxels (for a median volume of 30 x 50 x 60 voxels at this spacing)"
    assert lines(found)["memory"] == "about 2.1 GB (calculated for a step of REP3D on 2 crops in float32)"


def test_axes_that_are_padded_are_counted():
    """The crop of the planned window leaves 30 x 50 x 60 voxels."""
    found = plan([make_case(0), make_case(1), replace(make_case(2), split="validation")])
    assert lines(found)["padded"] == "2 along R-L, 2 along I-S (of 2 training cases, where shorter than the crop)"
    found = plan([make_case(0)], roi_size=[16, 48, 48])
    assert lines(found)["padded"] == "none (of 1 training case, where shorter than the crop)"


def test_memory_limits_the_crop():
    found = plan([make_case()], memory=1.2)
    assert found.roi_size == (16, 16, 48)
    assert "60 voxels at this spacing within --memory 1.2)" in lines(found)["roi_size"]
    with pytest.raises(InputError, match="--memory: found 1 GB, expected at least"):
        plan([make_case()], memory=1)


def test_a_given_crop_is_kept():
    found = plan([make_case()], roi_size=[64, 32, 16], memory=0.1)
    assert found.roi_size == (64, 32, 16)
    assert lines(found)["roi_size"] == "64 x 32 x 16 voxels (as given)"


def test_classes_have_counts_and_absent_and_tiny_ones_stand_out():
    cases = [make_case(0, left=800), make_case(1, left=0), make_case(2, left=400, spacing=(0.5, 0.5, 0.5))]
    found = plan(cases)
    # 400 voxels of half the side are 50 at 1 mm
    median = "a median of 425 at this spacing"
    assert lines(found)["left"] == f"2 of 3 training cases (1,200 voxels; {median})"
    assert lines(found)["right"].startswith("0 of 3 training cases (0 voxels;")
    assert found.warnings == {}
    (line,) = plan(cases[2:]).warnings["tiny"]
    assert line.startswith("found classes of few voxels at 1 x 1 x 1 mm: left (50), expected a median of 64 or more")


def test_the_counts_after_resampling_are_used_where_they_are_known():
    case = replace(make_case(left=800), resampled_voxels_by_class={"background": 1, "left": 63, "right": 0})
    assert "a median of 63 at" in lines(plan([case]))["left"]


def test_one_pass_is_stated():
    assert lines(plan([make_case(0), make_case(1)]))["one pass"].startswith("2 iterations (one training case each")


def test_a_plan_needs_training_cases_labels_and_contrast():
    with pytest.raises(InputError, match="found no training case"):
        plan([replace(make_case(), split="test")])
    with pytest.raises(InputError, match="channel image: found no labelled voxel"):
        plan([make_case(left=0)])


def test_the_description_of_a_plan_is_valid():
    values = plan([make_case(channels=2)], channels=["CT", "PET"]).to_json()
    read = DatasetDescription.from_json(json.loads(json.dumps(values["description"])), "test")
    assert read.to_json() == values["description"]
    assert values["choices"][0] == {
        "subject": "spacing",
        "value": "1 x 1 x 1 mm",
        "reason": "that of the cases",
    }
