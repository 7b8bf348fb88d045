"""``python -m pipeline.evaluation TASK MODEL --data SET``."""

from __future__ import annotations

import sys

from pipeline.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main())
