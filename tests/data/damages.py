"""Damages of sound tars that leave them tars in most places: what bit flips alone do not find."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512
WRONG_RECORDS = (
    b"null", b"[]", b'"cat"', b"5", b"{}", b"NaN", b"[" * 5000, b'{"language": 5}',
    json.dumps({"language": "en", "width": "32", "height": 32, "short_caption": "a cat"}).encode(),
    json.dumps({"language": "en", "width": 32, "height": 32, "short_caption": ["猫"]}, ensure_ascii=False).encode(),
    json.dumps({"language": "en", "width": 32, "height": 32, "short_caption": "x", "regions": [{"box": 1}]}).encode(),
    json.dumps({"language": "en", "width": True, "height": 1e400, "short_caption": "x"}).encode(),
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A member of a sound USTAR tar: its header and its content, padding included."""

    header: bytes
    content: bytes

    def __bytes__(self) -> bytes:
        return self.header + self.content


def blocks_of(data: bytes) -> list[Block]:
    """The members of a tar as far as it is sound."""
    found, place = [], 0
    while place + BLOCK <= len(data) and data[place] and data[place + 257 : place + 262] == b"ustar":
        digits = data[place + 124 : place + 135].strip(b" \0")
        if digits.strip(b"01234567"):
            break
        end = place + BLOCK + -(-int(digits or b"0", 8) // BLOCK) * BLOCK
        if end > len(data):
            break
        found.append(Block(data[place : place + BLOCK], data[place + BLOCK : end]))
        place = end
    return found


def joined(blocks: list[Block]) -> bytes:
    return b"".join(map(bytes, blocks)) + bytes(2 * BLOCK)


def changed(block: Block, first: int, value: bytes) -> Block:
    """Its header with other bytes and a checksum that fits them."""
    header = bytearray(block.header)
    header[first : first + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return Block(bytes(header), block.content)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> Block:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(content), kind
    return Block(header.tobuf(tarfile.USTAR_FORMAT), content + bytes(-len(content) % BLOCK))


def swapped(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    other = draws.choice([n for n in range(len(blocks)) if n != at] or [at])
    blocks[at], blocks[other] = blocks[other], blocks[at]
    return blocks


def repeated(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    blocks.insert(draws.randrange(len(blocks) + 1), blocks[at])
    return blocks


def wrong_checksum(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    header = blocks[at].header
    stored = int(header[148:154], 8) + draws.choice((-1, 1, 64))
    blocks[at] = Block(header[:148] + b"%06o\0 " % stored + header[156:], blocks[at].content)
    return blocks


def base_256_size(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    """A size of 2^80 or below zero; or the true one, which is no damage."""
    true = b"\x80" + int(blocks[at].header[124:135], 8).to_bytes(11, "big")
    blocks[at] = changed(blocks[at], 124, draws.choice((b"\x80\1" + bytes(10), b"\xff" * 12, true)))
    return blocks


def long_name(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    """GNU's record of a long name before a member: one that leaves the tar, no UTF-8, of 1 GB, or of 100 kB."""
    names = (b"../../evil.jpg\0", b"\xff\xfe.jpg\0", "长".encode() * 33_000, b"k\0.jpg", b"")
    record = member("././@LongLink", draws.choice(names), tarfile.GNUTYPE_LONGNAME)
    if draws.random() < 0.2:
        record = changed(record, 124, b"%011o\0" % (1 << 30))
    blocks.insert(at, record)
    return blocks


def pax(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    """A pax record before a member: huge, not one, a size beyond the file, a path out of it, or holes."""
    contents = (b"9" * 30 + b" path=x\n", b"17 path=k.jpg\0xx\n", b"no record", b"30 size=99999999999999999999\n",
                b"20 path=/etc/passwd\n", b"22 GNU.sparse.major=1\n", b"70000 comment=" + b"x" * 69_985 + b"\n",
                b"11 size=-1\n")  # fmt: skip
    blocks.insert(at, member("././@PaxHeader", draws.choice(contents), draws.choice((tarfile.XHDTYPE, b"x"))))
    return blocks


def sparse(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    blocks[at] = changed(blocks[at], 156, tarfile.GNUTYPE_SPARSE)
    return blocks


def wrong_record(blocks: list[Block], at: int, draws: random.Random) -> list[Block]:
    records = [n for n, block in enumerate(blocks) if b".json\0" in block.header[:100]]
    if records:
        place = draws.choice(records)
        name = blocks[place].header[:100].rstrip(b"\0").decode("utf-8", "replace")
        blocks[place] = member(name, draws.choice(WRONG_RECORDS))
    return blocks


Change = Callable[[list[Block], int, random.Random], list[Block]]
OF_MEMBERS: dict[str, Change] = {
    change.__name__: change
    for change in (swapped, repeated, wrong_checksum, base_256_size, long_name, pax, sparse, wrong_record)
}


def damaged(data: bytes, kind: str, draws: random.Random) -> bytes:
    """A tar with one damage of its members; as it was where it has none left that are whole."""
    blocks = blocks_of(data)
    return joined(OF_MEMBERS[kind](blocks, draws.randrange(len(blocks)), draws)) if blocks else data
