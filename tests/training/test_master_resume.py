"""Runs with bf16 weights go on exactly under ZeRO 1 and 3, and with weights of the other type: long proofs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.runs import Material
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases
from tests.training.test_resume import (
    BANK,
    KINDS,
    MASTER,
    STEPS,
    assert_float32_files,
    assert_near_float32,
    assert_resumed_exactly,
    runs_of,
)

pytestmark = pytest.mark.long
WITH_MASTER = {f"master{zero}": (f"train.deepspeed_config=launch/zero{zero}.json", *MASTER) for zero in (1, 3)}
OTHERS = {kind: KINDS[kind] for kind in ("zero2", "bf16", "master2")}


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_of(WITH_MASTER | OTHERS, material, tmp_path_factory.mktemp("master"))


@pytest.mark.parametrize("kind", WITH_MASTER)
def test_a_run_with_bf16_weights_goes_on_to_the_bit(finished: Path, kind: str):
    assert_resumed_exactly(finished, kind)
    assert_near_float32(finished / f"whole-{kind}", finished / "whole-zero2")
    assert_float32_files(finished / f"whole-{kind}")


@pytest.mark.parametrize(("begun", "then"), [("bf16", "bf16"), ("master2", "fp32")])
def test_a_run_goes_on_with_weights_of_the_other_type(
    material: Material, finished: Path, tmp_path: Path, begun: str, then: str
):
    shutil.copytree(finished / f"half-{begun}", tmp_path / "run")
    settings = (*KINDS["bf16"], f"train.weights={then}", f"train.max_steps={STEPS}", *BANK)
    assert run_ranks(2, run_cases, [case(material, tmp_path / "run", *settings)], timeout_seconds=240) == [[0]] * 2
    assert_near_float32(tmp_path / "run", finished / "whole-zero2")
