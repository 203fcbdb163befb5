"""The service as programs use it: submit, watch, fetch, cancel, and every limit."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import finished, npy, png, settings

from modality_forcing import Pipeline
from modality_forcing.server.app import create_app
from modality_forcing.server.tasks import TASKS

FILES = {"rgb.png", "depth.npy", "depth.png", "depth_magma.png", "cloud.glb", "cloud.ply", "metadata.json"}


def submit(http: TestClient, task: str, status: int = 202, **fields: Any) -> dict[str, Any]:
    """One JSON submission with an expected answer."""
    answer = http.post(f"/v1/{task}", json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def done(http: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it is done."""
    view = finished(http.app.state.service, job["id"])
    assert view.state == "done", view.error
    return view.model_dump()


def fetch(http: TestClient, item: dict[str, Any], name: str) -> bytes:
    """One file of a result, of the length that the job says."""
    (file,) = [file for file in item["files"] if file["name"] == name]
    answer = http.get(file["url"])
    assert answer.status_code == 200
    assert len(answer.content) == file["bytes"]
    return answer.content


def test_joint_from_submission_to_files(http: TestClient) -> None:
    answer = http.post("/v1/joint", json={"prompt": ["a lake", "a hill"], "seed": 7, "previews": True})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    kinds, last = [], {}
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
                kinds.append(name)
            elif line.startswith("data: "):
                last = json.loads(line[6:])
                if name == "preview":
                    assert last["item"] in (0, 1)
                    for part in ("rgb", "depth"):
                        picture = Image.open(io.BytesIO(base64.b64decode(last[part])))
                        assert picture.size == (64, 64)
    assert last["state"] == "done"
    assert kinds[0] == kinds[-1] == "state"
    assert kinds.count("step") == 4
    assert kinds.count("preview") == 6  # two items, and the last step is the result itself
    assert [item["seed"] for item in last["items"]] == [7, 8]
    for item in last["items"]:
        assert {file["name"] for file in item["files"]} >= FILES
        metadata = json.loads(fetch(http, item, "metadata.json"))
        assert metadata["provenance"]["prompt"] == item["prompt"]
        assert metadata["provenance"]["seed"] == item["seed"]
        assert Image.open(io.BytesIO(fetch(http, item, "rgb.png"))).size == (64, 64)


def test_a_job_equals_the_pipeline_to_the_bit_when_alone(http: TestClient, tiny_model: Path) -> None:
    job = done(http, submit(http, "joint", prompt="a red ball", seed=11, steps=3, width=80, height=48))
    (expected,) = Pipeline.from_pretrained(tiny_model, device="cpu").joint(
        "a red ball", seed=11, steps=3, size=(80, 48)
    )
    (item,) = job["items"]
    found = np.load(io.BytesIO(fetch(http, item, "depth.npy")))
    np.testing.assert_array_equal(found, np.where(expected.mask, expected.depth, 0))
    rgb = np.asarray(Image.open(io.BytesIO(fetch(http, item, "rgb.png"))))
    np.testing.assert_array_equal(rgb, expected.rgb)


def test_its_request_repeats_a_job(http: TestClient) -> None:
    first = done(http, submit(http, "joint", prompt="a harbour", log2_alpha="none", guidance=1.5))
    request = dict(first["request"])
    again = done(http, submit(http, request.pop("task"), **request))
    one, two = (fetch(http, job["items"][0], "depth.npy") for job in (first, again))
    assert one == two


def test_image_to_depth_as_a_form(http: TestClient, picture: np.ndarray) -> None:
    answer = http.post(
        "/v1/i2d",
        files=[
            ("image", ("../../etc/passwd", png(picture))),
            ("image", ("b\r\nX: y.png", png(picture[::-1]))),
        ],
        data={"seed": "4", "steps": "2", "prompt": "", "fov_x": "50", "guidance": ""},
    )
    assert answer.status_code == 202, answer.text
    job = done(http, answer.json())
    assert len(job["items"]) == 2
    for item, pixels in zip(job["items"], (picture, picture[::-1]), strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(fetch(http, item, "rgb.png")))), pixels
        )
        camera = json.loads(fetch(http, item, "metadata.json"))["camera"]
        assert camera["fov_x"] == pytest.approx(50)


def test_depth_to_image_with_a_mask_and_metres(http: TestClient, ramp: np.ndarray) -> None:
    mask = np.zeros(ramp.shape, np.uint8)
    mask[:, 16:] = 255
    fields = {
        "prompt": "a street",
        "depth": base64.b64encode(npy((ramp * 1000).astype(np.uint16))).decode(),
        "mask": "data:image/png;base64," + base64.b64encode(png(mask)).decode(),
        "depth_kind": "depth",
        "depth_scale": 0.001,
    }
    job = done(http, submit(http, "d2i", **fields))
    (item,) = job["items"]
    depth = np.load(io.BytesIO(fetch(http, item, "depth.npy")))
    assert (depth[:, :16] == 0).all()
    np.testing.assert_allclose(depth[:, 16:], ramp[:, 16:], atol=2e-3)
    assert json.loads(fetch(http, item, "metadata.json"))["depth"]["unit"] == "m"
    assert "mask.png" in {file["name"] for file in item["files"]}


def test_complete_and_inpaint(http: TestClient, picture: np.ndarray, ramp: np.ndarray) -> None:
    sparse = np.where(np.arange(ramp.size).reshape(ramp.shape) % 7 == 0, ramp, 0).astype(np.float32)
    mask = np.zeros(ramp.shape, np.uint8)
    mask[16:32, 16:48] = 255
    files = {"image": ("a", png(picture)), "depth": ("b", npy(sparse))}
    answer = http.post("/v1/complete", files=files, data={"steps": "2", "depth_scale": "1", "previews": "1"})
    assert answer.status_code == 202, answer.text
    (item,) = done(http, answer.json())["items"]
    depth = np.load(io.BytesIO(fetch(http, item, "depth.npy")))
    np.testing.assert_allclose(depth[sparse > 0], sparse[sparse > 0], rtol=1e-4)
    assert (depth > 0).mean() > 0.5
    assert json.loads(fetch(http, item, "metadata.json"))["depth"]["unit"] == "m"
    files = {"image": ("a", png(picture)), "mask": ("b", png(mask))}
    answer = http.post("/v1/inpaint", files=files, data={"prompt": "a ball", "steps": "2", "feather": "0"})
    assert answer.status_code == 202, answer.text
    (item,) = done(http, answer.json())["items"]
    rgb = np.asarray(Image.open(io.BytesIO(fetch(http, item, "rgb.png"))))
    np.testing.assert_array_equal(rgb[mask == 0], picture[mask == 0])
    assert (rgb[mask > 0] != picture[mask > 0]).any()


def test_every_task_has_an_address_and_a_schema(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for task in TASKS.values():
        content = paths[f"/v1/{task.name}"]["post"]["requestBody"]["content"]
        for kind in ("application/json", "multipart/form-data"):
            assert {"prompt", "seed", "steps"} | {u.name for u in task.uploads} <= set(
                content[kind]["schema"]["properties"]
            )
    page = http.get("/docs").text
    assert all(f"/v1/{name}" in page for name in TASKS)
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype", "").replace("</", "")


def test_the_same_key_gives_the_same_job(http: TestClient) -> None:
    headers = {"Idempotency-Key": "order-77"}
    first = http.post("/v1/joint", json={"prompt": "a"}, headers=headers)
    again = http.post("/v1/joint", json={"prompt": "a"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/joint", json={"prompt": "b"}, headers=headers)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]


def test_health_models_metrics(http: TestClient) -> None:
    done(http, submit(http, "joint", prompt="", steps=1))
    assert http.get("/healthz").text == "ok\n"
    assert http.get("/readyz").status_code == 200
    (model,) = http.get("/v1/models").json()["models"]
    assert model["name"] == "tiny"
    assert model["defaults"]["steps"] == 4
    text = http.get("/metrics").text
    assert 'mf_jobs_total{state="done",task="joint"}' in text
    assert 'route="/v1/joint"' in text
    assert "mf_queue_length" in text


def test_a_job_is_deleted_with_its_files(http: TestClient) -> None:
    job = done(http, submit(http, "joint", prompt="", steps=1))
    folder = http.app.state.service.folder / job["id"]
    url = job["items"][0]["files"][0]["url"]
    assert folder.is_dir()
    assert http.get(url).status_code == 200
    assert http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert not folder.exists()
    assert http.get(url).status_code == http.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert http.delete(f"/v1/jobs/{job['id']}").status_code == 404


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"steps": 101}, "limit is 100"),
    ({"steps": 0}, "greater than or equal to 1"),
    ({"steps": 2.5}, "integer"),
    ({"width": 64}, "go together"),
    ({"width": 2064, "height": 500}, "2048"),
    ({"width": 1040, "height": 1024}, "limit is 1 million"),
    ({"width": 1024, "height": 64}, "10:1"),
    ({"width": 15, "height": 64}, "greater than or equal to 16"),
    ({"guidance": 101}, "less than or equal to 100"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": [1, 2]}, ""),
    ({"prompt": ["a"] * 17}, "limit is 16"),
    ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "differ in number"),
    ({"prompt": "a\0b"}, "control character"),
    ({"prompt": "x" * 10_001}, "10000"),
    ({"model": "other/model"}, "not served"),
    ({"log2_alpha": "left"}, "log2_alpha"),
    ({"fov_x": 180}, "less than 180"),
    ({"colour": 1}, "Extra inputs"),
    ({"image": "aGVsbG8="}, "Extra inputs"),
]


@pytest.mark.parametrize(("change", "says"), LIMITS, ids=[str(case[0])[:40] for case in LIMITS])
def test_limits_are_told(http: TestClient, change: dict[str, Any], says: str) -> None:
    answer = http.post("/v1/joint", json={"prompt": "a", "steps": 1} | change)
    if not says:  # one prompt for two seeds is fine
        assert answer.status_code == 202
        return
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["title"]) == (422, "Invalid request")
    assert says in body["detail"]


def test_keys_owners_and_rates(tiny_model: Path, tmp_path: Path) -> None:
    """Not started: what is tested happens before any computing."""
    keys = ("a" * 16, "b" * 16)
    app = create_app(settings(tiny_model, tmp_path, api_keys=keys, rate=3, max_queue=4, host="0.0.0.0"))
    http = TestClient(app, base_url="http://anything.example")
    a, b = ({"Authorization": f"Bearer {key}"} for key in keys)
    for headers in (
        {},
        {"Authorization": "Bearer wrong-wrong-wrong"},
        {"X-API-Key": ""},
        {"Authorization": "Basic ?"},
    ):
        answer = http.post("/v1/joint", json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/metrics", headers=headers).status_code == 401
    assert http.get("/healthz").status_code == 200
    assert http.get("/metrics", auth=("anybody", keys[1])).status_code == 200

    job = http.post("/v1/joint", json={"prompt": "a"}, headers=a).json()
    assert http.get(f"/v1/jobs/{job['id']}", headers=a).status_code == 200
    assert http.get(f"/v1/jobs/{job['id']}", headers=b).status_code == 404
    assert http.delete(f"/v1/jobs/{job['id']}", headers=b).status_code == 404
    assert http.post(f"/v1/jobs/{job['id']}/cancel", headers=b).status_code == 404
    assert [len(http.get("/v1/jobs", headers=h).json()) for h in (a, b)] == [1, 0]

    answers = [http.post("/v1/joint", json={"prompt": "a"}, headers=a) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    # The other key has a rate of its own, but the queue is one for all.
    answers = [http.post("/v1/joint", json={"prompt": "a"}, headers=b) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert "wait already" in answers[-1].json()["detail"]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert http.get("/readyz").status_code == 503
    app.state.service.close()


def test_names_and_pages_of_others_are_refused(http: TestClient) -> None:
    assert http.get("/v1/models", headers={"Host": "rebound.example"}).status_code == 403
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = http.post("/v1/joint", json={"prompt": "a", "steps": 1}, headers=headers)
        assert answer.status_code == 403, headers
    own = {"Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "same-origin"}
    assert http.post("/v1/joint", json={"prompt": "a", "steps": 1}, headers=own).status_code == 202
