"""What a run reads beside its data: settings, the hostfile, its own journals and records."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import SettingsError, Stage2Settings, dump_settings, load_settings, read_saved_settings
from pipeline.preflight.hostfile import Host, HostfileError, read_hostfile
from pipeline.supervise.attempts import failed_attempts
from pipeline.tracking.address import find_run
from pipeline.tracking.local_log import read_curves
from pipeline.tracking.scores import read_scores
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format

SETTINGS = "settings.yaml"
ALIASES = "".join(f"{n}: &{n} [{','.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
# What only YAML has: tags that make objects, aliases that stand for billions, tabs, half of a character, dates.
YAML = (
    *("!!python/object/apply:os.system [echo]", "!!python/name:os.system", "data: !!python/object:x.Y {}", "data: [a"),
    *("a: &a [x,x,x,x,x,x,x,x,x]\n" + ALIASES, "a: &a\n  b: *a\n", "\t- x", "[" * 5000, "? {a: 1}\n: b", "=: 1"),
    *("train: {seed: 2001-99-99}", 'train: {run_folder: "\\ud800"}', "train: {timeout_seconds: .inf}"),
    *("train: {seed: " + "9" * 5000 + "}", "train: {seed: 0x" + "f" * 20000 + "}", "train: {seed: 1e400}"),
    *("--- 1\n--- 2", "%YAML 9.9\n--- {}", "train:\n  seed: !!int abc", "\xef\xbb\xbf{}"),
)


def make_settings(folder: Path) -> None:
    values = yaml.safe_load(dump_settings(Stage2Settings()))
    kept = {name: values[name] for name in ("model", "data", "tracking")}  # YAML is slow to read
    kept["train"] = {name: values["train"][name] for name in ("run_folder", "seed", "epochs", "timeout_seconds")}
    (folder / SETTINGS).write_text(json.dumps(kept), encoding="utf-8")


def damage_settings(rng: random.Random, base: Path) -> Damage:
    if rng.random() < 0.2:
        return Damage(SETTINGS, [["bytes", rng.choice(YAML)]])
    return damage_document(rng, SETTINGS, (base / SETTINGS).read_bytes())


def read_settings(folder: Path) -> Any:
    """As a configuration, as what a run saved, and as the value of an override."""
    path = folder / SETTINGS
    if path.stat().st_size < 1000:
        with contextlib.suppress(SettingsError):
            load_settings(Stage2Settings, None, [f"train.seed={path.read_text(encoding='utf-8', errors='replace')}"])
    settings = load_settings(Stage2Settings, path)
    read_saved_settings(path)
    return settings


def check_settings(settings: Stage2Settings) -> str | None:
    values = settings.model_dump(mode="json")
    overrides = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    again = load_settings(Stage2Settings, None, overrides)
    return None if again == settings else "they do not read back as they are"


HOSTS = "hostfile.txt"


def make_hosts(folder: Path) -> None:
    (folder / HOSTS).write_text(
        "# hosts\nnode-a slots=8\nnode-b slots=8 # the second\n\n节点 slots=4\n", encoding="utf-8"
    )


HOST_LINES = (
    *("x slots=" + "9" * 5000, "x slots=-1", "x slots=1e9", "x", "x slots=1\ny slots=1\nx slots=1", "x slots=\u0661"),
    *("-oProxyCommand=touch${IFS}outside slots=1", "\x1b[2J slots=1", "x slots=99999999"),
)


def damage_hosts(rng: random.Random, base: Path) -> Damage:
    if rng.random() < 0.4:
        return Damage(HOSTS, [["bytes", rng.choice(HOST_LINES).encode().decode("latin-1")]])
    return damage_bytes(rng, HOSTS)


def read_hosts(folder: Path) -> list[Host]:
    return read_hostfile(folder / HOSTS)


def check_hosts(hosts: list[Host]) -> str | None:
    wrong = [host for host in hosts if host.name.startswith("-") or not host.name.isprintable() or host.slots > 4096]
    return f"the host {wrong[0]}" if wrong else None


RECORDS = ("tracking.json", "metrics.jsonl", "attempts.jsonl", "scores.json")
TRACKING, METRICS, ATTEMPTS, SCORES = RECORDS


def make_tracking(folder: Path) -> None:
    record = {"run_id": "a" * 32, "uri": "sqlite:///mlflow.db", "experiment": "实验", "artifact_location": None}
    (folder / TRACKING).write_text(json.dumps(record | {"run_name": "r"}), encoding="utf-8")
    (folder / "settings.yaml").write_text("{}", encoding="utf-8")
    values = {"loss/total": 0.5, "lr": "nan"}
    lines = [json.dumps({"step": step, "time": 1.7e9 + step, "values": values}) for step in range(5)]
    (folder / METRICS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    starts = [{"start": 1.7e9, "host": "主机", "process": 7}, {"verdict": "rank 1 (host b) is silent", "hosts": ["b"]}]
    notes = [*starts, {"failed": 1.7e9, "step": 7}, {"start": 1.8e9, "host": "a", "process": 8}]
    (folder / ATTEMPTS).write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
    scores = {"fgovd": {"hard": 0.4, "by_language": {"zh": 0.5}}, "retrieval": {"i2t_r1": 0.7}}
    (folder / SCORES).write_text(json.dumps(scores), encoding="utf-8")


def damage_tracking(rng: random.Random, base: Path) -> Damage:
    file = rng.choice(RECORDS)
    return damage_document(rng, file, (base / file).read_bytes())


def read_tracking(folder: Path) -> Any:
    return find_run(folder), read_curves(folder), failed_attempts(folder), read_scores(folder)


FORMATS = {
    "settings": Format(
        "settings (YAML)", make_settings, damage_settings, read_settings, (SettingsError,), check_settings
    ),
    "hostfile": Format("hostfiles", make_hosts, damage_hosts, read_hosts, (HostfileError,), check_hosts),
    "tracking": Format("records of runs", make_tracking, damage_tracking, read_tracking, (ValueError,)),
}
