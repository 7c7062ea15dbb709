"""Who is in the data: record to patient, splits, rarity, near-duplicates, what a record holds, and MEDS.

Numpy, scipy and Polars alone: nothing here imports torch.
"""

from __future__ import annotations

from memguard.records.canaries import (
    Canaries,
    FeatureCanaries,
    coin_flips,
    make_canaries,
    make_feature_canaries,
)
from memguard.records.codes import CodeNames, parse_codes, static_prefix
from memguard.records.content import ContentStore, Ragged, RecordContent
from memguard.records.duplicates import NearDuplicates, near_duplicates
from memguard.records.meds import MedsDataset, read_meds
from memguard.records.patients import PatientMap, resolve_patients
from memguard.records.rarity import RarityTable, rarity
from memguard.records.sensitivity import Category, Sensitive, SensitivityTable
from memguard.records.splits import ContentOverlap, check_disjoint, content_overlap
from memguard.records.vocabulary import MedsSequences, Vocabulary

__all__ = [
    "Canaries",
    "Category",
    "CodeNames",
    "ContentOverlap",
    "ContentStore",
    "FeatureCanaries",
    "MedsDataset",
    "MedsSequences",
    "NearDuplicates",
    "PatientMap",
    "Ragged",
    "RarityTable",
    "RecordContent",
    "Sensitive",
    "SensitivityTable",
    "Vocabulary",
    "check_disjoint",
    "coin_flips",
    "content_overlap",
    "make_canaries",
    "make_feature_canaries",
    "near_duplicates",
    "parse_codes",
    "rarity",
    "read_meds",
    "resolve_patients",
    "static_prefix",
]
