"""The form of a table of sensitive codes: categories, and the file that they are read from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from memguard.errors import DataError
from memguard.records.codes import SYSTEMS, normal_code

__all__ = ["Category", "read_categories"]

_WHY = "a sensitive token might pass for harmless"
_UNREVIEWED = "needs clinical and legal review"
# What a prefix may look like; concepts of SNOMED are compared whole.
_PREFIX = {
    **dict.fromkeys(("ICD10CM", "ICD10"), r"[A-Z]\d[0-9A-Z]{0,5}"),
    "ICD9CM": r"\d{2,5}|V\d{1,4}|E\d{1,4}",
    "ICD10PCS": r"[0-9A-HJ-NP-Z]{1,7}",
    "ICD9Proc": r"\d{2,4}",
    "SNOMED": r"\d{6,18}",
    "LOINC": r"(LP|LA)?\d{1,7}-\d",
    "RxNorm": r"\d{1,8}",
    "ATC": r"[A-Z][0-9A-Z]{0,6}",
    "CPT4": r"[0-9A-Z]{1,5}",
    "HCPCS": r"[0-9A-Z]{1,5}",
    "NDC": r"\d{1,11}",
}


@dataclass(frozen=True, kw_only=True)
class Category:
    """One kind of sensitive matter.

    Attributes:
        key: Short name, in lower case.
        title: What it is called in reports.
        tier: Of harm: 1, 2 or 3, see `memguard.records.sensitivity.TIERS`.
        codes: Code system (as in `memguard.records.codes.SYSTEMS`) -> prefixes, with or without dots.
        exceptions: Code system -> prefixes that are left out.
        forms: Code system -> regular expressions that a code without dots matches from its first sign.
        patterns: Regular expressions that are searched in whole token names.
        reason: Why this tier.
        law: What protects it.
        notes: What a reader must know.
        review: Who reviewed the entry and when; empty as long as nobody did.

    Raises:
        DataError: An entry has not the form that it should have.

    Example:
        >>> Category(key="hiv", title="HIV", tier=3, codes={"ICD10CM": ("B97.35", "Z21")}).codes["ICD10CM"]
        ('B9735', 'Z21')
    """

    key: str
    title: str
    tier: int
    codes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exceptions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    forms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    patterns: Sequence[str] = ()
    reason: str = ""
    law: Sequence[str] = ()
    notes: Sequence[str] = ()
    review: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.key):
            raise DataError(
                f"a category with the key {self.key!r}",
                "reports and gates name it by its key",
                "use lower case letters, digits and _",
            )
        if not isinstance(self.title, str) or not self.title:
            raise _wrong(self.key, f"title = {self.title!r}", "give it a title")
        if isinstance(self.tier, bool) or self.tier not in (1, 2, 3):
            raise _wrong(self.key, f"tier = {self.tier!r}", "tier is 1, 2 or 3")
        for name in ("reason", "review"):
            if not isinstance(getattr(self, name), str):
                raise _wrong(self.key, f"{name} = {getattr(self, name)!r}", f"{name} is a text")
        for name in ("codes", "exceptions"):
            object.__setattr__(self, name, self._prefixes(name))
        for name in ("law", "notes", "patterns"):
            object.__setattr__(self, name, self._texts(name, getattr(self, name)))
        forms = self._systems("forms")
        object.__setattr__(self, "forms", {s: self._texts(f"forms.{s}", texts) for s, texts in forms.items()})
        _ = self.compiled, self.compiled_forms
        if not (self.codes or self.forms or self.patterns):
            raise _wrong(
                self.key, "neither codes nor forms nor patterns", "no token would belong to it; list some"
            )

    @property
    def reviewed(self) -> bool:
        """Whether somebody put a name to it."""
        return bool(self.review.strip()) and self.review.strip().lower() != _UNREVIEWED

    @cached_property
    def compiled(self) -> tuple[re.Pattern[str], ...]:
        """The patterns."""
        return tuple(self._regex("patterns", text) for text in self.patterns)

    @cached_property
    def compiled_forms(self) -> Mapping[str, tuple[re.Pattern[str], ...]]:
        """The forms, by code system."""
        return {
            s: tuple(self._regex(f"forms.{s}", text) for text in texts) for s, texts in self.forms.items()
        }

    def _systems(self, name: str) -> Mapping[str, Any]:
        lists = getattr(self, name)
        if not isinstance(lists, Mapping):
            raise _wrong(self.key, f"{name} = {lists!r}", f"{name} is a table: code system -> list")
        unknown = [system for system in lists if system not in SYSTEMS]
        if unknown:
            raise _wrong(
                self.key, f"{name} of the code system {unknown[0]!r}", f"choose among {', '.join(SYSTEMS)}"
            )
        return lists

    def _prefixes(self, name: str) -> dict[str, tuple[str, ...]]:
        made = {}
        for system, texts in self._systems(name).items():
            bare = [text.split("|")[0].strip() for text in self._texts(f"{name}.{system}", texts)]
            codes = tuple(bare if system == "LOINC" else map(normal_code, bare))
            for code, text in zip(codes, bare, strict=True):
                if not re.fullmatch(_PREFIX[system], code):
                    raise _wrong(
                        self.key,
                        f"{name}.{system} with {text!r}, which is not how such a code begins",
                        "write each prefix by itself, such as F10, F11 for the range F10-F11",
                    )
            made[system] = codes
        return made

    def _texts(self, name: str, texts: Any) -> tuple[str, ...]:
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise _wrong(self.key, f"{name} = {texts!r}", f"{name} is a list of texts")
        return tuple(texts)

    def _regex(self, name: str, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as error:
            raise _wrong(
                self.key, f"{name} with {text!r} ({error})", "write a regular expression of Python"
            ) from error


_FIELDS = {
    "except": "exceptions",
    **{name: name for name in Category.__dataclass_fields__ if name != "exceptions"},
}


def read_categories(text: str, where: str) -> tuple[tuple[Category, ...], bool]:
    r"""The categories of a TOML text, and whether they extend the default table.

    Args:
        text: The file.
        where: Its name, for messages.

    Raises:
        DataError: It is not TOML, or an entry has not the form that it should have.

    Example:
        >>> text = 'extends = "default"\n[category.hiv]\ntitle = "HIV"\ntier = 3\ncodes = {ICD10CM = ["B20"]}'
        >>> categories, extends = read_categories(text, "ours.toml")
        >>> categories[0].key, extends
        ('hiv', True)
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is not TOML ({error})", _WHY, "correct the file") from error
    unknown = sorted(set(data) - {"version", "extends", "category"})
    if unknown or data.get("version", 1) != 1 or data.get("extends", "default") != "default":
        seen = (
            f"{unknown[0]!r}"
            if unknown
            else f"version = {data.get('version', 1)}, extends = {data.get('extends')!r}"
        )
        raise DataError(
            f"{where} with {seen}",
            _WHY,
            'at the top stand version = 1, extends = "default" and [category.key] alone',
        )
    categories = data.get("category", {})
    if not isinstance(categories, dict) or not categories:
        raise DataError(
            f"{where} without categories", _WHY, "write [category.key] with title, tier and codes"
        )
    made = []
    for key, entry in categories.items():
        if not isinstance(entry, dict):
            raise _wrong(key, f"{entry!r}", "write [category.key] with title, tier and codes", where)
        unknown = sorted(set(entry) - set(_FIELDS) | (set(entry) & {"key"}))
        missing = [name for name in ("title", "tier") if name not in entry]
        if unknown or missing:
            seen = f"an unknown entry {unknown[0]!r}" if unknown else f"no {missing[0]}"
            raise _wrong(key, seen, f"the entries are {', '.join(sorted(set(_FIELDS) - {'key'}))}", where)
        try:
            made.append(Category(key=key, **{_FIELDS[name]: value for name, value in entry.items()}))
        except DataError as error:
            raise DataError(f"{where}: {error.seen}", error.why, error.fix) from error
    return tuple(made), "extends" in data


def _wrong(key: str, seen: str, fix: str, where: str = "") -> DataError:
    return DataError(f"{where}{': ' if where else ''}category {key!r} has {seen}", _WHY, fix)
