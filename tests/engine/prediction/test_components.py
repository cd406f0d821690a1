"""Only the largest connected component of a structure is kept."""

import numpy as np
import pytest

from engine.prediction.components import find_structures, keep_largest
from engine.runtime.errors import InputError


def draw(*boxes):
    """Draw boxes (value, x, y, z), each coordinate a slice or an index, into a label map."""
    labels = np.zeros((10, 9, 8), np.uint8)
    for value, *place in boxes:
        labels[tuple(place)] = value
    return labels


LARGE, SMALL = (1, slice(0, 4), slice(0, 4), 2), (1, slice(7, 10), 5, 5)
OTHER = (2, 9, 8, slice(0, 3))


def kept(labels, *structures):
    keep_largest(labels, structures)
    return labels


def test_smaller_components_become_background():
    assert np.array_equal(kept(draw(LARGE, SMALL, OTHER), [1]), draw(LARGE, OTHER))
    assert np.array_equal(kept(draw(SMALL, OTHER), [1]), draw(SMALL, OTHER))  # one component stays
    assert np.array_equal(kept(draw(LARGE, SMALL), [2]), draw(LARGE, SMALL))  # an absent class changes nothing
    assert np.array_equal(kept(draw(LARGE, SMALL)), draw(LARGE, SMALL))


def test_corners_connect():
    corner = (1, 4, 4, 3)
    assert np.array_equal(kept(draw(LARGE, corner, SMALL), [1]), draw(LARGE, corner))


def test_of_equal_components_the_first_is_kept():
    first, second = (1, 1, 1, slice(0, 2)), (1, 6, 6, slice(0, 2))
    assert np.array_equal(kept(draw(first, second), [1]), draw(first))


def test_a_region_is_one_structure():
    """A tumour at the kidney stays, although it is not the largest of its class."""
    tumour, elsewhere = (2, 4, 0, 2), (2, 8, slice(0, 5), 7)
    labels = draw(LARGE, tumour, elsewhere)
    assert np.array_equal(kept(labels.copy(), (1, 2)), draw(LARGE, tumour))
    assert np.array_equal(kept(labels.copy(), [2]), draw(LARGE, elsewhere))


def test_structures_are_processed_in_their_order():
    bridge = (2, slice(4, 7), 4, 4)  # connects two parts of class 1 in the region only
    parts = (1, slice(0, 4), slice(4, 6), 4), (1, slice(7, 9), slice(4, 6), 4)
    labels = draw(*parts, bridge)
    assert np.array_equal(kept(labels.copy(), (1, 2), [1]), draw(parts[0], bridge))
    far = (2, slice(0, 6), 0, 0)
    labels = draw(*parts, bridge, far)
    assert np.array_equal(kept(labels.copy(), [2], (1, 2)), draw(parts[0]))


def test_structures_are_classes_or_regions():
    structures = {"kidney": (1,), "tumour": (2,), "all": (1, 2)}
    assert find_structures(["all", "kidney"], structures) == [(1, 2), (1,)]
    with pytest.raises(InputError, match="--keep_largest: found 'liver', expected some of kidney, tumour, all"):
        find_structures(["kidney", "liver"], structures)
