"""What the shard builder itself costs, beside the models that it waits for: reading, steps, journal, client, writing.

Rates are of one core: every run is in this process. Images are random bytes of COCO's mean size where nothing decodes
them, and JPEGs of noise at 640x480 where something does. The server of the client's rate is a bare one on this
machine that answers at once; its own work is not counted. Memory is this process's largest size so far.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reporting import Row, benchmark_parser, report
from data_tools.__main__ import main as data_tools
from data_tools.captions.command import prompts_for
from data_tools.captions.server import ServerCaptioner
from data_tools.captions.step import CaptionStep
from data_tools.execution.jobs import InProcess
from data_tools.execution.journal import Journal
from data_tools.execution.steps import FunctionStep, Record, run_step
from data_tools.model_server.client import ModelServer
from data_tools.shards import write_shard
from pipeline.data.schema import Sample

MEAN_IMAGE_BYTES = 160_000  # of COCO's val2017
SMALL_IMAGE_BYTES = 2_000  # for the memory run, which is about samples and not about bytes
SAMPLES_PER_SHARD = 1000
CAPTION = "A small red bus stands in front of a stone house, and two people in long coats walk to its open door."


def write_folder(folder: Path, count: int, image: bytes, extension: str, caption: str | None = CAPTION) -> None:
    """Shards of ``count`` samples, all with the same image."""
    sample = Sample("en", 640, 480, long_caption=caption)
    for start in range(0, count, SAMPLES_PER_SHARD):
        numbers = range(start, min(count, start + SAMPLES_PER_SHARD))
        write_shard(folder / f"s-{start:09d}.tar", (Record(f"{n:09d}", image, extension, sample) for n in numbers))


def mark(record: Record) -> Record:
    """The smallest step that changes every record."""
    return replace(record, sample=replace(record.sample, source={"marked": True}))


def jpeg(generator: np.random.Generator) -> bytes:
    """640x480, noise on a coarse grid so that its size is that of a photograph."""
    noise = generator.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def step_rate(root: Path, count: int, image: bytes) -> float:
    """Samples a second through a step that changes every record: read, work, write, force to the disk, report."""
    write_folder(root / "in", count, image, "jpg")
    return rate(
        count,
        lambda: run_step(FunctionStep("mark", "1", mark), root / "in", root / "out", executor=InProcess(), index=False),
    )


def folder_rate(root: Path, count: int, image: bytes) -> float:
    """Photographs a second from a folder into shards, each decoded to see that it can be."""
    (root / "images").mkdir(parents=True)
    for number in range(count):
        (root / "images" / f"{number:06d}.jpg").write_bytes(image)
    command = ["build", "folder", "--images", str(root / "images"), "--out", str(root / "out"), "--workers", "0"]
    return rate(count, lambda: data_tools(command))


def journal_rate(root: Path, count: int) -> float:
    """Answers a second that are noted and forced to the disk one by one."""
    journal = Journal(root / "journal.jsonl", "benchmark")

    def put() -> None:
        for number in range(count):
            journal.put(f"{number:09d}", {"text": CAPTION * 4, "absent": None})

    result = rate(count, put)
    journal.close()
    return result


def client_rate(root: Path, count: int, image: bytes) -> float:
    """Captions a second of processor time of the worker: image fitted and encoded, asked for, checked, noted."""
    write_folder(root / "in", count, image, "jpg", caption=None)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    server = ModelServer(ours.recv(), "none", concurrency=32, shared_folder=root / "limits")
    step = CaptionStep(ServerCaptioner(server), prompts_for(["long_caption"], []))
    start = time.process_time()
    summary = run_step(step, root / "in", root / "out", executor=InProcess(), index=False)
    seconds = time.process_time() - start
    process.terminate()
    process.join()
    if summary.counts["long_caption_written"] != count:
        raise RuntimeError(f"only {summary.counts} of {count} captions were written; the numbers would be wrong")
    return count / seconds


def serve(pipe: Connection) -> None:
    """A server that answers every request at once with one caption."""
    body = json.dumps({"choices": [{"message": {"content": CAPTION}, "finish_reason": "stop"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.serve_forever()


def peak_megabytes(root: Path, count: int) -> float:
    """This process's largest resident size after a step ran over ``count`` samples."""
    step_rate(root, count, bytes(SMALL_IMAGE_BYTES))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rate(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def main() -> int:
    parser = benchmark_parser("benchmarks.data_steps", __doc__)
    parser.add_argument("--samples", type=int, default=2000, help="a timed run (default: 2000)")
    parser.add_argument("--memory-samples", type=int, default=100_000, help="against 1,000 (default: 100000)")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    arguments = parser.parse_args()
    generator, count = np.random.default_rng(0), arguments.samples
    photograph = jpeg(generator)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        few = peak_megabytes(root / "few", 1000)
        many = peak_megabytes(root / "many", arguments.memory_samples)
        rows = [
            Row(f"memory of a step at {arguments.memory_samples:,} samples, against 1,000", many, "MB", few),
            Row(
                "a step: read, change, write",
                step_rate(root / "a", count, generator.bytes(MEAN_IMAGE_BYTES)),
                "samples/s",
            ),
            Row("folder of photographs to shards", folder_rate(root / "b", count, photograph), "images/s"),
            Row("journal", journal_rate(root, count), "answers/s"),
            Row("captions from a server, worker's share", client_rate(root / "c", count, photograph), "samples/s"),
        ]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
