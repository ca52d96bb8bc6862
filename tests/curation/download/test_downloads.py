"""The downloader against servers that misbehave: every body whole or a reason, in order, within its limits."""

import contextlib
import datetime
import email.utils
import gzip
import io
import pickle
import socket
import threading
import time

import pytest
from loopback import serving
from PIL import Image

from granary.curation.download import Download, DownloadError, Downloads, guard, headers

MAX = 1 << 20
QUICK = Download(connect_timeout=5, read_timeout=5, total_timeout=30, retries=0, backoff=0.01)


def gif():
    frames = [Image.effect_noise((64, 64), 90) for _ in range(4)]
    frames[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def send(handler, data=b"", status=200, length=True, **fields):
    handler.send_response(status)
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), value)
    if length:
        handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextlib.contextmanager
def downloads(options=QUICK, max_bytes=MAX, private=True):
    opened = Downloads(options, max_bytes, private)
    try:
        yield opened
    finally:
        opened.close()


def kind_of(opened, address):
    with pytest.raises(DownloadError) as caught:
        opened.read(address)
    assert "://" not in str(caught.value)  # no address in what is stored
    return caught.value.kind


def in_parts(handler):
    """As the fault's server: /length, /chunked, /nolength, in four parts with pauses; /cut-MODE ends after two."""
    mode, data = handler.path.strip("/").removeprefix("cut-"), gif()
    handler.send_response(200)
    known = {"chunked": ("Transfer-Encoding", "chunked"), "nolength": ("Connection", "close")}
    handler.send_header(*known.get(mode, ("Content-Length", str(len(data)))))
    handler.end_headers()
    step = len(data) // 4 + 1
    parts = [data[start : start + step] for start in range(0, len(data), step)]
    for part in parts[: 2 if "cut" in handler.path else None]:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if mode == "chunked" else part)
        handler.wfile.flush()
        time.sleep(0.05)
    if mode == "chunked" and "cut" not in handler.path:
        handler.wfile.write(b"0\r\n\r\n")
    handler.close_connection = mode == "nolength" or "cut" in handler.path


def test_bodies_in_parts_come_whole_or_not_at_all():
    with serving(in_parts) as (base, _), downloads() as opened:
        for mode in ("length", "chunked", "nolength"):
            assert opened.read(f"{base}/{mode}")[-1:] == b";"
            assert kind_of(opened, f"{base}/cut-{mode}") == "CutShort"


@pytest.mark.parametrize("status", [503, 429, 500, 404, 410, 403, 451])
def test_a_status_is_the_reason_and_only_what_can_pass_is_tried_again(status):
    with serving(lambda handler: send(handler, status=status)) as (base, asked):
        with downloads(QUICK.model_copy(update={"retries": 2})) as opened:
            assert kind_of(opened, f"{base}/x") == f"HTTP {status}"
        assert len(asked) == (3 if status in (503, 429, 500) else 1)


@pytest.mark.parametrize("form", ["seconds", "date", "too long", "nonsense"])
def test_a_server_that_asks_for_patience_gets_it(form):
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    written = {"seconds": "1", "date": email.utils.format_datetime(then, usegmt=True), "too long": "86400"}.get(
        form, "x"
    )
    times = []

    def answer(handler):
        times.append(time.monotonic())
        send(handler, b"ok") if len(times) > 1 else send(handler, status=429, Retry_After=written)

    with serving(answer) as (base, _), downloads(QUICK.model_copy(update={"retries": 1})) as opened:
        if form == "too long":
            assert kind_of(opened, f"{base}/x") == "HTTP 429"
        else:
            assert opened.read(f"{base}/x") == b"ok"
            assert times[1] - times[0] >= {"seconds": 1, "date": 0.9}.get(form, 0)


def test_a_silent_server_costs_its_own_addresses_alone_and_not_for_long():
    with socket.create_server(("127.0.0.1", 0)) as silent, serving(lambda handler: send(handler, b"ok")) as (base, _):
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        addresses = [url for i in range(40) for url in (f"{address}/{i}", f"{base}/{i}")]
        with downloads(QUICK.model_copy(update={"retries": 2, "read_timeout": 0.4})) as opened:
            opened.expect(addresses)
            kinds = []
            for url in addresses:
                try:
                    opened.read(url)
                except DownloadError as error:
                    kinds.append((url.startswith(address), error.kind, error.passing))
        silent_addresses = [kind for mine, kind, _ in kinds if mine]
        assert len(silent_addresses) == 40
        assert silent_addresses.count("SilentHost") >= 20  # most of them cost no time at all
        assert {kind for _, kind, _ in kinds} == {"TimeoutError", "SilentHost"}
        assert all(mine and passing for mine, _, passing in kinds)


def test_a_body_that_drips_is_given_up_at_the_total_limit():
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    with serving(drip) as (base, _), downloads(QUICK.model_copy(update={"total_timeout": 0.6})) as opened:
        assert kind_of(opened, f"{base}/x") == "TimeoutError"


def test_what_is_no_http_is_a_reason():
    def rude(handler):
        handler.wfile.write({"/rude": b"SSH-2.0-x\r\n", "/reset": b""}[handler.path])
        handler.close_connection = True

    with serving(rude) as (base, _), downloads() as opened:
        assert kind_of(opened, f"{base}/rude") == "BadAnswer"
        assert kind_of(opened, f"{base}/reset") == "ConnectionError"
        assert kind_of(opened, "http://127.0.0.1:1/x") == "ConnectionError"
        assert kind_of(opened, base.replace("http", "https") + "/x") in ("TLSError", "ConnectionError")
        for address in ("http://", "http://[::1/x", "http://a b/x", "http://" + "a" * 300, "http://\udcff/x"):
            assert kind_of(opened, address) in ("BadAddress", "UnknownHost")


@pytest.mark.parametrize("length", [True, False])
def test_large_files_are_not_read_through(length):
    def answer(handler):
        send(handler, b"x" * 5000, length=length, Connection="close")
        handler.close_connection = True

    with serving(answer) as (base, _):
        with downloads(max_bytes=4999) as opened:
            assert kind_of(opened, f"{base}/x") == "TooManyBytes"
        with downloads(QUICK.model_copy(update={"max_bytes": 4999})) as opened:
            assert kind_of(opened, f"{base}/x") == "TooManyBytes"
        with downloads(max_bytes=5000) as opened:
            assert len(opened.read(f"{base}/x")) == 5000


def test_a_small_body_that_unpacks_to_a_large_one_is_stopped():
    packed = gzip.compress(bytes(50 << 20))
    with serving(lambda handler: send(handler, packed, Content_Encoding="gzip")) as (base, _), downloads() as opened:
        assert kind_of(opened, f"{base}/x") == "TooManyBytes"


def test_many_at_a_time_in_the_order_they_were_announced():
    busy, most, lock = [0], [0], threading.Lock()

    def answer(handler):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.02 + 0.1 * (handler.path in ("/0", "/50")))
        with lock:
            busy[0] -= 1
        send(handler, handler.path.encode())

    with serving(answer) as (base, _), downloads(QUICK.model_copy(update={"per_host": 5})) as opened:
        addresses = [f"{base}/{i}" for i in range(100)] + [f"{base}/7"]
        opened.expect(addresses)
        assert [opened.read(url) for url in addresses] == [url.removeprefix(base).encode() for url in addresses]
    assert 2 <= most[0] <= 5


def test_what_nobody_takes_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("granary.curation.download.client.HELD_BYTES", 20_000)
    monkeypatch.setattr("granary.curation.download.client.MOST_BYTES", 60_000)
    with serving(lambda handler: send(handler, b"x" * 10_000)) as (base, asked), downloads() as opened:
        addresses = [f"{base}/{i}" for i in range(200)]
        opened.expect(addresses)
        time.sleep(0.5)
        assert len(asked) < 40
        assert {len(opened.read(url)) for url in reversed(addresses)} == {10_000}  # the wrong way round works, too


def test_loopback_private_and_link_local_peers_are_refused_by_address_name_and_redirect(monkeypatch):
    def answer(handler):
        send(handler, b"secret") if handler.path == "/x" else send(handler, status=302, Location="http://127.0.0.1/x")

    with serving(answer) as (base, asked), downloads(private=False) as opened:
        port = base.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"):
            assert kind_of(opened, f"http://{host}:{port}/x") == "PrivateAddress"
        assert kind_of(opened, f"http://2130706433:{port}/x") in ("BadAddress", "PrivateAddress")
        assert asked == []
        checked = iter([True, False])
        monkeypatch.setattr(guard, "is_public", lambda address: next(checked))
        assert kind_of(opened, f"{base}/redirect") == "PrivateAddress"  # the first peer passes for a public one
        assert asked == ["/redirect"]


def test_a_name_that_resolves_anew_is_checked_where_it_is_connected_to(monkeypatch):
    """DNS rebinding: whatever was resolved and checked before, the peer of the connection decides."""
    from aiohttp.resolver import ThreadedResolver

    async def rebound(self, host, port=0, family=0):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(ThreadedResolver, "resolve", rebound)
    with serving(lambda handler: send(handler, b"secret")) as (base, asked), downloads(private=False) as opened:
        assert kind_of(opened, f"http://example.org:{base.rpartition(':')[2]}/x") == "PrivateAddress"
        assert asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1")),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *((address, False) for address in ("100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::")),
        *((address, False) for address in ("fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1")),
        *((address, False) for address in ("2002:7f00:1::1", "ff02::1", "198.18.0.1", "192.0.2.1")),
    ],
)
def test_public_addresses(address, public):
    assert guard.is_public(address) is public


def test_redirects_are_followed_up_to_a_number_and_only_to_http():
    def answer(handler):
        step = handler.path[1:]
        if step.isdigit() and int(step):
            send(handler, status=302, Location=f"/{int(step) - 1}")
        elif step == "file":
            send(handler, status=302, Location="file:///etc/passwd")
        else:
            send(handler, b"here")

    with serving(answer) as (base, _), downloads(QUICK.model_copy(update={"redirects": 3})) as opened:
        assert opened.read(f"{base}/2") == b"here"
        assert kind_of(opened, f"{base}/9") == "TooManyRedirects"
        assert kind_of(opened, f"{base}/file") == "BadAddress"


def test_who_asks_and_who_does_not_want_to_be_taken():
    seen = []

    def answer(handler):
        seen.append(handler.headers["User-Agent"])
        send(
            handler,
            b"ok",
            X_Robots_Tag={"/a": "noindex, noai", "/b": "otherbot: noimageai", "/c": "none"}[handler.path],
        )

    with serving(answer) as (base, _):
        with downloads(QUICK.model_copy(update={"user_agent": "curator/2.0"})) as opened:
            assert kind_of(opened, f"{base}/a") == "RobotsTag"
            assert opened.read(f"{base}/b") == opened.read(f"{base}/c") == b"ok"
        with downloads(QUICK.model_copy(update={"refused_tags": ()})) as opened:
            assert opened.read(f"{base}/a") == b"ok"
    assert seen == ["curator/2.0"] * 3 + ["granary"]


def test_rules_of_robots_tags():
    values = ["max-image-preview: large, NoAI", "granary: noimageai, nofollow", "other: noindex, nosnippet"]
    assert headers.robots_tags(values, "granary/1") == {"max-image-preview", "noai", "noimageai", "nofollow"}


def test_an_address_goes_on_the_wire_as_it_is_signed():
    with serving(lambda handler: send(handler, b"ok")) as (base, asked), downloads() as opened:
        for path in ("/a%2Fb?sig=x%3D%7E", "/a%20b", "/a b", "/ä"):
            assert opened.read(base + path) == b"ok"
    assert asked == ["/a%2Fb?sig=x%3D%7E", "/a%20b", "/a%20b", "/%C3%A4"]


def test_nothing_runs_on_after_the_end_and_the_next_read_begins_anew():
    def slow(handler):
        time.sleep(0.2 if handler.path != "/now" else 0)
        send(handler, b"ok")

    with serving(slow) as (base, _), downloads() as opened:
        opened.expect(f"{base}/{i}" for i in range(50))
        opened.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("granary-downloads")]
        assert opened.read(f"{base}/now") == b"ok"


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DownloadError("HTTP 503", "the server answers 503", 2.0)))
    assert (error.kind, str(error), error.wait, error.passing) == ("HTTP 503", "the server answers 503", 2.0, True)
