"""Files of scores in an output folder; files of others are never replaced."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import BinaryIO

from engine.evaluation.comparison import draw_comparison
from engine.evaluation.pictures import encode_png
from engine.evaluation.score_report import CSV_HEADER, Evaluation, as_json, csv_rows
from engine.runtime.errors import raise_problems
from engine.runtime.files import digest_file, format_csv, write_text, write_whole

TABLE, SUMMARY, PICTURE = "scores.csv", "scores.json", "comparison.png"
FILES = "files"  # field of the summary: digests of the other files


def check_files(folder: Path) -> None:
    """Make sure that no file of somebody else would be replaced; the folder need not exist.

    Raises:
        InputError: one line per file that is not as this program has written it.
    """
    known = _read_digests(folder)
    foreign = [folder / name for name in (TABLE, PICTURE) if _differs(folder / name, known.get(name))]
    foreign += [folder / SUMMARY] if (folder / SUMMARY).exists() and not known else []
    raise_problems([f"--output: {path} is no file of this program, expected another folder" for path in foreign])


def write_files(folder: Path, found: Evaluation) -> None:
    """Write the scores, their summary and, for a comparison, its picture.

    A former table and picture are removed first, then the summary announces the new ones: a kill at any moment leaves
    no file that ``check_files`` does not know.
    """
    contents = {TABLE: format_csv(CSV_HEADER, csv_rows(found)).encode(errors="backslashreplace")}
    if len(found.folders) > 1 and (common := found.common())[found.reference]:
        contents[PICTURE] = encode_png(draw_comparison(common, found.classes))
    for name in (TABLE, PICTURE):
        (folder / name).unlink(missing_ok=True)
    values = {**as_json(found), FILES: {name: _digest(content) for name, content in contents.items()}}
    values[FILES][SUMMARY] = _digest(json.dumps(values).encode())
    write_text(folder / SUMMARY, json.dumps(values, indent=2) + "\n")
    for name, content in contents.items():
        write_whole(folder / name, partial(_write, content))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()


def _differs(path: Path, digest: str | None) -> bool:
    """Check whether a file exists and has another digest."""
    return path.exists() and digest_file(str(path)) != digest


def _read_digests(folder: Path) -> dict[str, str]:
    """Read the digests of the files from a summary; none if it is absent or not as this program has written it."""
    try:
        values = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        known = dict(values[FILES])
        own = values[FILES].pop(SUMMARY)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return known if own == _digest(json.dumps(values).encode()) else {}
