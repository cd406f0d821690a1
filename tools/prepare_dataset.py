"""Prepare a dataset folder from a public archive as downloaded: a folder, a .zip or a .tar.

    python -m tools.prepare_dataset --source amos22.zip --kind amos --output /data/amos_ct
    python -m tools.prepare_dataset --source Task07_Pancreas.tar --output /data/pancreas

Writes imagesTr, labelsTr, for AMOS imagesVal and labelsVal, and dataset.json, the description of the dataset. Files in
a folder are linked where they need no change. The archive is compared with what is known of it: missing cases are
named, with exit status 2. The source is never changed. The same command again continues after an interruption.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.archives.convert import LINKS
from engine.archives.description import describe_dataset, label_values
from engine.archives.find import TITLES, Content, find_content, find_kind
from engine.archives.kinds import Kind
from engine.archives.meta import make_split
from engine.archives.prepare import DESCRIPTION, SPLIT, prepare, write_texts
from engine.archives.record import Record
from engine.archives.sources import open_source
from engine.archives.table import BRATS_YEARS, KINDS
from engine.archives.variants import Options
from engine.data.split_file import SplitFile
from engine.runtime.arguments import number
from engine.runtime.child_processes import locked
from engine.runtime.errors import InputError, OneLineParser, raise_problems, run
from engine.runtime.files import file_state
from engine.runtime.wording import count_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("prepare_dataset", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", type=Path, metavar="ARCHIVE", required=True, help="downloaded folder, .zip, .tar, .tar.gz or .tgz"
    )
    parser.add_argument("--output", type=Path, metavar="ROOT", required=True, help="dataset folder to write")
    parser.add_argument("--kind", choices=KINDS, help="kind of the archive (default: found by its files)")
    link = "how files that need no change are placed, if the source is a folder (default: symbolic)"
    parser.add_argument("--link", choices=LINKS, help=link)
    missing = "go on without cases that are missing or damaged, and with other counts than are known"
    parser.add_argument("--allow_missing", action="store_true", help=missing)
    parser.add_argument("--with_test", action="store_true", help="place test images, too, in imagesTs")
    parser.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="cases at the same time")
    single = parser.add_argument_group("flags of single kinds")
    single.add_argument(
        "--cases", type=int, choices=(210, 300), help="kits21: the first 210 cases, or all (default: 300)"
    )
    annotation = "kits21: how the annotations of a voxel are merged (default: MAJ, the majority)"
    single.add_argument("--labels", choices=("MAJ", "AND", "OR"), help=annotation)
    single.add_argument("--scanner", metavar="NAME", help="amos_mri: only cases of this scanner, for example Prisma")
    classes = "totalsegmentator: classes in the order of their values (default: all, in alphabetical order)"
    single.add_argument("--classes", nargs="+", metavar="NAME", help=classes)
    single.add_argument("--year", choices=BRATS_YEARS, help="brats: year of the labels; 2021 for 2018 to 2021")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Prepare the dataset folder, and print what was done and what comes next."""
    check_flags(args)
    source = open_source(args.source)
    kind = args.kind or find_kind(source)
    options = Options(args.cases, args.labels, args.scanner, tuple(args.classes) if args.classes else None, args.year)
    content = find_content(source, kind, options, args.with_test)
    description = describe_dataset(content.kind)
    labels = label_values(description, str(args.source))
    print(f"{content.kind.title} (--kind {kind}{'' if args.kind else ', found by its files'}) in {args.source}")
    if not args.allow_missing:
        raise_problems([f"{line}; --allow_missing goes on all the same" for line in content.missing])
    if not content.cases:
        raise InputError(f"--source: found no complete case in {args.source}, expected one at least")
    record = Record(args.output, purpose(args, kind, options))
    record.read()
    with locked(args.output, "--output"):
        changes, failures = prepare(content, record, labels, args.link or LINKS[0], args.num_workers)
    finished = [case for case in content.cases if case.key in record.finished]
    if failures and not (args.allow_missing and finished):
        raise InputError("\n".join(failures))  # the other cases are finished, and the same command goes on
    split, notes = make_split(content.split, {case.id for case in finished}, kind, content.kind.title)
    kept = write_texts(args.output, description, split)
    for line in (*content.missing, *failures, *kept):
        print(f"warning: {line}")
    content = content._replace(notes=[*content.notes, *notes])
    commands = next_commands(args.output, content.kind, split)
    print("\n".join(report(args.output, content, Counter(case.part for case in finished), changes, commands)))


def check_flags(args: argparse.Namespace) -> None:
    """Refuse --link for an archive, and an output that overlaps with the source."""
    if args.link and args.source.is_file():
        raise InputError(f"--link: found {args.link} with the archive {args.source}, expected it only with a folder")
    source, output = os.path.realpath(args.source), os.path.realpath(args.output)
    if os.path.commonpath([source, output]) in (source, output):
        raise InputError(f"--output: found {args.output}, expected a folder apart from --source, {args.source}")


def purpose(args: argparse.Namespace, kind: str, options: Options) -> dict[str, Any]:
    """Return what a dataset folder is prepared from, by the names of flags: the same when a command goes on."""
    archive = [] if args.source.is_dir() else file_state(str(args.source))
    return {
        "--source": os.path.abspath(args.source),
        "--kind": kind,
        "--link": args.link or LINKS[0],
        "--with_test": args.with_test,
        **{f"--{flag}": value for flag, value in vars(options).items()},
        "size and time of the archive": archive,
    }


def report(
    root: Path, content: Content, finished: Counter[str], changes: Counter[str], commands: Iterable[list[str]]
) -> list[str]:
    """Describe what was prepared, and the commands that come next.

    Args:
        root: the dataset folder.
        content: what was in the archive.
        finished: number of cases by part.
        changes: number of each change to the cases.
        commands: words of the commands.
    """
    kind = content.kind
    counts = ", ".join(f"{count_of(finished[part], f'{TITLES[part]} case')}" for part in TITLES if finished[part])
    return [
        f"{counts} in {root}",
        *(f"{words}: {number}" for words, number in changes.items()),
        *(f"note: {line}" for line in content.notes),
        f"licence: {kind.licence}",
        f"from: {kind.page}",
        "next:",
        *(f"    python {shlex.join(words)}" for words in commands),
    ]


def next_commands(root: Path, kind: Kind, own_split: SplitFile | None) -> list[list[str]]:
    """List the commands that lead to a trained network: plan, split and check, as far as they are needed."""
    folder = ["--root", str(root)]
    dataset = ["--dataset", str(root / DESCRIPTION)]
    flags = dataset  # of the training
    split = kind.split or str(root / SPLIT)
    fold = ["--split", split, "--fold", "0"]
    commands = []
    if not kind.paper:
        plan = root / "plan.json"
        commands.append(["-m", "tools.check_data", *folder, *dataset, "--write_description", str(plan)])
        dataset, flags = ["--dataset", str(plan)], [f"@{plan.with_suffix('.args')}"]
    if not kind.split and own_split is None:
        commands.append(["-m", "tools.make_split", *folder, *dataset, "--folds", "5", "--seed", "0", "--output", split])
    commands.append(["-m", "tools.check_data", *folder, *dataset, *fold])
    commands.append(["main_train.py", *flags, *folder, *fold, "--output", f"runs/{root.name}"])
    return commands


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--num_workers"))
