"""Each fault that was once found by hand is named, and nothing else is; healthy runs give no finding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.doctor.__main__ import main
from pipeline.doctor.checks import CHECKS, diagnose
from pipeline.doctor.reading import read_evidence
from pipeline.doctor.watch import Watch
from pipeline.tracking.local_log import read_entries
from tests.doctor.runs import FAULTS, STEPS, run_all
from tests.end_to_end.runs import Material
from tests.ranks import run_ranks


def often(values: list, first: int) -> list:
    """The first few run each time, the others with ``-m long``: every one is a training run."""
    return [*values[:first], *(pytest.param(value, marks=pytest.mark.long) for value in values[first:])]


FIRST = ["flat-scale", "no-gradient", "no-group"]
FAULT_NAMES = often([*FIRST, *(name for name in FAULTS if name not in FIRST)], len(FIRST))
SEEDS = often([0, 1, 2], 1)


@pytest.fixture(scope="module")
def runs(material: Material, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """``FAULT`` and ``healthy-SEED`` of the tests that were chosen, and of those that name a run themselves."""
    folder = tmp_path_factory.mktemp("病")
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    faults = dict.fromkeys([*FIRST, *(params["fault"] for params in calls if params.get("fault") in FAULTS)])
    seeds = dict.fromkeys([0, *(params["healthy"] for params in calls if "healthy" in params)])
    run_ranks(1, run_all, material, folder, list(faults), list(seeds), timeout_seconds=1500)
    return folder


@pytest.mark.parametrize("fault", FAULT_NAMES)
def test_a_fault_is_named_and_nothing_else_is(runs: Path, fault: str):
    evidence, checkpoint = read_evidence(runs / fault)
    assert checkpoint is not None and evidence.last_step == FAULTS[fault].steps
    found = diagnose(evidence)
    assert list(found) == [FAULTS[fault].finding], found


@pytest.mark.parametrize("healthy", SEEDS)
def test_a_healthy_run_has_no_finding_and_is_not_warned(runs: Path, healthy: int, capsys: pytest.CaptureFixture[str]):
    assert main([str(runs / f"healthy-{healthy}")]) == 0
    assert "0 finding(s)" in capsys.readouterr().out
    assert "doctor: " not in (runs / f"healthy-{healthy}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", FAULT_NAMES)
def test_the_run_itself_says_so_once(runs: Path, fault: str):
    lines = [line for line in (runs / f"{fault}.log").read_text(encoding="utf-8").splitlines() if "doctor: " in line]
    assert len(lines) == 1 and f"doctor: {FAULTS[fault].finding}: " in lines[0], lines


def test_a_finding_that_comes_back_is_said_again(runs: Path):
    settings = read_evidence(runs / "healthy-0")[0].settings
    watch = Watch(settings, STEPS, 128, {})
    said = []
    for step, negatives in enumerate((30.0, 3.0, 3.0, 30.0, 30.0, 30.0, 3.0, 3.0, 3.0, 3.0), start=1):
        watch.observe(step, {"negatives/fgv": negatives})
        said += [step for line in watch.warnings() if line.startswith("few-negatives: fgv has")]
    assert said == [2, 9]  # the median of the newer half of the log


def test_every_check_but_that_of_the_first_losses_has_a_fault():
    assert {fault.finding for fault in FAULTS.values()} == set(CHECKS) - {"first-losses"}
    assert len(CHECKS) == 12


def test_a_finding_says_figure_cause_and_setting(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(runs / "flat-scale" / "checkpoints")]) == 1
    printed = capsys.readouterr().out
    assert "14.28" in printed and "4.6052" in printed and "model.start_from" in printed
    assert main([str(runs / "no-group"), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["step"] == STEPS and [found["name"] for found in record["findings"]] == ["untrained-projection"]
    assert record["findings"][0]["setting"] == "model.start_from"


def test_what_is_no_run_or_damaged_is_status_2(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(run: Path, *words: str) -> None:
        assert main([str(run)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words), error

    refused(tmp_path, "settings.yaml")
    run = tmp_path / "运行"
    shutil.copytree(runs / "healthy-0", run)
    tensors = next((run / "checkpoints").glob("step-*/tensors-*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:100])
    refused(run, tensors.name)
    (run / "metrics.jsonl").write_text("")
    refused(run, "metrics.jsonl", "first step")
    (run / "settings.yaml").write_text("train: [1")
    refused(run, "settings.yaml")


def test_without_a_checkpoint_the_metrics_tell_of_the_projections(runs: Path):
    for fault in ("no-group", "no-gradient"):
        evidence, _ = read_evidence(runs / fault)
        seen, logged = evidence.gradient_seen, evidence.__class__(evidence.settings, evidence.curves)
        assert seen == pytest.approx(logged.gradients_of_projections(), rel=1e-5)
        assert "untrained-projection" in diagnose(logged)


def test_measures_are_logged_at_their_steps(runs: Path):
    entries = list(read_entries(runs / "healthy-0"))
    assert all("data/count_regions_small" in entry.values for entry in entries)
    with_moments = [entry.step for entry in entries if "health/gradient_seen_boxtext_head" in entry.values]
    assert with_moments == [1, 6, 12, 18, 24, 28]
