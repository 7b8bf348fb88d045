"""``python -m pipeline.export``; see command.py."""

import sys

from pipeline.export.command import main

sys.exit(main())
