"""The Python block of docs/training.md, as a reader runs it on a trained model and data of their own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"


def test_the_block_trains_a_model_further_on_a_folder_with_another_type(saved_model, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shutil.copytree(saved_model, tmp_path / "outputs" / "demo" / "model")
    (tmp_path / "my_data").mkdir()
    for split in ("train", "valid"):
        posts = [f"IMGID:{split}{place}\nJordan\tB-PER\neats\tO\npizza\tB-FOOD\n" for place in range(4)]
        (tmp_path / "my_data" / f"{split}.txt").write_text("\n".join(posts))
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(block, namespace)
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
    assert namespace["model"].config.label2id["B-FOOD"] >= 5 and (tmp_path / "outputs/further/model.safetensors").is_file()
