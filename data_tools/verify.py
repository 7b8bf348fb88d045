"""Re-read shards and report every fault: what is written, what is drawn, and what should not be there twice.

examples:
  python -m data_tools verify shards/train
  python -m data_tools verify shards/train --against shards/test coco/val2017-shards --json faults.json
  python -m data_tools verify shards/train --workers 16 --allow-duplicates

Checked: the files against the manifest's checksums, every tar to its end mark, every record and box against the schema,
that negatives differ from the phrase and from each other, that every image decodes and has the recorded size, that no
key and no image (by a hash of its bytes) occurs twice, and with --against that no image of those test sets is among
them. Exit status 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_tools.execution.jobs import InProcess, Job
from data_tools.execution.local import LocalExecutor
from data_tools.execution.progress import Progress
from data_tools.shard_check import HASH_BYTES, ShardCheck, check_shard
from pipeline.base.files import write_json
from pipeline.data.manifest import IndexProblem, index_name, load_manifest
from pipeline.data.records import Fault

MAX_LISTED = 50  # faults printed; --json has all


class CheckShards:
    """The work of one job: read one tar. Without ``deep`` only the images' hashes are taken."""

    def __init__(self, deep: bool) -> None:
        self.deep = deep

    def open(self, worker: int) -> None:
        """Nothing is loaded."""

    def close(self) -> None:
        """Nothing is held."""

    def do(self, job: Job, progress: Callable[[int], None]) -> ShardCheck:
        return check_shard(Path(job.payload), self.deep, progress)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--against", nargs="+", type=Path, default=[], metavar="DIR", help="test sets as shards")
    parser.add_argument("--allow-duplicates", action="store_true", help="one image may have several samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, all faults in it")
    parser.add_argument("--workers", type=int, help="processes (default: one a core; 0: in this process)")


def run(arguments: argparse.Namespace) -> int:
    checks, faults = verify(
        arguments.folder,
        against=arguments.against,
        allow_duplicates=arguments.allow_duplicates,
        workers=arguments.workers,
    )
    counts = sum((check.counts for check in checks), Counter())
    result = {
        "folder": str(arguments.folder),
        "shards": len(checks),
        **{name: counts[name] for name in ("samples", "regions", "negatives")},
        "against": [str(folder) for folder in arguments.against],
        "faults_by_kind": dict(sorted(Counter(fault.kind for fault in faults).items())),
        "faults": [asdict(fault) for fault in faults],
    }
    if arguments.json:
        write_json(arguments.json, result)
    for line in table(faults):
        print(line)
    print(
        f"{arguments.folder}: {len(checks)} shards, {counts['samples']} samples, {counts['regions']} regions, "
        f"{counts['negatives']} negatives: {len(faults) or 'no'} fault{'s' if len(faults) != 1 else ''}"
    )
    return 1 if faults else 0


def verify(
    folder: Path, *, against: Iterable[Path] = (), allow_duplicates: bool = False, workers: int | None = None
) -> tuple[list[ShardCheck], list[Fault]]:
    """Check a folder of shards; returns what each shard holds and every fault, in order of shards.

    Raises:
        ValueError: a folder does not exist or holds no shard.
    """
    shards = _shards(folder)
    test_shards = [shard for other in against for shard in _shards(other)]
    checks = _read_all(shards, deep=True, workers=workers, title="verify")
    faults = [fault for check in checks for fault in check.faults]
    faults += manifest_faults(folder, checks)
    faults += _repeated_keys(checks)
    if not allow_duplicates:
        faults += _repeated_images(checks)
    if test_shards:
        faults += _leaks(checks, _read_all(test_shards, deep=False, workers=workers, title="against"))
    return checks, faults


def table(faults: list[Fault]) -> list[str]:
    """Counts by kind, then the faults one a line."""
    if not faults:
        return []
    lines = [f"{'fault':<22} {'count':>8}"]
    lines += [f"{kind:<22} {count:>8}" for kind, count in Counter(fault.kind for fault in faults).most_common()]
    lines += [f"{fault.shard}: {fault.key}: {fault.kind}: {fault.message}" for fault in faults[:MAX_LISTED]]
    if len(faults) > MAX_LISTED:
        lines.append(f"and {len(faults) - MAX_LISTED} more; --json FILE lists all")
    return lines


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"shard folder {folder} does not exist; give an existing folder")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"{folder} holds no shard (*.tar); give the folder that the tars lie in")
    return shards


def _read_all(shards: list[Path], *, deep: bool, workers: int | None, title: str) -> list[ShardCheck]:
    executor = InProcess() if workers == 0 else LocalExecutor(workers)
    progress, checks = Progress(title, len(shards)), {}
    for result in executor.run(CheckShards(deep), [Job(str(path), str(path)) for path in shards], progress.add):
        if result.error is not None:
            fault = Fault("damaged_shard", Path(result.name).name, "-", result.error)
            checks[result.name] = ShardCheck(Path(result.name).name, faults=[fault])
        else:
            checks[result.name] = result.value
        progress.job(skipped=False)
    progress.end()
    return [checks[str(path)] for path in shards]


def manifest_faults(folder: Path, checks: list[ShardCheck]) -> list[Fault]:
    """Differences between the shards and what the manifest and indexes say of them."""
    try:
        manifest = load_manifest(folder)
    except IndexProblem as error:
        return [Fault("bad_manifest", "-", "-", str(error))]
    remedy = f"run: python -m data_tools index {folder}"
    faults = []
    noted = {name: number for number, name in enumerate(manifest.shards)}
    for check in checks:
        number = noted.pop(check.shard, None)
        if number is None:
            faults.append(Fault("not_in_manifest", check.shard, "-", f"the manifest does not name it; {remedy}"))
            continue
        if check.sha256 != manifest.sha256[number]:
            message = f"its bytes changed after it was indexed (SHA-256 {check.sha256[:12]}…); restore it, or {remedy}"
            faults.append(Fault("checksum", check.shard, "-", message))
        index = folder / index_name(check.shard)
        if not index.is_file():
            faults.append(Fault("missing_index", check.shard, "-", f"{index.name} is not there; {remedy}"))
        elif hashlib.sha256(index.read_bytes()).hexdigest() != manifest.index_sha256[number]:
            faults.append(Fault("checksum", check.shard, "-", f"{index.name} is not the manifest's; {remedy}"))
    faults += [Fault("missing_shard", name, "-", f"the manifest names it; restore it, or {remedy}") for name in noted]
    return faults


def _repeated(hashes: list[bytes]) -> list[tuple[int, int]]:
    """(place, place of the first) of every value that occurred before, by place. Sorts numbers: no table of objects."""
    if not hashes:
        return []
    high, low = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: equal values stay in their order
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    begins = np.concatenate([[True], ~same])
    firsts = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return sorted((int(place), int(first)) for place, first in zip(order[~begins], firsts[~begins], strict=True))


def _names(checks: list[ShardCheck]) -> list[tuple[str, str]]:
    return [(check.shard, key) for check in checks for key in check.keys]


def _repeated_keys(checks: list[ShardCheck]) -> list[Fault]:
    names = _names(checks)
    digests = [hashlib.sha256(key.encode("utf-8")).digest()[:HASH_BYTES] for _, key in names]
    return [
        Fault("duplicate_key", *names[place], f"{names[first][0]} has this key too; rename one")
        for place, first in _repeated(digests)
    ]


def _repeated_images(checks: list[ShardCheck]) -> list[Fault]:
    names = _names(checks)
    return [
        Fault("duplicate_image", *names[place], f"the same image as {names[first][1]} of {names[first][0]}")
        for place, first in _repeated([value for check in checks for value in check.hashes])
    ]


def _leaks(checks: list[ShardCheck], test: list[ShardCheck]) -> list[Fault]:
    tested = {value: (check.shard, key) for check in test for value, key in zip(check.hashes, check.keys, strict=True)}
    faults = []
    for check in checks:
        for value, key in zip(check.hashes, check.keys, strict=True):
            if value in tested:
                shard, other = tested[value]
                faults.append(Fault("leak", check.shard, key, f"the same image as the test set's {other} of {shard}"))
    return faults
