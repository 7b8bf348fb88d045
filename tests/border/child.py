"""Reads damaged input in a process of its own, under limits, and says how each case ended.

Requests are lines of JSON on stdin: ``{"format", "folder", "damage"}``; answers are lines on the descriptor that the
runner passes. Whatever the case prints is thrown away. An audit hook hears of every file that is opened to be written,
renamed or removed, of every program that is started and of every pickle that names a class.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.border.damage import Damage
from tests.border.formats import Format, load_format

ADDRESS_SLACK_BYTES = 1 << 30  # address space is not memory: libraries map more than they use
SHOWN = 300  # characters of a message that go into the answer
LONGEST_MESSAGE = 3000  # an error is for people
PROGRAM_EVENTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.startfile")
PATH_EVENTS = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
)


class Watch:
    """What the case in hand did that input must not bring about; ``inside`` is where it may write."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in PROGRAM_EVENTS:
            self.seen.append(f"starts {arguments[0]!r:.80}")
        elif event == "pickle.find_class":
            self.seen.append(f"unpickles {arguments[0]}.{arguments[1]}")
        elif event == "open" and _writes(arguments):
            self._check(arguments[0], "writes")
        elif event in PATH_EVENTS:
            for path in arguments[:2]:
                self._check(path, event)

    def _check(self, path: Any, what: str) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            text = os.path.realpath(os.fsdecode(path))
            if not text.startswith((self.inside, "/dev/", "/proc/self/")):
                self.seen.append(f"{what} {text[:80]}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def run_case(form: Format, base: Path, damage: Damage | None, watch: Watch) -> dict[str, Any]:
    """Copy the whole input, damage it, read it; how that ended, after how long, and how much memory it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name)) / "case"
        shutil.copytree(base, folder)
        if damage is not None:
            damage.apply(folder)
        bound = form.bound_megabytes << 20
        before, _ = _memory()
        _reset_peak()
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 2 * bound + ADDRESS_SLACK_BYTES, -1))
        start = time.monotonic()
        watch.seen.clear()
        watch.inside = str(folder)
        outcome, text = _read(form, folder)
        watch.inside = None
        seconds = time.monotonic() - start
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        grown = max(0, _memory()[1] - before)
        if watch.seen:
            outcome, text = "outside", watch.seen[0]
        elif grown > bound and outcome in ("named", "harmless"):
            outcome, text = "memory", f"{grown >> 20} MB for a bound of {form.bound_megabytes} MB; {text}"
    return {"outcome": outcome, "text": text[:SHOWN], "seconds": round(seconds, 2), "megabytes": grown >> 20}


def _read(form: Format, folder: Path) -> tuple[str, str]:
    try:
        result = form.read(folder)
        problem = form.check(result) if form.check is not None else None
        return ("silent", problem) if problem else ("harmless", "")
    except form.errors as error:
        return _named(error)
    except MemoryError as error:
        return "memory", repr(error)
    except SystemExit as error:
        return ("traceback", f"SystemExit {error.code}")
    except Exception as error:  # noqa: BLE001  # whatever comes here is the finding
        return "traceback", f"{type(error).__name__}: {error} ({_where(error)})"


def _named(error: BaseException) -> tuple[str, str]:
    text = str(error)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "traceback", f"a message that cannot be printed: {text!r}"
    if not text.strip():
        return "traceback", f"{type(error).__name__} without a message ({_where(error)})"
    if any(ord(character) < 32 and character not in "\n\t" or 127 <= ord(character) < 160 for character in text):
        return "raw", repr(text)
    return ("named", text) if len(text) <= LONGEST_MESSAGE else ("raw", f"a message of {len(text)} characters")


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, "?"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/tests/border/" not in name and "/site-packages/" not in name and "/lib/python" not in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _memory() -> tuple[int, int]:
    """Resident bytes now, and the most since the last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    watch = Watch()
    sys.addaudithook(watch)
    for line in sys.stdin:
        request = json.loads(line)
        form = load_format(request["format"])
        if request.get("make"):
            form.make(Path(request["folder"]))
            answer: dict[str, Any] = {"outcome": "made", "text": "", "seconds": 0.0, "megabytes": 0}
        else:
            damage = Damage(**request["damage"]) if request["damage"] else None
            answer = run_case(form, Path(request["folder"]), damage, watch)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
