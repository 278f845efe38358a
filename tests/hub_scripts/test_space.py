"""The demo page in a browser. It runs as on a Space: in a folder of its own, with nothing of ours and no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from PIL import Image

import train
from mner_data.synthetic_images import pure_noise

SPACE = Path(__file__).resolve().parents[2] / "hub_scripts" / "space"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1200,1000",
)  # fmt: skip
WAIT_SECONDS = 60

# Python reads it before anything else: what is ours cannot be imported, and whoever else is called is written down.
SITECUSTOMIZE = """
import socket, sys
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_hamlearning", "processors", "mner_data", "training", "bulk", "hub_scripts"):
            raise ModuleNotFoundError(f"No module named {name!r}: it is not on the Space")
sys.meta_path.insert(0, NotHere())
look_up = socket.getaddrinfo
def guarded(host, *args, **kwargs):
    if host not in ("127.0.0.1", "localhost", "0.0.0.0", None):
        print("CALLED OUT", host, file=sys.stderr, flush=True)
        raise socket.gaierror("no network in this test")
    return look_up(host, *args, **kwargs)
socket.getaddrinfo = guarded
"""


@pytest.fixture(scope="session")
def tagger(tmp_path_factory):
    """A small model, trained for seconds: it finds the synthetic names and knows little about their types."""
    folder = tmp_path_factory.mktemp("tagger") / "model"
    shape = "{hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"
    train.main([
        "configs/demo.yaml", "--output_dir", str(folder), "--synthetic_posts", "[250, 4, 4]", "--image_size", "32",
        "--freeze_vision", "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}",
        "--text_config", shape, "--num_train_epochs", "3", "--learning_rate", "5e-3", "--eval_strategy", "no",
        "--save_strategy", "no", "--do_eval", "false", "--use_cpu", "--disable_tqdm", "true",
    ])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def page(tagger, tmp_path_factory):
    """Address of the running page; afterwards, that it called nobody."""
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(SPACE, folder / "app", ignore=shutil.ignore_patterns("*.pyi", "__pycache__"))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "site"), "HF_HOME": str(folder / "cache")}
    environment |= {"HAMLEARNING_MODEL": str(tagger), "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder)}
    environment |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=folder / "app", env=environment, stdout=log, stderr=log)
        try:
            deadline = time.time() + 5 * WAIT_SECONDS
            while "Running on" not in (folder / "log").read_text():
                assert process.poll() is None and time.time() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
    said = (folder / "log").read_text()
    assert "CALLED OUT" not in said, said


def open_browser(folder: Path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(option)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browsers(tmp_path_factory):
    """Two visitors: browsers with profiles of their own."""
    opened = []
    try:
        for name in ("first", "second"):
            opened.append(open_browser(tmp_path_factory.mktemp(name)))
        yield opened
    finally:
        for browser in opened:
            browser.quit()


class Visitor:
    """What a person does on the page."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all("#post textarea") and self.all("#find") and self.all("#photo input[type=file]"))

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def wait(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, WAIT_SECONDS, 0.1, ignored_exceptions=[StaleElementReferenceException]).until(
            lambda _: condition()
        )

    def type(self, text: str):
        (box,) = self.all("#post textarea")
        box.clear()
        box.send_keys(text)

    def upload(self, path: Path):
        self.all("#photo input[type=file]")[0].send_keys(str(path))
        self.wait(lambda: self.all("#photo img"))

    def find(self):
        self.all("#find")[0].click()

    def said(self, part: str) -> str:
        """The result's text, once it has that part."""
        self.wait(lambda: part in self.all("#result")[0].text)
        return self.all("#result")[0].text

    def entities(self) -> list[str]:
        self.wait(lambda: self.all("#result mark"))
        return [mark.text for mark in self.all("#result mark")]


@pytest.fixture
def visitor(browsers, page):
    return Visitor(browsers[0], page)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pure_noise(Image.new("RGB", (300, 200))).save(path)
    return path


@needs_browser
def test_type_upload_see_the_entities(visitor, photo, tmp_path):
    visitor.type("everybody talks about Jordan tonight <img src=x>")
    visitor.upload(photo)
    for button in visitor.all("button"):
        if "Regions of the photo" in button.text:
            button.click()
    visitor.wait(lambda: visitor.all("#regions textarea") and visitor.all("#regions textarea")[0].is_displayed())
    visitor.all("#regions textarea")[0].send_keys("person 0.1 0.2 0.5 0.9\ntall tree 0.5 0 1 1")
    visitor.find()
    assert visitor.entities()[0].startswith("Jordan")
    assert "<" in visitor.all("#result .text")[0].text and not visitor.all("#result .text img"), "a post is text"
    assert visitor.all("#result .photo > img") and len(visitor.all("#result .region")) >= 1
    assert [row.text.split()[0] for row in visitor.all("#result .levels tr")] == [
        "global",
        "object",
        "spatial",
        "semantic",
    ]
    widths = [bar.size["width"] for bar in visitor.all("#result .bar span")]
    values = [float(row.text.split()[-1]) for row in visitor.all("#result .levels tr")]
    whole = visitor.all("#result .bar")[0].size["width"]
    assert widths == pytest.approx([value * whole for value in values], abs=0.005 * whole + 1)

    attended = visitor.all("#result .a0")
    assert len(attended) == 2 and not any(region.is_displayed() for region in attended)
    visitor.all("#result mark")[0].click()
    visitor.wait(lambda: all(region.is_displayed() for region in visitor.all("#result .a0")))
    assert {re.sub(r" \d+%", "", region.text) for region in attended} == {"person", "tall tree"}
    assert not any(region.is_displayed() for region in visitor.all("#result .region"))

    # The regions were those of that photo.
    Image.new("RGB", (50, 50)).save(tmp_path / "other.png")
    visitor.all("#photo button[aria-label='Remove Image']")[0].click()
    visitor.wait(lambda: visitor.all("#regions textarea")[0].get_attribute("value") == "")


@needs_browser
def test_no_photo(visitor):
    visitor.find()
    visitor.said("Write a post first")
    visitor.type("shares of Amazon fell five percent")
    visitor.find()
    assert visitor.entities()[0].startswith("Amazon")
    assert not visitor.all("#result .photo") and not visitor.all("#result .levels")


@needs_browser
def test_an_example_is_one_click(visitor):
    rows = [row for row in visitor.all("tr, button") if row.text.strip().startswith("everybody talks about Jordan")]
    rows[0].click()
    assert visitor.entities()[0].startswith("Jordan") and visitor.all("#result .photo > img")


@needs_browser
@pytest.mark.parametrize("kind", ["broken", "cut", "40 megapixels"])
def test_a_photo_that_cannot_be_taken(visitor, tmp_path, photo, kind):
    path = tmp_path / "bad.png"
    if kind == "broken":
        path.write_text("<html>not a picture</html>")
    elif kind == "cut":
        path = tmp_path / "cut.jpg"
        path.write_bytes(photo.read_bytes()[:2000])
    else:
        Image.new("L", (8000, 5000)).save(path)
    visitor.type("everybody talks about Jordan tonight")
    visitor.upload(path)
    visitor.find()
    reason = {
        "broken": "The photo is not an image in a known format",
        "cut": "The photo is broken",
        "40 megapixels": "The photo has 8000 x 5000 pixels; at most 25,000,000 are read",
    }
    said = visitor.said(reason[kind])
    assert "Traceback" not in said and visitor.all("#result [role=alert]")


@needs_browser
def test_a_file_that_is_too_large(visitor, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(os.urandom(11 * 2**20))
    visitor.all("#photo input[type=file]")[0].send_keys(str(path))
    visitor.wait(lambda: "maximum" in visitor.all("body")[0].text.lower())
    assert not visitor.all("#photo img")


@needs_browser
def test_two_visitors_at_once(browsers, page):
    visitors = [Visitor(browser, page) for browser in browsers]
    posts = ["thinking of Madison this morning", "more of Phoenix please"]
    for visitor, post in zip(visitors, posts, strict=True):
        visitor.type(post)
    for visitor in visitors:
        visitor.find()
    assert [visitor.entities()[0].split()[0][:7] for visitor in visitors] == ["Madison", "Phoenix"]
    assert "Phoenix" not in visitors[0].all("#result")[0].text


@needs_browser
def test_a_phone(browsers, page, photo):
    browser = browsers[1]
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    visitor = Visitor(browser, page)
    visitor.type("everybody talks about Jordan tonight https://t.co/" + "x" * 90)
    visitor.upload(photo)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", visitor.all("#find")[0])
    visitor.find()
    assert visitor.entities()
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} px wide and slides sideways"
    right = [element.rect["x"] + element.rect["width"] for element in visitor.all("#result *") if element.is_displayed()]
    assert max(right) <= 390


@needs_browser
def test_the_page_loads_nothing_from_elsewhere(visitor):
    names = visitor.browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names and not [name for name in names if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", name)]


def call(page: str, photo: dict) -> str:
    """What the page answers to a visitor who writes the request by hand."""
    config = json.load(urllib.request.urlopen(f"{page}/config"))
    function = next(number for number, of in enumerate(config["dependencies"]) if len(of["inputs"]) == 3 and of["outputs"])
    body = {"data": ["a post", photo, ""], "fn_index": config["dependencies"][function]["id"], "session_hash": "s"}
    header = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{page}/gradio_api/queue/join", json.dumps(body).encode(), header)).read()
    return urllib.request.urlopen(f"{page}/gradio_api/queue/data?session_hash=s").read().decode()


@needs_browser
@pytest.mark.parametrize("where", ["http://127.0.0.1:9/photo.jpg", "https://example.com/photo.jpg", "/etc/hostname"])
def test_addresses_and_paths_are_not_photos(page, where):
    answer = call(page, {"path": where, "meta": {"_type": "gradio.FileData"}})
    assert '"success":false' in answer and "mark class" not in answer
    assert "not fetched" in answer if where.startswith("http") else "/etc/hostname" not in answer


def test_the_space_describes_itself():
    card = RepoCard.load(SPACE / "README.md").data
    assert (card.sdk, card.app_file) == ("gradio", "app.py") and (SPACE / card.app_file).is_file()
    setup = (SPACE.parents[1] / "setup.py").read_text()
    wanted = {Requirement(line).name: line for line in (SPACE / "requirements.txt").read_text().split()}
    assert all(f'"{line}"' in setup for line in wanted.values()), "bounds differ from setup.py's"
    assert card.sdk_version in Requirement(wanted["gradio"]).specifier
