"""Fixtures that tests of several folders share."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

import pytest
from transformers import BertConfig

from tests.tiny import tiny_tokenizer
from tests.tiny_model import LABELS, saved_tiny_detector, saved_tiny_model

# Ray's workers give way to all else that runs, so that on a busy machine the tests would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Connections to other machines fail as they do without a network, so that no test depends on one."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(str(address[0])):
            raise OSError(errno.ENETUNREACH, f"tests have no network: {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session")
def label_names() -> list[str]:
    """The labels of `tiny_model`, in the order of their ids."""
    return list(LABELS)


@pytest.fixture(scope="session")
def tiny_text_config() -> BertConfig:
    """A text encoder for the tokens of `tiny_tokenizer("bert")`."""
    return BertConfig(
        vocab_size=len(tiny_tokenizer("bert")),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory) -> Path:
    """A folder with a tiny model and its processor, as a repo on the Hub holds them. Do not write to it."""
    return saved_tiny_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> Path:
    """A folder with a tiny detector of objects. Do not write to it."""
    return saved_tiny_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real posts, which HAMLEARNING_DATA names; a test that needs it is skipped without it."""
    folder = os.environ.get("HAMLEARNING_DATA")
    if not folder:
        pytest.skip("HAMLEARNING_DATA names no folder with the real posts")
    return Path(folder)
