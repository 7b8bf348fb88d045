"""A run is found from anything inside its folder."""

import pytest

from pipeline.base.run_folder import NoRunFolder, RunFolder


def test_a_run_is_found_from_anything_inside_it(tmp_path):
    run = RunFolder.at(tmp_path / "runs" / "灰色")
    inside = run.checkpoints / "step-00000010"
    inside.mkdir(parents=True)
    with pytest.raises(NoRunFolder, match=r"settings\.yaml"):
        RunFolder.containing(inside)
    run.settings.write_text("model: {}")
    for path in (run.path, inside, inside / "model.safetensors", run.final, run.metrics):
        assert RunFolder.containing(path).path.resolve() == run.path.resolve()
