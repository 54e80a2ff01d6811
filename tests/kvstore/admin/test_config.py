"""What the endpoint refuses to be configured as, and that it never tells a token."""

import traceback

import pytest

from kvstore.admin import AdminConfig, serve
from kvstore.admin.config import is_loopback
from tests.kvstore.admin.small_subject import SmallSubject

TOKEN, READ_TOKEN = "full-token-0123456789", "read-token-0123456789"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "localhost.example.org"])  # noqa: S104 - refused
def test_an_open_endpoint_is_refused_elsewhere_than_on_loopback(host):
    with pytest.raises(ValueError, match="no token is set"):
        AdminConfig(host=host)
    assert AdminConfig(host=host, token=TOKEN).host == host
    assert AdminConfig(host=host, read_token=TOKEN).host == host


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"]
)
def test_loopback(host):
    assert is_loopback(host)
    assert AdminConfig(host=host).is_open


@pytest.mark.parametrize(
    "host", ["", "0", "127.0.0.1.example.org", "2130706433", "::ffff:8.8.8.8", "localhosts"]
)
def test_what_is_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"token": "short"}, "token has 5 characters; at least 16"),
        ({"read_token": "short"}, "read_token has 5"),
        ({"token": "with a space in it, long"}, "without spaces"),
        ({"token": "with-ümlauts-and-long-enough"}, "ASCII"),
        ({"token": 5}, "must be a string"),
        ({"token": TOKEN, "read_token": TOKEN}, "must differ"),
        ({"port": -1}, "port must be"),
        ({"port": 65536}, "port must be"),
        ({"port": True}, "port must be"),
        ({"host": ""}, "host must be"),
        ({"max_body_bytes": 0}, "max_body_bytes must be"),
        ({"max_requests_per_s": -1}, "max_requests_per_s must be"),
        ({"max_requests_per_s": float("nan")}, "max_requests_per_s must be"),
        ({"max_listeners": 512}, "more than max_listeners"),
        ({"request_timeout_s": 0}, "request_timeout_s must be"),
        ({"show_text": 1}, "show_text must be"),
        ({"show_tenants": "yes"}, "show_tenants must be"),
    ],
)
def test_what_is_out_of_range_is_refused_with_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        AdminConfig(**settings)
    told = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in told.replace(__file__, "")


def test_a_token_is_no_part_of_a_representation():
    config = AdminConfig(token=TOKEN, read_token=READ_TOKEN)
    assert TOKEN not in repr(config) + str(config)
    assert READ_TOKEN not in repr(config) + str(config)


def test_a_port_that_is_taken_is_told_in_a_sentence():
    with (
        serve(SmallSubject(), AdminConfig(port=0)) as server,
        pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1 port {server.port}: "),
    ):
        serve(SmallSubject(), AdminConfig(port=server.port))


def test_a_host_that_does_not_exist_is_told_in_a_sentence():
    with pytest.raises(OSError, match=r"cannot listen on no\.such.host.invalid port 0"):
        serve(SmallSubject(), AdminConfig(host="no.such.host.invalid", port=0, token=TOKEN))
