from __future__ import annotations

import pytest

from tats_core.addresses import check, masked
from tats_core.errors import SpecError


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("http://me:hidden@mlflow:5000/a", "http://mlflow:5000/a"),
        ("http://me:hid@den@mlflow:5000/a", "http://mlflow:5000/a"),
        ("http://me:hid/den#?@mlflow:5000", "http://mlflow:5000"),
        ("http://me:123456/7@mlflow:5000/", "http://mlflow:5000/"),
        ("http://me:12#hidden@mlflow:5000/", "http://mlflow:5000/"),
        ("http://hiddentoken@mlflow:5000/", "http://mlflow:5000/"),
        ("http://mlflow:5000/team@home", "http://mlflow:5000/team@home"),
        ("sqlite:////srv/me@home/mlflow.db", "sqlite:////srv/me@home/mlflow.db"),
        ("http://me:hid'den<\">@mlflow:5000/", "http://mlflow:5000/"),
        ("postgresql://db/m?user=me&password=hidden&a=b", "postgresql://db/m?user=me&password=***&a=b"),
        ("s3 'https://b.test/k?X-Amz-Signature=hidden'", "s3 'https://b.test/k?X-Amz-Signature=***'"),
        ("http://mlflow:5000/?access_token=hidden#top", "http://mlflow:5000/?access_token=***#top"),
        (
            "no answer of 'postgresql://a:hidden@c/d' (tried http://a:hidden@c); write to me@example.org",
            "no answer of 'postgresql://c/d' (tried http://c); write to me@example.org",
        ),
    ],
)
def test_text_is_shown_without_the_users_and_passwords_of_addresses(text, printed):
    assert masked(text) == printed


def test_the_secrets_of_the_environment_are_masked_wherever_a_library_repeats_them(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hid%64en@mlflow:port")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    text = "Failed to parse: me:hid%64en@mlflow:port; header 'Bearer t0ken'; user me, password hidden"
    assert masked(text) == (
        "Failed to parse: me:***@mlflow:port; header 'Bearer ***'; user me, password ***"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("user", "printed"),
    [("me:hid'den", "me:***"), ('me:hid"d<en>', "me:***"), ("hiddentoken", "***"), ("hidden%20token", "***")],
)
def test_a_password_with_quotes_and_a_user_that_is_a_token_are_masked_in_sentences(
    monkeypatch, user, printed
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}@mlflow:5000")
    assert masked(f"'http://{user}@mlflow:5000/api' fails for {user}") == (
        f"'http://mlflow:5000/api' fails for {printed}"
    )


def test_a_secret_too_short_to_be_one_changes_no_words(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a")
    assert masked("a data set") == "a data set"


@pytest.mark.parametrize(
    "uri",
    ["http://host", "https://host:1/path", "sqlite:////srv/a.db", "host:6379", "auto", "http://[::1]:5"],
)
def test_an_address_is_accepted(uri):
    assert check(uri, "--address") == uri


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://me:hidden@host:port", "'http://host:port' has an impossible port"),
        ("http://host:70000", "'http://host:70000' has an impossible port"),
        ("http://:5000", "'http://:5000' names no host"),
        ("http://host\nkind: Pod", r"'http://host\\nkind: Pod' must not hold spaces, line breaks"),
    ],
)
def test_what_cannot_be_an_address_is_refused_without_repeating_its_password(uri, problem):
    with pytest.raises(SpecError, match=f"^--address {problem}") as error:
        check(uri, "--address")
    assert "hidden" not in str(error.value)
