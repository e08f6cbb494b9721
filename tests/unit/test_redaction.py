"""Secrets are taken out of whatever is shown, in each form in which a library may quote them."""

from __future__ import annotations

import pytest

from orchestrator.redaction import redact, redact_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("http://user:s%40c%2Fret@host/x", "http://***@host/x"),
        ("postgresql://user:se@cr/et@host/db", "postgresql://***@host/db"),
        ("mysql+pymysql://user@host/db", "mysql+pymysql://***@host/db"),
        ("at http://a:b@c and http://d:e@f", "at http://***@c and http://***@f"),
        ("http%3A%2F%2Fuser%3Asecret%40host%2Fx", "http%3A%2F%2F***%40host%2Fx"),
        ("http://h/?token=secret", "http://h/?token=***"),
        ("http://h/?a=1&Api_Key=secret&b=2", "http://h/?a=1&Api_Key=***&b=2"),
        ("http://h/?to%6ben=secret&b=2", "http://h/?to%6ben=***&b=2"),
        ("http://h/?sig=a%26b%3Dc&b=2", "http://h/?sig=***&b=2"),
        ("http://h/?X-Amz-Signature=secret", "http://h/?X-Amz-Signature=***"),
        ("http://h/?next=%3Ftoken%3Dsecret%26b%3D2", "http://h/?next=%3Ftoken%3D***%26b%3D2"),
        ("http://h/?page=2&size=10", "http://h/?page=2&size=10"),
        ("postgresql://h/db?user=u&password=secret&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("host=h password=secret dbname=d", "host=h password=*** dbname=d"),
        ("{'Authorization': 'Basic dTpzZWNyZXQ=', 'Accept': 'x'}", "{'Authorization': ***, 'Accept': 'x'}"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("x-api-key: abcdef", "x-api-key: ***"),
        ("sent Bearer abc123.def", "sent Bearer ***"),
        ("sqlite:////home/me@work/mlruns/mlflow.db", "sqlite:////home/me@work/mlruns/mlflow.db"),
        ("file:///home/me@work/artifacts", "file:///home/me@work/artifacts"),
        ("Basic use of a store", "Basic use of a store"),
        ("the store http://h:5000 refuses: no such run", "the store http://h:5000 refuses: no such run"),
    ],
)
def test_what_is_secret_is_not_shown_and_the_rest_is(text: str, expected: str) -> None:
    assert redact_uri(text) == expected
    assert redact_uri(expected) == expected


@pytest.mark.parametrize(
    "form", ["hun/ter 2", "hun%2Fter%202", "hun%2Fter+2", "Ym9iOmh1bi90ZXIgMg==", "hun/ter%202"]
)
def test_the_environments_own_secrets_are_found_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A password, as it is, quoted, and in the header that it is sent in (base64 of `bob:hun/ter 2`)."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:hun%2Fter%202@host")
    assert redact(f"a header says {form!r} here") == "a header says '***' here"
    assert redact("bob has a bobbin, and the hunter 2 dogs") == "bob has a bobbin, and the hunter 2 dogs"


def test_secrets_of_variables_too_but_no_switches_and_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MLFLOW_TRACKING_TOKEN": "abcdefgh",
        "MLFLOW_TRACKING_PASSWORD": "pq",
        "AWS_SECRET_ACCESS_KEY": "ijklmnop",
        "TOKENIZERS_PARALLELISM": "false",
        "SOME_TOKEN_FILE": "/etc/hosts",
    }.items():
        monkeypatch.setenv(name, value)
    text = "abcdefgh, ijklmnop, false, /etc/hosts, pq index"
    assert redact(text) == "***, ***, false, /etc/hosts, pq index"
