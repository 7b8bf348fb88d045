"""Captions: bad answers are found, asked for once more, and else left absent with their reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from data_tools.__main__ import main
from data_tools.captions.command import prompts_for
from data_tools.captions.server import ServerCaptioner
from data_tools.captions.step import CaptionStep
from data_tools.execution.jobs import InProcess
from data_tools.execution.shards import TarShard
from data_tools.execution.steps import run_step
from data_tools.model_server.client import ModelServer
from data_tools.shards import Record, write_shard
from pipeline.data.schema import Sample
from tests.data_tools.openai_server import FakeServer, question_of
from tests.data_tools.step_samples import contents, picture, write_shards

ENGLISH = "A small red bus stands in front of a stone house, and two people in long coats walk to its open door."
CHINESE = "一辆红色的小巴士停在石头房子前面，两个穿着长外套的人正走向敞开的车门，门旁有一只白猫。"


def good(body):
    return CHINESE if "请用" in question_of(body) else ENGLISH


def step_for(url, folder=None, **settings):
    server = ModelServer(
        url, "m", **{"backoff_seconds": 0.01, "timeout_seconds": 1.5, "shared_folder": folder, **settings}
    )
    return CaptionStep(ServerCaptioner(server), prompts_for(["long_caption"], []))


def samples_of(folder):
    records = [r for path in sorted(folder.glob("*.tar")) for r in TarShard(path).records()]
    return {record.key: record.sample for record in records}


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "in", 2, captions=False)


def test_every_fault_of_a_server_leaves_the_same_captions(shards, tmp_path):
    faults = [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 500},
        {"sleep_seconds": 2.0, "text": "late"},
        {"raw": b"{"},
        {"text": ENGLISH, "break_off": True},
        {"text": "A small red bus stands in", "finish_reason": "length"},
        {"text": "I'm sorry, I can't help with that."},
        {"text": ""},
    ]
    count = iter(range(10**6))

    def faulty(body, attempt):
        return faults[next(count) % len(faults)] if attempt == 1 else good(body)

    with FakeServer(lambda body, attempt: good(body)) as fake:
        assert run_step(step_for(fake.url), shards, tmp_path / "calm", executor=InProcess(), index=False).ok
    with FakeServer(faulty) as fake:
        summary = run_step(step_for(fake.url), shards, tmp_path / "stormy", executor=InProcess(), index=False)
    assert summary.ok and summary.counts == {"long_caption_written": 12}
    assert len(fake.requests) == 24
    assert contents(tmp_path / "calm") == contents(tmp_path / "stormy")
    sample = samples_of(tmp_path / "calm")["000002"]
    assert sample.language == "zh" and sample.long_caption == CHINESE
    assert sample.source["long_caption"]["prompt"].startswith("long-zh-1@") and "captions/1" in str(sample.source)


def test_what_stays_bad_is_absent_with_its_reason_and_costs_two_requests(shards, tmp_path):
    def answer(body, attempt):
        return "Sorry, I cannot describe it." if "请用" not in question_of(body) else {"status": 400}

    with FakeServer(answer) as fake:
        summary = run_step(step_for(fake.url), shards, tmp_path / "out", executor=InProcess(), index=False)
    assert summary.ok, "a bad answer is a result, not a failure"
    assert summary.counts == {"long_caption_absent_refusal": 8, "long_caption_absent_rejected": 4}
    assert len(fake.requests) == 8 * 2 + 4
    assert fake.requests[0]["temperature"] == 0 and max(body["temperature"] for body in fake.requests) > 0
    samples = samples_of(tmp_path / "out")
    assert len(samples) == 12 and samples["000000"].source["long_caption"]["absent"] == "refusal"
    assert all(sample.long_caption is None for sample in samples.values())


def test_samples_that_failed_are_asked_for_again_and_no_other(shards, tmp_path):
    broken = True

    def answer(body, attempt):
        return {"status": 500} if broken and "请用" in question_of(body) else good(body)

    with FakeServer(answer) as fake:
        step = step_for(fake.url, max_retries=0)
        first = run_step(step, shards, tmp_path / "out", executor=InProcess(), index=False)
        assert not first.ok and first.failed == {"status_500": 4}
        before, broken = len(fake.requests), False
        again = run_step(step, shards, tmp_path / "out", executor=InProcess(), index=False, retry_failed=True)
        assert again.ok and len(fake.requests) == before + 4
        run_step(step, shards, tmp_path / "calm", executor=InProcess(), index=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_spent_budget_stops_and_the_next_run_goes_on(shards, tmp_path):
    out, limits = tmp_path / "out", tmp_path / "limits"
    with FakeServer(lambda body, attempt: good(body)) as fake:
        step = step_for(fake.url, limits, budget_requests=8)
        summary = run_step(step, shards, out, executor=InProcess(), index=False)
        assert not summary.ok and "--budget-requests" in summary.unfinished["s-000001"] and summary.shards == 1
        assert run_step(step_for(fake.url, limits), shards, out, executor=InProcess(), index=False).ok
        assert len(fake.requests) == 12, "answers in hand when the budget ended were kept"


def test_images_that_cannot_be_read_are_dropped_and_nothing_else(tmp_path):
    records = [Record(f"k{n}", picture(n), "png", Sample("en", 32, 24)) for n in range(4)]
    records[1] = Record("k1", picture(1)[:60], "png", Sample("en", 32, 24))
    records[2] = Record("k2", b"no image", "jpg", Sample("en", 32, 24))
    write_shard(tmp_path / "in" / "s-000000.tar", records)
    with FakeServer(lambda body, attempt: good(body)) as fake:
        summary = run_step(step_for(fake.url), tmp_path / "in", tmp_path / "out", executor=InProcess(), index=False)
    assert summary.dropped == {"broken_image": 2} and sorted(samples_of(tmp_path / "out")) == ["k0", "k3"]
    report = json.loads((tmp_path / "out" / "reports" / "s-000000.json").read_text())
    assert [drop["key"] for drop in report["dropped"]] == ["k1", "k2"] and len(fake.requests) == 2


def test_existing_captions_are_kept_and_large_images_are_sent_smaller(tmp_path):
    samples = [Sample("en", 32, 24, long_caption="There."), Sample("en", 300, 200)]
    images = [picture(1), picture(2, (300, 200))]
    write_shard(tmp_path / "in" / "a.tar", [Record(f"k{i}", images[i], "png", samples[i]) for i in range(2)])
    with FakeServer(lambda body, attempt: good(body)) as fake:
        step = step_for(fake.url)
        step.max_image_side = 100
        assert run_step(step, tmp_path / "in", tmp_path / "out", executor=InProcess(), index=False).ok
    assert samples_of(tmp_path / "out")["k0"].long_caption == "There." and len(fake.requests) == 1
    url = fake.requests[0]["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,") and len(url) < 4000


def test_the_command_survives_kill_9_and_asks_nothing_twice(shards, tmp_path, capfd):
    def answer(body, attempt):
        return {"text": good(body), "sleep_seconds": 0.15}

    with FakeServer(answer) as fake:

        def command(out):
            return [
                "captions",
                str(shards),
                "--out",
                str(out),
                "--server",
                fake.url,
                "--model",
                "m",
                "--concurrency",
                "2",
            ]

        first = subprocess.Popen([sys.executable, "-m", "data_tools", *command(tmp_path / "out"), "--workers", "2"])
        until = time.monotonic() + 60
        while len(fake.requests) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        time.sleep(0.5)  # workers notice, open requests end
        sent = len(fake.requests)
        assert 6 <= sent < 12
        journals = (tmp_path / "out" / ".work").glob("*.jsonl")
        noted = sum(path.read_bytes().count(b"\n") - 1 for path in journals)
        assert main([*command(tmp_path / "out"), "--workers", "0"]) == 0
        assert len(fake.requests) == sent + 12 - noted, "every noted answer was used"
        assert sent - noted <= 2, "at most what was on its way is lost"
        assert main([*command(tmp_path / "undisturbed"), "--workers", "0"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert "12 samples in, 12 out" in capfd.readouterr().out
    assert not os.environ.get("OPENAI_API_KEY") or os.environ["OPENAI_API_KEY"] not in str(contents(tmp_path / "out"))


def test_a_transformers_model_writes_captions_in_process(shards, tmp_path):
    from tests.data_tools.tiny_models import CAPTION, save_captioner

    model = save_captioner(tmp_path / "taught")
    command = [
        "captions",
        str(shards),
        "--transformers",
        str(model),
        "--precision",
        "float32",
        "--workers",
        "0",
        "--max-tokens",
        "40",
        "--caption-batch-size",
        "4",
    ]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    samples = samples_of(tmp_path / "out")
    english = [sample for sample in samples.values() if sample.language == "en"]
    assert len(english) == 8 and all(set(sample.long_caption.split()) <= set(CAPTION.split()) for sample in english)
    chinese = [sample for sample in samples.values() if sample.language == "zh"]
    assert all(sample.long_caption is None for sample in chinese), "it answers in English whatever it is asked"
    assert {sample.source["long_caption"]["absent"] for sample in chinese} == {"wrong_language"}
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_model_that_never_ends_is_cut_off(shards, tmp_path):
    from tests.data_tools.tiny_models import save_captioner

    model = save_captioner(tmp_path / "random", caption=None)
    command = [
        "captions",
        str(shards),
        "--out",
        str(tmp_path / "out"),
        "--transformers",
        str(model),
        "--precision",
        "float32",
        "--workers",
        "0",
        "--max-tokens",
        "6",
    ]
    assert main(command) == 0
    assert all(sample.long_caption is None for sample in samples_of(tmp_path / "out").values())
    with pytest.raises(ValueError, match=r"config\.json"):
        from data_tools.captions.in_process import TransformersCaptioner

        TransformersCaptioner(tmp_path)
