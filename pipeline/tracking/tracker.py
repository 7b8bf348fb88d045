"""Tracking of a run by rank 0: metrics to ``metrics.jsonl`` at once, and to MLflow by a thread of its own.

Training never waits for the store and never fails with it. A locked, full or vanished store is tried again until the
run ends; what it missed is in ``metrics.jsonl`` and is written when the store is back, at the next resume, or by
``python -m pipeline.tracking.sync RUN``. What never arrived is counted in :attr:`Tracker.lost`.

Resuming: the local file is cut back to the resumed step; then the MLflow run gets exactly the steps it lacks, so that
every curve holds each step once. Log a step before saving its checkpoint, or a kill in between costs that step's line.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from PIL import Image

from pipeline.base.border import one_line
from pipeline.base.run_folder import FIGURES, RunFolder
from pipeline.config import TrackingSettings
from pipeline.drawing.save import save_picture
from pipeline.tracking.data_sets import TRAINING, DataSet
from pipeline.tracking.images import SavedImage, save_step_image
from pipeline.tracking.interface import END_TIMEOUT_SECONDS, RefusedError, TrackedModel, Tracker
from pipeline.tracking.local_log import Entry, LocalLog, read_entries
from pipeline.tracking.metric_names import grouped_metrics

if TYPE_CHECKING:  # MLflow takes seconds to import, so the thread does it
    from pipeline.tracking.store import Store

START_TIMEOUT_SECONDS = 30.0  # assumption: MLflow's import and the first making of its tables take 3 to 10
LAST_ATTEMPT_SECONDS = 5.0
RETRY_SECONDS = 2.0
FLUSH_SECONDS = 1.0  # metrics are collected this long and sent as one batch
ENTRIES_PER_CHUNK = 500
MAX_WAITING_VALUES = 500_000  # about 100 MB; beyond it the store is brought up to date from the local file


@dataclass(frozen=True)
class Action:
    """A call of the store that waits for its turn."""

    call: Callable[[Store], None]
    counts: bool = True  # as lost, if the store never takes it


class RunTracker(Tracker):
    """Made by ``start_tracking``. ``run_id`` is None until the store has answered."""

    def __init__(
        self,
        run_folder: Path,
        local: LocalLog,
        open_store: Callable[[], Store] | None,
        settings: TrackingSettings | None = None,
    ) -> None:
        """``open_store`` makes the MLflow side, in the thread; None keeps metrics in the local file only."""
        self.run_folder, self.local, self.settings = run_folder, local, settings or TrackingSettings()
        self.run_id: str | None = None
        self.lost = 0  # metric values, tags and files that never reached the store; known after end()
        self.page: str | None = None
        self._open_store = open_store
        self._store: Store | None = None
        self._entries: deque[Entry] = deque()
        self._waiting_values = 0
        self._actions: deque[Action] = deque()  # calls of the store other than metrics, in order
        self._last: Entry | None = None  # the newest metrics
        self._data: tuple[DataSet, ...] = ()  # what the run trains on
        self._behind = False  # the memory overflowed: read the local file again once the store is back
        self._condition = threading.Condition()
        self._idle = self._ready = self._stopping = self._hurry = self._failing = self._dead = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True) if open_store else None

    def start(self, behind: bool) -> None:
        """Start the thread and wait until it has reached the store, or :data:`START_TIMEOUT_SECONDS`.

        Args:
            behind: the local file may hold steps that the store lacks.
        """
        self._behind = behind
        if self._thread is None:
            return
        self._thread.start()
        with self._condition:
            self._condition.wait_for(lambda: self._ready, START_TIMEOUT_SECONDS)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of an optimizer step. A step that a name already has is left out."""
        numbers = grouped_metrics({name: float(value) for name, value in values.items()})
        entry = self.local.fresh(Entry(int(step), time.time(), numbers))
        if entry is None:
            return
        self._last = entry
        self.local.append(entry)
        with self._condition:
            if self._thread is None or self._behind:
                return
            self._entries.append(entry)
            self._waiting_values += len(entry.values)
            if self._waiting_values > MAX_WAITING_VALUES:
                self._entries.clear()
                self._waiting_values, self._behind = 0, True
            self._condition.notify_all()

    def log_figure(self, name: str, figure: Figure | Image.Image) -> None:
        """Save a picture as RUN/figures/NAME.png and hand it to the store."""
        path = self.run_folder / FIGURES / f"{name}.png"
        try:
            save_picture(figure, path)
        except OSError as error:
            self.lost += 1
            _say(f"figure {name} was not saved: {error}")
            return
        self.log_artifact(path, FIGURES)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Hand a file to the store, under ``folder`` of the run's artifacts."""
        self._later(lambda store: store.log_artifact(path, folder))

    def log_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Save images under RUN/figures/images and hand them to the store, which shows them by step."""
        for name, image in images.items():
            try:
                saved = save_step_image(self.run_folder, name, step, image)
            except OSError as error:
                self.lost += 1
                _say(f"image {name} was not saved: {error}")
                continue
            self._later(partial(_log_step_image, saved))

    def log_data(self, data: Sequence[DataSet]) -> None:
        """Note which data sets the run reads."""
        self._data = (*self._data, *(one for one in data if one.context == TRAINING))
        known = tuple(data)
        self._later(lambda store: store.log_data(known))

    def log_checkpoints(self, checkpoints: Sequence[TrackedModel]) -> None:
        """The checkpoints that are kept now become the store's; needs to be told all of them each time."""
        kept, entry, data = tuple(checkpoints), self._last, self._data
        self._later(lambda store: _logged_models().sync_checkpoints(store, kept, entry, data))

    def log_export(self, model: TrackedModel) -> None:
        """The run's result as a model of the store; registered where the settings say so."""
        entry, data, chosen = self._last, self._data, self.settings
        self._later(
            lambda store: _logged_models().log_export(
                store,
                model,
                entry,
                data,
                upload=chosen.upload_model,
                register_as=chosen.register_as,
                alias=chosen.register_alias,
            )
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        texts = {name: str(value) for name, value in tags.items()}
        self._later(lambda store: store.set_tags(texts))

    def flush(self, timeout_seconds: float = END_TIMEOUT_SECONDS) -> bool:
        """Wait until everything logged so far is in the store; False when that takes longer."""
        self.local.flush()
        if self._thread is None:
            return not self.local.waiting
        with self._condition:
            self._idle, self._hurry = not (self._has_work() or self._store is None), True
            self._condition.notify_all()
            done = self._condition.wait_for(lambda: self._idle or self._dead, timeout_seconds)
            return done and self._idle

    def end(self, status: str = "FINISHED", timeout_seconds: float = END_TIMEOUT_SECONDS) -> None:
        """Write what waits, end the run as FINISHED, FAILED or KILLED, and count what the store never got."""
        if self._stopping:
            return
        self._later(lambda store: store.terminate(status), counts=False)
        self.flush(timeout_seconds)
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(LAST_ATTEMPT_SECONDS)  # an attempt under way may still succeed; count after it
        with self._condition:
            in_file_only = self._count_behind() if self._behind else 0
            self.lost += self._waiting_values + in_file_only + sum(action.counts for action in self._actions)
        if self.local.waiting:
            _say(f"{len(self.local.waiting)} lines could not be written to {RunFolder.at(self.run_folder).metrics}")
        if self.lost:
            _say(
                f"{self.lost} values did not reach MLflow; those in metrics.jsonl are written by "
                f"python -m pipeline.tracking.sync {self.run_folder}"
            )

    def _later(self, call: Callable[[Store], None], counts: bool = True) -> None:
        with self._condition:
            if self._thread is not None and not self._stopping:
                self._actions.append(Action(call, counts))
                self._condition.notify_all()

    def _count_behind(self) -> int:
        try:
            return sum(len(entry.values) for entry in read_entries(self.run_folder))
        except OSError:
            return 0

    def _work(self) -> None:
        """The thread: connect, then write whatever waits, for as long as the run lasts."""
        try:
            while not self._stopping:
                self._work_once()
        finally:  # an error nobody expected ends tracking, not training
            with self._condition:
                self._ready, self._dead = True, not self._stopping
                self._condition.notify_all()

    def _work_once(self) -> None:
        from pipeline.tracking.store import STORE_ERRORS  # here, because MLflow takes seconds to import

        error: Exception | None = None
        try:
            self._deliver()
        except STORE_ERRORS as problem:
            error = problem
        self._report(error)
        with self._condition:
            self._ready, self._hurry = True, False
            self._idle = error is None and not self._has_work()
            self._condition.notify_all()
            if self._idle:
                self._condition.wait_for(lambda: self._stopping or self._has_work())
            # after an error the store gets time to recover; otherwise metrics are collected for one batch
            pause = RETRY_SECONDS if error else FLUSH_SECONDS
            self._condition.wait_for(lambda: self._stopping or self._hurry, pause)

    def _has_work(self) -> bool:
        return bool(self._entries or self._actions or self._behind)

    def _deliver(self) -> None:
        """One attempt to bring the store up to date. Raises STORE_ERRORS; what was not written stays in line."""
        store = self._connected()
        if self._behind:
            self._catch_up(store)
        with self._condition:
            entries, actions = list(self._entries), list(self._actions)
        if entries:
            self._attempt(sum(len(entry.values) for entry in entries), store.write, entries)
            with self._condition:
                for entry in entries:
                    if self._entries and self._entries[0] is entry:  # the queue is cleared when it overflows
                        self._entries.popleft()
                        self._waiting_values -= len(entry.values)
        for action in actions:
            self._attempt(1, action.call, store)
            with self._condition:
                self._actions.popleft()

    def _connected(self) -> Store:
        if self._store is None:
            assert self._open_store is not None, "the thread runs only where there is a store"
            self._store = self._open_store()
            self.run_id, self.page = self._store.run_id, page_in_words(self._store)
        return self._store

    def _attempt(self, num_values: int, call: Callable[..., None], *arguments: Any) -> None:
        """Call the store; what it refuses for good is counted as lost, so that it does not hold up the rest."""
        try:
            call(*arguments)
        except RefusedError as error:
            self.lost += num_values
            _say(f"MLflow refuses {num_values} values: {one_line(error)}")

    def _catch_up(self, store: Store) -> None:
        """Write what the local file holds and the run lacks; metrics logged meanwhile are in that file as well."""
        error = self.local.flush()
        if error is not None:
            raise error
        num_written = 0
        entries = read_entries(self.run_folder)
        while len(chunk := list(itertools.islice(entries, ENTRIES_PER_CHUNK))) == ENTRIES_PER_CHUNK:
            self._attempt(sum(len(entry.values) for entry in chunk), store.write, chunk)
            num_written += len(chunk)
        with self._condition:  # what is logged from here on joins the queue
            self._entries.extend(itertools.islice(read_entries(self.run_folder), num_written, None))
            self._waiting_values = sum(len(entry.values) for entry in self._entries)
            self._behind = False

    def _report(self, error: Exception | None) -> None:
        """One line when the store fails, one when it is back."""
        if error is not None and not self._failing:
            _say(f"store not available ({one_line(error)}); training goes on and metrics are kept")
        elif error is None and self._failing:
            _say("store available again; metrics are up to date")
        self._failing = error is not None


def page_in_words(store: Store) -> str:
    """Where the run is shown, and by which command."""
    command, page = store.page()
    return page + (f"  (shown by: {command})" if command else "")


def _log_step_image(image: SavedImage, store: Store) -> None:
    store.log_step_image(image)


def _logged_models() -> ModuleType:
    """Imports MLflow, so only the thread asks for it."""
    from pipeline.tracking import logged_models  # MLflow takes seconds to import

    return logged_models


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be a file on the disk that is full
        print(f"tracking: {text}", file=sys.stderr, flush=True)
