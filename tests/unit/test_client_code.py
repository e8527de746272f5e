"""The client has the fields of the API, and its generated files are up to date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from img2img import client
from img2img.app.schemas import batches, events, responses
from img2img.domain.job_batch import BatchCounts

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "img2img" / "client"


@pytest.fixture(scope="module")
def generate_client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_client", ROOT / "scripts" / "generate_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date(generate_client: ModuleType) -> None:
    assert (CLIENT / "fields.py").read_text() == generate_client.fields_source(), "run `make client`"
    for name, sync_name in generate_client.SYNC_FILES.items():
        assert (CLIENT / sync_name).read_text() == generate_client.sync_source(name), "run `make client`"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (client.Job, responses.Job),
        (client.JobImage, responses.JobImage),
        (client.JobProgress, responses.JobProgress),
        (client.DryRun, responses.DryRunResult),
        (client.UploadedImage, responses.UploadedImage),
        (client.Batch, batches.Batch),
        (client.BatchCounts, BatchCounts),
        (client.BatchProgressEvent, batches.BatchProgressEvent),
        (client.JobBatch, responses.JobBatch),
        (client.QueuedEvent, events.QueuedEvent),
        (client.ProgressEvent, events.ProgressEvent),
        (client.PreviewEvent, events.PreviewEvent),
    ],
)
def test_responses_have_the_fields_that_the_service_sends(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    assert ours.model_fields.keys() == theirs.model_fields.keys()


def test_a_model_has_fields_that_the_service_sends() -> None:
    assert client.Model.model_fields.keys() <= responses.ServedModel.model_fields.keys()


def test_responses_keep_unknown_fields() -> None:
    job = client.Job.model_validate({"id": "a", "status": "queued", "mood": "fine"})
    assert job.model_dump(exclude_unset=True) == {"id": "a", "status": "queued", "mood": "fine"}
