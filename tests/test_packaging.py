# SPDX-License-Identifier: MIT
"""What holds for the package as a whole: one version, private attributes in two modules, light imports, habits."""

from __future__ import annotations

import ast
import configparser
import os
import pickle
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from packaging.version import Version

import art_wdro
from art_wdro._cli.main import COMMANDS, cli
from tests.sources import SOURCES, tree

ROOT = Path(__file__).parent.parent


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_version_is_in_one_place():
    own = art_wdro.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", own)
    assert version("art-wdro") == own
    assert CliRunner().invoke(cli, ["--version"]).output == f"art-wdro, version {own}\n"
    files = [*SOURCES, *(ROOT / name for name in ("setup.cfg", "pyproject.toml", "Makefile", "CITATION.cff"))]
    literal = re.compile(rf"(?<![\d.=]){re.escape(own)}(?![\d.])")
    assert [file.name for file in files if literal.search(file.read_text(encoding="utf-8"))] == ["_version.py"]


def test_two_modules_read_private_attributes_of_a_classifier():
    private = re.compile(r"(?:classifier|estimator)\._(?!_)[a-z]")
    readers = {file.stem for file in SOURCES if private.search(file.read_text(encoding="utf-8"))}
    assert readers == {"classifier", "preprocessing"}


@pytest.mark.slow
def test_importing_adds_nothing_heavy_to_art_and_torch():
    script = (
        "import sys, torch, tqdm.auto, art.attacks.evasion, art.estimators.classification, art.defences.trainer\n"
        "before = set(sys.modules)\n"
        "from art_wdro import *\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    added = set(run("-c", script).stdout.split())
    assert "art_wdro" in added
    # torch.distributed brings the other one
    assert added <= {"art_wdro", "torch", "_remote_module_non_scriptable"}


def test_the_command_line_says_what_it_is_without_torch_and_art():
    for argument in ("--version", "--help", "-h", "nothing"):
        script = (
            "import sys, contextlib\n"
            "from art_wdro.__main__ import main\n"
            "with contextlib.suppress(SystemExit):\n"
            f"    main([{argument!r}])\n"
            "print(sorted({'torch', 'art', 'numpy'} & set(sys.modules)))"
        )
        assert run("-c", script).stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_line_says_what_it_is_within_half_a_second(argument):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run("-m", "art_wdro", argument)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # the least, since other work on the machine only adds


def test_help_says_of_a_command_what_the_command_says():
    assert {path.stem for path in (ROOT / "art_wdro/_cli").glob("*.py")} >= set(COMMANDS)
    context = click.Context(cli)
    for name, text in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command.name == name
        assert command.help.partition("\n\n")[0] == text
        assert CliRunner().invoke(cli, ["--help"]).output.count(f"  {name} ") == 1
    assert cli.get_command(context, "nothing") is None


def test_public_names_are_imported_when_they_are_asked_for():
    script = (
        "import sys, art_wdro\n"
        "assert 'torch' not in sys.modules and set(art_wdro.__all__) < set(dir(art_wdro))\n"
        "assert art_wdro.attacks.WassersteinPGD is art_wdro.WassersteinPGD\n"
        "from art_wdro import evaluate, evaluation\n"
        "assert evaluate is evaluation.evaluate\n"
        "print(all(hasattr(art_wdro, name) for name in dir(art_wdro)), hasattr(art_wdro, 'nothing'))"
    )
    assert run("-c", script).stdout == "True False\n"
    for name in art_wdro.__all__:
        assert pickle.loads(pickle.dumps(getattr(art_wdro, name))) is getattr(art_wdro, name)


@pytest.mark.slow
def test_without_click_the_version_is_printed_and_a_command_says_what_to_install(tmp_path):
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('none here', name='click')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "art_wdro"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"art-wdro, version {art_wdro.__version__}\n"
    done = subprocess.run([*command, "demo"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == "the command line needs click: pip install '.[cli]' in a clone of art-wdro\n"


def test_hints_of_what_to_install_come_from_one_place_and_name_extras():
    texts = {file.stem: file.read_text(encoding="utf-8") for file in SOURCES}
    assert [name for name, text in texts.items() if "pip install" in text] == ["extras"]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {name for text in texts.values() for name in re.findall(r"install\(['\"](\w+)", text)}
    assert named >= {"cli", "demo", "plots"}
    assert named <= set(config["options.extras_require"])


def test_the_extra_all_is_what_users_can_need():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {name: set(text.split("\n")) - {""} for name, text in config["options.extras_require"].items()}
    tools = {"test", "docs", "package", "bench"}
    assert extras["all"] == set().union(*(extras[name] for name in set(extras) - {"all"} - tools))


def test_the_changelog_leads_up_to_the_version():
    found = re.findall(r"^## \[(.*?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert found[0] == ("Unreleased", "")
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in found[1:])
    released = [Version(number) for number, _ in found[1:]]
    assert released == sorted(set(released), reverse=True)
    assert Version(art_wdro.__version__) >= released[0]


def test_before_a_commit_the_linters_of_make_run():
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    wanted = re.findall(r"^\t\$\(BIN\)/(.*)$", lint[1], re.M)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^ +entry: \.venv/bin/(.*)$", hooks, re.M) == wanted


def test_no_file_runs_code_by_being_unpickled():
    nodes = [node for file in SOURCES for node in ast.walk(tree(file))]
    loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert loads
    assert all("weights_only=True" in map(ast.unparse, node.keywords) for node in loads)
    given = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
    assert {ast.unparse(node.value) for node in given} <= {"False"}
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"pickle", "dill", "cloudpickle", "joblib"}
