"""Both clients against the API server, with a fake worker."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from PIL import Image

from img2img import Client
from img2img.client import Batch, InvalidRequest, Job, JobFailed, JobGone, QueuedEvent, ResultNotReady
from img2img.domain.job import JobStatus
from tests.support.blocking_client import BlockingAsyncClient
from tests.support.images import encoded, gradient

SIZE = {"width": 64, "height": 64}


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def api(request: pytest.FixtureRequest, http: httpx.Client) -> Iterator[Client]:
    """Each client, connected to the API server."""
    with request.param(str(http.base_url)) as client:
        yield client


@pytest.fixture
def png() -> bytes:
    return encoded(gradient(80, 60))


@pytest.mark.usefixtures("fake_worker")
def test_generate_returns_the_images(api: Client, png: bytes) -> None:
    images = api.generate(image=png, prompt="a house", num_images=2, **SIZE)
    assert [Image.open(BytesIO(image)).size for image in images] == [(64, 64)] * 2


@pytest.mark.usefixtures("fake_worker")
def test_job_from_submit_to_delete(api: Client, png: bytes) -> None:
    job = api.submit(image=png, prompt="a house", strength=0.5, seed=3, **SIZE)
    assert (job.status, job.request["seed"], job.priority) == (JobStatus.QUEUED, 3, "normal")
    *events, last = api.stream_events(job, preview=True)
    assert isinstance(last, Job)
    assert all(event.id == job.id for event in events)
    job = api.wait(job).raise_for_status()
    assert job == last
    assert job.progress.fraction == 1
    assert job.timings["denoise"] == 0.25
    [image] = job.images
    assert sha256(api.download(image)).hexdigest() == image.sha256
    assert api.download(job) == api.download(job.id, 0) == api.download_images(job.id)[0]
    assert Image.open(BytesIO(api.download(job, format="webp", quality=50))).format == "WEBP"
    assert [one.id for one in api.list_jobs(status="succeeded", limit=5)] == [job.id]
    api.delete(job)
    with pytest.raises(JobGone) as raised:
        api.get_job(job)
    assert (raised.value.status, raised.value.code) == (410, "deleted")


def test_cancelled_job_raises_job_failed_and_has_no_images(api: Client, png: bytes) -> None:
    job = api.submit(image=png)
    with pytest.raises(ResultNotReady):
        api.download_images(job)
    events = api.stream_events(job)
    assert isinstance(next(events), QueuedEvent)
    cancelled = api.cancel(job)
    assert list(events) == [cancelled]
    assert cancelled.has_ended
    with pytest.raises(JobFailed, match="the job was cancelled") as raised:
        cancelled.raise_for_status()
    assert (raised.value.job_id, raised.value.code) == (job.id, "cancelled")
    with pytest.raises(JobGone):
        api.download_images(job)


@pytest.mark.filterwarnings("error:Pydantic serializer warnings")
def test_submit_accepts_images_of_every_type(
    api: Client, png: bytes, tmp_path: Path, finish: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.png").write_bytes(png)
    monkeypatch.chdir(tmp_path)
    uploaded = api.upload_image(png)
    assert (uploaded.sha256, uploaded.width, uploaded.height) == (sha256(png).hexdigest(), 80, 60)
    with (tmp_path / "in.png").open("rb") as file:
        images = [png, "in.png", tmp_path / "in.png", file, Image.open(BytesIO(png)), uploaded, uploaded.sha256]
        inputs = {api.dry_run(image=image).request["image"] for image in images}
    assert len(inputs) == 1
    first = api.submit(image=png)
    finish(first.id)
    [image] = api.get_job(first).images
    assert api.dry_run(image=image, seed=1) == api.dry_run(image=image.url, seed=1)
    keyed = {"idempotency_key": "k", "seed": 1}
    assert api.submit(image=image, **keyed) == api.submit(image=image.url, **keyed)
    with pytest.raises(FileNotFoundError):
        api.submit(image="none.png")
    with pytest.raises(TypeError, match="an image is bytes"):
        api.submit(image=3)  # type: ignore[typeddict-item]


def test_repeated_idempotency_key_returns_the_same_job(api: Client, png: bytes) -> None:
    ids = {api.submit(image=png, idempotency_key=key).id for key in ("a", "a", "b")}
    assert len(ids) == 2


def test_list_models_returns_the_model_cards(api: Client) -> None:
    models = {model.name: model for model in api.list_models()}
    assert models["demo"].default
    assert models["ddim-only"].schedulers == ("ddim",)
    assert models["demo"].workers == ("test-worker",)


@pytest.mark.usefixtures("fake_worker")
def test_batch_from_submit_to_delete(api: Client, http: httpx.Client, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png)
    batch = api.batches.submit(
        [{"image": tmp_path / "photo.png", "seed": seed, "name": f"photo-{seed}", **SIZE} for seed in range(3)]
    )
    assert (batch.total, batch.has_ended) == (3, False)
    *_, last = events = list(api.batches.stream_events(batch))
    jobs = [event for event in events if isinstance(event, Job)]
    assert isinstance(last, Batch)
    assert last == api.batches.wait(batch) == api.batches.get(batch.id)
    assert {job.id for job in jobs} == {job.id for job in api.batches.jobs(batch, status="succeeded")}
    assert [job.batch.name for job in api.batches.jobs(batch) if job.batch] == ["photo-0", "photo-1", "photo-2"]
    api.batches.download(batch, tmp_path / "results.zip", format="jpeg")
    with ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist() == ["photo-0.jpg", "photo-1.jpg", "photo-2.jpg", "jobs.jsonl"]
    varied = api.batches.vary({"prompt": "a house", **SIZE}, {"image": [png], "strength": [0.5, 1]})
    assert [job.request["strength"] for job in api.batches.jobs(varied)] == [0.5, 1]
    assert [one.id for one in api.batches.list()] == [varied.id, batch.id]
    assert api.batches.wait(varied, timeout_s=60).counts.succeeded == 2
    assert api.batches.cancel(varied).has_ended
    api.batches.delete(batch)
    with pytest.raises(JobGone):
        api.batches.get(batch)
    with pytest.raises(JobGone):
        api.batches.download(batch, tmp_path / "none.zip")
    with pytest.raises(InvalidRequest) as raised:
        api.batches.submit([{"image": png}, {"image": png, "strength": 2}])
    assert raised.value.errors[0].field == "items.1.strength"
