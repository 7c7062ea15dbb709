"""Min-K% of sequences from one forward pass a batch, beside one forward pass for each position, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.min_k_speed             # sequences of 64, 128 and 256 codes
    python -m benchmarks.min_k_speed --lengths 32 --sequences 4    # a look

The loop is the one that is published for records of codes: for every position the model reads everything before it, one
sequence at a time. Both read the same GPT-2 (random weights, float64) and the same sequences; the times are the least
CPU time of ``--repeats`` runs, and the loop runs over its first ``--looped`` sequences, scaled to all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from memguard.adapters import HFAdapter
from memguard.attacks import min_k_percent
from memguard.records.content import Ragged

BAR, LENGTH = 40.0, 128  # how many times faster, at which length


@dataclass(frozen=True)
class Row:
    """One length: milliseconds a sequence of both, and the largest difference of the values."""

    length: int
    once: float
    loop: float
    apart: float

    @property
    def ratio(self) -> float:
        return self.loop / self.once

    def __str__(self) -> str:
        bar = f"{BAR:.0f}" if self.length == LENGTH else ""
        return f"| {self.length} | {self.once:.2f} | {self.loop:.1f} | {self.ratio:.0f} | {bar} | {self.apart:.1e} |"


def model_of(vocabulary: int, longest: int, width: int, layers: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=longest,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).double().eval()


@torch.no_grad()
def looped(model: GPT2LMHeadModel, sequences: Ragged, k: float) -> np.ndarray:
    """Mean of the ``k`` % lowest log-probabilities of each sequence, position by position."""
    scores = []
    for i in range(len(sequences)):
        tokens, found = torch.as_tensor(sequences[i].astype(np.int64)), []
        for t in range(1, len(tokens)):
            logits = model(tokens[None, :t], use_cache=False).logits[0, -1]
            found.append(float(torch.log_softmax(logits, -1)[tokens[t]]))
        lowest = sorted(found)[: max(1, int(len(found) * k / 100))]
        scores.append(np.mean(lowest))
    return np.array(scores)


def at_once(adapter: HFAdapter, sequences: Ragged, k: float) -> np.ndarray:
    losses = -adapter.log_probs(sequences)
    return min_k_percent(losses[np.isfinite(losses)], sequences.lengths - 1, k=k)


def clock(call: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """Least CPU milliseconds, and what was computed."""
    best, found = np.inf, np.zeros(0)
    for _ in range(repeats):
        start = time.process_time()
        found = call()
        best = min(best, time.process_time() - start)
    return 1e3 * best, found


def measured(
    length: int, n: int, part: int, repeats: int, *, vocabulary: int, width: int, layers: int, k: float = 20.0
) -> Row:
    model = model_of(vocabulary, length, width, layers)
    codes = np.random.default_rng(length).integers(0, vocabulary, n * length)
    sequences = Ragged.from_lengths(codes, np.full(n, length))
    adapter = HFAdapter(model)
    once, ours = clock(lambda: at_once(adapter, sequences, k), repeats)
    first = sequences.take(range(part))
    loop, theirs = clock(lambda: looped(model, first, k), repeats)
    return Row(length, once / n, loop / part, float(np.abs(ours[:part] - theirs).max()))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--looped", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| length | one pass, ms a sequence | loop, ms | ratio | bar | largest difference |")
    print("|---|---|---|---|---|---|")
    rows = []
    for length in args.lengths:
        part = min(args.looped, args.sequences)
        rows.append(
            measured(
                length,
                args.sequences,
                part,
                args.repeats,
                vocabulary=args.vocabulary,
                width=args.width,
                layers=args.layers,
            )
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
