"""Stage 1: global sigmoid alignment of images with short and long captions."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script, by a launcher
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import Stage1Settings
from pipeline.training.cli import main

if __name__ == "__main__":
    sys.exit(main(Stage1Settings, Path(__file__).with_name("stage1.yaml"), __doc__))
