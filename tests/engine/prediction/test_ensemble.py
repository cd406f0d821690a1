"""Ensembles and mirrored windows: the softmax of what they predict is the mean probability of all passes."""

import weakref
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from engine.prediction import ensemble
from engine.prediction.ensemble import Ensemble, Member, name_sided_classes
from engine.prediction.sliding_window import SlidingWindow, predict_logits

CPU = torch.device("cpu")
NO_AUTOCAST = partial(torch.autocast, "cpu", enabled=False)


class Lopsided(nn.Module):
    """Network whose logits depend on where a voxel is in its window, along all axes."""

    out_chans = 3

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv3d(1, 3, 3, padding=1)
        self.slopes = torch.randn(3)

    def forward(self, x):
        logits = self.conv(x)
        for axis, slope in enumerate(self.slopes):
            logits = logits + slope * torch.linspace(0, 2, x.shape[axis + 2]).view(-1, *[1] * (2 - axis)) * x
        return logits


def member(seed=0, size=(12, 10, 8)):
    return Member(Lopsided(seed), SlidingWindow(size, 2, 0.5, CPU, NO_AUTOCAST), "off")


@pytest.fixture
def image():
    return torch.randn(1, 20, 21, 18, generator=torch.Generator().manual_seed(1))


def probabilities(one, image):
    return predict_logits(one.network, image, one.window).softmax(dim=0)


def test_a_single_pass_is_the_networks_own_output(image):
    one = member()
    assert torch.equal(Ensemble([one]).predict(image), predict_logits(one.network, image, one.window))


def test_networks_with_windows_of_their_own_are_averaged(image):
    members = [member(0), member(1, (16, 16, 16)), member(2, (8, 8, 24))]
    expected = torch.stack([probabilities(one, image) for one in members]).mean(dim=0)
    for order in (members, members[::-1]):
        logits = Ensemble(order).predict(image)
        assert torch.allclose(logits.exp(), expected, atol=1e-6)
        assert torch.allclose(logits.softmax(dim=0), expected, atol=1e-6)


def test_an_ensemble_of_equal_networks_is_the_single_one(image):
    found = Ensemble([member(), member(), member()]).predict(image).softmax(dim=0)
    assert torch.allclose(found, probabilities(member(), image), atol=1e-6)


def test_the_windows_of_all_passes_are_counted_and_reported(image):
    members, reported = [member(0), member(1, (16, 16, 16))], []
    ensemble_of_two = Ensemble(members, (0, 2))
    ensemble_of_two.predict(image, reported.append)
    once = [one.window.count(image.shape[1:]) for one in members]
    assert sum(reported) == ensemble_of_two.count_windows(image.shape[1:]) == 4 * sum(once)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirroring_averages_over_every_combination_of_the_axes(axes):
    """In a volume that is a single window, mirroring the window is mirroring the volume."""
    one, image = member(size=(12, 10, 8)), torch.randn(1, 12, 10, 8)
    flips = [
        [axis for axis, chosen in zip(axes, choice, strict=True) if chosen]
        for choice in product((0, 1), repeat=len(axes))
    ]
    assert len(flips) == 2 ** len(axes)
    found = []
    for flip in flips:
        spatial = [axis + 1 for axis in flip]
        found.append(probabilities(one, image.flip(spatial)).flip(spatial))
    mean = torch.stack(found).mean(dim=0)
    assert torch.allclose(Ensemble([one], axes).predict(image).softmax(dim=0), mean, atol=1e-6)
    assert not torch.allclose(mean, found[0], atol=1e-2)


def test_windows_are_mirrored_where_they_are(image):
    """In a larger volume, the passes have the same windows."""

    class Mirrored(nn.Module):
        out_chans = 3

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.flip([3])).flip([3])

    one = member()
    by_hand = [one, Member(Mirrored(one.network), one.window, "off")]
    assert torch.equal(Ensemble([one], [1]).predict(image), Ensemble(by_hand).predict(image))


def test_a_class_without_probability_stays_finite(image):
    class Sure(nn.Module):
        out_chans = 2

        def forward(self, x):
            return torch.cat([x * 0 + 1000, x * 0 - 1000], dim=1)

    sure = Member(Sure(), SlidingWindow((8, 8, 8), 1, 0.5, CPU, NO_AUTOCAST), "off")
    logits = Ensemble([sure], [0]).predict(image)
    assert logits.isfinite().all()
    assert not logits.argmax(dim=0).any()


def test_logits_that_are_not_finite_stay_so(image):
    class Broken(Lopsided):
        def forward(self, x):
            return super().forward(x) * torch.nan

    members = [member(), Member(Broken(0), member().window, "off")]
    assert Ensemble(members).predict(image).isnan().all()


def test_at_most_two_volumes_are_alive(image, monkeypatch):
    """The sum, and the logits of one pass."""
    alive, most = [], []

    def predict(*args):
        most.append(sum(reference() is not None for reference in alive))
        logits = predict_logits(*args)
        alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(ensemble, "predict_logits", predict)
    Ensemble([member(0), member(1)], [0]).predict(image)
    assert most == [0, 1, 1, 1]  # besides the one that is about to be computed


def test_classes_with_a_side_are_found():
    names = ["background", "Left kidney", "lung_upper_right", "rightventricle", "bright spot", "cleft"]
    assert name_sided_classes(names) == names[1:4]
