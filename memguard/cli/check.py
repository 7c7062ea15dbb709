"""``memguard check``: whether a run can be watched, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memguard.cli.arguments import of_run
from memguard.cli.command import FAILED, PASSED, Command
from memguard.cli.loading import checkpoint_at, given_or_saved
from memguard.named import called, imported

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["CHECK"]

_TEXT = """Run two batches on a copy of the model, and say what the monitor and the audit would see.

exit codes: 0 the run can be watched; 1 it cannot, and what to add is printed; 2 the input cannot be used"""


def _arguments(parser: ArgumentParser) -> None:
    of_run(parser)
    parser.add_argument(
        "--checkpoint", type=Path | None, default=None, help="where hyperparameters are taken from"
    )


def _run(args: Namespace) -> int:
    from memguard.callbacks.monitor import LeakageMonitor
    from memguard.preflight import check

    checkpoint = {} if args.checkpoint is None else checkpoint_at(args.checkpoint)
    given = given_or_saved(args.model_args, checkpoint)
    model = called(imported(args.model, "--model"), given, "--model-args")
    data = called(imported(args.data, "--data"), args.data_args, "--data-args")
    monitor = LeakageMonitor(heldout=args.heldout, record_to_patient=args.record_to_patient)
    return PASSED if check(model, data, monitor=monitor).ok else FAILED


CHECK = Command(summary="can this run be watched?", text=_TEXT, arguments=_arguments, run=_run)
