"""A command on another host: whatever it prints, and however long it takes, the preflight gets an answer."""

from __future__ import annotations

import sys

from pipeline.preflight import hostfile
from pipeline.preflight.hostfile import SSH_FAILED, run_remote


def test_output_of_both_kinds_and_the_status_come_back():
    program = "import sys; print('主机'); print('bad', file=sys.stderr); sys.exit(3)"
    assert run_remote([sys.executable, "-c", program], 60) == (3, "主机\n", "bad\n")


def test_output_without_end_is_cut_off_and_said(monkeypatch):
    monkeypatch.setattr(hostfile, "MAX_OUTPUT_BYTES", 1 << 16)
    status, output, errors = run_remote(["bash", "-c", "yes"], 600)
    assert (status, output) == (125, "") and "more than 65536 bytes" in errors


def test_a_command_that_does_not_answer_is_ended_with_all_that_it_started():
    # half a second, with the ten of grace
    assert run_remote(["bash", "-c", "sleep 600 & sleep 600"], -9.5) == (124, "", "no answer after -10 s")


def test_a_missing_program_is_named():
    assert run_remote(["no-such-ssh"], 1) == (SSH_FAILED, "", "no-such-ssh is not installed on this host")
