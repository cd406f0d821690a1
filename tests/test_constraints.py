"""constraints.txt has a version of every package that is installed for the requirements: builds can be repeated."""

from importlib.metadata import requires, version

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# torch requires these in exact versions of its own, and only its builds for GPUs do.
OF_TORCH = ("triton", "nvidia-", "cuda-")


def read(name):
    lines = (line.partition("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


PINS = {canonicalize_name(pin.name): pin.specifier for pin in read("constraints.txt")}
EXACT = {canonicalize_name(pin.name) for name in ("optional", "nnunet") for pin in read(f"requirements-{name}.txt")}


def needed(requirements):
    """Collect the names of all packages that are installed for some requirements, from what is installed."""
    found, waiting = set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        package = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if package not in found and not package[0].startswith(OF_TORCH):
            found.add(package)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            deeper = map(Requirement, requires(requirement.name) or ())
            waiting += [need for need in deeper if not need.marker or any(map(need.marker.evaluate, environments))]
    return {name for name, *_ in found}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_has_a_version(name):
    missing = needed(read(name)) - PINS.keys() - EXACT
    assert [f"{package}=={version(package).partition('+')[0]}" for package in sorted(missing)] == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_versions_are_exact_and_in_the_ranges(name):
    for requirement in read(name):
        if not requirement.name.startswith(OF_TORCH):
            (pin,) = PINS[canonicalize_name(requirement.name)]
            assert pin.operator == "=="
            assert pin.version in requirement.specifier, requirement


def test_packages_without_their_dependencies_are_pinned_where_they_are_listed():
    assert EXACT.isdisjoint(PINS)
    exact = [*read("requirements-optional.txt"), *read("requirements-nnunet.txt")]
    assert all([pin.operator for pin in requirement.specifier] == ["=="] for requirement in exact)
