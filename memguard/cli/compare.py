"""``memguard compare``: ways to train, beside a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memguard.cli.command import PASSED, Command
from memguard.errors import MemguardError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["COMPARE"]

_TEXT = """Train the arms of a study on the same halves of the patients, attack them alike, and say what each leaks of
whom and what it costs, beside the baseline.

examples:
  memguard compare study.yaml --folder runs/study
  memguard compare study.yaml --folder runs/study --arms dropout private    # these beside the baseline
  memguard compare study.yaml --folder runs/study --backend ray --workers 8

study.yaml:
  model: {class_path: my_package.Model, init_args: {width: 64}}
  data: {class_path: my_package.DataModule}
  trainer: {max_epochs: 20}
  baseline: plain
  arms:                    # what sets each apart from what stands above
    plain:
    dropout: {model: {init_args: {dropout: 0.2}}}
    private: {callbacks: [{class_path: memguard.DPSGD, init_args: {target_epsilon: 8}}]}

Each seed trains two models of each arm, and two of the baseline again. Finished trainings stay in FOLDER/runs: the same
command goes on where it was stopped, and a new arm is trained alone.

exit codes: 0 done; 2 the study cannot be used, or an arm of it cannot be trained"""


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="a YAML file")
    parser.add_argument(
        "--folder", type=Path, default=Path("memguard-compare"), help="of the comparison and its trainings"
    )
    parser.add_argument(
        "--arms",
        type=str,
        nargs="+",
        default=None,
        metavar="ARM",
        help="those to compare with the baseline; all by default",
    )
    parser.add_argument(
        "--backend", choices=("sequential", "ray"), default="sequential", help="how models are trained"
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="with --backend ray: so many at a time, in a Ray of their own",
    )


def _run(args: Namespace) -> int:
    if args.workers is not None and (args.backend != "ray" or args.workers < 1):
        raise MemguardError(
            f"--workers {args.workers} with --backend {args.backend}",
            "so many cannot train at a time",
            "pass --backend ray and a number from 1, or leave it out",
        )
    from memguard.auditing.folder import writable
    from memguard.comparing.compare import compare
    from memguard.comparing.written import read_study

    study = read_study(args.study)
    writable(args.folder, "--folder")
    found = compare(study, folder=args.folder, arms=args.arms, backend=args.backend, ray_workers=args.workers)
    files = found.save(args.folder)
    print(f"\n{found}\n")
    for path in files.values():
        print(path)
    return PASSED


COMPARE = Command(summary="ways to train, beside a baseline", text=_TEXT, arguments=_arguments, run=_run)
