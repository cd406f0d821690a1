"""Write the JSON schema of dataset descriptions, by which editors complete and check them.

    python -m tools.dataset_schema --output docs/dataset.schema.json

A description names the path of the schema in its field "$schema".
"""

import argparse
import json
import sys
from pathlib import Path

from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("dataset_schema", description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", required=True, help="file to write, replaced if it exists")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the schema."""
    write_text(Path(args.output), make_schema())


def make_schema() -> str:
    """Make the schema as JSON text."""
    from engine.data.description_file import Description

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Description.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
