"""The explorer's answers are the model's own, in both languages, and its server refuses what is not its page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.embed.embed import embed
from pipeline.embed.read import read_embeddings
from pipeline.embed.sources import parts_of
from pipeline.evaluation.models.load import load_model
from pipeline.explore import index
from pipeline.explore.answers import Explored
from pipeline.explore.app import Explorer, make_app
from pipeline.explore.index import ExactIndex
from tests.data.shards import image_bytes
from tests.exported_model import exported_model

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    """Two models over the same images, one of which has a name that would be HTML."""
    root = tmp_path_factory.mktemp("explore")
    photos = root / "数据"
    photos.mkdir()
    for number, name in enumerate(("cat.jpg", "猫.jpg", "z.jpg", f"{EVIL}.jpg")):
        (photos / name).write_bytes(image_bytes(number))
    made = []
    for seed in (0, 1):
        model = load_model(exported_model(root / f"model{seed}", seed))
        model.module.patch_budgets = model.patch_budgets  # the export of a run holds them
        embed(model, parts_of([photos], 4096, False), root / f"embeddings{seed}")
        made.append(Explored(f"model {seed} {EVIL}", model, read_embeddings(root / f"embeddings{seed}")))
    return Explorer(made)


@pytest.fixture
def client(explorer):
    return TestClient(make_app(explorer), base_url="http://127.0.0.1")


def test_exact_search_finds_the_nearest_in_order():
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = ExactIndex(vectors).search(vectors[7], 5)
    order = np.argsort(-(vectors @ vectors[7]), kind="stable")[:5]
    assert [one.row for one in found] == order.tolist() and found[0].score == pytest.approx(1, abs=1e-5)
    assert ExactIndex(vectors[:2]).search(vectors[0], 9)[0].row == 0
    assert ExactIndex(np.zeros((0, 8), np.float32)).search(vectors[0], 3) == []


def test_the_index_of_clusters_finds_nearly_all_of_the_nearest(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index, "EXACT_ROWS", 1000)
    draws = np.random.default_rng(0)
    vectors = np.repeat(draws.normal(size=(60, 16)), 50, axis=0) + 0.3 * draws.normal(size=(3000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    made = index.make_index(vectors)
    assert isinstance(made, index.ClusteredIndex) and isinstance(index.make_index(vectors[:1000]), ExactIndex)
    both = [(made.search(query, 10), ExactIndex(vectors).search(query, 10)) for query in vectors[::100]]
    right = sum(len({one.row for one in found} & {one.row for one in exact}) for found, exact in both)
    assert right >= 0.95 * 10 * len(both)
    assert all(found[0].score == pytest.approx(exact[0].score, abs=1e-3) for found, exact in both)  # half precision


@pytest.mark.parametrize("text", ["a red cat", "红猫"])
def test_text_search_ranks_by_each_models_cosine(client, explorer, text):
    answer = client.post("/search/text", json={"text": text, "count": 4}).json()
    assert [one["name"] for one in answer["models"]] == [one.name for one in explorer.models]
    for one, explored in zip(answer["models"], explorer.models, strict=True):
        query = explored.model.module.encode_text([text]).embeds[0].numpy()
        cosines = explored.data.vectors @ query
        assert [hit["row"] for hit in one["results"]] == np.argsort(-cosines, kind="stable").tolist()
        assert one["results"][0]["score"] == pytest.approx(float(cosines.max()), abs=1e-4)


def test_an_image_finds_itself_and_its_picture_is_served(client):
    answer = client.post("/search/image", json={"image": {"model": 1, "row": 2}}).json()
    for one in answer["models"]:
        assert one["results"][0]["row"] == 2 and one["results"][0]["score"] == pytest.approx(1, abs=1e-3)
    picture = client.get("/image/1/2?small")
    assert picture.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.size == (64, 48)


def test_a_box_is_scored_against_phrases_as_the_model_does(client, explorer):
    phrases = ["a red cat", "a blue cat", "红猫", "蓝猫", "a red cat"]
    box = [0.1, 0.1, 0.6, 0.9]
    answer = client.post("/score", json={"image": {"row": 0}, "box": box, "phrases": phrases}).json()
    one, model = answer["models"][0], explorer.models[0].model
    assert len(one["phrases"]) == 4 and sum(row["share"] for row in one["phrases"]) == pytest.approx(1, abs=1e-4)
    with Image.open(io.BytesIO(explorer.models[0].data.item(0).read())) as image:
        region = model.module.encode_regions(image.convert("RGB"), [box], box_format="normalised").embeds[0]
    for row in one["phrases"]:
        text = model.module.encode_text([row["phrase"]], kind="region").embeds[0]
        # transformers' processor and the project's own resize differ by rounding
        assert row["cosine"] == pytest.approx(float(region @ text), abs=2e-3)
    near = client.post("/search/image", json={"image": {"row": 0}, "box": box, "count": 2}).json()
    assert len(near["models"][0]["results"]) == 2


def test_a_phrase_has_a_map_and_an_own_image_can_be_sent(client):
    sent = client.post("/upload", content=image_bytes(9), headers={"content-type": "application/octet-stream"}).json()
    assert (sent["width"], sent["height"]) == (64, 48)
    answer = client.post("/heat", json={"image": {"upload": sent["upload"]}, "phrase": "红色的杯子"}).json()
    for one in answer["models"]:
        assert one["image"].startswith("data:image/jpeg;base64,") and -1.01 <= one["low"] < one["high"] <= 1.01
    assert client.get(f"/sent/{sent['upload']}").status_code == 200


def test_wrong_questions_are_one_line_and_no_traceback(client):
    for path, question, words in (
        ("/search/text", {"text": ""}, "text"),
        ("/search/text", {"text": "a", "kind": "x"}, "kind"),
        ("/score", {"image": {"row": 99}, "phrases": ["a"]}, "no such image"),
        ("/score", {"image": {"row": -1}, "phrases": ["a"]}, "no such image"),
        ("/score", {"image": {"row": 0}, "box": [0.5, 0, 0.5, 1], "phrases": ["a"]}, "draw it again"),
        ("/heat", {"image": {"upload": "77"}, "phrase": "a"}, "send it again"),
    ):
        answer = client.post(path, json=question)
        assert answer.status_code == 400 and words in answer.json()["error"]
    broken = client.post("/upload", content=b"nonsense", headers={"content-type": "application/octet-stream"})
    assert broken.status_code == 400 and "error" in broken.json()


def test_other_pages_cannot_use_the_server(explorer, client):
    elsewhere = TestClient(make_app(explorer), base_url="http://evil.example")
    assert elsewhere.get("/").status_code == 400, "a name that was pointed at this machine"
    form = client.post("/search/text", content=b'{"text": "a"}', headers={"content-type": "text/plain"})
    assert form.status_code == 415, "a form of another page is sent without asking only as text"
    assert client.post("/upload", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"] and "http" not in page.text
    assert client.get("/../app.py").status_code == 404 and client.get("/app.py").status_code == 404


def test_a_model_without_data_still_scores(explorer):
    alone = Explorer([Explored("one", explorer.models[0].model)])
    client = TestClient(make_app(alone), base_url="http://localhost")
    assert client.post("/facts", json={}).json() == {"models": [{"name": "one", "images": 0}]}
    assert "--data" in client.post("/search/text", json={"text": "a"}).json()["error"]
    sent = client.post("/upload", content=image_bytes(1), headers={"content-type": "application/octet-stream"}).json()
    assert client.post("/score", json={"image": {"upload": sent["upload"]}, "phrases": ["a", "b"]}).status_code == 200
