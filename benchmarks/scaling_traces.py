"""Time and memory of the loss traces: 10 thousand, 100 thousand and 1 million records, 50 snapshots.

    python benchmarks/scaling_traces.py [--snapshots 50] [--batch 512]

Each size runs in a fresh process, in which every record is seen once in every snapshot, in shuffled batches. Memory
is the growth of the process's peak resident size from just before the traces are made until after ``array()``, a
state dict and a lookup of the first losses. The bar: linear, and at most 250 MB for 1M x 50.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def one(n, snapshots, batch):
    import numpy as np

    from memguard.capture.traces import LossTraces

    rng = np.random.default_rng(0)
    order = rng.permutation(n)
    loss = rng.random(n, dtype=np.float32)
    LossTraces(10).add([0], [1.0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    traces = LossTraces(n)
    for epoch in range(snapshots):
        for at in range(0, n, batch):
            traces.add(order[at : at + batch], loss[at : at + batch])
        traces.close(epoch)
    added = time.perf_counter() - start
    array, first = traces.array(), traces.first()
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert array.shape == (snapshots, n)
    assert not np.isnan(first).any()
    start = time.perf_counter()
    state = traces.state_dict()
    saved = time.perf_counter() - start
    with_state = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert state["snapshots"].shape == (snapshots, n)
    return {
        "records": n,
        "snapshots": snapshots,
        "seconds": round(added, 3),
        "ns_per_observation": round(1e9 * added / n / snapshots, 1),
        "peak_mb": round(kept / 1024, 1),
        "bytes_per_record_and_snapshot": round(1024 * kept / n / snapshots, 2),
        "state_dict_seconds": round(saved, 3),
        "peak_mb_while_saving": round(with_state / 1024, 1),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snapshots", type=int, default=50)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--only", type=int)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(one(args.only, args.snapshots, args.batch)))
        return
    for n in (10_000, 100_000, 1_000_000):
        command = [sys.executable, __file__, "--only", str(n), "--snapshots", str(args.snapshots)]
        done = subprocess.run(
            [*command, "--batch", str(args.batch)], check=True, capture_output=True, text=True
        )
        print(done.stdout, end="", flush=True)


if __name__ == "__main__":
    main()
