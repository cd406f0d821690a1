"""Files, folders, modules, links and anchors that pages, docstrings and comments cite exist."""

import ast
import io
import re
import tokenize
from functools import cache

import pytest
from conftest import REPOSITORY

NOT_OURS = {"demo", "runs", "predictions", "results", "packages", "wheels"}  # folders that commands create
FILES = [
    path
    for path in sorted(REPOSITORY.rglob("*"))
    if path.is_file()
    and not (parts := path.relative_to(REPOSITORY).parts)[0].startswith(".") | (parts[0] in NOT_OURS)
    and "__pycache__" not in parts
]
PATHS = {str(path.relative_to(REPOSITORY)) for path in FILES}
FOLDERS = {str(folder) for path in PATHS for folder in list((REPOSITORY / path).relative_to(REPOSITORY).parents)[:-1]}
NAMES = {path.rpartition("/")[2] for path in PATHS}
PAGES = [path for path in FILES if path.suffix == ".md"]
MODULES = [path for path in FILES if path.suffix == ".py"]
ENDINGS = "py|md|toml|txt|sh|json|jsonl|png|csv|diff|pth"
# Files that commands write or read, with any folder before them.
GENERATED = {
    *("best_metric_model.pth", "last_checkpoint.pth", "previous_checkpoint.pth", "damaged_checkpoint.pth", "model.pth"),
    *(
        "args.json",
        "versions.json",
        "settings.json",
        "dice.csv",
        "dice.json",
        "scores.csv",
        "scores.json",
        "comparison.png",
        "change.diff",
        "table.txt",
        "amos.json",
        "my_data.json",
        "my_split.json",
        "splits_final.json",
        "cases.txt",
        "boxes.json",
    ),
    *("entry.json", "digests.json", "log.jsonl", "plan.json", "plan.args"),
    *("results.csv", "runs.json", "masks.csv", "taps.csv", "figure.png", "masks.png", "taps.png"),
    *("loss.csv", "loss.png", "scores.csv", "wandb.json", "mlflow.json"),
    *("inference.json", "metadata.json", "data_license.txt"),  # of a MONAI bundle
    *("split.json", "meta.csv", "labeled_data_meta_0000_0599.csv"),
    *("nnUNetPlans.json", "nnUNetRep3DPlans.json", "plans.json", "dataset.json", "checkpoint_final.pth"),
    *("erf.png", "erf.csv", "profiles.png", "profiles.csv"),
    *("config.json", "rep3d.json"),
}
FILE = re.compile(rf"(?<![\w/.<>*$~{{-])((?:[\w.-]+/)*[\w-]+(?:\.[\w-]+)*\.(?:{ENDINGS}))(?![\w/(])")
MODULE = re.compile(r"(?<![\w./-])((?:engine|networks|tools|benchmarks|experiments)(?:\.[A-Za-z_]\w*)+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path):
    return str(path.relative_to(REPOSITORY))


def without_fences(text, kept=()):
    """Drop fenced blocks, except those in the languages ``kept``."""

    def keep(block):
        return block[0] if block[1] in kept else ""

    return re.sub(r"^```(\w*)\n.*?^```", keep, text, flags=re.DOTALL | re.MULTILINE)


def prose(path):
    """Join the docstrings and comments of a module."""
    source = path.read_text()
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def missing_files(text, folder=""):
    """Find the cited paths that exist neither from the root nor from ``folder``, and bare names that no file has."""
    for found in FILE.findall(text):
        base = found.rpartition("/")[2]
        exists = found in PATHS or f"{folder}/{found}" in PATHS or ("/" not in found and base in NAMES)
        if not exists and base not in GENERATED and found.partition("/")[0] not in NOT_OURS:
            yield found


def mentions(file, word):
    return re.search(rf"\b{word}\b", file.read_text()) is not None


@cache
def resolves(dotted):
    """Return whether a dotted name is a module, or a name that occurs in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        if f"{path}.py" in PATHS or path in FOLDERS:
            file = REPOSITORY / (f"{path}.py" if f"{path}.py" in PATHS else f"{path}/__init__.py")
            return end == len(parts) or (file.exists() and mentions(file, parts[end]))
    return False


def anchors(page):
    """List the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", without_fences(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_exist(page):
    for link in LINK.findall(without_fences(page.read_text())):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_cite_what_exists(page):
    text = page.read_text()
    cited = "\n".join(re.findall(r"`([^`\n]+)`", without_fences(text)))
    assert list(missing_files(cited, name(page.parent))) == []
    folders = re.findall(r"^((?:[\w.-]+/)+)$", cited, flags=re.MULTILINE)
    known = [folder for folder in folders if folder.partition("/")[0] in FOLDERS]
    assert [folder for folder in known if folder.rstrip("/") not in FOLDERS | {"benchmarks/results/h100"}] == []
    modules = MODULE.findall(without_fences(text, kept=("sh",)))
    assert [dotted for dotted in modules if not dotted.endswith((".md", ".py")) and not resolves(dotted)] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_docstrings_and_comments_cite_what_exists(path):
    text = prose(path)
    assert list(missing_files(text, name(path.parent))) == []
    assert [dotted for dotted in MODULE.findall(text) if not resolves(dotted)] == []


def test_the_tree_in_the_readme_matches_the_repository():
    (tree,) = re.findall(r"^```text\n(.*?)^```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    shown, parent = set(), ""
    for line in tree.splitlines():
        indent, paths = re.match(r"( *)([^\s,]+(?:, [^\s,]+)*)", line).groups()
        for path in paths.split(", "):
            shown.add((parent if indent else "") + path)
        parent = parent if indent else paths
    for path in shown:
        assert path.rstrip("/") in (FOLDERS if path.endswith("/") else PATHS), path
    subpackages = {f"{folder}/" for folder in FOLDERS if folder.startswith("engine/") and folder.count("/") == 1}
    assert {path for path in shown if path.startswith("engine/")} == subpackages | {"engine/"}
    root = {path for path in PATHS | {f"{folder}/" for folder in FOLDERS} if "/" not in path.rstrip("/")}
    assert {path for path in root if path.endswith((".py", "/"))} - shown == set()


def test_every_page_is_linked_from_the_readme():
    links = {link.partition("#")[0] for link in LINK.findall((REPOSITORY / "README.md").read_text())}
    assert {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")} <= links


def test_the_table_of_changes_names_existing_code_and_tests():
    section = (REPOSITORY / "README.md").read_text().partition("## I want to change")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \| `(.*)` \|$", section, flags=re.MULTILINE)
    assert len(rows) >= 7
    for _, where, test in rows:
        file, *names = re.findall(r"`([^`]+)`", where)
        assert all(mentions(REPOSITORY / file, word) for word in names), where
        assert (REPOSITORY / test).exists()
