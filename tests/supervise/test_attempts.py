"""What the notes of a run's starts say: where each failed, on which host, and whether another start is worth it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.run_folder import RunFolder
from pipeline.preflight.hostfile import Host
from pipeline.supervise.__main__ import main
from pipeline.supervise.attempts import (
    BEFORE_TRAINING,
    FILE,
    AttemptLog,
    failed_attempts,
    nodes_to_exclude,
    note_verdict,
    pause_seconds,
    restart_count,
    same_step_twice,
    why_not_again,
)
from pipeline.supervise.launcher import usable_hosts


def fail(run: Path, step: int, verdict: str = "") -> None:
    """A start that reaches a step and is killed there."""
    log = AttemptLog(run)
    log.at_step(step)
    if verdict:
        note_verdict(run, verdict)
    log.failed()


def test_a_start_without_an_end_failed_at_the_step_that_it_had_reached(tmp_path: Path):
    fail(tmp_path, 4)
    fail(tmp_path, 9, "rank 3 silent for 20 s, last heard of at step 9, phase data (host 节点-2)")
    first, second = failed_attempts(tmp_path)
    assert (first.step, second.step, second.hosts) == (4, 9, ("节点-2",))
    assert "killed" in first.reason and "rank 3 silent" in second.reason


def test_a_clean_end_begins_the_count_anew(tmp_path: Path):
    fail(tmp_path, 4)
    AttemptLog(tmp_path).ended(143)
    assert failed_attempts(tmp_path) == []


def test_the_same_step_twice_stops_and_says_so_and_another_step_does_not(tmp_path: Path):
    fail(tmp_path, 4)
    assert same_step_twice(failed_attempts(tmp_path)) == ""
    fail(tmp_path, 4, "rank 1 failed at step 4, phase forward (host a): ValueError: 坏了")
    assert "failed at step 4 twice" in same_step_twice(failed_attempts(tmp_path))
    assert "坏了" in same_step_twice(failed_attempts(tmp_path))
    fail(tmp_path, 5)
    assert same_step_twice(failed_attempts(tmp_path)) == ""


def test_two_failures_before_training_count_as_one_step(tmp_path: Path):
    for _ in range(2):
        AttemptLog(tmp_path).failed()
    assert [attempt.step for attempt in failed_attempts(tmp_path)] == [BEFORE_TRAINING] * 2
    assert "before its first step twice" in same_step_twice(failed_attempts(tmp_path))


def test_a_line_torn_by_a_kill_costs_that_line(tmp_path: Path):
    fail(tmp_path, 4)
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"verdict": "ra')
    fail(tmp_path, 6)
    assert [attempt.step for attempt in failed_attempts(tmp_path)] == [4, 6]


def test_a_node_that_failed_twice_is_left_out(tmp_path: Path):
    for step, host in ((1, "node-1"), (2, "node-2"), (3, "node-1")):
        fail(tmp_path, step, f"rank 0 stuck for 9 s at step {step}, phase data (host {host})")
    assert nodes_to_exclude(failed_attempts(tmp_path)) == ["node-1"]


@pytest.mark.parametrize(
    ("status", "restarts", "told"),
    [
        (0, 0, "finished"),
        (2, 0, "cannot be used"),
        (3, 0, "not finite"),
        (143, 0, "SIGTERM"),
        (137, 10, "which is the limit"),
        (137, 9, ""),
        (76, 0, ""),
        (138, 0, ""),
    ],
)
def test_a_status_decides_whether_a_run_is_started_again(status: int, restarts: int, told: str):
    reason = why_not_again(status, [], restarts, 10)
    assert (told in reason) if told else reason == ""


def test_pauses_grow_and_are_bounded():
    pauses = [pause_seconds(restart) for restart in range(1, 12)]
    assert pauses[:3] == [10, 20, 40] and pauses == sorted(pauses) and pauses[-1] == 600


def test_restarts_are_told_from_starts_by_hand():
    assert restart_count({}) == 0 and restart_count({"TORCHELASTIC_RESTART_COUNT": "0"}) == 0
    assert restart_count({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2 and restart_count({"SLURM_RESTART_COUNT": "1"}) == 1


def test_a_batch_system_is_told_to_queue_again_without_the_bad_node(tmp_path: Path, capsys):
    words = ["after", "stage1", "--status", "137", f"train.run_folder={tmp_path}"]
    for step in (3, 5):
        fail(tmp_path, step, f"rank 9 silent for 9 s, last heard of at step {step}, phase data (host node-7)")
    assert main(words) == 0 and capsys.readouterr().out == "node-7\n"
    fail(tmp_path, 5)
    assert main(words) == 1 and "failed at step 5 twice" in capsys.readouterr().err
    assert main(["after", "stage1", "--status", "138", f"train.run_folder={tmp_path}"]) == 0


def test_all_hosts_that_are_left_go_on_unless_a_streamed_batch_must_divide(monkeypatch):
    hosts = [Host(f"节点-{number}", 8, number) for number in range(20)]
    monkeypatch.setattr("pipeline.supervise.launcher.answers", lambda host: host.name != "节点-3")
    assert len(usable_hosts(hosts, ["节点-7"], None)) == 18
    assert len(usable_hosts(hosts, ["节点-7"], 61_440)) == 16


def test_wrong_words_are_named(capsys):
    assert main(["run", "stage1", "--hostfile", "没有"]) == 2 and "没有" in capsys.readouterr().err
    assert main(["run", "stage1", "train.run_foldr=x"]) == 2 and "run_folder" in capsys.readouterr().err


def test_a_dry_run_is_passed_on_started_once_and_never_queued_again(tmp_path: Path, monkeypatch, capsys):
    made = []

    class Once:
        def __init__(self, stage, arguments, run_folder, divided, **options):
            made.append((stage, arguments, run_folder, options["max_restarts"]))

        def run(self) -> int:
            return 0

    monkeypatch.setattr("pipeline.supervise.__main__.Supervisor", Once)
    folder = f"train.run_folder={tmp_path / '运行'}"
    assert main(["run", "stage1", "--dry-run", folder]) == 0
    assert made == [("stage1", ["--dry-run", folder], RunFolder.at(tmp_path / "运行").dry_run, 0)]
    assert main(["after", "stage1", "--dry-run", "--status", "137", folder]) == 1
    assert "dry run is over" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
