"""Finished references on disk: what was trained once is not trained again, and what changed is said."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memguard.errors import MemguardWarning, ReferenceModelError
from memguard.owner_only import sync_folder, write_whole
from memguard.references.job import State, Trained
from memguard.references.recipe import Recipe, content_hash, differences

__all__ = ["Keep"]

_WEIGHTS, _META, _VERSION = "weights.safetensors", "meta.json", 1
_PARTIAL = re.compile(r"\.partial-(\d+)-[0-9a-f]{32}$")


@dataclass(frozen=True)
class Keep:
    """A folder with one folder for each reference, named by the hash of its recipe.

    Weights are safetensors, everything else is JSON; only the owner can read them. A reference takes its name when
    it is whole and on the disk, in one step: a killed process leaves no half of one.

    Args:
        folder: Made where missing, with mode 0700.

    Raises:
        ReferenceModelError: If safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from memguard.references.job import Trained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keep = Keep(Path(folder) / "references")
        ...     keep.put({"seed": [0, 0]}, Trained(state={"w": torch.ones(2)}, steps=3, epochs=1, seconds=0.5))
        ...     keep.get({"seed": [0, 0]}).state["w"].tolist(), keep.get({"seed": [1, 0]})
        ([1.0, 1.0], None)
    """

    folder: Path

    def __post_init__(self) -> None:
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise ReferenceModelError(
                "safetensors is not installed",
                "references are kept in its format, which can be read without running code",
                "pip install 'memguard-ehr[audit]', or keep them in memory with folder=None",
            ) from error
        object.__setattr__(self, "folder", Path(self.folder))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.folder.iterdir():
            found = _PARTIAL.match(left.name)
            if found and not _alive(int(found[1])):
                shutil.rmtree(left, ignore_errors=True)

    def path(self, recipe: Recipe) -> Path:
        """Where the reference of a recipe lies, or would lie."""
        return self.folder / content_hash(recipe)

    def put(self, recipe: Recipe, trained: Trained) -> None:
        """Keep a finished reference.

        Raises:
            ReferenceModelError: If the disk does not take it.
        """
        from safetensors.torch import save

        unique, aliases = _untie(trained.state)
        body = save(unique)
        meta = {
            "version": _VERSION,
            "recipe": recipe,
            "steps": trained.steps,
            "epochs": trained.epochs,
            "seconds": trained.seconds,
            "aliases": aliases,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        path = self.path(recipe)
        partial = self.folder / f".partial-{os.getpid()}-{path.name}"
        try:
            partial.mkdir(mode=0o700)
            write_whole(partial / _WEIGHTS, body)
            write_whole(partial / _META, json.dumps(meta, indent=1).encode())
            sync_folder(partial)
            self._rename(partial, path, recipe)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ReferenceModelError(
                f"a reference cannot be kept in {self.folder} ({error.strerror or error})",
                "it would be trained again by whoever asks for it",
                "free space, or choose another folder",
            ) from error

    def get(self, recipe: Recipe) -> Trained | None:
        """The reference of a recipe; ``None`` where there is none, or with a warning where it is damaged."""
        path = self.path(recipe)
        if not path.is_dir():
            return None
        try:
            meta = json.loads((path / _META).read_text(encoding="utf-8"))
            if content_hash(meta["recipe"]) != path.name:
                raise ValueError("its recipe is another one")
            return Trained(
                state=self._state(path, meta),
                steps=int(meta["steps"]),
                epochs=int(meta["epochs"]),
                seconds=float(meta["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                MemguardWarning(
                    f"a kept reference cannot be read ({path.name}: {error})",
                    "a damaged model would be taken for one that never saw the patient",
                    "nothing to do: it is trained again",
                ),
                stacklevel=2,
            )
            return None

    def state(self, recipe: Recipe) -> State:
        """Weights of a kept reference, read again.

        Raises:
            ReferenceModelError: If it is gone or damaged.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MemguardWarning)
            found = self.get(recipe)
        if found is None:
            raise ReferenceModelError(
                f"the kept reference {self.path(recipe).name} is gone or damaged",
                "it was whole when the pool was made, and cannot be asked any more",
                "train the pool again: what is left in the folder is taken from there",
            )
        return found.state

    def why_missing(self, recipe: Recipe) -> list[str]:
        """What changed since a reference with the same number was kept; empty where there was none.

        The nearest one counts: the one with the fewest differences.
        """
        nearest: list[str] = []
        for meta in sorted(self.folder.glob(f"*/{_META}")):
            if meta.parent.name.startswith("."):
                continue
            try:
                old: dict[str, Any] = json.loads(meta.read_text(encoding="utf-8"))["recipe"]
                same_number = old["seed"][-1] == recipe["seed"][-1] and old.get("kind") == recipe.get("kind")
                found = differences(old, recipe) if same_number else []
            except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
                continue
            if found and (not nearest or len(found) < len(nearest)):
                nearest = found
        return nearest

    def _rename(self, partial: Path, path: Path, recipe: Recipe) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MemguardWarning)
            if path.exists() and self.get(recipe) is None:
                shutil.rmtree(path)
            try:
                partial.rename(path)
            except OSError:
                if self.get(recipe) is None:
                    raise
                shutil.rmtree(partial)  # another process was faster, with the same reference

    def _state(self, path: Path, meta: dict[str, Any]) -> State:
        from safetensors.torch import load

        body = (path / _WEIGHTS).read_bytes()
        if hashlib.sha256(body).hexdigest() != meta["sha256"]:
            raise ValueError("its weights are not those that were written")
        state: dict[str, torch.Tensor] = load(body)
        for name, first in meta["aliases"].items():
            state[name] = state[first]
        return state


def _untie(state: State) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those that have several."""
    first: dict[int, str] = {}
    unique: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        if id(value) in first:
            aliases[name] = first[id(value)]
        else:
            first[id(value)] = name
            unique[name] = value.contiguous()
    return unique, aliases


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
