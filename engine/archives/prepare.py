"""Preparation of a dataset folder from the content of an archive: cases in parallel, going on after a kill."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.archives.convert import Target, convert_case, needed_files, output_files
from engine.archives.find import ArchiveCase, Content
from engine.archives.record import Record
from engine.archives.sources import unpack
from engine.data.datasets import LabelValues
from engine.data.split_file import SplitFile
from engine.runtime.errors import DiskError, InputError
from engine.runtime.files import make_output_folder, write_text

DESCRIPTION, SPLIT = "dataset.json", "split.json"
WORK = ".unpacked"  # folder of temporary copies


def prepare(
    content: Content, record: Record, labels: LabelValues, link: str, num_workers: int
) -> tuple[Counter[str], list[str]]:
    """Write the cases that are not finished.

    Args:
        content: what is in the archive.
        record: record of the dataset folder, read.
        labels: values of the classes.
        link: how files that need no change are placed.
        num_workers: cases at the same time.
    Returns: the number of each change to the cases, and one line for each case that failed.
    """
    root = record.root
    make_output_folder(root)
    record.begin()
    target = Target(root, root / WORK, link, labels)
    target.work.mkdir(exist_ok=True)
    for case in content.cases:
        for name in output_files(case):
            (root / name).parent.mkdir(exist_ok=True)
    todo = [case for case in content.cases if case.key not in record.finished]
    unpack((file for case in todo for file in needed_files(case, content.kind)), target.work)
    failures = _convert_all(todo, content, record, target, num_workers)
    shutil.rmtree(target.work)
    changes: Counter[str] = Counter()
    for case in content.cases:
        changes.update(record.finished.get(case.key, {}).get("changes", {}))
    return changes, failures


def _convert_all(
    cases: Sequence[ArchiveCase], content: Content, record: Record, target: Target, num_workers: int
) -> list[str]:
    """Convert cases in parallel; return one line for each failure."""

    def convert(case: ArchiveCase) -> Counter[str] | InputError:
        try:
            return convert_case(case, content.kind, target)
        except DiskError:
            raise
        except InputError as error:
            return error

    failures = []
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = pool.map(convert, cases)
        for case, result in zip(cases, tqdm(results, "preparing cases", len(cases), disable=not cases), strict=True):
            if isinstance(result, InputError):
                failures.append(str(result))
            else:
                record.add(case.key, output_files(case), result)
    return failures


def write_texts(root: Path, description: dict[str, Any], split: SplitFile | None) -> list[str]:
    """Write the description of a dataset, and the archive's own split; files that are there may be edited, and stay.

    Returns: a line for each file that has another content.
    """
    texts = {DESCRIPTION: json.dumps(description, indent=2) + "\n"}
    if split is not None:
        texts[SPLIT] = split.to_text()
    lines = []
    for path, text in ((root / name, text) for name, text in texts.items()):
        if not path.exists():
            write_text(path, text)
        elif path.read_text(encoding="utf-8", errors="replace") != text:
            lines.append(f"{path} is kept, though this command would write another content; delete it to get that")
    return lines
