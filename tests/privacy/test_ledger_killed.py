"""A run is killed at any moment and resumed: it never holds fewer steps than were taken, and never breaks."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time

import pytest

from memguard.errors import PrivacyError
from memguard.privacy.ledger import Ledger

FACTS = {"unit": "patient", "n_owners": 100}

# Resumes (or creates) the ledger and takes steps until it is killed. A byte goes down the pipe after each step that
# was written down, in the place where a training would apply the noise. Writes are cut into pieces, so that a kill
# can leave a line unfinished.
STEPS = """
import os, random, sys
from memguard.privacy import journal
from memguard.privacy.ledger import Ledger

folder, run, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng, write = random.Random(seed), os.write
journal.os.write = lambda fd, data: write(fd, data[: rng.randint(1, 40)])
journal.os.fsync = lambda fd: None if rng.random() < 0.9 else os.fdatasync(fd)  # quick; a kill is not a power cut
if run == "-":
    ledger = Ledger.create(folder, fingerprint="f00d", facts={"unit": "patient", "n_owners": 100})
    kind = "started"
else:
    ledger = Ledger.resume(folder, run, fingerprint="f00d", steps=int(sys.argv[4]))
    kind = "resumed"
write(1, b"!")
ledger.phase(1.0, {"everybody": 0.1}, expected_patients=10, max_grad_norm=1.0, delta=0.01)
ledger.append(kind, seeds={"noise": os.urandom(8).hex()})
for number in range(10**9):
    ledger.step(number)
    write(1, b".")
"""


def until_killed(folder, run, seed, known, after, wait):
    """Steps that the process says to have taken; it is killed ``wait`` seconds after its ``after``-th byte."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEPS, str(folder), run, str(seed), str(known)], stdout=subprocess.PIPE
    )
    out = process.stdout.fileno()
    said = b""
    try:
        while said.count(b".") < after or b"!" not in said:
            ready, _, _ = select.select([out], [], [], 60)
            assert ready, "the process does not take a step"
            got = os.read(out, 65536)
            assert got, f"the process ended by itself: {process.wait()}"
            said += got
        time.sleep(wait)
    finally:
        process.kill()
        process.wait()
    while got := os.read(out, 65536):
        said += got
    process.stdout.close()
    return said.count(b".")


def test_fifty_kills(tmp_path):
    rng = random.Random(4)
    run, taken, torn, before = "-", 0, 0, 0
    for kill in range(400):  # fifty, and more until three of them hit a line while it was written
        if kill >= 50 and torn >= 3:
            break
        after = rng.choice([0, 0, 1, rng.randint(2, 50)])
        taken += until_killed(tmp_path, run, kill, before, after, rng.random() * 0.004)
        (path,) = tmp_path.glob("*.jsonl")
        run = path.stem
        ledger = Ledger.read(tmp_path, run)
        ledger.verify()
        held = ledger.n_steps
        # at least what was taken; at most one more for each kill, which fell between the entry and the noise,
        # and one for each kill that hit the closing of an unfinished line
        assert taken <= held <= taken + 2 * (kill + 1)
        assert held >= before
        ledger.seeds()  # no seed came twice
        before = held
        torn = sum(entry["kind"] == "torn" for entry in ledger.entries())
    assert torn >= 3, "no kill left an unfinished line: this test looked at nothing"
    with Ledger.resume(tmp_path, run, fingerprint="f00d", steps=before) as ledger:
        (phase,) = ledger.history()
        assert phase.steps == ledger.n_steps == before


def test_cut_at_every_byte_of_a_step(tmp_path):
    with Ledger.create(tmp_path, fingerprint="f00d", facts=FACTS) as ledger:
        ledger.phase(1.0, {"everybody": 0.1}, expected_patients=10, max_grad_norm=1.0, delta=0.01)
        ledger.append("started", seeds={"noise": "5eed"})
        ledger.step(0)
        before = ledger.path.read_bytes()
        ledger.step(1)
        whole = ledger.path.read_bytes()
        ledger.append("note", text="x")
        noted = ledger.path.read_bytes()
    for start, full in ((before, whole), (whole, noted)):
        for length in range(len(start), len(full)):
            ledger.path.write_bytes(full[:length])
            cut = Ledger.read(tmp_path, ledger.run)  # as another run sees it
            cut.verify()
            with Ledger.resume(tmp_path, ledger.run) as again:
                assert again.n_steps == cut.n_steps
                again.append("resumed", seeds={"noise": "0dd5"})
                again.step(2)
            read = Ledger.read(tmp_path, ledger.run)
            read.verify()
            clearly_a_note = full is noted and length >= len(start) + len(b'{"kind":"n')
            may_be_a_step = length > len(start) and not clearly_a_note
            assert read.n_steps == again.n_steps == (1 if full is whole else 2) + may_be_a_step + 1
            torn = [entry for entry in read.entries() if entry["kind"] == "torn"]
            assert len(torn) == (len(start) < length < len(full) - 1)


def test_cut_while_an_unfinished_line_is_closed(tmp_path):
    with Ledger.create(tmp_path, fingerprint="f00d", facts=FACTS) as ledger:
        ledger.phase(1.0, {"everybody": 0.1}, expected_patients=10, max_grad_norm=1.0, delta=0.01)
        ledger.append("started", seeds={"noise": "5eed"})
        ledger.step(0)
    unfinished = ledger.path.read_bytes()[:-40]
    ledger.path.write_bytes(unfinished)
    Ledger.resume(tmp_path, ledger.run).close()
    closed = ledger.path.read_bytes()
    for length in range(len(unfinished), len(closed) + 1):
        ledger.path.write_bytes(closed[:length])
        Ledger.resume(tmp_path, ledger.run).close()
        read = Ledger.read(tmp_path, ledger.run)
        read.verify()
        assert 1 <= read.n_steps <= 2


def test_zeros_after_a_power_cut_count(tmp_path):
    with Ledger.create(tmp_path, fingerprint="f00d", facts=FACTS) as ledger:
        ledger.phase(1.0, {"everybody": 0.1}, expected_patients=10, max_grad_norm=1.0, delta=0.01)
        ledger.append("started", seeds={"noise": "5eed"})
        ledger.step(0)
    with ledger.path.open("ab") as file:
        file.write(b"\0" * 60)
    with Ledger.resume(tmp_path, ledger.run) as again:
        assert again.n_steps == 2
    Ledger.read(tmp_path, ledger.run).verify()


def test_a_file_without_its_first_line_is_no_run(tmp_path):
    (tmp_path / "0123.jsonl").write_bytes(b'{"kind":"created","ti')
    with pytest.raises(PrivacyError, match="first line is missing"):
        Ledger.resume(tmp_path, "0123")
