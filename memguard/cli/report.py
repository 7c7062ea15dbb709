"""``memguard report``: views and gates of an audit that was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memguard.cli.arguments import gates_of
from memguard.cli.command import Command
from memguard.cli.gates import judged, parsed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["REPORT"]

_TEXT = """Make page, Markdown and model card of an audit again, with answers that people gave, and test gates.

example:
  memguard report audit/ --questions answers.json      # asks what only people can say
  memguard report audit/ --answers answers.json --fail-if "membership.auc.low > .6"

exit codes: 0 every gate holds; 1 a gate fails; 2 the report cannot be read"""


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the audit")
    parser.add_argument("--answers", type=Path | None, default=None, help="what people said")
    parser.add_argument(
        "--questions", type=Path | None, default=None, help="write the questions to this file"
    )
    gates_of(parser)


def _run(args: Namespace) -> int:
    from memguard.report.audit import load, read_answers, write_answers

    gates = parsed(args.fail_if)
    report = load(args.folder)
    if args.questions is not None:
        print(write_answers(args.questions, report.answers))
    if args.answers is not None:
        report = report.answered(read_answers(args.answers))
    folder = args.folder if args.folder.is_dir() else args.folder.parent
    for path in report.save(folder).values():
        print(path)
    print(f"\n{report.verdict()}")
    return judged(report, gates)


REPORT = Command(
    summary="views and gates of an audit that was made", text=_TEXT, arguments=_arguments, run=_run
)
