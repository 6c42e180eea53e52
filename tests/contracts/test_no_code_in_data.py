"""Nothing that we read may run: no pickle, no `torch.load`, no code from a checkpoint, no archive unpacked, no eval."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("platform", "moe_core", "workers")

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "tarfile",
    "zipfile", "jinja2",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load", "eval", "exec", "compile",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen", "shutil.unpack_archive",
    "extra", "RawSQL",
}  # fmt: skip
FORBIDDEN_KEYWORDS = {"trust_remote_code": True, "allow_pickle": True, "shell": True, "weights_only": False}


def sources() -> Iterator[Path]:
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                f"import {alias.name}"
                for alias in node.names
                if alias.name.split(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield f"from {node.module} import …"
        elif isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                yield f"{dotted(node.func)}(…)"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in FORBIDDEN_KEYWORDS and value is FORBIDDEN_KEYWORDS[keyword.arg]:
                    yield f"{keyword.arg}={value}"
            if (
                dotted(node.func).endswith(".execute")
                and node.args
                and isinstance(node.args[0], ast.JoinedStr)
            ):
                yield "execute(f'…'): give parameters, or compose with psycopg.sql"


@pytest.mark.parametrize("room", ROOMS)
def test_no_source_runs_what_it_reads(room):
    found = {
        str(path.relative_to(ROOT)): hits
        for path in sources()
        if path.is_relative_to(ROOT / room) and (hits := sorted(offences(ast.parse(path.read_text()))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(word, shell=True)",
        "yaml.load(text)",
        "cursor.execute(f'SELECT {name}')",
    ],
)
def test_the_test_itself_sees_what_it_must(text):
    assert list(offences(ast.parse(text)))


def test_innocent_code_passes():
    assert (
        list(
            offences(
                ast.parse("import json\nyaml.safe_load(t)\ncursor.execute('SELECT 1', [x])\nf(shell=False)")
            )
        )
        == []
    )
