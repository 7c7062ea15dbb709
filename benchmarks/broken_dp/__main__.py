"""Plants bugs in a private training and asks guards, ledger and an audit for each.

    python -m benchmarks.broken_dp                    # every bug, and the correct training 20 times
    python -m benchmarks.broken_dp --runs 200         # the correct training 200 times
    python -m benchmarks.broken_dp --bugs shuffled    # some bugs only

Prints what each bug was found by. Exits with 1 if one was missed, or if a correct training raised an alarm.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from benchmarks.broken_dp.bugs import BUGS
from benchmarks.broken_dp.examine import examine


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--bugs", nargs="*", choices=list(BUGS), default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start, missed = time.perf_counter(), []
    for bug in BUGS if args.bugs is None else args.bugs:
        found = examine(bug, args.seed)
        missed += [] if found else [bug]
        by = found[0] if found else None
        first = f"{by.guard}: {by.finding} ({by.number})" if by else "MISSED"
        others = sorted({each.guard for each in found} - {by.guard}) if by else []
        print(f"{bug:24s} {first}{'; also ' + ', '.join(others) if others else ''}", flush=True)
    n = len(BUGS if args.bugs is None else args.bugs)
    print(f"\n{n - len(missed)} of {n} bugs found ({time.perf_counter() - start:.0f} s)", flush=True)
    start, alarms = time.perf_counter(), 0
    for run in range(args.runs):
        found = examine(None, args.seed + run)
        alarms += bool(found)
        for each in found:
            print(f"ALARM in correct run {run}: {each}", flush=True)
    spent = time.perf_counter() - start
    print(f"{alarms} alarms in {args.runs} correct trainings ({spent:.0f} s)", flush=True)
    return int(bool(missed) or bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
