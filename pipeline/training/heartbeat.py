"""Heartbeats: every rank says where it is, and all end when one is silent, stuck or failed, naming it.

Each rank has two threads. One exchanges records (step, phase, how long since the last change) over a TCPStore of its
own that rank 0 keeps; rank 0 reads all records and publishes a verdict, the others read the verdict and rank 0's
record, so traffic grows with the number of ranks, not with its square. The other thread decides; it never waits for
the network, so a store that hangs with rank 0 is noticed as rank 0's silence. Ages are counted on the reader's own
clock: hosts need not agree on the time. A watchdog process (watchdog.py) ends a rank that cannot end itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType

import torch.distributed as dist

from pipeline.base.border import shown
from pipeline.base.ranks import has_launcher
from pipeline.training.heartbeat_store import SignedStore, make_store
from pipeline.training.rank_report import RankReport, Seen, parse_report
from pipeline.training.stacks import Stacks
from pipeline.training.watchdog import Watchdog

EXIT_STATUS = 76  # of a rank that ends because of another; sysexits.h calls it EX_PROTOCOL
INTERVAL_SECONDS = 1.0
DATA_PHASE = "data"  # the training step waits for a batch
FAREWELL_SECONDS = 10.0  # a failed rank may take this long to print its own trace and end
ON_FAILURE_SECONDS = 5.0
VERDICT = "heartbeat/verdict"
MAX_VERDICT = 2000  # characters
STORE_ERRORS = (RuntimeError, OSError, ValueError)  # torch's DistError is a RuntimeError


class Heartbeat:
    """``with Heartbeat(rank, world_size, timeout_seconds) as heartbeat: … heartbeat.beat(step, "backward")``.

    Leaving the block by an exception tells the other ranks, which then end too; leaving it normally on rank 0 waits
    for the others, because rank 0 keeps the store.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout_seconds: float,
        store: dist.Store | None = None,
        on_failure: Callable[[str], None] | None = None,
        stacks: Stacks | None = None,
        on_phase: Callable[[str], None] | None = None,
        waits_for: Callable[[], str | None] | None = None,
    ) -> None:
        """
        Args:
            timeout_seconds: a rank without a sign, or without a new step or phase, for longer ends the run.
            store: a torch.distributed store only used for this; by default one is made, on a free port of rank 0's
                host that is agreed upon over the default process group.
            stacks: where every rank's stacks are written before it is ended.
            on_phase: called with every phase that begins.
            waits_for: asked once an exchange, in the phase ``data``, which store the rank waits for, for people; None:
                for none. Such a wait has a limit of its own: it is shown beside the phase and is no standstill.
            on_failure: called with the message before this process ends, for at most five seconds (to flush metrics).
        """
        self.rank, self.world_size, self.timeout_seconds = rank, world_size, float(timeout_seconds)
        self._interval = min(INTERVAL_SECONDS, self.timeout_seconds / 4)
        self._settle_seconds = 2.5 * self._interval  # long enough to hear twice from every rank that lives
        self._failure_at: float | None = None
        self._on_failure, self._stacks, self._on_phase = on_failure, stacks, on_phase
        self._waits_for = waits_for
        self._given_store = store
        self._store: SignedStore  # from __enter__ on
        self._mine = RankReport(rank, allowed_seconds=self.timeout_seconds)
        self._changed = time.monotonic()
        self._seen: dict[int, Seen] = {}
        self._last_exchange = time.monotonic()
        self._verdict = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._hurry = threading.Event()  # publish now
        self._threads: list[threading.Thread] = []
        self._launcher: int | None = None  # process to follow
        self._watchdog: Watchdog | None = None  # while the block runs

    def beat(self, step: int, phase: str, allowed_seconds: float | None = None) -> None:
        """Say where this rank is; costs a microsecond.

        Args:
            allowed_seconds: how long this phase may last, where that is longer than the time-out (an evaluation).
        """
        if self._on_phase is not None:
            self._on_phase(phase)
        with self._lock:
            self._mine.beats = self._mine.beats + 1 if step == self._mine.step else 0
            self._mine.step, self._mine.phase = int(step), phase
            self._mine.allowed_seconds = max(self.timeout_seconds, allowed_seconds or 0.0)
            self._changed = time.monotonic()
        if self._watchdog is not None:
            self._watchdog.report(f"step {step}, phase {phase}")

    def __enter__(self) -> Heartbeat:
        if self._given_store is None:
            self._store = make_store(self.rank, self.world_size, self.timeout_seconds)
        else:
            self._store = SignedStore(self._given_store, b"")
        if self.rank == 0:
            self._store.set(VERDICT, "")
            for rank in range(self.world_size):  # so that no get waits for a rank that never said anything
                self._store.set(
                    _key(rank), json.dumps(asdict(RankReport(rank, allowed_seconds=self.timeout_seconds, host="?")))
                )
        self._watchdog = Watchdog(
            self.rank,
            self.timeout_seconds * 1.25 + 2,
            # before the other ranks end, for then a launcher may kill this one
            stacks_after_seconds=0.8 * self.timeout_seconds if self._stacks is not None else None,
        )
        self._launcher = os.getppid() if has_launcher() else None
        self._changed = self._last_exchange = time.monotonic()
        for target in (self._exchange_loop, self._watch_loop):
            thread = threading.Thread(target=target, name=f"heartbeat{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0))
        with self._lock:
            self._mine.state = "failed" if failed else "done"
            self._mine.text = f"{type(error).__name__}: {_summary(error)}" if error is not None and failed else ""
            self._changed = time.monotonic()
        if failed:
            self._announce_failure()
            return  # the threads live on: should this process hang on its way out, they end it
        if self.rank == 0:
            while not self._all_done() and not self._stop.is_set():
                time.sleep(self._interval / 4)
        else:
            time.sleep(self._interval / 10)
        self._stop.set()
        self._hurry.set()
        for thread in self._threads:
            thread.join(timeout=self.timeout_seconds)
        with contextlib.suppress(*STORE_ERRORS):  # rank 0 may have gone with the store
            self._publish()
        if self._watchdog is not None:
            self._watchdog.stop()

    def _announce_failure(self) -> None:
        """Tell the others and wait for the verdict; on rank 0 the store must still be there when they read it."""
        if self._watchdog is not None:
            self._watchdog.explain()
        self._hurry.set()
        deadline = time.monotonic() + FAREWELL_SECONDS
        while not self._verdict and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.rank == 0:
            time.sleep(3 * self._interval)

    def _all_done(self) -> bool:
        peers = [self._seen.get(rank) for rank in range(1, self.world_size)]
        return all(seen is not None and seen.record.state != "running" for seen in peers)

    def _exchange_loop(self) -> None:
        while not self._stop.is_set():
            try:
                self._publish()
                self._read()
                self._last_exchange = time.monotonic()
            except STORE_ERRORS:  # the watching thread sees that exchanges stopped
                pass
            self._hurry.wait(self._interval)
            self._hurry.clear()

    def _note_wait(self) -> None:
        """Show what this rank waits for; the time until now is no standstill."""
        ask = self._waits_for if self._mine.phase == DATA_PHASE else None
        waiting = (ask() if ask is not None else None) or ""
        with self._lock:
            if self._mine.state != "running" or not (waiting or self._mine.waiting):
                return
            self._mine.waiting, self._changed = waiting, time.monotonic()
        if self._watchdog is not None:
            self._watchdog.report(self._mine.location())

    def _publish(self) -> None:
        self._note_wait()
        with self._lock:
            self._mine.count += 1
            self._mine.still_seconds = time.monotonic() - self._changed
            data = json.dumps(asdict(self._mine), ensure_ascii=False)
        self._store.set(_key(self.rank), data)
        if self.rank == 0 and self._verdict:
            self._store.set(VERDICT, self._verdict)

    def _read(self) -> None:
        """Rank 0 reads every record, the others rank 0's and the verdict."""
        ranks = range(self.world_size) if self.rank == 0 else [0]
        for rank, text in zip(ranks, self._store.get([_key(rank) for rank in ranks]), strict=True):
            seen = self._seen.get(rank)
            report = None if text is None else parse_report(text, rank)
            # A word of nobody, or an old one said again, is as good as none.
            if report is not None and (seen is None or report.count > seen.record.count):
                self._seen[rank] = Seen(report, time.monotonic())
        if self.rank != 0:
            self._verdict = self._verdict or self._store.get([VERDICT])[0] or ""

    def _watch_loop(self) -> None:
        while not self._stop.wait(self._interval):
            if self._watchdog is not None:
                self._watchdog.alive()
            self._follow_launcher()
            if self.rank == 0:
                self._verdict = self._verdict or self._judge()
            elif not self._verdict:
                self._verdict = self._judge_rank_0()
            if self._verdict:
                self._end(self._verdict)

    def _follow_launcher(self) -> None:
        """Ask this process to stop, with a checkpoint, once the launcher that started it is gone: nobody else would."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._launcher = None
            with contextlib.suppress(OSError):
                print(
                    f"heartbeat: the launcher of rank {self.rank} is gone; the run stops", file=sys.stderr, flush=True
                )
            os.kill(os.getpid(), signal.SIGTERM)

    def _judge(self) -> str:
        """What rank 0 finds: a failed rank, else a silent one, else a stuck one."""
        now = time.monotonic()
        seen = [peer for _, peer in sorted(self._seen.items())]
        failed = [peer for peer in seen if peer.record.state == "failed"]
        running = [peer for peer in seen if peer.record.state == "running"]
        if failed:
            self._failure_at = self._failure_at or now
            if now - self._failure_at < self._settle_seconds:  # a peer's death shows as another's failure: look first
                return ""
        limit = self._settle_seconds if failed else self.timeout_seconds
        verdicts = [
            f"rank {peer.record.rank} silent for {now - peer.at:.0f} s, last heard of at {peer.record.location()}"
            for peer in running
            if now - peer.at > limit
        ]
        # the first to fail is the cause, the others' collectives broke with it
        for peer in sorted(failed, key=lambda peer: -self._still(peer, now))[:1]:
            verdicts.append(f"rank {peer.record.rank} failed at {peer.record.location()}: {peer.record.text}")
        # all ranks wait for the one that hangs; it is the furthest behind
        behind = min(
            running, key=lambda peer: (peer.record.step, peer.record.beats, -self._still(peer, now)), default=None
        )
        if not verdicts and behind is not None:
            still = self._still(behind, now)
            if still > behind.record.allowed_seconds + self._interval:
                how = "silent" if now - behind.at > self._settle_seconds else "stuck"
                verdicts.append(f"rank {behind.record.rank} {how} for {still:.0f} s at {behind.record.location()}")
        return "; ".join(verdicts)

    @staticmethod
    def _still(peer: Seen, now: float) -> float:
        """Seconds since the peer's last step, phase or state."""
        return peer.record.still_seconds + now - peer.at

    def _judge_rank_0(self) -> str:
        """What the others find: rank 0, with the store, is gone."""
        now = time.monotonic()
        seen = self._seen.get(0)
        since = self._last_exchange if seen is None else min(seen.at, self._last_exchange)
        limit = self._settle_seconds if self._mine.state == "failed" else self.timeout_seconds
        if now - since <= limit or (seen is not None and seen.record.state == "done"):
            return ""
        location = seen.record.location() if seen else "the start"
        return f"rank 0, which keeps the heartbeats, silent for {now - since:.0f} s, last heard of at {location}"

    def _end(self, verdict: str) -> None:
        """Print, flush, end this process."""
        verdict = shown(verdict, MAX_VERDICT)
        own_failure = self._mine.state == "failed"
        with contextlib.suppress(OSError):
            print(
                f"heartbeat: {verdict}; rank {self.rank} ends at {self._mine.location()}", file=sys.stderr, flush=True
            )
        if self._stacks is not None and not own_failure:
            self._stacks.dump(f"rank {self.rank} at {self._mine.location()}; {verdict}")
        if self.rank == 0:  # the store must outlive the verdict's reading
            self._stop.wait(3 * self._interval)
        if own_failure:
            self._stop.wait(FAREWELL_SECONDS)
        if self._on_failure is not None:
            last_words = threading.Thread(target=self._on_failure, args=(verdict,), daemon=True)
            last_words.start()
            last_words.join(ON_FAILURE_SECONDS)
        if self._watchdog is not None:
            self._watchdog.explain()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(EXIT_STATUS)


def _summary(error: BaseException) -> str:
    """One line; of a long message the end, because a data worker's error ends with what it is about."""
    text = shown(error, 10_000)
    return text if len(text) <= 300 else f"{text[:60]} … {text[-240:]}"


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
