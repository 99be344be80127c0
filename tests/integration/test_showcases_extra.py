"""The showcases that are built by name, in the real engine. Long: their packages have 100 MB in all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gateway.commands.oip_client import HEADER_LENGTH, Output, TensorMeta, decode_reply, encode_call
from model_repo.build import CACHE, build
from model_repo.recipes import SHOWCASES, read_recipes
from tests.integration.engine_process import running_process

ROOT = Path(__file__).parents[2]
IMAGE = TensorMeta(name="IMAGE", datatype="BYTES", shape=(1,))
TEXT = TensorMeta(name="TEXT", datatype="BYTES", shape=(-1,))
EXTRA = [recipe for recipe in read_recipes() if recipe.name in {"image_classifier", "sentence_embedding"}]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    build(EXTRA, models, ROOT / CACHE, lambda _label, _have, _total: None)
    with running_process(tmp_path_factory.mktemp("extra"), models) as process:
        transport = httpx.HTTPTransport(uds=str(process.path))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=100) as client:
            yield client
        assert process.stop() == 0


def ask(client: httpx.Client, model: str, meta: TensorMeta, *items: bytes) -> dict[str, Output]:
    body, head_bytes = encode_call(meta, items)
    reply = client.post(f"/v2/models/{model}/infer", content=body, headers={HEADER_LENGTH: str(head_bytes)})
    assert reply.status_code == 200, reply.text
    return {one.name: one for one in decode_reply(reply.content, int(reply.headers[HEADER_LENGTH]))}


def test_they_are_extras() -> None:
    assert [recipe.is_extra for recipe in EXTRA] == [True, True]


def test_an_image_gets_the_names_that_the_published_network_gives(client: httpx.Client) -> None:
    """No person is among ImageNet's classes: a collar is what it sees."""
    found = ask(client, "image_classifier", IMAGE, (SHOWCASES / "samples" / "face.jpg").read_bytes())
    assert found["LABEL"].values[0] == b"neck brace"
    scores = np.asarray(found["SCORE"].values, dtype=np.float64)
    assert scores[0] == pytest.approx(0.150, abs=0.01)
    assert list(scores) == sorted(scores, reverse=True)


def test_like_meaning_is_like_direction(client: httpx.Client) -> None:
    texts = (b"A man is eating food.", b"Someone is having a meal.", b"The invoice is due in May.")
    found = ask(client, "sentence_embedding", TEXT, *texts)["EMBEDDING"]
    rows: Any = np.asarray(found.values, dtype=np.float64).reshape(3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.6
    assert abs(rows[0] @ rows[2]) < 0.3
    alone = ask(client, "sentence_embedding", TEXT, texts[0])["EMBEDDING"]
    np.testing.assert_allclose(np.asarray(alone.values), rows[0], atol=1e-5)
