"""Where heartbeats are exchanged: a store that listens where the ranks are, and believes signed words alone.

torch's TCPStore listens on every interface and takes whatever anybody writes. Here it is given a socket, bound to the
loopback interface where all ranks share a machine, else to the address that the ranks already know rank 0 by; and each
value carries an HMAC made with a secret that rank 0 draws for this run and that travels over the process group.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

SECRET_BYTES = 32
MAX_VALUE_BYTES = 16_384  # a record of a rank is some 300 bytes
LOOPBACK = "127.0.0.1"
logger = logging.getLogger(__name__)


class SignedStore:
    """``set`` and ``get`` of texts over a torch.distributed store; what is not signed with ``secret`` is not heard."""

    def __init__(self, store: dist.Store, secret: bytes) -> None:
        self._store, self._secret = store, secret

    def set(self, key: str, text: str) -> None:
        data = text.encode("utf-8", "replace")[:MAX_VALUE_BYTES]
        self._store.set(key, self._signature(key, data) + data)

    def get(self, keys: Sequence[str]) -> list[str | None]:
        """The texts of ``keys``; None for one that somebody without the secret wrote over."""
        texts: list[str | None] = []
        for key, value in zip(keys, self._store.multi_get(list(keys)), strict=True):
            signature, data = bytes(value[: hashlib.sha256().digest_size]), bytes(value[hashlib.sha256().digest_size :])
            known = len(data) <= MAX_VALUE_BYTES and hmac.compare_digest(signature, self._signature(key, data))
            texts.append(data.decode("utf-8", "replace") if known else None)
        return texts

    def _signature(self, key: str, data: bytes) -> bytes:
        # The key is signed as well, so that one rank's word cannot be copied to another's place.
        return hmac.digest(self._secret, key.encode() + b"\0" + data, "sha256")


def make_store(rank: int, world_size: int, timeout_seconds: float) -> SignedStore:
    """A store on a free port of rank 0's host; address and secret travel over the default process group. Collective.

    Raises:
        RuntimeError: there is no process group.
    """
    if world_size == 1:
        return SignedStore(dist.HashStore(), secrets.token_bytes(SECRET_BYTES))
    if not dist.is_initialized():
        raise RuntimeError("Heartbeat without a store needs torch.distributed.init_process_group first")
    machines: list[tuple[str, ...] | None] = [None] * world_size
    dist.all_gather_object(machines, _machine())
    host = LOOPBACK if len(set(machines)) == 1 else os.environ.get("MASTER_ADDR", LOOPBACK)
    limit = timedelta(seconds=timeout_seconds)
    store = None
    if rank == 0:
        listening = _listen(host)
        port = listening.getsockname()[1]
        store = dist.TCPStore(
            host, port, None, True, timeout=limit, wait_for_workers=False, master_listen_fd=listening.detach()
        )
        words: list[Any] = [(port, secrets.token_bytes(SECRET_BYTES))]
    else:
        words = [None]
    dist.broadcast_object_list(words, src=0)
    port, secret = words[0]
    store = store or dist.TCPStore(host, port, None, False, timeout=limit, wait_for_workers=False)
    return SignedStore(store, secret)


def _listen(host: str) -> socket.socket:
    """A listening socket on the address of ``host``; on every one where that is no address of this machine (NAT)."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.bind(address)
    except OSError as error:
        logger.warning("heartbeats are taken on every interface: %s is no address of this machine (%s)", host, error)
        listening.bind(("", 0))
    listening.listen(socket.SOMAXCONN)
    return listening


def _machine() -> tuple[str, ...]:
    """What processes of one machine and one network namespace have in common."""
    names = []
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")):
        try:
            names.append(os.readlink(path) if path.is_symlink() else path.read_text(encoding="ascii").strip())
        except OSError:  # not Linux, or hidden
            names.append(socket.gethostname())
    return tuple(names)
