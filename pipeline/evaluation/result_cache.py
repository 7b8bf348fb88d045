"""Results of chunks kept on disk, so that a long evaluation goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.border import BorderError, read_object
from pipeline.base.files import write_json
from pipeline.evaluation.models.base import EvaluationModel


class ResultCache:
    """Small JSON results by what they depend on. ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None, model: EvaluationModel, settings: Any) -> None:
        """``settings``: all else that the results depend on."""
        self.folder = folder
        depends_on = [model.fingerprint() if folder else "", settings]  # a fingerprint is a pass over the weights
        self.depends_on = json.dumps(depends_on, sort_keys=True, default=str, ensure_ascii=False)

    def get(self, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result for ``key``, or the one that ``make`` gives, which is then kept."""
        if self.folder is None:
            return make()
        text = self.depends_on + json.dumps(key, sort_keys=True, default=str, ensure_ascii=False)
        path = Path(self.folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        with suppress(OSError, BorderError):  # not there, or damaged: it is made anew
            return read_object(path)
        result = make()
        write_json(path, result)
        return result
