"""A run's last line says what to do next; its progress in a terminal keeps a bar that can be seen."""

from __future__ import annotations

import io
import json
import signal

from pipeline.training import metrics as module
from pipeline.training.last_lines import last_lines
from pipeline.training.metrics import StepProgress


def test_a_finished_run_names_model_scores_page_and_the_next_command(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"scenes": {"hard": 0.5}}), encoding="utf-8")
    told = last_lines(tmp_path, 0, 9, 9, {"loss": 2.5, "fgt": 1.0}, "http://x/#/runs/1?workflowType=machine_learning")
    assert told[0].endswith("workflowType=machine_learning")
    assert told[1] == "finished: step 9 of 9; losses: total 2.5, fgt 1"
    assert told[2] == "scores: scenes/hard 0.5000" and told[3] == f"model: {tmp_path / 'final'}"
    assert told[-1].startswith("next: python -m pipeline.report")


def test_a_stopped_run_says_what_is_saved_and_how_it_goes_on(tmp_path):
    assert last_lines(tmp_path, 130, 8, 20, {}, None) == ["Ctrl-C: saved step 8 of 20; the same command goes on"]
    assert last_lines(tmp_path, 128 + signal.SIGTERM, 8, 20, {}, None)[-1].startswith("SIGTERM: saved step 8")


def test_the_bar_is_wide_and_the_losses_are_whole(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    progress = StepProgress(10, 0, True)
    for step in range(1, 6):
        progress.step()
        progress.report(step, {name: 1.0 for name in module.SHOWN})
    progress.close()
    written = terminal.getvalue()
    assert "█" * 12 in written and "data_wait_share=1" in written
