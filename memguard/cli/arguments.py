"""Arguments that more than one command has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["gates_of", "of_run"]


def of_run(parser: ArgumentParser) -> None:
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


def gates_of(parser: ArgumentParser) -> None:
    """The argument ``--fail-if``; `memguard.cli.gates` reads and tests it."""
    parser.add_argument(
        "--fail-if",
        type=str,
        action="append",
        default=[],
        help="a gate; may be given again; exit code 1 if it holds",
    )
