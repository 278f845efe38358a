"""The demo page in a browser. It runs as on a Space: in a folder of its own, with nothing of ours and no network."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gradio_client import Client, handle_file
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from PIL import Image

import train
from mner_data.synthetic_images import pure_noise

SPACE = Path(__file__).resolve().parents[2] / "hub_scripts" / "space"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NOT_INSTALLED = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")


def needs_browser(test):
    return pytest.mark.browser(NOT_INSTALLED(test))


OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1200,1000",
)  # fmt: skip
WAIT_SECONDS = 60

# Python runs this before anything else: the project cannot be imported, and every other host that is called is written down.
SITECUSTOMIZE = """
import socket, sys, traceback
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_hamlearning", "processors", "mner_data", "training", "bulk", "hub_scripts"):
            raise ModuleNotFoundError(f"No module named {name!r}: it is not on the Space")
sys.meta_path.insert(0, NotHere())
look_up = socket.getaddrinfo
def guarded(host, *args, **kwargs):
    if host not in ("127.0.0.1", "localhost", "0.0.0.0", None):
        print("CALLED OUT", host, file=sys.stderr, flush=True)
        traceback.print_stack()
        raise socket.gaierror("no network in this test")
    return look_up(host, *args, **kwargs)
socket.getaddrinfo = guarded
"""


@pytest.fixture(scope="session")
def tagger(tmp_path_factory):
    """A small model, trained for seconds: it finds the synthetic names and knows little about their types."""
    folder = tmp_path_factory.mktemp("tagger") / "model"
    shape = "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}"
    train.main([
        "configs/demo.yaml", "--output_dir", str(folder), "--synthetic_posts", "[250, 4, 4]", "--image_size", "32",
        "--freeze_vision", "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}",
        "--text_config", shape, "--num_train_epochs", "3", "--learning_rate", "5e-3", "--eval_strategy", "no",
        "--save_strategy", "no", "--do_eval", "false", "--use_cpu", "--disable_tqdm", "true",
    ])  # fmt: skip
    return folder


@dataclass
class Page:
    """The running page: its address, and the folder where Gradio keeps uploads."""

    address: str
    upload_folder: Path


@pytest.fixture(scope="module")
def page(tagger, tmp_path_factory):
    """The running page. In the end: it called no other host."""
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(SPACE, folder / "app", ignore=shutil.ignore_patterns("*.pyi", "__pycache__"))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python_path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": python_path, "HF_HOME": str(folder / "cache")}
    environment |= {"HAMLEARNING_MODEL": str(tagger), "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder)}
    environment |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=folder / "app", env=environment, stdout=log, stderr=log)
        try:
            deadline = time.time() + 5 * WAIT_SECONDS
            while "Running on" not in (folder / "log").read_text():
                assert process.poll() is None and time.time() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield Page(f"http://127.0.0.1:{port}", folder / "gradio")
        finally:
            process.terminate()
            process.wait(20)
    log = (folder / "log").read_text()
    assert "CALLED OUT" not in log, log


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

    def __init__(self, browser, page: Page):
        self.browser = browser
        browser.get(page.address)
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
def test_every_example_is_one_click(visitor):
    """Thumbnails that are images, and a tagged post with that image."""
    visitor.wait(lambda: len(visitor.all("#examples img")) == 4)
    widths = [visitor.browser.execute_script("return arguments[0].naturalWidth", image) for image in visitor.all("#examples img")]
    assert min(widths) >= 300
    for number, words in enumerate(["Jordan", "Jordan", "Jordan", "Paris", "Amazon"]):
        example = visitor.all("#examples tbody tr")[number]
        visitor.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", example)
        text, with_image = example.text.strip(), bool(example.find_elements("css selector", "img"))
        earlier = visitor.all("#result")[0].get_attribute("innerHTML")
        example.click()
        visitor.wait(lambda earlier=earlier: visitor.all("#result")[0].get_attribute("innerHTML") != earlier)
        visitor.wait(lambda text=text: visitor.all("#result .text") and plain_text(visitor) == text)
        assert any(entity.startswith(words) for entity in visitor.entities())
        assert bool(visitor.all("#result .photo > img")) == with_image == (number < 4)


def plain_text(visitor) -> str:
    """The tagged post without the types of its entities."""
    script = (
        "const copy = arguments[0].cloneNode(true); copy.querySelectorAll('b').forEach(b => b.remove()); return copy.textContent"
    )
    return visitor.browser.execute_script(script, visitor.all("#result .text")[0])


@needs_browser
def test_the_page_does_not_jump_when_the_answer_comes(visitor):
    width = visitor.all("#post")[0].size["width"]
    visitor.type("shares of Amazon fell five percent")
    visitor.find()
    visitor.entities()
    assert visitor.all("#post")[0].size["width"] == pytest.approx(width, abs=2)


@needs_browser
@pytest.mark.parametrize("kind", ["broken", "cut", "40 megapixels"])
def test_a_photo_that_cannot_be_taken(visitor, tmp_path, photo, kind):
    path = tmp_path / "bad.png"
    if kind == "broken":
        path.write_text("<html>not an image</html>")
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
        "40 megapixels": "The photo has 8000 x 5000 pixels",
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


def call(page: Page, endpoint: str, *inputs, seconds: float = 30) -> tuple[bool, str]:
    """What the page answers to a visitor who writes the request by hand: whether it was tagged, and the answer."""
    body, header = json.dumps({"data": inputs}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{page.address}/gradio_api/run/{endpoint}", body, header)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return True, json.load(answer)["data"][0]
    except urllib.error.HTTPError as error:
        return False, json.load(error)["error"]


def tagged_endpoints(page: Page) -> list[str]:
    """The endpoints that take a photo: of the button, of the examples, and the public one."""
    with urllib.request.urlopen(f"{page.address}/config") as config:
        names = [function["api_name"] for function in json.load(config)["dependencies"] if len(function["inputs"]) == 3]
    assert len(names) == 3 and "tag" in names
    return names


@pytest.fixture
def not_uploaded(page, photo, tmp_path):
    """Files that are no upload, by name; some lie in the folder of the uploads."""
    page.upload_folder.mkdir(exist_ok=True)
    inside = Path(tempfile.mkdtemp(dir=page.upload_folder))
    beside = Path(f"{page.upload_folder}-beside")
    beside.mkdir(exist_ok=True)
    shutil.copy(photo, beside / "photo.jpg")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(inside / "pipe")
    (inside / "link.jpg").symlink_to(photo)
    (inside / "loop.jpg").symlink_to(inside / "loop.jpg")
    (inside / "outside").symlink_to(photo.parent)
    return {
        "an image": photo,
        "a text file": "/etc/hostname",
        "nothing": tmp_path / "nothing",
        "a pipe": tmp_path / "pipe",
        "a device": "/dev/zero",
        "a folder": tmp_path,
        "an image beside the uploads": beside / "photo.jpg",
        "out of the uploads": inside / ".." / ".." / "app" / "examples" / "field.jpg",
        "a link in the uploads": inside / "link.jpg",
        "a loop in the uploads": inside / "loop.jpg",
        "behind a linked folder": inside / "outside" / photo.name,
        "a pipe in the uploads": inside / "pipe",
        "a folder in the uploads": inside,
        "no path": None,
        "an empty path": "",
        "no file's name": "a\0b",
        "an endless name": "a" * 100_000,
        "an address": "http://127.0.0.1:9/photo.jpg",
    }


def test_only_uploaded_files_are_opened(page, not_uploaded):
    """Every other file gets the same answer at once, so that nobody learns which exist."""
    for endpoint in tagged_endpoints(page):
        for kind, path in not_uploaded.items():
            image = {"path": None if path is None else str(path)}
            answer = call(page, endpoint, "Jordan is here", image, "")
            assert answer == (False, "Upload a photo: the server opens no other file."), (endpoint, kind, answer)
    assert call(page, "tag", "Jordan is here", None, "")[0]


def test_no_more_than_the_largest_photo_is_read(page):
    large = page.upload_folder / "large.jpg"
    page.upload_folder.mkdir(exist_ok=True)
    with open(large, "wb") as file:
        file.truncate(2**40)
    assert call(page, "tag", "Jordan is here", {"path": str(large)}, "") == (
        False, "The photo is larger than 10 MB: choose a smaller one.",
    )  # fmt: skip


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/photo.jpg", "https://example.com/photo.jpg", "/etc/hostname"])
def test_no_input_takes_an_address_or_a_path(page, where):
    """Gradio takes a dict with `meta` for a file, whatever the input is for; the fixture sees that nothing was fetched."""
    file = {"path": where, "meta": {"_type": "gradio.FileData"}}
    for position in range(3):
        inputs = ["Jordan is here", None, ""]
        inputs[position] = file
        is_tagged, answer = call(page, "tag", *inputs)
        assert not is_tagged and "hostname" not in str(answer)
        assert not where.startswith("http") or "not fetched" in str(answer)
    is_loaded, answer = call(page, "load_example", file)
    assert not is_loaded and (not where.startswith("http") or "not fetched" in str(answer))


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ("\n".join(["person 0.1 0.2 0.5 0.9"] * 51), "at most 50 lines, got 51"),
        ("a 0 0 1 1\n" * 1_000_000, "at most 6,000 characters, got 10,000,000"),
        ("\n" * 960_000, "at most 6,000 characters"),
        ("x" * 61 + " 0 0 1 1", "line 1: expected a label of at most 60 characters, got 61"),
        ("a 0 0 1 1\n\nb 0 0 1", "line 3: expected a label and four numbers"),
        ("a 0 0 1 one", "line 1: expected a label and four numbers"),
        ("a nan 0 1 1", "cannot be read"),
        ("a 0 0 1e999 1", "cannot be read"),
        ("a 0 0 7 1", "cannot be read"),
    ],
)
def test_regions_have_bounds(page, photo, regions, reason):
    upload = page.upload_folder / "regions.jpg"
    upload.parent.mkdir(exist_ok=True)
    shutil.copy(photo, upload)
    started = time.monotonic()
    is_tagged, answer = call(page, "tag", "Jordan is here", {"path": str(upload)}, regions)
    assert not is_tagged and reason in answer and len(answer) < 300
    assert time.monotonic() - started < 10


def test_regions_without_a_photo_are_not_ignored(page):
    is_tagged, answer = call(page, "tag", "Jordan is here", None, "person 0.1 0.2 0.5 0.9")
    assert not is_tagged and "there is no photo" in answer


def test_the_largest_answer_is_small(page, photo):
    """As many entities and regions as are taken."""
    upload = page.upload_folder / "full.jpg"
    upload.parent.mkdir(exist_ok=True)
    shutil.copy(photo, upload)
    regions = "\n".join(f"{'x' * 60} 0.{number} 0.1 0.9 0.9" for number in range(10, 60))
    is_tagged, answer = call(page, "find", "Jordan in Paris, " * 117, {"path": str(upload)}, regions, seconds=60)
    assert is_tagged and answer.count("<mark") > 100 and len(answer) < 2 * 2**20
    assert "too many entities and regions" in answer


def test_the_endpoint_answers_with_json(page, photo):
    """By Gradio's own client, with and without a photo; what is wrong is said."""
    client = Client(page.address, verbose=False)
    (entity,) = client.predict(text="shares of Amazon fell", api_name="/tag")
    assert (entity["word"], entity["start"], entity["end"], entity["region"]) == ("Amazon", 10, 16, None)
    (entity,) = client.predict(
        text="shares of Amazon fell", photo=handle_file(photo), regions="person 0.1 0.2 0.5 0.9", api_name="/tag"
    )
    assert entity["region"]["label"] == "person" and entity["region"]["box"]["xmin"] == pytest.approx(30)
    assert set(entity["relevance"]) == {"global", "object", "spatial", "semantic"} and "region_attention" not in entity
    with pytest.raises(Exception, match="Write a post first"):
        client.predict(text=" ", api_name="/tag")


def test_the_endpoint_describes_itself(page):
    with urllib.request.urlopen(f"{page.address}/gradio_api/info") as answer:
        endpoints = json.load(answer)["named_endpoints"]
    assert set(endpoints) == {"/tag"}
    assert endpoints["/tag"]["description"].startswith("Find the named entities")
    parameters = {
        parameter["parameter_name"]: parameter["parameter_has_default"] for parameter in endpoints["/tag"]["parameters"]
    }
    assert parameters == {"text": False, "photo": True, "regions": True}


def test_an_agent_can_call_it(page, photo):
    """The endpoint is a tool of the page's MCP server."""
    pytest.importorskip("mcp")
    data_uri = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"

    async def use_tool():
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async with (
            streamable_http_client(f"{page.address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            (tool,) = (await session.list_tools()).tools
            arguments = {"text": "shares of Amazon fell", "photo": data_uri, "regions": "person 0.1 0.2 0.5 0.9"}
            good = await session.call_tool(tool.name, arguments)
            bad = await session.call_tool(tool.name, {"text": "a", "photo": "http://127.0.0.1:9/photo.jpg"})
            return tool, good, bad

    tool, good, bad = asyncio.run(use_tool())
    assert tool.name == "tag" and set(tool.inputSchema["properties"]) == {"text", "photo", "regions"}
    assert all(schema["description"] for schema in tool.inputSchema["properties"].values())
    assert not good.isError and "'label': 'person'" in good.content[0].text
    assert bad.isError and "not fetched" in bad.content[0].text


def test_the_space_describes_itself():
    card = RepoCard.load(SPACE / "README.md").data
    assert (card.sdk, card.app_file) == ("gradio", "app.py") and (SPACE / card.app_file).is_file()
    setup = (SPACE.parents[1] / "setup.py").read_text()
    wanted = {Requirement(line).name: line for line in (SPACE / "requirements.txt").read_text().split()}
    assert all(f'"{line}"' in setup for line in wanted.values()), "bounds differ from setup.py's"
    assert card.sdk_version in Requirement(wanted["gradio"]).specifier
