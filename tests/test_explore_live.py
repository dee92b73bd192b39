"""Live pages: what the server refuses, what the calls answer, and the page of images in a real browser."""

import http.client
import io
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

import flowknife as fk
from flowknife.errors import InputError
from flowknife.explore import Folder, Live, application, as_json, packed, seed_of, serve
from flowknife.explore._images import Cloud
from flowknife.explore._live import answer, unpacked
from tests.fuzz import changed_bytes
from tests.pages import EVIL, browser
from tests.test_golden import GOLDEN, items_of

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "flowknife[explore]"')

RUNS = GOLDEN / "format-3"
SHAPE = (6, 6, 1)


@contextmanager
def served(live, token=None):
    """The address of a server that runs in a thread."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        app = application(live, None if token else frozenset({place}), token)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://{place}"
        finally:
            server.should_exit = True
            thread.join()


def asked(address, path="/api/double", body=b'{"x": 2}', **headers):
    """Status and content of a reply; the headers are those of the page, unless they are given; None leaves one out."""
    own = {"Origin": address, "Content-Type": "application/json"} if body is not None else {}
    sent = {name.replace("_", "-"): value for name, value in (own | headers).items() if value is not None}
    request = urllib.request.Request(address + path, data=body, headers=sent)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def double(x):
    if isinstance(x, str):
        raise InputError(f"got {EVIL}")
    return 2 * np.asarray(x)


PLAIN = Live("a page", "{}", {"double": double})


# -- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    with served(PLAIN) as address:
        yield address


def test_a_question_of_the_page_is_answered(plain):
    assert asked(plain) == (200, b"4")
    numbers = np.array([1.5, -2.0])
    status, found = asked(plain, body=json.dumps(packed({"x": numbers})).encode())
    assert status == 200 and json.loads(found) == packed(2 * numbers)


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (421, "/api/double", {"Host": "evil.example"}),  # a name that was pointed at this machine
        (403, "/api/double", {"Origin": "http://evil.example"}),
        (403, "/api/double", {"Origin": None}),
        (403, "/api/double", {"Sec_Fetch_Site": "cross-site"}),
        (403, "/api/double", {"Content_Type": "text/plain"}),  # what a form of another page can send
        (404, "/api/../../etc/passwd", {}),
        (404, "/api/%2e%2e%2fetc%2fpasswd", {}),
        (404, "/api/__class__", {}),
        (404, "/etc/passwd", {}),
    ],
)
def test_strangers_are_refused(plain, status, path, headers):
    found, text = asked(plain, path, **headers)
    assert found == status and b"root" not in text and text != b"4"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"y": 1}',
        b'{"x": 1, "y": 1}',
        b"[" * 100_000,
        b'{"x": {"f8": "?"}}',
        b'{"x": {"f8": "AAAA"}}',
    ],
)
def test_questions_that_are_none_are_refused_in_words(plain, body):
    status, text = asked(plain, body=body)
    assert status == 400 and "got " in json.loads(text)["error"]


@pytest.mark.parametrize("x", [b"1e400", b'{"a": 1}', b"[[1], [2, 3]]", b"[" + b"[]," * 2**20 + b"1]"])
def test_questions_of_a_wrong_kind_are_refused_in_words(x):
    with pytest.raises(InputError, match="got "):
        answer(lambda x: seed_of(x), b'{"x": ' + x + b"}")


def test_an_answer_is_json_that_a_browser_reads():
    found = answer(lambda: {"value": float("nan"), "limit": np.float64("inf"), "x": np.array([np.nan])}, b"{}")
    assert json.loads(found, parse_constant=pytest.fail) | {"x": None} == {"value": None, "limit": None, "x": None}


def test_large_questions_are_refused_before_they_are_read(plain):
    connection = http.client.HTTPConnection(plain.removeprefix("http://"))
    connection.putrequest("POST", "/api/double")
    for name, value in (("Origin", plain), ("Content-Type", "application/json"), ("Content-Length", 17 * 2**20)):
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 413 and "larger than 16 MiB" in json.loads(reply.read())["error"]
    connection.close()
    assert asked(plain) == (200, b"4")


def test_what_is_no_request_does_no_harm(plain):
    """Bytes on the wire that are flipped, cut off and repeated: refused or ignored, and the page is there as before."""
    host = plain.removeprefix("http://")
    address, _, port = host.partition(":")
    head = f"POST /api/double HTTP/1.1\r\nHost: {host}\r\nOrigin: {plain}\r\nContent-Type: application/json\r\n"
    whole = f'{head}Content-Length: 8\r\n\r\n{{"x": 2}}'.encode()
    chunked = f'{head}Transfer-Encoding: chunked\r\n\r\n8\r\n{{"x": 2}}\r\n0\r\n\r\n'.encode()
    answers = set()
    for number in range(200):
        sent = changed_bytes(random.Random(number), (whole, chunked)[number % 2])
        # it may be closed before all was sent
        with socket.create_connection((address, int(port)), timeout=5) as connection, suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answers.add(connection.recv(12)[9:12])
    assert answers <= {b"", b"200", b"400", b"403", b"404", b"405", b"413", b"421", b"505"}, answers
    assert asked(plain) == (200, b"4")


def test_the_page_is_for_this_origin_alone(plain):
    with urllib.request.urlopen(plain) as reply:
        policy, text = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe-inline" not in policy
    assert "http:" not in text and "https:" not in text
    assert reply.headers["Referrer-Policy"] == "no-referrer" and reply.headers["Cache-Control"] == "no-store"
    assert asked(plain, "/", None, Host="evil.example")[0] == 421


def test_others_need_the_token():
    with served(PLAIN, "secret") as address:
        assert asked(address, "/", None)[0] == asked(address, "/?token=wrong", None)[0] == 403
        assert asked(address, "/?token=secret", None)[0] == 200
        assert asked(address)[0] == asked(address, X_Token="é")[0] == 403
        assert asked(address, X_Token="secret") == (200, b"4")
        assert asked(address, X_Token="secret", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("host", "words"), [("not a host", "an address of this machine"), ("192.0.2.1", "cannot be used")]
)
def test_an_address_that_cannot_be_used_is_an_error_of_one_line(host, words):
    with pytest.raises(InputError, match=words):
        serve(PLAIN, host, 0)


def test_a_taken_port_is_an_error_only_if_it_was_asked_for(monkeypatch):
    from flowknife.explore import _server

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(_server, "PORT", port)
        with pytest.raises(InputError, match="try --port 0"):
            serve(PLAIN, port=port)
        with _server._bound("127.0.0.1", None) as found:
            assert found.getsockname()[1] != port


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly():
    # while it computes something, too: the page's checks
    command = [sys.executable, "-m", "flowknife", "explore", str(RUNS / "density"), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = line.split(" at ")[1].split()[0].rstrip("/")
    assert asked(address, "/", None)[0] == 200
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as waiting:
        head = f"Host: {address.removeprefix('http://')}\r\nOrigin: {address}\r\nContent-Type: application/json\r\n"
        waiting.sendall(f"POST /api/trust HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n{{}}".encode())
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "" and err.splitlines() == ["preparing the page", "ended"]


# -- what is answered -------------------------------------------------------------------------------------------------


def ask(live, name, **given):
    """What the page is told, as arrays."""
    flat = {key: value.tobytes() if getattr(value, "dtype", "") == np.uint8 else value for key, value in given.items()}
    flat = {key: value.ravel() if isinstance(value, np.ndarray) else value for key, value in flat.items()}
    return unpacked(json.loads(answer(live.calls[name], json.dumps(packed(flat)).encode())))


CLOSE = np.testing.assert_allclose


def live_image(live):
    """The first image of a page."""
    content = unpacked(json.loads(live.content))
    return content["images"][: np.prod(content["shape"])]


def test_a_density_answers_as_in_python():
    flow = fk.load(RUNS / "density")
    live, x = flow._live(), items_of("density")
    CLOSE(ask(live, "log_prob", x=x, n=4), flow.log_prob(x), rtol=1e-6)
    z = ask(live, "encode", x=x, n=4).reshape(4, -1)
    CLOSE(z, flow.encode(x), rtol=1e-6)
    CLOSE(ask(live, "decode", z=z, n=4).reshape(4, 2), x, atol=1e-4)
    assert ask(live, "sample", n=10, seed=3, temperature=0.5).size == 20
    with pytest.raises(InputError, match="expected 2 in each"):
        ask(live, "encode", x=x, n=3)
    with pytest.raises(InputError, match="from 1 to 20,000"):
        ask(live, "sample", n=10**9)


def test_a_classifier_answers_as_in_python():
    model = fk.load(RUNS / "classify")
    live, x = model._live(), items_of("classify")
    joint = ask(live, "joint", x=x, n=4).reshape(4, 2)
    CLOSE(model._probability(joint), model.predict_proba(x), rtol=1e-5)
    CLOSE(np.log(np.exp(joint).sum(axis=1)), ask(live, "log_prob", x=x, n=4), rtol=1e-5)
    z = ask(live, "encode", x=x, n=4)
    CLOSE(ask(live, "decode", z=z, n=4).reshape(4, 2), x, atol=1e-4)
    assert ask(live, "sample", n=5, label=1).size == 10
    with pytest.raises(InputError, match="got class number 2"):
        ask(live, "sample", n=5, label=2)


@pytest.mark.slow  # it compiles six programs
def test_a_posterior_answers_as_in_python():
    posterior = fk.load(RUNS / "invert")
    live, x, y = posterior._live(), posterior.example_pairs["x"][:3], posterior.example_pairs["y"][0]
    CLOSE(ask(live, "log_prob", x=x, n=3, y=y), posterior.log_prob(x, y), rtol=1e-5)
    z = ask(live, "encode", x=x, n=3, y=y)
    CLOSE(ask(live, "decode", z=z, n=3, y=y).reshape(3, -1), x, atol=1e-3)
    drawn = ask(live, "sample", n=7, y=y, seed=1, temperature=0.0)
    assert np.ptp(drawn.reshape(7, -1), axis=0).max() < 1e-5


@pytest.mark.slow
def test_a_model_of_images_answers_as_in_python():
    model = fk.load(RUNS / "images")
    live, x = model._live(), items_of("images").astype(np.uint8)
    z = ask(live, "encode", x=x, n=3)
    CLOSE(z.reshape(3, -1), model.encode(x), atol=1e-5)
    bins = 256 >> model.config.bits
    assert np.array_equal(ask(live, "decode", z=z, n=3) // bins, x.ravel() // bins)
    scores, found = model.score(x), ask(live, "score", x=x, n=3)
    CLOSE(found["score"], scores["score"], rtol=1e-4)
    CLOSE(ask(live, "log_prob", x=x, n=3), model.log_prob(x), rtol=1e-5)
    assert ask(live, "anomaly_map", x=x[:1], n=1).size == 64
    cold = ask(live, "sample", n=2, seed=1, temperature={"z_0": 0.0})
    assert cold.size == 128 and set(json.loads(live.content)["places"]) >= {"z_0"}
    own = ask(live, "encode", x=live_image(live), n=1)
    for name, place in ask(live, "places", z=own, n=1).items():
        CLOSE(place, unpacked(json.loads(live.content))["places"][name][:2], atol=1e-3)
    file = io.BytesIO()
    Image.fromarray(x[0, ..., 0]).save(file, "PNG")
    read = ask(live, "read", file=np.frombuffer(file.getvalue(), np.uint8))
    assert np.array_equal(read["pixels"], x[0].ravel())
    with pytest.raises(InputError, match="a file that cannot be used"):
        ask(live, "read", file=np.zeros(100, np.uint8))
    with pytest.raises(InputError, match="1 to 64 images"):
        ask(live, "score", x=x, n=1000)


# -- the page of images in a browser ----------------------------------------------------------------------------------


def fake(classifies, folder=None):
    """A page of images whose model is a formula, which takes no time; with images of a folder, where one is named."""
    rng = np.random.default_rng(0)
    size = int(np.prod(SHAPE))
    images = rng.integers(256, size=(30, *SHAPE)).astype(np.uint8)
    levels = {"z_0": slice(0, 9), "z_1": slice(9, 36)}

    def encode(x, n, given=None):
        return (x.reshape(n, size).astype(np.float32) - 128) / 64

    def decode(z, n, given=None):
        return np.clip(z.reshape(n, size) * 64 + 128, 0, 255).astype(np.uint8)

    def sample(n, seed=0, temperature=1.0, given=None):
        noise = np.random.default_rng(seed).normal(size=(n, size))
        for name, columns in levels.items():
            noise[:, columns] *= temperature[name]
        return decode(noise, n)

    def score(x, n, given=None):
        p = x.reshape(n, size).mean(axis=1) / 255
        found = {"p": p, "score": 1 - p, "bits": 3 * p}
        return found | ({"probability": np.tile([0.7, 0.2, 0.1], (n, 1))} if classifies else {})

    def read(file):
        pixels = np.asarray(Image.open(io.BytesIO(file.tobytes())).resize(SHAPE[:2])).astype(np.uint8)
        return {"pixels": pixels, "places": cloud.places(encode(pixels, 1))}

    def trust():
        return {"checks": [], "flagging": "P-values are calibrated.", "partial": ""}

    cloud = Cloud(encode(images, 30), levels)
    calls = {"encode": encode, "decode": decode, "sample": sample, "score": score, "read": read, "trust": trust}
    calls["places"] = lambda z, n: cloud.places(z.reshape(n, size))
    calls["anomaly_map"] = lambda x, n, given=None: x.astype(np.float32) / 32 - 4
    content = {
        "title": EVIL,
        "lead": "",
        "job": "images",
        "live": True,
        "names": [],
        "alpha": 0.45,
        "trust": None,
        "metrics": [("bits_per_dim", "3", "bits/dim")],
        "shape": list(SHAPE),
        "levels": [[name, columns.start, columns.stop] for name, columns in levels.items()],
        "images": images.tobytes(),
        "codes": np.arange(30) % 3,
        "classes": ["one", "two", EVIL],
        "classifies": classifies,
        "places": cloud.places(),
        "held_out": True,
        "directions": [{"name": EVIL, "level": "z_1", "step": np.ones(27, np.float32)}],
    }
    if folder is not None:
        judged = Folder(folder, lambda found: fk.data.load_images(found, 6, channels=1), size, score)
        content, calls = judged.added_to(content, calls)
    return Live(EVIL, as_json(content), calls)


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(params=[False, True], ids=["images", "classes"])
def page(request, chromium):
    said = []
    with served(fake(request.param)) as address:
        context = chromium.new_context(viewport={"width": 390, "height": 900}, reduced_motion="reduce")
        opened = context.new_page()
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(address) else None)
        opened.goto(address)
        opened.wait_for_selector("html[data-ready]", state="attached")
        opened.wait_for_function(
            "() => document.querySelector('.trust summary').textContent.includes('could not be checked')"
        )
        yield opened
        context.close()
    assert said == []


def pixels_of(page, label):
    return page.eval_on_selector(f"canvas[aria-label='{label}']", "(own) => own.toDataURL()")


def test_every_control_of_the_page_of_images(page, tmp_path):
    images = page.evaluate("!!document.querySelector('[aria-label=\"its anomaly map\"]')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth && !document.querySelector('img')")
    # choose by the keyboard and by the pointer
    cloud = page.query_selector("canvas.movable")
    first = page.inner_text(".card h3")
    cloud.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter", "+", "-"):
        page.keyboard.press(key)
    page.wait_for_function("(was) => document.querySelector('.card h3').textContent !== was", arg=first)
    page.wait_for_function("() => document.querySelector('.card .verdict').textContent.includes('p = ')")
    cloud.scroll_into_view_if_needed()
    box = cloud.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 120)
    page.mouse.wheel(0, -200)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 150, steps=3)
    page.mouse.up()
    # each slider changes what it stands above
    for slider in page.query_selector_all("input[type=range]"):
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
    for control in page.query_selector_all("select"):
        control.select_option(index=1)
    for words in (
        "Zoom in",
        "Zoom out",
        "Whole cloud",
        "Redraw it",
        "New draws",
        "Chosen image as first",
        "Choose the changed image",
    ):
        page.get_by_role("button", name=words).click()
    page.wait_for_function("() => document.querySelectorAll('[aria-label=\"redrawn image\"] button').length === 8")
    page.query_selector("[aria-label='redrawn image'] button").click()
    page.wait_for_function("() => document.querySelector('.card h3').textContent.includes('redrawn')")
    # the image of a reader
    good = tmp_path / "mine.png"
    Image.fromarray(np.full(SHAPE[:2], 10, np.uint8)).save(good)
    page.set_input_files("input[type=file]", [good])
    page.wait_for_function(
        "() => document.querySelector('.drop .readout').textContent.startsWith('mine.png: p = 0.03')"
    )
    page.wait_for_function("() => document.querySelector('.card .verdict').classList.contains('bad')")
    # a direction of marked images
    page.get_by_role("button", name="“with”").first.click()
    page.query_selector("[aria-label='image on the way'] button").click()
    page.get_by_role("button", name="Mark as “without”").click()
    page.get_by_label("towards “with”").focus()
    page.keyboard.press("ArrowRight")
    # the gallery, the least p-value first
    page.get_by_role("button", name="Score").click()
    page.wait_for_function("() => document.querySelectorAll('[aria-label=\"image\"] button').length >= 30")
    p = [
        float(text.split("= ")[1])
        for text in page.eval_on_selector_all(
            "[aria-label='image'] button", "(all) => all.map((own) => own.textContent)"
        )
    ]
    assert p == sorted(p) and p[0] < 0.05
    flagged = page.eval_on_selector_all("[aria-label='image'] button.flagged", "(all) => all.length")
    assert flagged == sum(v < 0.45 for v in p)
    if images:
        page.get_by_label("Anomaly maps").check()
        before = pixels_of(page, "the changed image")
        page.evaluate("explored.change(0, 2.5)")
        assert pixels_of(page, "the changed image") != before
    assert page.evaluate("document.getElementById('trouble')") is None


def test_a_density_is_dragged_while_python_answers(chromium):
    live = fk.load(RUNS / "density")._live()
    with served(live) as address:
        opened = chromium.new_page(viewport={"width": 1280, "height": 900})
        opened.goto(address)
        opened.wait_for_selector("html[data-ready]", state="attached")
        right = opened.query_selector_all("canvas.movable")[1]
        told = opened.inner_text(".readout")
        box = right.bounding_box()
        opened.mouse.move(box["x"] + 200, box["y"] + 150)
        opened.mouse.down()
        opened.mouse.move(box["x"] + 240, box["y"] + 120, steps=3)
        opened.mouse.up()
        opened.wait_for_function("(was) => document.querySelector('.readout').textContent !== was", arg=told)
        opened.fill("textarea", "a,b\n0.1,0.2\n90,-90\n")
        opened.click("text=Evaluate")
        opened.wait_for_function(
            "() => document.querySelector('.answer').textContent.includes('of 2 rows are flagged')"
        )
        assert opened.evaluate("document.getElementById('trouble')") is None
        opened.close()


def test_a_server_that_ended_is_said_in_words(chromium):
    with served(fake(False)) as address:
        opened = chromium.new_page()
        opened.goto(address)
        opened.wait_for_selector("html[data-ready]", state="attached")
    opened.get_by_role("button", name="New draws").click()
    opened.wait_for_selector("#trouble")
    assert "start flowknife explore again" in opened.inner_text("#trouble")
    opened.close()
