"""Members of a plain tar with the offset of their bytes, and nothing else: no extraction, no links, no guessing.

Who wants samples and records takes ``records.walk_tar`` or ``records.walk_records``.

``tarfile`` ends silently at a damaged header in mid-file, which looks like a shorter shard. Here every way in which a
tar can be damaged is an error with its own name, and what stands before the damage is still read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK = 512
REGULAR, PAX, PAX_GLOBAL, GNU_LONG_NAME = (b"0", b"\0", b"7"), b"x", b"g", b"L"
DIRECTORY, SPARSE = b"5", b"S"
PAX_SPARSE = b"GNU.sparse."  # of files whose content begins with a map of its holes
MAX_DIGITS = 20  # of a decimal number in a pax record: 2^64 has as many
LARGEST_MEMBER_BYTES = 256 << 20  # members are read whole into memory; images of 100 megapixels are smaller
MAX_NAME_BYTES = 65536  # assumption: a longer pax or GNU name record is damage or an attack on memory


class TarFault(ValueError):
    """A tar cannot be read on. ``kind``: ``empty_shard``, ``damaged_header``, ``truncated_shard``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Member:
    """One file of a tar. ``problem`` says why it must not be used: a link, a device, a path that leaves the tar."""

    name: str
    offset: int  # bytes, of the content
    size: int  # bytes
    problem: str | None = None
    start: int = 0  # bytes, of the first of its headers


def scan_tar(file: BinaryIO, *, end_mark_required: bool = False) -> Iterator[Member]:
    """Members in file order. ``file`` must be seekable; the caller may read from it between members.

    Args:
        end_mark_required: a tar that ends without a block of zeros is cut; some writers leave the mark out.

    Raises:
        TarFault: where the tar is empty, cut, or has a header that is not one; after the whole members before it.
    """
    length = file.seek(0, 2)
    if length == 0:
        raise TarFault("empty_shard", "the file is empty; build or fetch the shard again")
    position, long_name, long_size, is_sparse, zero_blocks, start = 0, None, None, False, 0, 0
    while zero_blocks < 2:
        header = _read(file, position, BLOCK, length, "header")
        if header is None:  # some writers leave out the two zero blocks, which loses no member
            if end_mark_required and not zero_blocks:
                raise TarFault("truncated_shard", f"the file ends at {length} before its end mark")
            return
        position += BLOCK
        if header.count(0) == BLOCK:
            zero_blocks += 1
            continue
        zero_blocks = 0
        _check_header(header, position - BLOCK)
        size = long_size if long_size is not None else _number(header[124:136], position - BLOCK)
        kind, end = header[156:157], position + -(-size // BLOCK) * BLOCK
        if position + size > length:
            raise TarFault(
                "truncated_shard", f"a member at byte {position} has {size} bytes, but the file ends at {length}"
            )
        if kind in (PAX, PAX_GLOBAL, GNU_LONG_NAME):
            if size > MAX_NAME_BYTES:
                raise TarFault("damaged_header", f"the name record at byte {position} has {size} bytes")
            record = _read(file, position, size, length, "name record") or b""
            if kind == GNU_LONG_NAME:
                long_name = record.rstrip(b"\0")
            elif kind == PAX:
                fields = _pax_fields(record, position)
                long_name = fields.get(b"path", long_name)
                long_size = _pax_size(fields, position)
                is_sparse = is_sparse or any(name.startswith(PAX_SPARSE) for name in fields)
        else:
            name = long_name if long_name is not None else _name(header)
            if kind != DIRECTORY:
                yield replace(_member(name, position, size, SPARSE if is_sparse else kind), start=start)
            long_name, long_size, is_sparse, start = None, None, False, end
        position = end


def _read(file: BinaryIO, position: int, size: int, length: int, what: str) -> bytes | None:
    file.seek(position)
    data = file.read(size)
    if len(data) == size:
        return data
    if not data and position >= length:
        return None
    raise TarFault("truncated_shard", f"the {what} at byte {position} is cut: {len(data)} of {size} bytes")


def _check_header(header: bytes, position: int) -> None:
    stored = _number(header[148:156], position)
    # The checksum counts its own field as eight spaces.
    if stored != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarFault("damaged_header", f"the header at byte {position} does not match its checksum")


def _number(field: bytes, position: int) -> int:
    if field[0] & 0x80:  # base 256, for sizes of 8 GiB and more
        value = int.from_bytes(field[1:], "big")
        if field[0] != 0x80:
            raise TarFault("damaged_header", f"the header at byte {position} holds a negative number")
        return value
    digits = field.split(b"\0")[0].strip() or b"0"
    if digits.strip(b"01234567"):  # int() would also take a sign, which walks back and never ends
        raise TarFault("damaged_header", f"the header at byte {position} holds {field!r} for a number")
    return int(digits, 8)


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:262] == b"ustar" and header[263:265] == b"00" else name


def _pax_fields(record: bytes, position: int) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    while record:
        digits, space, _ = record.partition(b" ")
        if not space or not _is_count(digits) or not 0 < int(digits) <= len(record):
            raise TarFault("damaged_header", f"the pax record at byte {position} is not one")
        name, _, value = record[len(digits) + 1 : int(digits) - 1].partition(b"=")
        fields[name] = value
        record = record[int(digits) :]
    return fields


def _pax_size(fields: dict[bytes, bytes], position: int) -> int | None:
    value = fields.get(b"size")
    if value is None:
        return None
    if not _is_count(value):
        raise TarFault("damaged_header", f"the pax record at byte {position} gives the size {value[:40]!r}")
    return int(value)


def _is_count(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= MAX_DIGITS


def _member(raw_name: bytes, offset: int, size: int, kind: bytes) -> Member:
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        return Member(raw_name.decode("utf-8", "replace"), offset, size, "its name is not UTF-8")
    problem = None
    if kind not in REGULAR:
        problem = f"it is a link or special file (type {kind.decode('latin-1')!r})"
    elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        problem = "its path leaves the tar"
    elif not name.isprintable() and any(unicodedata.category(character) == "Cc" for character in name):
        problem = "its name holds control characters"
    elif size > LARGEST_MEMBER_BYTES:
        problem = f"it has {size} bytes; at most {LARGEST_MEMBER_BYTES} are read"
    return Member(name.removeprefix("./"), offset, size, problem)


def group_members(
    file: BinaryIO, on_fault: Callable[[str, str, str], None], *, end_mark_required: bool = False
) -> Iterator[tuple[str, dict[str, Member]]]:
    """``(key, members by extension)`` of each run of members with one key, as WebDataset groups them.

    ``on_fault(kind, key, message)`` hears of members that must not be used, of a second member of one name in a sample,
    and of damage that ends the tar; what stands before the damage is given out first.
    """
    current: str | None = None
    members: dict[str, Member] = {}
    damage: TarFault | None = None
    try:
        for member in scan_tar(file, end_mark_required=end_mark_required):
            key, extension = split_name(member.name)
            if member.problem:
                on_fault("unsafe_member", member.name, member.problem)
                continue
            if key != current:
                if current is not None:
                    yield current, members
                current, members = key, {}
            if extension in members:
                rule = "an earlier member of its sample has this name; the first one is used"
                on_fault("duplicate_member", member.name, rule)
                continue
            members[extension] = member
    except TarFault as error:
        damage = error
    if current is not None:
        yield current, members
    if damage is not None:
        on_fault(damage.kind, current or "?", str(damage))


def split_name(name: str) -> tuple[str, str]:
    """``("folder/key", "extension")`` as WebDataset cuts names: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()
