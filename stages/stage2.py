"""Stage 2: stage 1's losses and the region losses FGV, FGT, CMR and TIC on boxes, phrases and hard negatives."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script, by a launcher
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import Stage2Settings
from pipeline.training.cli import main

if __name__ == "__main__":
    sys.exit(main(Stage2Settings, Path(__file__).with_name("stage2.yaml"), __doc__))
