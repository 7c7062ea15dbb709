"""Which tokens are sensitive, and how much harm their disclosure may do.

The table is a file, ``sensitivity.toml``: a proposal that needs clinical and legal review, made to be read, replaced
and extended. A token is sensitive by the code in its name or by a pattern of the name. What could not be read is
counted: that nothing was found in a name does not show that there is nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.records._sensitivity_file import Category, read_categories
from memguard.records.codes import CodeNames, parse_codes

__all__ = ["TIERS", "Category", "Sensitive", "SensitivityTable"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

TIERS = {
    3: "named in special protection laws, or apt to cost a person liberty, livelihood, family or life",
    2: "apt to bring stigma or discrimination",
    1: "a weak or indirect sign of a tier 2 or 3 matter, or a test for it",
}
_SHOWN = 6  # kinds of names listed in a note


@dataclass(frozen=True, kw_only=True)
class Sensitive:
    """What a table says of V tokens. Made by `SensitivityTable.label`.

    Attributes:
        categories: Keys of the C categories.
        titles: What each is called.
        tiers: int64 ``(C,)``, 1 to 3.
        member: bool ``(V, C)``; a token may belong to several.
        tier: int64 ``(V,)``, the highest of its categories; 0 for none.
        category: int64 ``(V,)``, the category of the highest tier, the first where tiers are equal; -1 for none.
        unread: bool ``(V,)``, tokens about events with no code that can be read and no pattern that fits: nothing is
            known of them.
        unlisted: bool ``(V,)``, codes of a system of which the table lists none (laboratory tests, say).
        coarser: bool ``(V,)``, codes above a listed one: ``ICD9CM/571`` may stand for 571.0, which is listed.
        notes: What a reader must know, most important first.
    """

    categories: tuple[str, ...]
    titles: tuple[str, ...]
    tiers: Ints
    member: Bools
    tier: Ints
    category: Ints
    unread: Bools
    unlisted: Bools
    coarser: Bools
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tier)

    @property
    def sensitive(self) -> Bools:
        """``(V,)`` tokens in any category."""
        return np.asarray(self.tier > 0, dtype=np.bool_)

    def of(self, key: str) -> Bools:
        """``(V,)`` tokens of one category.

        Raises:
            DataError: There is no such category.
        """
        if key not in self.categories:
            raise DataError(f"no category {key!r}", "", f"choose among {', '.join(self.categories)}")
        return self.member[:, self.categories.index(key)]


@dataclass(frozen=True)
class SensitivityTable:
    """Categories of sensitive codes.

    Attributes:
        categories: In order.

    Raises:
        DataError: Two categories of one key.

    Guarantees:
        A code that a category lists is found in every dialect that `parse_codes` reads. The lists are proxies: they do
        not decide what a law protects, and what is in no list may be sensitive for a patient.

    Example:
        >>> table = SensitivityTable.default()
        >>> names = ["PAD", "DIAGNOSIS//ICD//10//F1020", "ICD9CM/V08", "DIAGNOSIS//ICD//9//3051", "LAB//50912//mg/dL"]
        >>> found = table.label(names)
        >>> [found.categories[i] if i >= 0 else "" for i in found.category], found.tier.tolist()
        (['', 'substance_use', 'hiv', '', ''], [0, 3, 3, 0, 0])
        >>> found.unread.tolist()
        [False, False, False, False, True]
    """

    categories: tuple[Category, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        twice = [key for key, n in Counter(self.keys).items() if n > 1]
        if twice:
            raise DataError(
                f"two categories {twice[0]!r}", "tokens would be counted twice", "give each its key"
            )

    @classmethod
    def default(cls) -> SensitivityTable:
        """The table that comes with memguard. It needs clinical and legal review."""
        text = files("memguard.records").joinpath("sensitivity.toml").read_text(encoding="utf-8")
        return cls(read_categories(text, "memguard's sensitivity.toml")[0])

    @classmethod
    def read(cls, path: str | Path) -> SensitivityTable:
        """Read a table; with ``extends = "default"`` in it, its categories replace or follow those of the default.

        Args:
            path: A TOML file of the form of memguard's ``records/sensitivity.toml``.

        Raises:
            DataError: The file cannot be read, or an entry has not the form that it should have.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read ({error})", "no token would be sensitive", "pass a TOML file"
            ) from error
        categories, extends = read_categories(text, str(path))
        return cls.default().extend(categories) if extends else cls(categories)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the categories."""
        return tuple(category.key for category in self.categories)

    @property
    def unreviewed(self) -> tuple[str, ...]:
        """Keys of categories that no clinician and lawyer of the user has confirmed."""
        return tuple(category.key for category in self.categories if not category.reviewed)

    def extend(self, more: SensitivityTable | Iterable[Category]) -> SensitivityTable:
        """A table with more categories; one whose key is there already takes its place, whole.

        Example:
            >>> table = SensitivityTable.default().extend(
            ...     [Category(key="transplant", title="Transplants", tier=2, codes={"ICD10CM": ("Z94",)})])
            >>> table.label(["ICD10CM/Z94.0"]).tier.tolist()
            [2]
        """
        new = {one.key: one for one in (more.categories if isinstance(more, SensitivityTable) else more)}
        kept = [new.pop(category.key, category) for category in self.categories]
        return SensitivityTable((*kept, *new.values()))

    def without(self, *keys: str) -> SensitivityTable:
        """A table without some categories.

        Raises:
            DataError: There is no such category.
        """
        unknown = [key for key in keys if key not in self.keys]
        if unknown:
            raise DataError(f"no category {unknown[0]!r}", "", f"choose among {', '.join(self.keys)}")
        return SensitivityTable(tuple(one for one in self.categories if one.key not in keys))

    def label(self, names: Sequence[str] | CodeNames) -> Sensitive:
        """Say of each token which categories it belongs to.

        Args:
            names: Name of each of V tokens, or the names read.

        Returns:
            The categories, and what could not be read. Tokens that say who a person is (age, sex, race) are sensitive
            by a pattern alone, of which the default table has none; those of the form (padding, gaps) never are.
        """
        known = names if isinstance(names, CodeNames) else parse_codes(names)
        event = known.event
        member = np.zeros((len(known), len(self.categories)), dtype=np.bool_)
        coarser = np.zeros(len(known), dtype=np.bool_)
        for i in np.flatnonzero(known.read):
            inside, coarser[i] = self._of_code(known.system[i], known.code[i])
            member[i, list(inside)] = True
        for c, category in enumerate(self.categories):
            for pattern in category.compiled:
                member[:, c] |= np.array([bool(pattern.search(name)) for name in known.names], dtype=np.bool_)
        member &= ~known.structural[:, None]
        tiers = np.array([category.tier for category in self.categories], dtype=np.int64)
        ranks = np.where(member, tiers, 0)
        tier = ranks.max(axis=1, initial=0)
        category_of = (
            np.where(tier > 0, ranks.argmax(axis=1), -1) if len(tiers) else np.full(len(known), -1, np.int64)
        )
        listed = {system for one in self.categories for system in {*one.codes, *one.forms}}
        listed |= {"ICD10"} if "ICD10CM" in listed else set()
        foreign = np.array([system not in listed for system in known.system], dtype=np.bool_)
        unread = event & ~known.read & (tier == 0)
        unlisted = event & known.read & foreign & (tier == 0)
        coarser &= tier == 0
        return Sensitive(
            categories=self.keys,
            titles=tuple(category.title for category in self.categories),
            tiers=tiers,
            member=member,
            tier=tier.astype(np.int64),
            category=category_of.astype(np.int64),
            unread=unread,
            unlisted=unlisted,
            coarser=coarser,
            notes=self._notes(known, unread, unlisted, coarser),
        )

    @cached_property
    def _index(
        self,
    ) -> tuple[dict[tuple[str, str], set[int]], dict[tuple[str, str], set[int]], set[tuple[str, str]]]:
        """Categories by prefix, exceptions by prefix, and what stands above a listed prefix."""
        into: dict[tuple[str, str], set[int]] = {}
        out: dict[tuple[str, str], set[int]] = {}
        above: set[tuple[str, str]] = set()
        for number, category in enumerate(self.categories):
            for place, lists in ((into, category.codes), (out, category.exceptions)):
                for system, prefixes in lists.items():
                    for prefix in prefixes:
                        place.setdefault((system, prefix), set()).add(number)
            for system, prefixes in category.codes.items():
                above |= {(system, prefix[:n]) for prefix in prefixes for n in range(1, len(prefix))}
        return into, out, above

    def _of_code(self, system: str, code: str) -> tuple[set[int], bool]:
        into, out, above = self._index
        # Other editions of ICD-10 share the chapters of ICD-10-CM and have entries of their own beside it.
        systems = ("ICD10", "ICD10CM") if system == "ICD10" else (system,)
        found: set[int] = set()
        left: set[int] = set()
        for one in systems:
            starts = [code] if one == "SNOMED" else [code[:n] for n in range(1, len(code) + 1)]
            for start in starts:
                found |= into.get((one, start), set())
                left |= out.get((one, start), set())
            for number, category in enumerate(self.categories):
                if any(form.match(code) for form in category.compiled_forms.get(one, ())):
                    found.add(number)
        return found - left, any((one, code) in above for one in systems)

    def _notes(self, known: CodeNames, unread: Bools, unlisted: Bools, coarser: Bools) -> tuple[str, ...]:
        notes = []
        if unread.any():
            kinds = Counter(
                re.split(r"//|[/:|]", known.names[i], maxsplit=1)[0] for i in np.flatnonzero(unread)
            )
            notes.append(
                f"{int(unread.sum()):,} of {len(known):,} tokens have no code that can be read ({_most(kinds)}) and "
                "fit no pattern: nothing is known of them, which does not mean that they are harmless. Add patterns."
            )
        if unlisted.any():
            kinds = Counter(known.system[i] for i in np.flatnonzero(unlisted))
            notes.append(
                f"{int(unlisted.sum()):,} codes are of systems of which the table lists none ({_most(kinds)})."
            )
        if coarser.any():
            some = ", ".join(known.names[i] for i in np.flatnonzero(coarser)[:_SHOWN])
            notes.append(
                f"{int(coarser.sum()):,} codes are coarser than what is listed and may stand for it ({some})."
            )
        if self.unreviewed:
            notes.append(
                f"{len(self.unreviewed)} of {len(self.categories)} categories need clinical and legal review."
            )
        return tuple(notes)


def _most(kinds: Mapping[str, int]) -> str:
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    text = ", ".join(f"{n:,} {kind or 'without a name'}" for kind, n in ordered[:_SHOWN])
    return text + (", ..." if len(ordered) > _SHOWN else "")
