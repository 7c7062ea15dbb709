from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy import journal
from memguard.privacy.chain import ChainedLines
from memguard.privacy.ledger import Ledger

FACTS = {"unit": "patient", "n_owners": 100, "most_records": 7, "max_records": None, "engine": "loop"}


def new(folder, *, steps=0, fingerprint="f00d", seed="5eed", sigma=1.0, rates=None, **facts):
    ledger = Ledger.create(folder, fingerprint=fingerprint, facts={**FACTS, **facts})
    phase(ledger, sigma, rates)
    ledger.append("started", seeds={"noise": seed})
    for number in range(steps):
        ledger.step(number)
    return ledger


def phase(ledger, sigma=1.0, rates=None, **facts):
    given = {"expected_patients": 10, "max_grad_norm": 1.0, "delta": 0.01} | facts
    ledger.phase(sigma, rates or {"everybody": 0.1}, **given)


def lines_of(ledger):
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_entries_come_back_in_order_and_are_json_lines(tmp_path):
    with new(tmp_path, steps=2) as ledger:
        ledger.append("probe", what="sensitivity", passed=True, ratio=np.float32(0.5), n=np.int64(3))
        ledger.append("note", text="über alles")
    kinds = [entry["kind"] for entry in ledger.entries()]
    assert kinds == ["created", "phase", "started", "step", "step", "probe", "note"]
    assert [json.loads(line)["line"] for line in lines_of(ledger)] == list(range(7))
    probe = next(e for e in ledger.entries() if e["kind"] == "probe")
    assert (probe["ratio"], probe["n"]) == (0.5, 3)
    assert ledger.facts["versions"]["memguard"]
    assert "opacus" in ledger.facts["versions"] and "torch" in ledger.facts["versions"]
    ledger.verify()


def test_only_the_owner_can_read_it(tmp_path):
    folder = tmp_path / "a" / "b"
    with new(folder) as ledger:
        assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_folder_that_widens_modes_does_not_widen_this_file(tmp_path, monkeypatch):
    opened = os.open
    monkeypatch.setattr(journal.os, "open", lambda path, how, mode=0o777: opened(path, how, mode | 0o044))
    with new(tmp_path) as ledger:
        assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_every_line_is_synced_before_the_call_returns_and_the_file_is_not_read(tmp_path, monkeypatch):
    done = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(journal.os, "write", lambda fd, b: done.append("write") or write(fd, b))
    monkeypatch.setattr(journal.os, "fsync", lambda fd: done.append("sync") or sync(fd))
    ledger = new(tmp_path)
    assert done.count("sync") >= 3 + 1  # lines, and the folder
    monkeypatch.setattr(ChainedLines, "__iter__", lambda self: pytest.fail("an append reads the file"))
    for number in range(5):
        done.clear()
        ledger.step(number)
        assert done == ["write", "sync"]
    ledger.close()


def test_steps_count_by_entries_not_by_number(tmp_path):
    with new(tmp_path, steps=3) as ledger:
        for number in (1, 2, 3):  # rolled back to the checkpoint of step 1
            ledger.step(number)
        assert ledger.n_steps == 6
        phase(ledger, 2.0)
        ledger.step(4)
        phase(ledger, 2.0)
        ledger.step(5)
        found = [(p.noise_multiplier, p.sample_rate, p.steps) for p in ledger.history()]
    assert found == [(1.0, 0.1, 6), (2.0, 0.1, 2)]


def test_history_of_strata(tmp_path):
    with new(tmp_path, rates={"rare": 0.02, "other": 0.1}, steps=2) as ledger:
        phase(ledger, 1.0, {"rare": 0.05, "new": 0.01})
        ledger.step(2)
        assert ledger.strata == ["rare", "other", "new"]
        assert [(p.sample_rate, p.steps) for p in ledger.history("rare")] == [(0.02, 2), (0.05, 1)]
        # in a phase that does not name it, a stratum counts with the highest rate
        assert [(p.sample_rate, p.steps) for p in ledger.history("other")] == [(0.1, 2), (0.05, 1)]
        assert [(p.sample_rate, p.steps) for p in ledger.history()] == [(0.1, 2), (0.05, 1)]
        with pytest.raises(PrivacyError, match="no stratum 'common'"):
            ledger.history("common")


def test_a_phase_without_steps_is_not_in_the_history(tmp_path):
    with new(tmp_path) as ledger:
        assert ledger.history() == []
        phase(ledger, 2.0)
        ledger.step(0)
        assert [p.noise_multiplier for p in ledger.history()] == [2.0]


def test_a_step_needs_a_phase_and_a_start(tmp_path):
    with Ledger.create(tmp_path, fingerprint="f", facts=FACTS) as ledger:
        with pytest.raises(PrivacyError, match="before a phase"):
            ledger.step(0)
        phase(ledger)
        with pytest.raises(PrivacyError, match="before a start"):
            ledger.step(0)
    with Ledger.resume(tmp_path, ledger.run) as again, pytest.raises(PrivacyError, match="before a start"):
        again.step(0)


def test_resume_goes_on(tmp_path):
    with new(tmp_path, steps=3) as ledger:
        mark = ledger.mark()
    with Ledger.resume(tmp_path, ledger.run, fingerprint="f00d", facts=FACTS, steps=3, mark=mark) as again:
        again.append("resumed", seeds={"noise": "0dd5"}, at_step=3)
        again.step(3)
        assert again.n_steps == 4
        assert again.seeds() == ["5eed", "0dd5"]
    again.verify()
    assert Ledger.read(tmp_path, ledger.run).n_steps == 4


# -- refusals ------------------------------------------------------------------------------------------------


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(PrivacyError, match="folder="):
        Ledger.resume(tmp_path, "0123")
    with pytest.raises(PrivacyError, match="no ledger"):
        Ledger.read(tmp_path, "0123")


def test_refuses_fewer_steps_than_the_checkpoint_knows(tmp_path):
    with new(tmp_path, steps=3) as ledger:
        mark = ledger.mark()
    with pytest.raises(PrivacyError, match="holds 3 steps, the checkpoint knows of 4"):
        Ledger.resume(tmp_path, ledger.run, steps=4)
    # lines missing at the end: the chain cannot show it, the checkpoint does
    ledger.path.write_bytes(b"".join(lines_of(ledger)[:-1]))
    Ledger.read(tmp_path, ledger.run).verify()
    with pytest.raises(PrivacyError, match="holds 2 steps, the checkpoint knows of 3"):
        Ledger.resume(tmp_path, ledger.run, mark=mark)


def test_refuses_a_copy_that_went_another_way(tmp_path):
    with new(tmp_path, steps=2) as ledger:
        before = ledger.path.read_bytes()
        ledger.step(2)
        mark = ledger.mark()
    ledger.path.write_bytes(before)
    with Ledger.resume(tmp_path, ledger.run) as copy:
        copy.append("resumed", seeds={"noise": "0dd5"})
        for number in range(5):
            copy.step(number)
    with pytest.raises(PrivacyError, match="not the one that the checkpoint knows"):
        Ledger.resume(tmp_path, ledger.run, mark=mark)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_owners": 101}, r"n_owners\) 100 then, 101 now"),
        ({"unit": "record"}, "unit patient then, record now"),
        ({"max_records": 4}, "max_records None then, 4 now"),
        ({"most_records": 9, "n_owners": 99}, "99 now.*most_records 7 then, 9 now"),
    ],
)
def test_refuses_other_patients_and_says_what_differs(tmp_path, changed, said):
    with new(tmp_path) as ledger:
        pass
    with pytest.raises(PrivacyError, match=said):
        Ledger.resume(tmp_path, ledger.run, fingerprint="f00d", facts={**FACTS, **changed})
    with pytest.raises(PrivacyError, match="fingerprint of the data set f00d then, beef now"):
        Ledger.resume(tmp_path, ledger.run, fingerprint="beef")
    with Ledger.resume(tmp_path, ledger.run, fingerprint="f00d", facts={**FACTS, "engine": "opacus"}):
        pass  # and is not left locked by a refusal


def test_refuses_a_seed_that_was_used(tmp_path):
    with new(tmp_path, steps=1) as ledger:
        n = len(lines_of(ledger))
        with pytest.raises(PrivacyError, match="used before"):
            ledger.append("resumed", seeds={"noise": "5eed"})
        with pytest.raises(PrivacyError, match="as noise of this start"):
            ledger.append("resumed", seeds={"noise": "a", "sampling": "a"})
        with pytest.raises(PrivacyError, match="seeds="):
            ledger.append("resumed")
        assert len(lines_of(ledger)) == n
    with new(tmp_path, steps=1, seed="5eed") as other, pytest.raises(PrivacyError, match=f"run {ledger.run}"):
        other.seeds(Ledger.others(tmp_path, "f00d", but=other.run))


def test_seeds_reused_in_a_file_that_something_else_wrote(tmp_path):
    with new(tmp_path) as ledger:
        ledger._write("resumed", {"seeds": {"noise": "5eed"}})
    with pytest.raises(PrivacyError, match="used before"):
        Ledger.read(tmp_path, ledger.run).seeds()


def test_refuses_entries_that_the_statement_could_not_read(tmp_path):
    with new(tmp_path) as ledger:
        n = len(lines_of(ledger))
        for kind in ("early_stops", "step", "created", "torn"):
            with pytest.raises(PrivacyError, match=kind):
                ledger.append(kind)
        for facts in ({"x": float("nan")}, {"x": object()}, {"x": {1, 2}}):
            with pytest.raises(PrivacyError, match="not JSON"):
                ledger.append("note", **facts)
        with pytest.raises(PrivacyError, match="chain"):
            ledger.append("note", chain="x")
        assert len(lines_of(ledger)) == n
        ledger.step(0)  # a refused entry leaves it in order
    ledger.verify()


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"rates": {}},
        {"rates": {"all": 0.0}},
        {"rates": {"all": 1.5}},
        {"expected_patients": 0},
        {"max_grad_norm": 0},
        {"delta": 1},
    ],
)
def test_refuses_impossible_phases(tmp_path, wrong):
    given = {
        "noise_multiplier": 1.0, "rates": {"all": 0.1}, "expected_patients": 10, "max_grad_norm": 1.0,
        "delta": 0.01,
    }  # fmt: skip
    with new(tmp_path) as ledger, pytest.raises(PrivacyError, match=next(iter(wrong))):
        ledger.phase(**{**given, **wrong})


def test_refuses_facts_without_a_unit(tmp_path):
    for facts in ({}, {"unit": "patient"}, {"unit": "person", "n_owners": 3}):
        with pytest.raises(PrivacyError, match="to whom"):
            Ledger.create(tmp_path, fingerprint="f", facts=facts)
    assert list(tmp_path.iterdir()) == []


# -- one writer ----------------------------------------------------------------------------------------------


def test_one_writer_at_a_time(tmp_path):
    ledger = new(tmp_path)
    with pytest.raises(PrivacyError, match="writes to"):
        Ledger.resume(tmp_path, ledger.run)
    seen = Ledger.read(tmp_path, ledger.run)  # reading is free
    with pytest.raises(PrivacyError, match="for reading"):
        seen.append("note", text="")
    ledger.close()
    ledger.close()
    with pytest.raises(PrivacyError, match="closed"):
        ledger.append("note", text="")
    Ledger.resume(tmp_path, ledger.run).close()


def test_a_writer_that_is_dropped_lets_go(tmp_path):
    run = new(tmp_path).run
    Ledger.resume(tmp_path, run).close()


def test_a_forked_worker_neither_writes_nor_holds_the_lock(tmp_path):
    code = f"""
import os, sys, time
from memguard.errors import PrivacyError
from memguard.privacy.ledger import Ledger
ledger = Ledger.create({str(tmp_path)!r}, fingerprint="f", facts={{"unit": "patient", "n_owners": 1}})
child = os.fork()
if child == 0:
    try:
        ledger.append("note", text="from a worker")
        print("written", flush=True)
    except PrivacyError:
        print("refused", flush=True)
    sys.stdin.read()  # outlive the writer
    os._exit(0)
sys.stdout.flush()
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "refused"
        process.kill()
        process.wait()
        (path,) = tmp_path.glob("*.jsonl")
        with Ledger.resume(tmp_path, path.stem) as ledger:  # while the worker lives
            assert [entry["kind"] for entry in ledger.entries()] == ["created"]
    finally:
        process.stdin.close()
        process.stdout.close()


def test_a_system_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    with pytest.warns(MemguardWarning, match="cannot be locked"):
        new(tmp_path).close()


def test_a_full_disk_refuses_the_step_and_loses_nothing(tmp_path, monkeypatch):
    ledger = new(tmp_path, steps=2)
    write = os.write

    def full(fd, data):
        if len(data) > 20:
            return write(fd, data[:20])  # a torn line
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(journal.os, "write", full)
        patched.setattr(journal.os, "write", lambda fd, b: full(fd, b) if len(b) > 90 else full(fd, b"x"))
        with pytest.raises(PrivacyError, match="No space left"):
            ledger.step(2)
    ledger.step(2)  # there is space again
    ledger.close()
    Ledger.read(tmp_path, ledger.run).verify()
    assert ledger.n_steps >= 3
    assert Ledger.read(tmp_path, ledger.run).n_steps == ledger.n_steps


def test_an_interrupt_anywhere_in_an_append(tmp_path, monkeypatch):
    ledger = new(tmp_path)
    write, sync = os.write, os.fsync

    def interrupted(*_):
        raise KeyboardInterrupt

    for name, call in (
        ("write", interrupted),
        ("write", lambda fd, b: (write(fd, b[:15]), interrupted())),
        ("write", lambda fd, b: (write(fd, b), interrupted())),
        ("fsync", interrupted),
        ("fsync", lambda fd: (sync(fd), interrupted())),
    ):
        before = ledger.n_steps
        with monkeypatch.context() as patched:
            patched.setattr(journal.os, name, call)
            with pytest.raises(KeyboardInterrupt):
                ledger.step(7)
        ledger.append("note", text="what a callback does on_exception")
        ledger.step(8)
        assert before + 1 <= ledger.n_steps <= before + 2
        again = Ledger.read(tmp_path, ledger.run)
        again.verify()
        assert again.n_steps == ledger.n_steps
    ledger.close()


# -- tampering -----------------------------------------------------------------------------------------------


def tampered(tmp_path, change):
    with new(tmp_path, steps=6) as ledger:
        ledger.append("early_stop", monitor="val_loss")
        ledger.append("note", text="end")
    ledger.verify()
    lines = lines_of(ledger)
    change(lines)
    ledger.path.write_bytes(b"".join(lines))
    return Ledger.read(tmp_path, ledger.run)


def replaced(at, old, new):
    def change(lines):
        assert old in lines[at]
        lines[at] = lines[at].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced(4, b'"step":1', b'"step":9'), "line 5 .*changed"),
        (replaced(1, b'"noise_multiplier":1.0', b'"noise_multiplier":9.0'), "line 2 .*changed"),
        (replaced(0, b'"f00d"', b'"beef"'), "line 1 .*changed"),
        (replaced(10, b'"end"', b'"END"'), "line 11 .*changed"),  # the last one
        (replaced(9, b'"kind":"early_stop"', b"early"), "line 10 was changed"),
        (lambda lines: lines.pop(5), "line 6 was removed"),
        (lambda lines: lines.__delitem__(slice(4, 8)), "line 5 was removed, and 3 more"),
        (lambda lines: lines.pop(0), "line 1 was removed"),
        (lambda lines: lines.insert(4, lines.pop(6)), "reordered"),
        (lambda lines: lines.insert(7, lines[4]), "repeated or moved"),
        (lambda lines: lines.insert(4, b"\n"), "line|repeated"),
        (lambda lines: lines.clear(), "first line is missing"),
    ],
)
def test_tampering_shows(tmp_path, change, said):
    read = tampered(tmp_path, change)
    with pytest.raises(PrivacyError, match=said):
        read.verify()
    with pytest.raises(PrivacyError, match="broken"):
        read.history()
    with pytest.raises(PrivacyError, match="broken"):
        Ledger.resume(tmp_path, read.run)


def test_every_changed_byte_shows(tmp_path):
    with new(tmp_path, steps=2) as ledger:
        pass
    whole = ledger.path.read_bytes()
    assert whole.endswith(b"\n")
    for at in range(len(whole) - 1):  # the last end of line alone may be missing: a kill does that
        ledger.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        read = Ledger.read(tmp_path, ledger.run)
        try:
            read.verify()
        except PrivacyError:
            continue
        # a last line that is no entry reads as one that a kill cut off, and counts
        assert at >= whole[:-1].rindex(b"\n") and read.n_steps >= 2


def test_a_ledger_under_another_name_is_not_that_run(tmp_path):
    with new(tmp_path, steps=1) as ledger:
        pass
    ledger.path.rename(tmp_path / "0123.jsonl")
    with pytest.raises(PrivacyError, match=f"ledger of the run {ledger.run}"):
        Ledger.resume(tmp_path, "0123")


# -- other runs ----------------------------------------------------------------------------------------------


def test_others_are_runs_on_the_same_patients(tmp_path):
    with new(tmp_path, steps=4, seed="a") as one, new(tmp_path, steps=2, seed="b", sigma=2.0) as two:
        new(tmp_path, steps=9, seed="c", fingerprint="beef").close()
        new(tmp_path, steps=0, seed="d").close()
        (found,) = Ledger.others(tmp_path, "f00d", but=one.run)
        assert (found.run, found.unit, found.n_steps, found.problem) == (two.run, "patient", 2, "")
        assert [(p.noise_multiplier, p.steps) for p in found.history] == [(2.0, 2)]
        assert {other.run for other in Ledger.others(tmp_path, "f00d")} == {one.run, two.run}
    two.path.write_bytes(b"".join(lines_of(two)[1:]))
    (found,) = Ledger.others(tmp_path, "f00d", but=one.run)
    assert "removed" in found.problem and found.history == ()
    assert Ledger.others(tmp_path / "nowhere", "f00d") == []


def test_a_large_ledger_is_read_in_reasonable_time_and_memory(tmp_path):
    ledger = new(tmp_path)
    with ledger.path.open("ab") as file:
        for _ in range(20_000):
            from memguard.privacy.chain import chained

            line, chain = chained({"kind": "step", "step": 1}, ledger._end[0] + 1, ledger._end[1])
            file.write(line)
            ledger._end = ledger._end[0] + 1, chain
    ledger.close()
    read = Ledger.read(tmp_path, ledger.run)
    assert read.n_steps == 20_000
    assert len(read.tally.events) == 3
    assert max(map(len, lines_of(read)[3:])) < 100


def test_needs_no_torch():
    code = "import sys, memguard.privacy.ledger; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
