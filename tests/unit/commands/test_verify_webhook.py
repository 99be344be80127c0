"""`tollway verify-webhook`: what fits is verified, and nothing that was changed."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from billing.webhooks.signing import encode_secret, sign
from gateway.cli import build_app

KEY = bytes(range(32))
BODY = b'{"type":"invoice.paid"}'


def verify(
    tmp_path: Path, *words: str, body: bytes = BODY, at_s: int | None = None, secret: str | None = None
) -> Result:
    signed = sign([KEY], "evt_1", int(time.time()) if at_s is None else at_s, BODY)
    (tmp_path / "body").write_bytes(body)
    told = {"--id": "webhook-id", "--timestamp": "webhook-timestamp", "--signature": "webhook-signature"}
    options = [word for option, header in told.items() for word in (option, signed[header])]
    command = ["verify-webhook", str(tmp_path / "body"), *options, *words]
    environment = {"TOLLWAY_WEBHOOK_SECRET": encode_secret(KEY) if secret is None else secret}
    return CliRunner().invoke(build_app("verify-webhook"), command, env=environment)


def test_a_message_that_fits_is_verified(tmp_path: Path) -> None:
    result = verify(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "evt_1: verified\n")


def test_an_old_one_only_when_its_age_is_not_asked(tmp_path: Path) -> None:
    assert verify(tmp_path, at_s=1_700_000_000).exit_code == 1
    assert verify(tmp_path, "--ignore-age", at_s=1_700_000_000).exit_code == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"body": BODY + b" "}, "no signature fits"),
        ({"secret": encode_secret(bytes(32))}, "no signature fits"),
        ({"secret": "whsec_??"}, "not whsec_ and base64"),
        ({"secret": "whsec_AAAA"}, "24 to 64 bytes"),
        ({"secret": ""}, "TOLLWAY_WEBHOOK_SECRET is not set"),
    ],
)
def test_what_does_not_fit_is_named_and_no_secret_is_shown(
    tmp_path: Path, change: dict[str, bytes | str], text: str
) -> None:
    result = verify(tmp_path, **change)  # type: ignore[arg-type]
    assert result.exit_code == 1
    assert text in result.stderr
    assert encode_secret(KEY)[6:] not in result.output
