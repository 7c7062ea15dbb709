"""What the name of a token says: its code system, its code, or that it is about the person or the form alone.

Data sets in MEDS form agree on columns and not on names: ``DIAGNOSIS//ICD//10//F1020``, ``ICD10CM/F10.20`` and
``ICD//CM//F10`` may be one diagnosis. Names are read by the marks that converters put into them. Where no code
system is named, or the code does not have the form of its system, nothing is read: an ``F10`` may be a ward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["SYSTEMS", "CodeNames", "normal_code", "parse_codes", "static_prefix"]

Bools = NDArray[np.bool_]
Texts = NDArray[Any]

_ICD10 = r"[A-Z]\d[0-9A-Z][0-9A-Z]{0,4}"
_ICD9 = r"\d{3,5}|V\d{2,4}|E\d{3,4}"

# Named as OMOP names its vocabularies; the form of a whole code, without dots.
SYSTEMS = {
    "ICD10CM": _ICD10,
    "ICD9CM": _ICD9,
    "ICD10": _ICD10,  # of the WHO and, by marks of their own, of other countries
    "ICD10PCS": r"[0-9A-HJ-NP-Z]{7}",
    "ICD9Proc": r"\d{2,4}",
    "SNOMED": r"\d{6,18}",
    "LOINC": r"(LP|LA)?\d{1,7}-\d",
    "RxNorm": r"\d{1,8}",
    "ATC": r"[A-Z]\d{2}([A-Z]([A-Z](\d{2})?)?)?",
    "CPT4": r"\d{4}[0-9A-Z]",
    "HCPCS": r"[A-Z]\d{4}|\d{4}[0-9A-Z]",
    "NDC": r"\d{8,11}",
}
_FORMS = {system: re.compile(form) for system, form in SYSTEMS.items()}
_VERSION = {"ICD10CM": "10", "ICD10": "10", "ICD10PCS": "10", "ICD9CM": "9", "ICD9Proc": "9"}

# How a system may be marked, in capitals without signs.
_MARKS = {
    **{system.upper(): system for system in SYSTEMS},
    "ICD9": "ICD9CM",
    "ICD9PCS": "ICD9Proc",
    "ICD10WHO": "ICD10",
    **{f"ICD10{country}": "ICD10" for country in ("AM", "CA", "CN", "GM", "SE", "NL", "FR", "UK")},
    **{f"KCD{edition}": "ICD10" for edition in (5, 6, 7, 8)},
    "SNOMEDCT": "SNOMED",
    "SNOMEDCTUS": "SNOMED",
    "SCT": "SNOMED",
    "LNC": "LOINC",
    "CPT": "CPT4",
}
_SIGNS = re.compile(r"[^A-Z0-9]")
_JOINED = re.compile(r"([A-Za-z][A-Za-z0-9 \-]*)[/:|_](.+)", re.DOTALL)  # ICD10CM/F10.20, ICD10CM:F10.20
_BIN = re.compile(r"(value_[\[(].*|_?Q_?\d{1,3})", re.DOTALL)

_PERSON = re.compile(
    r"(MEDS_BIRTH|BIRTH|DOB|(YEAR_OF_|DATE_OF_)?BIRTH|BIRTH_(YEAR|DATE)|AGE|GENDER|SEX|RACE|ETHNICITY|MARITAL(_STATUS)?"
    r"|LANGUAGE|INSURANCE|RELIGION|NATIONALITY)([/:=].*)?|AGE_?\d.*|(SNOMED/)(184099003|3950001)",
    re.IGNORECASE | re.DOTALL,
)
_BIRTHS = re.compile(
    r"(MEDS_BIRTH|BIRTH|DOB|DATE_OF_BIRTH|SNOMED/(184099003|3950001))([/:=].*)?", re.I | re.DOTALL
)
_BEGIN = {"PAD", "BOS", "CLS", "START", "S", "BEGIN_OF_TEXT", "TIMELINE//START", "TIMELINE_START"}
_FORM = {
    "EOS",
    "SEP",
    "UNK",
    "MASK",
    "OOV",
    "END",
    "/S",
    "REG",
    "VS",
    "VE",
    "ENDOFTEXT",
    "END_OF_TEXT",
    "EOT",
} | {
    "TIMELINE//END",
    "TIMELINE_END",
    "LINEAR_PROB",
    "UNUSED",
}
_ONLY_IN_BRACKETS = {"S", "/S", "REG", "UNUSED"}
_TIME = re.compile(
    r"(GAP|TIME|TIME_INTERVAL|TIME_DELTA|DELTA|TIMELINE//DELTA|TIMELINE_DELTA)([/:=_].*)?"
    r"|\[(W|M)_\d+\]|\[LT\]"  # weeks, months, longer
    r"|=?\d+(m|h|d|w|mt|y)(-\d+(m|h|d|w|mt|y))?",  # 15m-1h, =6mt
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class CodeNames:
    """The names of V tokens, read. Made by `parse_codes`.

    Attributes:
        names: As given.
        system: object ``(V,)`` of strings: the code system by the name that OMOP gives it (``"ICD10CM"``,
            ``"ICD9CM"``, ``"SNOMED"``, ...; ``"ICD10"`` for the WHO's and other countries' editions), empty where
            none is named.
        version: object ``(V,)``: ``"9"`` or ``"10"`` for ICD, else empty.
        code: object ``(V,)``: in capitals without dots; empty where it cannot be read.
        suffix: object ``(V,)``: what follows the code, such as the bin of a value (``value_[3.0,5.0)``, ``Q03``).
        demographic: bool ``(V,)``, tokens that say who somebody is: birth, age, sex, race, language, insurance, ...
        structural: bool ``(V,)``, tokens of the form alone: padding, begin, end, unknown, passing time, bare bins.
        begin: bool ``(V,)``, structural tokens with which a sequence begins.
        time: bool ``(V,)``, structural tokens of passing time.
        birth: bool ``(V,)``, demographic tokens of the birth; a gap after it is the age.
    """

    names: tuple[str, ...]
    system: Texts
    version: Texts
    code: Texts
    suffix: Texts
    demographic: Bools
    structural: Bools
    begin: Bools
    time: Bools
    birth: Bools

    def __len__(self) -> int:
        return len(self.names)

    @property
    def event(self) -> Bools:
        """``(V,)`` tokens that are neither about the person nor about the form."""
        return ~(self.demographic | self.structural)

    @property
    def read(self) -> Bools:
        """``(V,)`` tokens with a code in a known system."""
        return np.asarray(self.code != "", dtype=np.bool_)


def parse_codes(names: Sequence[str]) -> CodeNames:
    """Read the names of a vocabulary.

    ========================================  =========================================
    name                                      read as
    ========================================  =========================================
    ``DIAGNOSIS//ICD//10//F1020``             ICD10CM F1020
    ``DIAGNOSIS//ICD//9//30500``              ICD9CM 30500
    ``PROCEDURE//ICD//10//HZ2ZZZZ``           ICD10PCS HZ2ZZZZ
    ``ICD10CM/F10.20``, ``ICD10CM//F10.20``   ICD10CM F1020
    ``SNOMED/86406008``                       SNOMED 86406008
    ``ICD//CM//F10``                          ICD10CM F10
    ``ICD//CM//3-6//20``                      ICD10CM, no code: it goes on from the token before
    ``ICD//CM//ALCOHOL_RELATED_DISORDERS``    ICD10CM, no code: a title
    ``LAB//50912//mg/dL//value_[1.1,1.4)``    no system; suffix ``value_[1.1,1.4)``
    ``DIAGNOSIS//F1020``, ``F10.20``          no system
    ========================================  =========================================

    Args:
        names: Name of each token.

    Returns:
        What was read. A name without a known mark of a code system has none; a code that does not have the form of
        its system is left empty.

    Raises:
        DataError: A name is not a string.

    Example:
        >>> found = parse_codes(["PAD", "GENDER//F", "DIAGNOSIS//ICD//9//305.00", "ICD10CM/Q90//Q01", "WARD//F10"])
        >>> found.system.tolist(), found.code.tolist(), found.suffix.tolist()
        (['', '', 'ICD9CM', 'ICD10CM', ''], ['', '', '30500', 'Q90', ''], ['', '', '', 'Q01', ''])
        >>> found.structural.tolist(), found.demographic.tolist()
        ([True, False, False, False, False], [False, True, False, False, False])
    """
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise DataError(
            f"a token name of type {type(wrong).__name__}",
            "its code cannot be read",
            "pass names= as strings, one for each token",
        )
    n = len(names)
    texts = [np.full(n, "", dtype=object) for _ in range(3)]
    person, form, begin, time, birth = (np.zeros(n, dtype=np.bool_) for _ in range(5))
    for i, name in enumerate(names):
        if _PERSON.fullmatch(name):
            person[i], birth[i] = True, _BIRTHS.fullmatch(name) is not None
        elif _TIME.fullmatch(name):
            form[i] = time[i] = True
        else:
            form[i], begin[i] = _structural(name)
            if not form[i]:
                for column, text in zip(texts, _read(name), strict=True):
                    column[i] = text
    system, code, suffix = texts
    version = np.array([_VERSION.get(one, "") for one in system], dtype=object)
    return CodeNames(
        names=tuple(names),
        system=system,
        version=version,
        code=code,
        suffix=suffix,
        demographic=person,
        structural=form,
        begin=begin,
        time=time,
        birth=birth,
    )


def normal_code(code: str) -> str:
    """A code in capitals without dots, blanks and the WHO's signs of dagger and star.

    Example:
        >>> normal_code("f10.20"), normal_code("B20*")
        ('F1020', 'B20')
    """
    return code.strip().upper().replace(".", "").rstrip("+*†")


def static_prefix(sequences: Ragged, names: Sequence[str] | CodeNames) -> NDArray[np.int64]:
    """How many leading tokens of each sequence only say who the patient is.

    Demographic tokens and tokens with which a sequence begins. Where one of them is the birth, the passing time right
    after it is the age at the first event and counts too, with demographic tokens that follow.

    Args:
        sequences: ``N`` sequences of tokens.
        names: Name of each token, or the names read.

    Returns:
        ``(N,)``: what an attacker knows who knows a person's demographics.

    Raises:
        DataError: A sequence holds a token without a name.

    Example:
        >>> names = ["PAD", "MEDS_BIRTH", "TIMELINE//DELTA//years//value_[40,inf)", "GENDER//F", "ICD10CM/I10"]
        >>> static_prefix(Ragged.from_lists([[1, 2, 3, 4], [3, 4, 2, 4], [4, 3], [], [3]]), names).tolist()
        [3, 1, 0, 0, 1]
    """
    known = names if isinstance(names, CodeNames) else parse_codes(names)
    values = sequences.values
    if values.size and (int(values.min()) < 0 or int(values.max()) >= len(known)):
        raise DataError(
            f"tokens from {values.min()} to {values.max()} with {len(known)} names",
            "tokens would get the meaning of others",
            "pass names= with one name for each token of the vocabulary",
        )
    static = known.demographic | known.begin
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    stops = np.flatnonzero(~static[values])
    first = _next(stops, start, end)
    births = np.concatenate([[0], np.cumsum(known.birth[values])])
    inside = np.minimum(first, max(len(values) - 1, 0))
    aged = (first < end) & (births[first] > births[start])
    if len(values):
        aged &= known.time[values[inside]]
    first = np.where(aged, _next(stops, first + 1, end), first)
    return np.asarray(first - start, dtype=np.int64)


def _next(stops: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first stop at or after each start, the end where there is none before it."""
    padded = np.append(stops, np.iinfo(np.int64).max)
    return np.asarray(np.minimum(padded[np.searchsorted(stops, start)], end), dtype=np.int64)


def _structural(name: str) -> tuple[bool, bool]:
    """Whether a name is of the form alone, and whether a sequence begins with it."""
    inner = name.strip("[]<>|").upper()
    bare = inner == name.upper()
    if bare and inner in _ONLY_IN_BRACKETS:
        return False, False
    if re.fullmatch(r"_?Q_?\d{1,3}", name):  # a bin that is a token of its own
        return True, False
    return inner in _BEGIN or inner in _FORM or (not bare and inner.startswith("UNUSED")), inner in _BEGIN


def _read(name: str) -> tuple[str, str, str]:
    """System, code and suffix of a name."""
    parts = name.split("//")
    for i, part in enumerate(parts):
        mark = _SIGNS.sub("", part.upper())
        if mark == "ICD":
            return _read_icd(parts, i)
        if mark in _MARKS and i + 1 < len(parts):
            return _checked(_MARKS[mark], parts[i + 1], parts[i + 2 :], parts[:i])
        joined = _JOINED.fullmatch(part)
        system = _MARKS.get(_SIGNS.sub("", joined[1].upper()), "") if joined else ""
        if joined and system:
            return _checked(system, joined[2], parts[i + 1 :], parts[:i])
    found = _BIN.fullmatch(parts[-1]) if len(parts) > 1 else None
    return "", "", parts[-1] if found else ""


def _read_icd(parts: list[str], at: int) -> tuple[str, str, str]:
    """``ICD//10//F1020``, ``ICD//CM//10//F1020``, ``ICD//CM//F10``, ``ICD//PCS//...``."""
    before, rest = parts[:at], parts[at + 1 :]
    kind = ""
    if rest and rest[0].upper() in ("CM", "PCS"):
        kind, rest = rest[0].upper(), rest[1:]
    version = rest[0] if rest and rest[0] in ("9", "10") and len(rest) > 1 else ""
    rest = rest[1:] if version else rest
    if not (version or kind) or not rest:
        return "", "", ""
    operation = kind == "PCS" or any(part.upper().startswith("PROC") for part in before)
    diagnosis, procedure = ("ICD9CM", "ICD9Proc") if version == "9" else ("ICD10CM", "ICD10PCS")
    return _checked(procedure if operation else diagnosis, rest[0], rest[1:], [])


def _checked(system: str, code: str, rest: list[str], before: list[str]) -> tuple[str, str, str]:
    if system == "ICD9CM" and any(part.upper().startswith("PROC") for part in before):
        system = "ICD9Proc"
    code = normal_code(code) if system != "LOINC" else code.strip().upper()
    return system, code if _FORMS[system].fullmatch(code) else "", "//".join(rest)
