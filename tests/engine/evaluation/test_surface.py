"""Surface distances against SciPy's distance transform, analytic shapes, and volumes small enough to count by hand."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from engine.evaluation.surface import compare_surfaces, find_boxes, join_boxes

SPACINGS = [(1.0, 1.0, 1.0), (0.8, 0.8, 3.0), (5.0, 0.7, 0.9)]


def ellipsoid(shape, spacing, centre, radii):
    """Mark the voxels of an ellipsoid; centre and radii in mm."""
    places = np.meshgrid(*(np.arange(side) * size for side, size in zip(shape, spacing, strict=True)), indexing="ij")
    return sum(((place - c) / r) ** 2 for place, c, r in zip(places, centre, radii, strict=True)) <= 1


def pair_of_ellipsoids(spacing):
    shape = tuple(int(60 / size) for size in spacing)
    first = ellipsoid(shape, spacing, (28, 30, 30), (20, 15, 12))
    return first, ellipsoid(shape, spacing, (31, 29, 32), (16, 17, 13))


def hd95_by_distance_transforms(first, second, spacing):
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    far = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95))


def sample_surface(centre, radii, count=100):
    """Sample points of an ellipsoid's surface, with the area that each stands for."""
    polar, around = np.meshgrid((np.arange(count) + 0.5) * np.pi / count, np.arange(2 * count) * np.pi / count)
    a, b, c = radii
    unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    area = np.sin(polar) * np.linalg.norm(unit * (b * c, a * c, a * b), axis=-1)
    return (unit * radii + centre).reshape(-1, 3), area.ravel()


def assert_share(found, distances, weights, tolerance, side):
    """Assert that a surface Dice is the share of the surface within the tolerance, as far as the voxels resolve it."""
    low, high = (weights[distances <= end].sum() / weights.sum() for end in (tolerance - side / 2, tolerance + side))
    assert low - 0.02 <= found <= high + 0.02


@pytest.mark.parametrize("spacing", SPACINGS)
def test_hd95_is_that_of_distance_transforms(spacing):
    masks = pair_of_ellipsoids(spacing)
    found = compare_surfaces(*masks, spacing, 1).hd95
    assert found == pytest.approx(hd95_by_distance_transforms(*masks, spacing), rel=1e-5)
    assert found > 3


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1, 1, 1), (0.8, 0.8, 1.6)])
def test_surface_dice_is_that_of_analytic_ellipsoids(spacing):
    (first, areas), (second, other_areas) = (
        sample_surface((28, 30, 30), (20, 15, 12)),
        sample_surface((31, 29, 32), (16, 17, 13)),
    )
    distances = np.concatenate([KDTree(second).query(first)[0], KDTree(first).query(second)[0]])
    masks = pair_of_ellipsoids(spacing)
    for tolerance in (1.25, 2.25, 3.25):
        found = compare_surfaces(*masks, spacing, tolerance).nsd
        assert_share(found, distances, np.concatenate([areas, other_areas]), tolerance, max(spacing))


@pytest.mark.parametrize("shift", [2, 5])
def test_shifted_spheres(shift):
    """On a sphere of radius r, a point at an angle of cosine u is | sqrt(r^2 + s^2 - 2 r s u) - r | away from the
    sphere shifted by s, and u is uniform by area."""
    radius, tolerance = 20, 1.25
    masks = [ellipsoid((50, 50, 50 + shift), (1, 1, 1), (25, 25, 25 + s), (radius,) * 3) for s in (0, shift)]
    cosines = np.linspace(-1, 1, 10**5)
    distances = np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * cosines) - radius)
    found = compare_surfaces(*masks, (1, 1, 1), tolerance)
    assert_share(found.nsd, distances, np.ones_like(distances), tolerance, 1)
    assert found.hd95 == pytest.approx(np.percentile(distances, 95), abs=0.25)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (1.0, 2.0, 0.5)])
def test_a_box_that_is_too_long_counts_by_area(spacing):
    """Beyond the tolerance are the box's end without its rim, the longer box's end, and the sides between both ends."""
    tolerance, longer, (length, width, height) = 2.2, 6, (40, 30, 20)
    first, second = np.zeros((2, *(int(60 / size) for size in spacing)), bool)
    start = [int(5 / size) + 1 for size in spacing]
    for mask, end in ((first, length), (second, length + longer)):
        sides = [int(side / size) for side, size in zip((end, width, height), spacing, strict=True)]
        mask[tuple(slice(low, low + side) for low, side in zip(start, sides, strict=True))] = True
    ends, around = width * height, 2 * (width + height)
    beyond = (width - 2 * tolerance) * (height - 2 * tolerance) + ends + around * (longer - tolerance)
    expected = 1 - beyond / (4 * ends + around * (2 * length + longer))
    assert compare_surfaces(first, second, spacing, tolerance).nsd == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("tolerance", "nsd"), [(2.9, 0), (3, 0.5), (5.9, 0.5), (6, 1)])
def test_slabs_shifted_by_two_voxels(tolerance, nsd):
    """Slabs of 3 voxels: the upper face of one is a voxel of 3 mm from the lower face of the other, the rest 6 mm."""
    first, second = np.zeros((2, 100, 100, 9), bool)
    first[..., 2:5], second[..., 4:7] = True, True
    found = compare_surfaces(first, second, (5, 5, 3), tolerance)
    assert found.nsd == pytest.approx(nsd, abs=0.06)  # the narrow sides take the rest
    assert found.hd95 == 6


def test_volumes_of_a_few_voxels():
    """Single voxels 4 mm apart along the first axis. Each has eight elements of surface, at the centres of the cells of
    eight voxels around it: those that face each other are 3 mm from the nearest of the other, the rest 4 mm."""
    first, second = np.zeros((2, 5, 3, 3), bool)
    first[0, 1, 1], second[4, 1, 1] = True, True
    for tolerance, nsd in ((2.9, 0), (3.0, 0.5), (3.9, 0.5), (4.0, 1)):
        assert compare_surfaces(first, second, (1, 2, 3), tolerance) == (4.0, nsd)


def test_equal_masks():
    mask = ellipsoid((20, 20, 20), (1, 1, 1), (10, 10, 10), (5, 6, 7))
    assert compare_surfaces(mask, mask, (1, 1, 1), 0.1) == (0, 1)
    assert compare_surfaces(np.ones((4, 5, 1), bool), np.ones((4, 5, 1), bool), (1, 1, 1), 0.1) == (0, 1)


def test_the_spacing_is_that_of_the_axes():
    """A permutation of the axes changes nothing if the spacing is permuted with them; another spacing does."""
    spacing = (0.8, 1.1, 3.0)
    masks = pair_of_ellipsoids(spacing)
    expected = compare_surfaces(*masks, spacing, 2)
    for axes in ((2, 0, 1), (1, 0, 2)):
        turned = [np.ascontiguousarray(mask.transpose(axes)) for mask in masks]
        assert compare_surfaces(*turned, [spacing[axis] for axis in axes], 2) == pytest.approx(expected, rel=1e-5)
        assert compare_surfaces(*turned, spacing, 2) != pytest.approx(expected, rel=0.05)
    flipped = [mask[::-1, :, ::-1].copy() for mask in masks]
    assert compare_surfaces(*flipped, spacing, 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("place", [(0, 0, 0), (20, 12, 8), (40, 36, 10)])
def test_the_box_of_both_masks_is_enough(place):
    """Also where the masks touch the border of the volume."""
    volume, other = np.zeros((2, 60, 50, 20), np.uint8)
    x, y, z = place
    volume[x : x + 15, y : y + 14, z : z + 6], other[x + 3 : x + 20, y : y + 10, z + 2 : z + 10] = 2, 2
    box = join_boxes([found[1] for found in (find_boxes(volume, 3), find_boxes(other, 3))])
    masks = volume == 2, other == 2
    assert np.prod([side.stop - side.start for side in box]) < volume.size / 5
    cut = (mask[box].copy() for mask in masks)
    assert compare_surfaces(*cut, (0.8, 1, 2.5), 2) == compare_surfaces(*masks, (0.8, 1, 2.5), 2)


def test_boxes_of_classes_and_of_none():
    volume = np.zeros((6, 6, 6), np.uint8)
    volume[1, 2, 3], volume[4, 2, 5], volume[0, 0, 0] = 1, 3, 255
    first, absent, third = find_boxes(volume, 4)
    assert absent is None
    assert join_boxes([first, None, third]) == (slice(1, 5), slice(2, 3), slice(3, 6))
