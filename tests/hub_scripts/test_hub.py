"""Pushing and loading by the real client against a server on loopback; faults and attacks that the verification must find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, pipeline

import processors
from hub_scripts.push_to_hub import build_repo, push_model
from hub_scripts.verify_repo import (
    _can_isolate,
    _prepare_room,
    _read_report,
    _run_as_a_stranger,
    check_files,
    judge,
    main,
    verify,
)
from tests.tiny import tiny_tokenizer
from tests.tiny_model import LABELS, tiny_model
from training.card import write_card

from .hub_server import TOKEN, HubServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """What train.py leaves, of a tiny model."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    tokenizer = tiny_tokenizer("bert")
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    tiny_model(text_config=config).save_pretrained(folder)
    image_processor = processors.HamLearningImageProcessor(size={"height": 64, "width": 64})
    processors.HamLearningProcessor(tokenizer=tokenizer, image_processor=image_processor).save_pretrained(folder)
    write_card(folder, "tiny", "synthetic", {}, {}, {"seed": 0}, LABELS, [])
    return folder


@pytest.fixture(scope="module")
def repo(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo") / "repo"
    build_repo(model_dir, folder, "user/tiny")
    return folder


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run(hub: HubServer, scratch: Path, *command: str, token: str | None = TOKEN, check: bool = True, cwd: Path = ROOT):
    """A command in a process of its own, with an empty cache and this Hub."""
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(scratch / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    if token:
        environment["HF_TOKEN"] = token
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, check=check, capture_output=True, text=True)


@pytest.fixture
def copy(repo, tmp_path):
    return Path(shutil.copytree(repo, tmp_path / "copy"))


def failed(checks) -> dict[str, str]:
    return {check.name: check.detail for check in checks if check.result == "FAILED"}


@pytest.fixture(scope="module")
def first_run(repo, tmp_path_factory):
    """What the repo's own code returned: the report, how it ended, and the folder with the tensors."""
    room = tmp_path_factory.mktemp("verify") / "room"
    _prepare_room(repo, room)
    return *_run_as_a_stranger(room, _can_isolate(), 300), room


def judge_again(first_run, folder) -> list:
    """The verdicts on what was returned, beside another folder."""
    report, end, room = first_run
    return judge(report, end, folder, room)


def test_a_complete_repo_passes(repo, first_run):
    checks = check_files(repo) + judge_again(first_run, repo)
    assert {check.result for check in checks} == {"ok"} and len(checks) >= 15, checks


def test_the_card_shows_what_the_model_finds(repo):
    card = ModelCard.load(repo / "README.md")
    ner = pipeline("mner", model=str(repo), trust_remote_code=True)
    for example in card.data.widget:
        entities = [f"{entity['word']}: {entity['entity_group']}" for entity in ner(example["text"])]
        assert [item["label"] for item in example["output"]] == entities and entities
    assert card.data.license == "unknown" and 'pipeline("mner", model="user/tiny"' in card.text
    assert card.text.strip().startswith("# user/tiny\n")


def test_a_folder_that_was_never_pushed_is_not_compared(copy, first_run):
    (copy / "reference.json").unlink()
    results = {check.name: check.result for check in check_files(copy) + judge_again(first_run, copy)}
    assert results.pop("same outputs as when pushed") == "skipped" and set(results.values()) == {"ok"}


PATCH_FROM_PRETRAINED = """
loaded_as_before = HamLearningForTokenClassification.from_pretrained.__func__
def changed(cls, *args, **kwargs):
    model, info = loaded_as_before(cls, *args, **(kwargs | {"output_loading_info": True}))
    torch.nn.init.ones_(model.classifier.bias)
    return (model, info) if kwargs.get("output_loading_info") else model
HamLearningForTokenClassification.from_pretrained = classmethod(changed)
"""


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def fault_missing_helper(folder):
    (folder / "relations.py").unlink()


def fault_missing_processor_helper(folder):
    (folder / "word_splitting.py").unlink()


def fault_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


def fault_changed_weight(folder):
    edit_weights(folder, lambda weights: weights["classifier.bias"].add_(torch.arange(5.0)))


def fault_missing_weight(folder):
    edit_weights(folder, lambda weights: weights.pop("classifier.weight"))


def fault_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def fault_card(folder):
    (folder / "README.md").write_text("---\nlibrary_name: [unclosed\n---\n# x\n")


def fault_card_tags(folder):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("- mner\n", ""))


def fault_absolute_path(folder):
    edit_json(folder / "config.json", _name_or_path="/home/me/models/secret")


def fault_weight_changed_after_loading(folder):
    """What `_init_weights` does where it forgets that a tensor was loaded."""
    path = folder / "modeling_hamlearning.py"
    path.write_text(path.read_text() + PATCH_FROM_PRETRAINED)


def fault_not_a_number(folder):
    edit_weights(folder, lambda weights: weights["classifier.bias"][0].fill_(torch.nan))


def fault_extra_tensor(folder):
    edit_weights(folder, lambda weights: weights.update(forgotten=torch.zeros(3)))


def fault_code_that_is_no_python(folder):
    (folder / "relations.py").write_text("def broken(:\n")


def fault_code_that_is_no_text(folder):
    (folder / "relations.py").write_bytes(b"\xff\xfe\x00")


def fault_reference_that_is_no_json(folder):
    (folder / "reference.json").write_text("{")


def fault_reference_of_another_form(folder):
    (folder / "reference.json").write_text('[[1.0], "x", null]')


def fault_pipe(folder):
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")


def fault_endless_file(folder):
    (folder / "notes.json").symlink_to("/dev/zero")


def fault_lost_link(folder):
    (folder / "notes.json").symlink_to("/nothing/here")


def fault_lost_constraints(folder):
    path = folder / "modeling_hamlearning.py"
    lost = path.read_text().replace("init.copy_(getattr(module, name), constraint)", "init.zeros_(getattr(module, name))")
    path.write_text(lost)


def fault_import_of_ours(folder):
    path = folder / "modeling_hamlearning.py"
    path.write_text(path.read_text().replace("from .crf import", "from modeling_hamlearning.crf import"))


def fault_no_processor(folder):
    (folder / "processor_config.json").unlink()


FAULTS = {
    fault_missing_helper: "every imported file",
    fault_missing_processor_helper: "every imported file",
    fault_pickle: "no pickle",
    fault_changed_weight: "same outputs as when pushed",
    fault_missing_weight: "head loads and runs",
    fault_cut_weights: "weights are complete",
    fault_not_a_number: "weights are complete",
    fault_extra_tensor: "weights as in the file",
    fault_weight_changed_after_loading: "weights as in the file",
    fault_code_that_is_no_python: "every imported file",
    fault_code_that_is_no_text: "every imported file",
    fault_reference_that_is_no_json: "same outputs as when pushed",
    fault_reference_of_another_form: "same outputs as when pushed",
    fault_pipe: "plain files only",
    fault_endless_file: "plain files only",
    fault_lost_link: "plain files only",
    fault_card: "card metadata",
    fault_card_tags: "card metadata",
    fault_absolute_path: "no absolute path",
    fault_lost_constraints: "weights as in the file",
    fault_import_of_ours: "head loads and runs",
    fault_no_processor: "every needed file",
}


# The repo's code would return the same again.
FAULTS_BESIDE_THE_CODE = (fault_extra_tensor, fault_reference_that_is_no_json, fault_reference_of_another_form)
STATIC = {check.name for check in check_files(ROOT)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_found(fault, copy, first_run):
    fault(copy)
    if FAULTS[fault] in STATIC:
        checks = check_files(copy)
    else:
        checks = judge_again(first_run, copy) if fault in FAULTS_BESIDE_THE_CODE else verify(str(copy))
    assert FAULTS[fault] in failed(checks)


def add_code(folder: Path, code: str):
    """Code that runs when the repo is loaded, before anything else of it."""
    path = folder / "configuration_hamlearning.py"
    path.write_text(f"{path.read_text()}\n{code}\n")


SPY = """
import json, os, pathlib
processes = {}
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        processes[str(path)] = path.read_bytes().decode(errors="replace")
    except OSError:
        pass
home = pathlib.Path.home()
raise RuntimeError(json.dumps({
    "token": "hf_secret" in str(dict(os.environ)) or any("hf_secret" in text for text in processes.values()),
    "home": str(home) + str(sorted(path.name for path in home.rglob("*") if "token" in path.name)),
}))
"""


def test_the_repo_sees_neither_token_nor_home(copy, tmp_path):
    (tmp_path / "home" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "home" / ".cache" / "huggingface" / "token").write_text("hf_secret")
    add_code(copy, SPY)
    environment = os.environ | {"HF_TOKEN": "hf_secret", "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    table = subprocess.run(
        [sys.executable, "-m", "hub_scripts.verify_repo", str(copy)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seen = next(line for line in table.stdout.splitlines() if "config loads" in line)
    assert "FAILED" in seen and str(tmp_path / "home") not in seen and "[]" in seen
    # Where no namespace can be made, the environment of other processes can be read; the table says so.
    assert '"token": false' in seen or "code ran isolated" in table.stdout and "skipped code ran isolated" in table.stdout


def test_a_detector_that_the_repo_names_is_fetched_without_the_token(copy, tmp_path, monkeypatch):
    """With it, a repo could name a private repo of the user and read it."""
    asked = {}
    monkeypatch.setattr("hub_scripts.verify_repo.snapshot_download", lambda name, **options: asked.update({name: options}))
    detection = {"name": "object-detection", "model": "user/private"}
    edit_json(copy / "processor_config.json", region_config={"name": "joined", "extractors": ["grid", detection]})
    _prepare_room(copy, tmp_path / "room")
    assert {name: options.get("token") for name, options in asked.items()} == {"user/private": False}


def test_a_forged_report_does_not_pass(repo, tmp_path):
    """Verdicts are made of entities and tensors: a repo that only says that all is well fails."""
    report = {name: {"value": "fine"} for name in ("config", "processor")}
    report |= {name: {"value": {"missing": [], "mismatched": [], "saved": []}} for name in ("model", "head")}
    report |= {"pipeline": {"value": [[], [], []]}, "modules": {"value": []}, "same outputs as when pushed": {"value": None}}
    problems = failed(judge(report, "ended", repo, tmp_path))
    assert "same outputs as when pushed" in problems and "weights as in the file" in problems


STRANGE_REPORTS = [
    "[]",
    "{",
    "null",
    '{"config": 3}',
    '{"model": {"value": 3}}',
    '{"head": {"value": {"missing": 1, "mismatched": []}}}',
    '{"pipeline": {"value": [1, 2, 3]}, "modules": {"value": 3}}',
    "[" * 100_000,
    "\ud800",
]


@pytest.mark.parametrize("content", STRANGE_REPORTS, ids=range(len(STRANGE_REPORTS)))
def test_a_strange_report_is_failed_lines(repo, tmp_path, content):
    (tmp_path / "report.json").write_text(content, errors="surrogatepass")
    checks = judge(_read_report(tmp_path / "report.json"), "ended", repo, tmp_path)
    results = {check.name: check.result for check in checks}
    assert {results[f"{step} loads and runs"] for step in ("model", "head", "processor")} == {"FAILED"}
    assert results["without this project"] == "FAILED" and "ok" not in set(results.values()) - {
        results["pipeline loads and runs"]
    }
    assert results["same outputs as when pushed"] != "ok"


def test_a_report_that_is_no_plain_file_holds_nothing_up(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    for name in ("link", "pipe", "folder", "large", "nothing"):
        assert _read_report(tmp_path / name) == {}


def test_a_repo_that_hangs_is_ended(copy):
    add_code(copy, "import time\ntime.sleep(10_000)")
    started = time.monotonic()
    problems = failed(verify(str(copy), timeout=5))
    assert time.monotonic() - started < 60 and "time-out of 5 seconds" in problems["config loads and runs"]


OUTLIVE = """
import os, subprocess, sys, time
writer = "import time\\nwhile True:\\n open({path!r}, 'a').write('x')\\n time.sleep(0.1)"
{start}
"""
STARTS = {
    "a child": "subprocess.Popen([sys.executable, '-c', writer])",
    "its own session": "subprocess.Popen([sys.executable, '-c', writer], start_new_session=True)",
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        exec(writer)\n    os._exit(0)",
    "a child that ignores signals": (
        "import signal\nif os.fork() == 0:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    exec(writer)"
    ),
}


def test_nothing_outlives_the_check(copy, tmp_path):
    detached = ("its own session", "a daemon")
    kinds = [kind for kind in STARTS if kind not in detached or _can_isolate()]
    for kind in kinds:
        add_code(copy, OUTLIVE.format(path=str(tmp_path / kind), start=STARTS[kind]))
    verify(str(copy))
    sizes = [(tmp_path / kind).stat().st_size for kind in kinds]
    time.sleep(1)
    assert min(sizes) > 0 and [(tmp_path / kind).stat().st_size for kind in kinds] == sizes


def test_the_repo_changes_neither_the_folder_nor_the_table(copy, capsys):
    """Its code runs on a copy, and an error message of it writes no line."""
    overwrite = "for path in pathlib.Path('repo').glob('*.[jm]*'):\n    path.write_text('{}')"
    message = "raise RuntimeError('x\\rok      config loads and runs\\n\\033[2Jok      all')"
    add_code(copy, f"import pathlib\n{overwrite}\n{message}")
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert main([str(copy)]) > 0
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before
    output = capsys.readouterr().out
    assert "\r" not in output and "\033" not in output
    assert not [line for line in output.splitlines() if line.startswith("ok") and ("all" in line or "config" in line)]


@pytest.mark.parametrize("source", ["/nothing/here", "no such repo", "user/nothing"])
def test_a_source_that_is_not_found_is_a_failed_line(hub, tmp_path, source):
    table = run(hub, tmp_path, "-m", "hub_scripts.verify_repo", source, check=False)
    assert table.returncode == 1 and table.stdout.startswith("FAILED  downloads") and "Traceback" not in table.stderr


STRANGER = """
import json, sys
from transformers import AutoModelForTokenClassification, pipeline
options = {"trust_remote_code": True} | ({"revision": sys.argv[2]} if len(sys.argv) > 2 else {})
model = AutoModelForTokenClassification.from_pretrained(sys.argv[1], **options)
ner = pipeline("mner", model=sys.argv[1], **options)
assert not {"modeling_hamlearning", "processors"} & set(sys.modules)
print(json.dumps(ner("New York Knicks' game #NBA @joe")))
"""


def test_push_load_verify_and_a_pinned_revision(hub, model_dir, repo, tmp_path):
    push = ("-m", "hub_scripts.push_to_hub", str(model_dir), "user/tiny")
    assert "pushed:" in run(hub, tmp_path / "a", *push).stdout
    first = hub.repos["model", "user/tiny"].commits[-1][0]
    assert set(hub.repos["model", "user/tiny"].commits[-1][1]) == {path.name for path in repo.iterdir() if path.is_file()}

    (tmp_path / "stranger.py").write_text(STRANGER)
    tagged = run(hub, tmp_path / "b", "stranger.py", "user/tiny", token=None, cwd=tmp_path).stdout
    expected = pipeline("mner", model=str(repo), trust_remote_code=True)("New York Knicks' game #NBA @joe")
    assert json.loads(tagged.splitlines()[-1]) == json.loads(json.dumps(expected))

    verified = run(hub, tmp_path / "c", "-m", "hub_scripts.verify_repo", "user/tiny", token=None)
    assert "FAILED" not in verified.stdout and verified.stdout.count("ok ") >= 12

    # A later commit with other weights changes main and not the pinned revision.
    files = dict(hub.repos["model", "user/tiny"].commits[-1][1])
    save_file(load_file(repo / "model.safetensors") | {"classifier.bias": torch.arange(5.0)}, tmp_path / "new.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    files["model.safetensors"] = (tmp_path / "new.safetensors").read_bytes()
    hub.repos["model", "user/tiny"].commits.append(("f" * 40, files))
    pinned = run(hub, tmp_path / "d", "stranger.py", "user/tiny", first, token=None, cwd=tmp_path).stdout
    moved = run(hub, tmp_path / "e", "stranger.py", "user/tiny", token=None, cwd=tmp_path).stdout
    assert pinned == tagged and moved != tagged


def test_a_private_repo_needs_a_token(hub, model_dir, tmp_path):
    run(hub, tmp_path / "a", "-m", "hub_scripts.push_to_hub", str(model_dir), "user/hidden", "--private")
    assert hub.repos["model", "user/hidden"].private
    refused = run(hub, tmp_path / "b", "-m", "hub_scripts.verify_repo", "user/hidden", token=None, check=False)
    assert refused.returncode == 1 and "RepositoryNotFoundError" in refused.stdout and "Traceback" not in refused.stderr
    assert "FAILED" not in run(hub, tmp_path / "c", "-m", "hub_scripts.verify_repo", "user/hidden").stdout


@pytest.mark.parametrize("fault", ["drop", 503])
def test_an_upload_that_fails_once_is_tried_again(hub, model_dir, tmp_path, fault):
    hub.fault = ["PUT", "/lfs/", fault, 1]
    assert "pushed:" in run(hub, tmp_path, "-m", "hub_scripts.push_to_hub", str(model_dir), "user/tiny").stdout
    assert sum(request.startswith("PUT") for request in hub.requests) > 1
    assert "model.safetensors" in hub.repos["model", "user/tiny"].commits[-1][1]


def test_a_server_that_stays_broken_is_named_and_nothing_is_half_pushed(hub, model_dir, tmp_path):
    hub.fault = ["POST", "/commit/", 500, 99]
    broken = run(hub, tmp_path, "-m", "hub_scripts.push_to_hub", str(model_dir), "user/tiny", check=False)
    assert broken.returncode != 0 and "run the same command again" in broken.stderr and "500" in broken.stderr
    assert hub.repos["model", "user/tiny"].commits[-1][1] == {}


def test_the_trainers_own_push_leaves_a_repo_that_loads(hub, tmp_path):
    """With the processor, the code and the filled card, and no pickle."""
    small = ["--text_config", "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}",
             "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}", "--image_size", "64",
             "--synthetic_posts", "[16, 4, 4]", "--max_steps", "2", "--use_cpu", "--eval_strategy", "no"]  # fmt: skip
    push = ["--push_to_hub", "--hub_model_id", "user/trained", "--output_dir", str(tmp_path / "out")]
    run(hub, tmp_path / "a", "train.py", "configs/demo.yaml", *small, *push)
    files = hub.repos["model", "user/trained"].commits[-1][1]
    assert {"model.safetensors", "processor_config.json", "crf.py", "word_splitting.py", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    card = files["README.md"].decode()
    assert 'pipeline("mner", model="user/trained"' in card and "model-index" in card
    assert "\n# user/trained\n" in card and "- name: user/trained\n" in card, "the page has the repo's name, not the folder's"
    (tmp_path / "stranger.py").write_text(STRANGER)
    run(hub, tmp_path / "b", "stranger.py", "user/trained", token=None, cwd=tmp_path)


LOAD_DATASET = """
import sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train")
stream = next(iter(load_dataset(sys.argv[1], split="train", streaming=True)))
print(len(rows), rows[0]["tokens"], rows[0]["image"].size, rows[1]["image"], stream["boxes"])
"""


def test_a_prepared_data_set_is_pushed_and_loads(hub, tmp_path):
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "train.txt").write_text("IMGID:a\nJordan\tB-PER\n\nIMGID:b\nhello\tO\n")
    Image.new("RGB", (40, 30)).save(tmp_path / "raw" / "images" / "a.jpg")
    source = ["--text", str(tmp_path / "raw"), "--images", str(tmp_path / "raw" / "images"), "--regions", "grid"]
    push = ["--output", str(tmp_path / "out"), "--push", "user/posts"]
    run(hub, tmp_path, "-m", "hub_scripts.prepare_dataset", *source, *push)
    assert set(hub.repos["dataset", "user/posts"].commits[-1][1]) == {"README.md", "data/train-00000-of-00001.parquet"}
    (tmp_path / "load.py").write_text(LOAD_DATASET)
    loaded = run(hub, tmp_path / "b", "load.py", "user/posts", token=None, cwd=tmp_path).stdout.splitlines()[-1]
    assert loaded.startswith("2 ['Jordan'] (40, 30) None [[0.0, 0.0, 0.5, 0.5]")


def test_only_what_a_model_repo_needs_is_pushed(hub, model_dir, tmp_path, monkeypatch):
    """As train.py pushes: to a branch, with a message, by a function."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "trained"))
    for name in ("predictions.txt", ".env", "notes.md", "all_results.json", "optimizer.pt", "training_args.bin", "secret.json"):
        (folder / name).write_text("secret")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_text("secret")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    url = push_model(folder, "user/tiny", private=True, revision="second", commit_message="After epoch 2", token=TOKEN)
    repo = hub.repos["model", "user/tiny"]
    sha, files = repo.branches["second"][-1]
    assert repo.private and url.endswith(sha) and len(repo.commits) == 1
    assert {"model.safetensors", "config.json", "README.md", "reference.json"} <= set(files)
    assert not [name for name, content in files.items() if content == b"secret"]
    assert not {"predictions.txt", ".env", "notes.md", "all_results.json", "training_args.bin"} & set(files)
    assert hub.messages[-1] == "After epoch 2"


def test_a_folder_that_lacks_something_is_named(tmp_path, model_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        build_repo(tmp_path / "empty", tmp_path / "out", "user/x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        build_repo(model_dir, tmp_path / "full", "user/x")
