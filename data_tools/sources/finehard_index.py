"""Which download belongs to which item of the FineHARD release: joined by URL, in a database file beside the shards.

The release names an image ``coyo_image_0/00000/000000013.jpg``; ``url2key_coyo_image_0.json`` says which URL had the
key 000000013; img2dataset stored that URL under a key of its own and noted it in a JSON (or a parquet) beside it. In a
file and not in memory, because twelve million URLs are several gigabytes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_tools.shard_size import PROBES
from data_tools.sources.finehard_items import parse_items
from data_tools.sources.images import ImageProblem
from pipeline.base.border import BorderError, read_typed, shown
from pipeline.base.files import write_aside
from pipeline.data.schema import IMAGE_EXTENSIONS

URL_KEY_PREFIX = "url2key_"
BLOCK_CHARACTERS = 1 << 22
MAX_URL_KEYS_BYTES = 2 << 30  # of one file; twelve million URLs of 100 bytes, in one part
MAX_ITEM_CHARACTERS = 1 << 24  # of one item; more without an end is damage, not an item


@dataclass(frozen=True)
class _Note:
    """What img2dataset notes of a URL beside its image."""

    url: str
    status: str | None = None
    error_message: str | None = None


_NOTE: TypeAdapter[_Note] = TypeAdapter(_Note)
_URL_KEYS: TypeAdapter[dict[str, str | int]] = TypeAdapter(dict[str, str | int])


def build_index(database: Path, url_keys: Path, downloads: Path) -> tuple[int, int]:
    """Write ``database``; returns the number of keys and of downloads. Made anew each time: downloads may have grown.

    Raises:
        ValueError: no url2key file, or one that is not a JSON object of URL -> key.
    """
    files = sorted(url_keys.glob(f"{URL_KEY_PREFIX}*.json"))
    if not files:
        raise ValueError(f"{url_keys} holds no {URL_KEY_PREFIX}*.json; give FineHARD's url2key_jsons folder")
    if not downloads.is_dir():
        raise ValueError(f"image folder {downloads} does not exist; give the folder that img2dataset wrote")
    with write_aside(database) as partial:
        return _fill(partial, files, downloads)


def _fill(database: Path, files: list[Path], downloads: Path) -> tuple[int, int]:
    connection = sqlite3.connect(database)
    try:
        connection.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE keys (part TEXT, key TEXT, url TEXT, PRIMARY KEY (part, key)) WITHOUT ROWID;"
            "CREATE TABLE downloads (url TEXT PRIMARY KEY, path TEXT, problem TEXT) WITHOUT ROWID;"
        )
        for path in files:
            part = path.stem.removeprefix(URL_KEY_PREFIX)
            rows = ((part, str(key), url) for url, key in _url_keys(path).items())
            connection.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", rows)
        # A URL that failed in one run of the downloader and came in another counts as come.
        connection.executemany(
            "INSERT INTO downloads VALUES (?, ?, ?) ON CONFLICT (url) DO UPDATE SET "
            "path = excluded.path, problem = excluded.problem WHERE excluded.path IS NOT NULL",
            _downloads(downloads),
        )
        connection.commit()
        keys, downloaded = (
            connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("keys", "downloads")
        )
    finally:
        connection.close()
    return keys, downloaded


def _url_keys(path: Path) -> dict[str, str | int]:
    try:
        return read_typed(path, _URL_KEYS, max_bytes=MAX_URL_KEYS_BYTES)
    except BorderError as error:
        raise ValueError(f"{error}; it must be a JSON object of URL -> key, so download it again") from error


def _downloads(folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(URL, path relative to ``folder`` or None, what went wrong or None) of everything the downloader noted."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        present = set(names)
        for name in sorted(names):
            note = Path(root) / name
            if name.endswith("_stats.json") or not name.endswith(".json"):
                continue
            try:
                record = read_typed(note, _NOTE)
            except BorderError:
                continue  # cut when the downloader was killed, or another's file; its URL then counts as dead
            stem = name.removesuffix(".json")
            image = next((f"{stem}.{e}" for e in IMAGE_EXTENSIONS if f"{stem}.{e}" in present), None)
            if image is not None:
                yield record.url, os.path.relpath(Path(root) / image, folder), None
            else:
                yield record.url, None, shown(record.error_message or record.status or "no image beside its note")


@dataclass
class DownloadIndex:
    """Look-ups in what ``build_index`` wrote. Opened where it is used, so it can be sent to another process."""

    database: Path
    downloads: Path

    _connection: sqlite3.Connection | None = field(default=None, init=False, repr=False, compare=False)
    _parts: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"database": self.database, "downloads": self.downloads, "_connection": None, "_parts": set()}

    def part_and_key(self, f_path: str) -> tuple[str, str]:
        """``coyo_image_0/00000/000000013.jpg`` -> (``coyo_image_0``, ``000000013``), whatever folders stand before."""
        self._open()
        pieces = Path(f_path).parts
        part = next((piece for piece in pieces[:-1] if piece in self._parts), pieces[0] if len(pieces) > 1 else "")
        return part, Path(f_path).stem

    def find(self, part: str, key: str) -> Path:
        """The image file of an item.

        Raises:
            ImageProblem: ``unknown_key`` (no URL is known for it) or ``dead_link`` (the URL was not downloaded).
        """
        connection = self._open()
        row = connection.execute("SELECT url FROM keys WHERE part = ? AND key = ?", (part, key)).fetchone()
        if row is None:
            raise ImageProblem("unknown_key", f"no {URL_KEY_PREFIX}{part}.json names the key {key}")
        found = connection.execute("SELECT path, problem FROM downloads WHERE url = ?", row).fetchone()
        if found is None or found[0] is None:
            raise ImageProblem("dead_link", f"{row[0]} ({found[1] if found else 'not among the downloads'})")
        return self.downloads / found[0]

    def some_sizes(self) -> Iterator[int]:
        """Bytes of some images, always of the same ones: of the first URLs in their order."""
        rows = self._open().execute("SELECT path FROM downloads WHERE path IS NOT NULL ORDER BY url LIMIT ?", (PROBES,))
        for (path,) in rows.fetchall():
            yield (self.downloads / path).stat().st_size

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(f"{self.database.resolve().as_uri()}?mode=ro", uri=True)
            self._parts = {row[0] for row in self._connection.execute("SELECT DISTINCT part FROM keys")}
        return self._connection


@dataclass(frozen=True)
class Span:
    """Some neighbouring items of an annotation file: bytes ``start`` to ``end`` without the commas around them."""

    path: Path
    start: int
    end: int
    count: int

    def items(self) -> list[Any]:
        """As JSON gives them; a BorderError in the place of one that is none."""
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            return list(parse_items(stream.read(self.end - self.start)))


def item_spans(path: Path, items_per_span: int) -> Iterator[Span]:
    """Cut a JSON array into spans without holding the file: a release's annotations are gigabytes.

    Raises:
        ValueError: the file is not a JSON array, or is cut.
    """
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8", newline="") as stream:
        text = stream.read(BLOCK_CHARACTERS)
        place = _skip(text, 0, " \t\r\n")
        if text[place : place + 1] != "[":
            raise ValueError(f"{path} does not begin with '['; it must be a JSON array of FineHARD items")
        place, mark, offset = place + 1, 0, 0  # offset: bytes of the file before text[mark]
        start, count = 0, 0
        while True:
            place = _skip(text, place, " \t\r\n,")
            offset, mark = offset + len(text[mark:place].encode("utf-8")), place
            if text[place : place + 1] == "]":
                break
            try:
                _, place = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                more = stream.read(BLOCK_CHARACTERS)
                if not more or len(text) - mark > MAX_ITEM_CHARACTERS:
                    reason = f"{path} is cut or damaged near byte {offset} ({error.msg}); download it again"
                    raise ValueError(reason) from error
                text, place, mark = text[mark:] + more, 0, 0
                continue
            except (ValueError, RecursionError) as error:  # numbers of too many digits, or nested too deep
                raise ValueError(f"{path} is damaged near byte {offset} ({error}); download it again") from error
            start = start if count else offset
            offset, mark = offset + len(text[mark:place].encode("utf-8")), place
            count += 1
            if count == items_per_span:
                yield Span(path, start, offset, count)
                count = 0
        if count:
            yield Span(path, start, offset, count)


def _skip(text: str, place: int, characters: str) -> int:
    while place < len(text) and text[place] in characters:
        place += 1
    return place
