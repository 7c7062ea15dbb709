"""Run by test_ddp.py: python _ddp.py FOLDER RANK; two gloo processes, the records divided in several ways."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from _cases import METRICS, feed, full, numbers, records

DIVISIONS = {
    "even": (range(0, 400, 2), range(1, 400, 2)),
    "uneven": (range(350), range(350, 400)),
    "empty": ([], range(400)),
}


def main(rank, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    said = {}
    for name, make in METRICS.items():
        for division, rows in DIVISIONS.items():
            for grouped in (False, True):
                metric = make()
                feed(metric, name, rows[rank], grouped=grouped)
                key = f"{name} {division} {grouped}"
                said[key] = (numbers(metric, name), float(metric.compute()), numbers(metric, name))
    # after a look the process goes on with its own records
    metric = METRICS["auroc"]()
    feed(metric, "auroc", DIVISIONS["empty"][rank][:100])
    metric.compute()
    feed(metric, "auroc", DIVISIONS["uneven"][rank][:40])
    said["continued"] = (full(metric, "auroc"), float(metric.compute()))
    # half precision here, double there; nobody has anything; a look at one's own records alone
    preds, target, _ = records()
    metric = METRICS["auroc"]()
    mine = slice(rank, None, 2)
    metric.update(preds.half()[mine] if rank else preds.half().double()[mine], target[mine])
    said["mixed"] = float(metric.compute())
    said["nothing"] = float(METRICS["auroc"]().compute())
    alone = METRICS["auroc"](sync_on_compute=False)
    feed(alone, "auroc", DIVISIONS["uneven"][rank])
    said["alone"] = full(alone, "auroc")
    torch.save(said, Path(folder) / f"said_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[2]), sys.argv[1])
