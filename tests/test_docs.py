# SPDX-License-Identifier: MIT
"""The documentation holds: snippets run, links lead somewhere, commands exist, names and numbers are complete."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from PIL import Image
from torch import nn

import art_wdro
from art_wdro import functional
from art_wdro._cli.main import cli
from tests.conftest import digits, images, make_classifier, write_cifar10
from tests.sources import PACKAGE, SOURCES, Function, definition, names, tree

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/notebooks/*.py"), *ROOT.glob("tests/**/*.md")]
)
SNIPPETS = {page: re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S) for page in PAGES}
BENCHMARKED = [*PAGES, ROOT / "Makefile", *sorted(ROOT.glob("benchmarks/*/[!_]*.py"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead nowhere, or out of the repository."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.exists() and root in (target, *target.parents)
        if not inside or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_of_a_page(page):
    assert broken(page) == []


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One heading\n[a](nowhere.md) [b](#one-heading) [c](#other) [d](https://e.org) `[e](f)` [g](..)")
    assert broken(page, tmp_path) == ["nowhere.md", "#other", ".."]  # b is there, d is elsewhere, e is code


def vague(text: str) -> list[str]:
    """The texts of links that do not say where they lead: names of files, empty words, one text for two places."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)
    links = re.findall(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", text)
    places: dict[str, set[str]] = {}
    for words, place in links:
        places.setdefault(" ".join(words.split()), set()).add(place)
    nothing = {"here", "how", "how to", "this", "more", "measured", "page", "link"}
    return [words for words, found in places.items() if len(found) > 1 or words.endswith(".md") or words in nothing]


@pytest.mark.parametrize("page", [page for page in PAGES if ROOT / "docs" in page.parents], ids=lambda page: page.stem)
def test_texts_of_links_say_where_they_lead(page):
    assert vague(page.read_text()) == []


def test_vague_links_are_seen():
    text = "[how](a.md) [a page](a.md) [a\npage](b.md) [b.md](b.md) [its figures](a.md) ![how](c.png)"
    assert vague(text) == ["how", "a page", "b.md"]


def test_every_page_is_in_the_table_of_contents():
    index = ROOT / "docs/index.md"
    entries = [
        line for block in re.findall(r"```{toctree}\n(.*?)```", index.read_text(), re.S) for line in block.split()
    ]
    listed = {(index.parent / entry).resolve() for entry in entries}
    pages = {page.with_suffix("") for page in PAGES} - {ROOT / "README", ROOT / "docs/index"}
    assert pages <= listed


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/api.md").read_text()
    documented = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, re.M)
    assert sorted(documented) == sorted([*art_wdro.__all__, *functional.__all__])
    listed = {
        line.strip() for block in re.findall(r"autosummary::\n\n(.*?)\n\n", text, re.S) for line in block.split("\n")
    }
    assert listed == {*art_wdro.__all__, *functional.__all__}
    methods = re.findall(r"^   \.\. auto(?:method|property):: (\w+)$", text, re.M)
    assert len(methods) == len(set(methods)), "what classes share is described once"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_a_page(page):
    text = re.sub(r" \\\n +", " ", page.read_text())
    for line in re.findall(r"^(?: {4})?art-wdro (.*)$", text, re.M):
        command, *arguments = shlex.split(line, comments=True)
        known = {
            option
            for parameter in cli.get_command(click.Context(cli), command).params
            for option in [*parameter.opts, *parameter.secondary_opts]
        }
        given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert given <= known | {"--help"}, line


def text_with_commands(file: Path) -> str:
    """What a page or the Makefile says, or a program's docstring."""
    text = file.read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if ROOT / "benchmarks" in file.parents else text


def wrong_benchmarks(text: str) -> list[str]:
    """What a text says of benchmarks that is not so: commands that they do not take, modules and files not there."""
    found = []
    for name, line in re.findall(r"-m benchmarks\.([\w.]+)((?: [^\n;|#`]*)?)", text):
        try:
            import_module(f"benchmarks.{name}").parser().parse_args(shlex.split(line.replace("$(ARGS)", "")))
        except (ImportError, SystemExit):
            found.append(f"{name}{line}")
    for name in re.findall(r"\bbenchmarks((?:\.\w+)+)", text):
        path = ROOT.joinpath("benchmarks", *name[1:].split("."))
        if not (path.is_dir() or path.with_suffix(".py").is_file()):
            found.append(f"benchmarks{name}")
    return found + [path for path in re.findall(r"\bbenchmarks/[\w/.]*\w", text) if not (ROOT / path).exists()]


@pytest.mark.parametrize("file", BENCHMARKED, ids=lambda file: str(file.relative_to(ROOT)))
def test_benchmarks_of_a_page(file):
    assert wrong_benchmarks(text_with_commands(file)) == []


def test_benchmarks_were_found():
    found = {str(file.relative_to(ROOT)) for file in BENCHMARKED if "-m benchmarks." in text_with_commands(file)}
    assert found >= {"Makefile", "docs/performance.md", "docs/results/margin.md", "benchmarks/speed/ranks.py"}


def test_wrong_benchmarks_are_seen(capsys):
    assert (
        wrong_benchmarks("python -m benchmarks.speed.attacks digits --samples 3; `benchmarks/speed/attacks.py`") == []
    )
    assert wrong_benchmarks("    python -m benchmarks.speed.attacks none") == ["speed.attacks none"]
    assert wrong_benchmarks("    python -m benchmarks.speed.attacks digits --no") == ["speed.attacks digits --no"]
    assert wrong_benchmarks("    python -m benchmarks.speed.none") == ["speed.none", "benchmarks.speed.none"]
    assert wrong_benchmarks("see benchmarks/none.py, `benchmarks.none`") == ["benchmarks.none", "benchmarks/none.py"]
    capsys.readouterr()  # what argparse says


def on_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PyTorchClassifier:
    """A network for a stand-in of CIFAR-10, and the stand-in where a page looks for the data set."""
    write_cifar10(folder / "data", monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
    classifier = make_classifier(model, (3, 32, 32), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    x, y = images(40, 3, 32, 32)
    classifier.fit(x.astype(np.float32) / 255, y, batch_size=40, nb_epochs=300)
    return classifier


def prepare(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the snippets take for granted: a classifier, data under their names, files, and one process of torchrun."""
    (x, y), _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    classifier.fit(x, y, batch_size=64, nb_epochs=5)
    for i in range(12):
        (folder / f"images/{y[i]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i, 0] * 255).astype(np.uint8)).save(folder / f"images/{y[i]}/{i}.png")
    # port 0 is any that is free
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    signature = inspect.signature(art_wdro.load_robustbench)
    loaded = on_cifar10(folder, monkeypatch) if page.stem == "cifar10" else classifier
    monkeypatch.setattr(art_wdro, "load_robustbench", lambda *a, **k: (signature.bind(*a, **k), loaded)[1])
    parts = {"x": (0, 12), "x_train": (0, 32), "x_val": (32, 44), "x_test": (44, 56)}
    names = {name: x[slice(*part)] for name, part in parts.items()}
    labels = {name.replace("x", "y", 1): y[slice(*part)] for name, part in parts.items()}
    return {"__name__": "snippet", "classifier": classifier} | names | labels


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # robustbench, DistributedDataParallel, and evaluations of twelve images
@pytest.mark.parametrize(
    "page", [page for page in PAGES if SNIPPETS[page] and page.stem != "cifar10"], ids=lambda page: page.stem
)
def test_snippets_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = prepare(page, tmp_path, monkeypatch)
    state = torch.get_rng_state()
    for snippet in SNIPPETS[page]:
        exec(compile(snippet, str(page), "exec"), namespace)
    torch.set_rng_state(state)


def test_snippets_were_found():
    pages = {str(page.relative_to(ROOT)) for page in PAGES if SNIPPETS[page]}
    howto = {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/howto/*.md")}
    assert pages >= howto | {"README.md", "docs/index.md", "docs/certificates.md"}
    assert len(howto) == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # an evaluation of forty images
def test_the_quick_start_ends_with_a_report_and_a_figure(tmp_path, monkeypatch):
    page = ROOT / "docs/howto/cifar10.md"
    monkeypatch.chdir(tmp_path)
    namespace = prepare(page, tmp_path, monkeypatch)
    (snippet,) = SNIPPETS[page]
    assert len(snippet.splitlines()) <= 12
    exec(compile(snippet, str(page), "exec"), namespace)
    report = namespace["report"]
    assert report.samples == 40
    assert report.rows[0].accuracy > 0.5 > report.rows[-1].accuracy
    assert (tmp_path / "cifar10.png").read_bytes().startswith(b"\x89PNG")


NUMBERS = re.findall(
    r"^\| `([\w.]+)` \| `([\w/]+\.py)` \| `([^`]+)` \|", (ROOT / "docs/numerics.md").read_text(encoding="utf-8"), re.M
)
"""Name, file and value of every row of the tables of numbers."""


MARKS = {"ENDED", "UNDERWAY", "LEADING", "FIRST", "SECOND", "FURTHER"}
"""Numbers that stand for something else, and bound nothing."""


def constants(file: Path) -> dict[str, float]:
    """The numbers that a module of the package holds under names in capitals."""
    if file.stem == "__main__":
        return {}
    module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    defined = {name for statement in tree(file).body for name in names(statement) if name.isupper()} - MARKS
    return {name: value for name in defined if type(value := getattr(module, name, None)) in (int, float)}


@pytest.mark.parametrize(("name", "file", "value"), NUMBERS)
def test_a_number_of_the_numerics_page(name, file, value):
    known = constants(PACKAGE / file)
    if name in known:
        assert known[name] == eval(value, {"__builtins__": {}})
    else:
        assert value in definition(PACKAGE / file, name)


def test_every_constant_is_on_the_numerics_page():
    found = {(name, str(file.relative_to(PACKAGE))) for file in SOURCES for name in constants(file)}
    formats = {("FORMAT", "_storage/checkpoint.py"), ("FORMAT", "evaluation/_report.py")}
    assert found - formats <= {(name, file) for name, file, _ in NUMBERS}


def test_no_tolerance_is_without_a_name_or_a_row():
    figures = [file for file in SOURCES if file.parent.name not in ("_cli", "_reproduction", "_sources")]
    functions = [(file, node) for file in figures for node in ast.walk(tree(file)) if isinstance(node, Function)]
    small = {
        (str(file.relative_to(PACKAGE)), node.value)
        for file, function in functions
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < abs(node.value) < 0.1
    }
    assert small <= {(file, float(value)) for _, file, value in NUMBERS if re.fullmatch(r"[\d.e-]+", value)}
