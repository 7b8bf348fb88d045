"""Values that several packages must agree on."""

from __future__ import annotations

# The languages that come with lexicons, prompts and drawn scenes. Shards hold whichever the data have: languages.py.
LANGUAGES = ("en", "zh")

# Beside shards: what they hold, for people, and the same numbers for programs.
DATA_CARD, DATA_CARD_JSON = "DATA_CARD.md", "data_card.json"

# Patches an image is resized to fill, ascending: FG-CLIP 2 (arXiv 2510.10921), section 3.1 of the paper's code release.
PATCH_BUDGETS = (128, 256, 576, 784, 1024)

# Of a clip; assumption: what is longer is cut into clips before it is trained on.
MAX_FRAMES = 512
