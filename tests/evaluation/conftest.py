from __future__ import annotations

import pytest

from tests.evaluation.scene_folder import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))
