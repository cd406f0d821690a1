"""CITATION.cff, CHANGELOG.md and GitHub's workflow say what the README, the package and .ci/run say."""

import os
import re

import yaml
from conftest import REPOSITORY

import networks

CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())


def test_the_citation_is_the_readmes():
    (entry,) = re.findall(r"^```bibtex\n(.*?)^```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL | re.M)
    fields = dict(re.findall(r"^  (\w+)\s*= \{(.*)\},?$", entry, flags=re.MULTILINE))
    paper = CITATION["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert fields == {
        "title": paper["title"],
        "author": authors,
        "booktitle": paper["collection-title"],
        "year": str(paper["year"]),
    }


def test_the_version_is_the_packages():
    assert CITATION["version"] == networks.__version__
    newest = re.search(r"^## (\S+?),", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest.group(1) == networks.__version__


def test_the_licence_and_its_holders_are_those_of_the_licence_file():
    text = (REPOSITORY / "LICENSE").read_text()
    assert text.startswith(f"{CITATION['license']} License")
    assert CITATION["authors"][0]["name"] in text


def test_the_workflow_runs_what_ci_runs_and_may_only_read():
    (job,) = WORKFLOW["jobs"].values()
    *prepared, checks = job["steps"]
    assert checks == {"run": ".ci/run"}
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in prepared)
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] <= 90


def test_the_workflow_installs_by_the_variable_that_the_makefile_reads():
    (job,) = WORKFLOW["jobs"].values()
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(f"\n{variable} ?=" in makefile for variable in job["env"])
