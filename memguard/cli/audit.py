"""``memguard audit``: the full audit of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memguard.cli.arguments import gates_of, of_run
from memguard.cli.command import Command
from memguard.cli.gates import judged, parsed
from memguard.cli.loading import Maker, as_long, checkpoint_at, given_or_saved, put_weights
from memguard.errors import DataError
from memguard.named import called, imported

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["AUDIT"]

_TEXT = """Ask a trained model what somebody could get out of it about one patient.

example:
  memguard audit --model my_package.Model --checkpoint last.ckpt --data my_package.DataModule \\
      --trainer '{max_epochs: 20}' --references 8 --fail-if "membership.tpr_at_fpr_0.01.high > .05"

The model is made from the hyperparameters in the checkpoint (save_hyperparameters), or from --model-args. References
are models of the same class, trained on random halves of the patients with --trainer's settings; the first audit
trains them, later ones find them in OUT/references. Everything can stand in a YAML file: --config audit.yaml.

exit codes: 0 done and every gate holds; 1 a gate fails; 2 the input cannot be used"""


def _arguments(parser: ArgumentParser) -> None:
    of_run(parser)
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
    gates_of(parser)
    parser.add_argument("--out", type=Path, default=Path("memguard-audit"), help="folder of the report")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--quiet", action="store_true", help="print the verdict alone")


def _run(args: Namespace) -> int:
    from memguard.auditing.audit import audit
    from memguard.auditing.folder import writable
    from memguard.probes.asked import Budget
    from memguard.records.sensitivity import SensitivityTable
    from memguard.report.audit import read_answers

    gates = parsed(args.fail_if)
    writable(args.out, "--out")
    sensitive = None if args.sensitive is None else SensitivityTable.read(args.sensitive)
    if args.static != "auto" and not args.static.isdigit():
        raise DataError(
            f"--static {args.static}",
            "what an attacker knows would be unknown",
            "pass auto or a number of tokens",
        )
    owner = imported(args.model, "--model")
    checkpoint = checkpoint_at(args.checkpoint)
    given = given_or_saved(args.model_args, checkpoint)
    model = called(owner, given, "--model-args")
    put_weights(model, checkpoint, args.checkpoint)
    trainer = dict(args.trainer) or as_long(checkpoint)
    wanted = args.references
    found = audit(
        model,
        called(imported(args.data, "--data"), args.data_args, "--data-args"),
        heldout=args.heldout,
        record_to_patient=args.record_to_patient,
        references=int(wanted) if wanted.isdigit() else wanted,
        factory=Maker(owner, given),
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
    return judged(found.report, gates)


AUDIT = Command(summary="full audit of a trained model", text=_TEXT, arguments=_arguments, run=_run)
