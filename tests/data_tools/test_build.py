"""A whole build, from a folder of photographs to shards to train on, undisturbed and disturbed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from data_tools.__main__ import main
from data_tools.execution.jobs import InProcess
from data_tools.execution.steps import FunctionStep, run_step
from pipeline.data.index import load_manifest
from tests.data_tools.openai_server import FakeServer, question_of
from tests.data_tools.step_samples import Shout, contents, picture, refuse_third, write_shards
from tests.data_tools.test_captions import samples_of
from tests.data_tools.tiny_models import save_owlv2

ENGLISH = "A small red bus stands near a large white house. Two black dogs sit on the green grass in front of the bus."
CHINESE = "一辆红色的小汽车停在白色的房子旁边，两只黑色的狗坐在绿色的草地上，旁边有一把木制的椅子。"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    pytest.importorskip("cv2", reason="the extra 'boxes' (OpenCV) is not installed")
    pytest.importorskip("textblob", reason="the extra with the phrase finders is not installed")
    return save_owlv2(tmp_path_factory.mktemp("detector") / "owlv2")


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(8):
        (folder / f"photo{number}.png").write_bytes(picture(number, (64, 48)))
    (folder / "cut.png").write_bytes(picture(9)[:60])
    return folder


def answer(body, attempt):
    if attempt == 1 and len(body["messages"][0]["content"][1]["image_url"]["url"]) % 3 == 0:
        return {"status": 500, "headers": {"Retry-After": "0"}}
    return CHINESE if "请用" in question_of(body) else ENGLISH


def build(photographs, out, fake, detector, *more, language="en", workers="0"):
    return [
        "build",
        "folder",
        "--images",
        str(photographs),
        "--language",
        language,
        "--samples-per-shard",
        "3",
        "--out",
        str(out),
        "--workers",
        workers,
        "--then",
        f"captions --server {fake.url} --model m --concurrency 2 --timeout-seconds 20",
        "--then",
        "phrases",
        "--then",
        f"boxes --detector {detector} --min-score 0.02 --max-area 1 --min-area 0 --box-batch-size 2",
        "--then",
        "negatives --minimum 1",
        *more,
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_photographs_become_shards_with_regions_and_negatives(photographs, detector, tmp_path, capsys, language):
    out = tmp_path / "out"
    with FakeServer(answer) as fake:
        command = build(photographs, out, fake, detector, language=language)
        assert main(command) == 0, capsys.readouterr().err
        requests = len(fake.requests)
        first = contents(out)
        assert main(command) == 0 and len(fake.requests) == requests and contents(out) == first
    samples = samples_of(out)
    assert sorted(samples) == [f"photo{n}" for n in range(8)]
    assert {sample.long_caption for sample in samples.values()} == {ENGLISH if language == "en" else CHINESE}
    regions = [region for sample in samples.values() for region in sample.regions]
    assert regions and all(region.phrase.casefold() in (ENGLISH + CHINESE).casefold() for region in regions)
    assert any(region.negatives for region in regions)
    manifest = load_manifest(out)
    assert manifest.samples.sum() == 8 and manifest.regions.sum() == len(regions) and not manifest.faults
    card = json.loads((out / "data_card.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in card["steps"]] == ["folder", "captions", "phrases", "boxes", "negatives", "shards"]
    assert card["steps"][0]["dropped"] == {"unreadable_image": 1} and card["languages"] == {language: 8}
    assert card["steps"][1]["settings"]["prompts"][f"long_caption/{language}"].startswith(f"long-{language}-1@")
    assert "| unreadable_image | 1 |" in (out / "DATA_CARD.md").read_text(encoding="utf-8")
    assert main(["verify", str(out)]) == 0


@pytest.mark.long  # starts python, torch and transformers four times; steps and captions are killed in the short tests
def test_a_build_killed_at_any_time_ends_as_an_undisturbed_one(photographs, detector, tmp_path):
    out = tmp_path / "out"
    with FakeServer(lambda body, attempt: {"text": ENGLISH, "sleep_seconds": 0.1}) as fake:
        for requests in (3, 6, 8):  # in the captions of one shard, of the next, and after them
            command = [sys.executable, "-m", "data_tools", *build(photographs, out, fake, detector, workers="1")]
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            until = time.monotonic() + 100
            while len(fake.requests) < requests and run.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            run.send_signal(signal.SIGKILL)
            run.wait(60)
            time.sleep(0.3)
        assert main(build(photographs, out, fake, detector)) == 0
        assert 8 <= len(fake.requests) <= 8 + 3 * 2, "at most what was on its way at each kill"
        assert main(build(photographs, tmp_path / "undisturbed", fake, detector)) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not list(out.rglob("*.partial*"))


def test_deleted_steps_are_not_made_again(photographs, detector, tmp_path, capsys):
    with FakeServer(answer) as fake:
        command = build(photographs, tmp_path / "out", fake, detector, "--delete-steps")
        assert main(command) == 0
        assert not list((tmp_path / "out" / "steps").rglob("*.tar"))
        requests, first = len(fake.requests), contents(tmp_path / "out")
        assert main(command) == 0
        assert len(fake.requests) == requests and contents(tmp_path / "out") == first
        command[command.index("negatives --minimum 1")] = "negatives --minimum 2"
        assert main(command) == 2 or len(fake.requests) == requests
        assert main([*command[:-1], "--language", "zh", "--delete-steps"]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_failed_samples_stop_a_build_unless_they_are_accepted(photographs, detector, tmp_path, capsys):
    url = re.compile(r"base64,(.*)")
    bad = set()

    def some_fail(body, attempt):
        image = url.search(body["messages"][0]["content"][1]["image_url"]["url"]).group(1)
        bad.add(image) if not bad else None
        return {"status": 500} if image in bad else ENGLISH

    with FakeServer(some_fail) as fake:
        command = build(photographs, tmp_path / "out", fake, detector)
        command[command.index("--then") + 1] += " --max-retries 0"
        assert main(command) == 1
        assert "--retry-failed" in capsys.readouterr().err and not (tmp_path / "out" / "steps" / "3-phrases").exists()
        assert main([*command, "--accept-failed"]) == 0
        assert len(samples_of(tmp_path / "out")) == 7
        card = json.loads((tmp_path / "out" / "data_card.json").read_text())
        assert card["steps"][-1]["dropped"] == {"no_caption": 1} and card["steps"][1]["failed"] == {"status_500": 1}
        bad = {"none"}
        assert main([*command, "--retry-failed"]) == 0
    assert len(samples_of(tmp_path / "out")) == 8


def test_wrong_steps_are_refused_before_anything_is_made(photographs, tmp_path, capsys):
    command = ["build", "folder", "--images", str(photographs), "--out", str(tmp_path / "out"), "--language", "en"]
    assert main([*command, "--then", "captoins --server x"]) == 2
    assert "must begin with one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--then", "boxes --detecter x"])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for little; ``grow()`` gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"mounting a tmpfs needs root: {made.stderr.decode().strip()}")
    folder.joinpath("out").mkdir()
    grow = ["mount", "-o", "remount,size=4m", str(folder)]
    try:
        yield folder / "out", lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(small_disk, tmp_path):
    out, grow = small_disk
    shards = write_shards(tmp_path / "in", 6)
    assert run_step(Shout(tmp_path / "a0"), shards, tmp_path / "calm", executor=InProcess(), index=False).ok
    summary = run_step(Shout(tmp_path / "asked"), shards, out, executor=InProcess(), index=False)
    assert not summary.ok and 0 < summary.shards < 6 and "No space left" in " ".join(summary.unfinished.values())
    assert not list(out.glob("*.partial*")), "no half shard stays in the way"
    tars = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert all((tmp_path / "calm" / name).read_bytes() == data for name, data in tars.items())
    again = run_step(Shout(tmp_path / "asked"), shards, out, executor=InProcess(), index=False)
    assert not again.ok and "No space left" in " ".join(again.unfinished.values())
    grow()
    assert run_step(Shout(tmp_path / "asked"), shards, out, executor=InProcess(), index=False).ok
    assert contents(out) == contents(tmp_path / "calm")
    asked = (tmp_path / "asked").read_text().split()
    assert len(set(asked)) == 36 and len(asked) <= 36 + 2, "only an answer that found no room is asked for again"


def test_shards_that_can_never_be_written_are_named(tmp_path):
    shards = write_shards(tmp_path / "in", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        raise OSError(
            run_step(
                FunctionStep("x", "1", refuse_third),
                shards,
                tmp_path / "file" / "out",
                executor=InProcess(),
                index=False,
            ).unfinished["s-000000"]
        )
