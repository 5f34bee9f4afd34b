# SPDX-License-Identifier: MIT
"""Programs of torch.export, read without running code that their file brings.

`torch.export.load` unpickles example inputs, constants and weights, loads compiled libraries, evaluates guards and
sizes as Python, writes names into Python source, and takes operators from any path below `torch`. So an archive is
written anew before torch sees it, with nothing in it but tensors and a graph of operators that compute; what a network
does not need is left out, and a file that needs more is refused.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from art_wdro._sources.files import check_stored
from art_wdro._sources.messages import TRUST, short

NAME = re.compile(r"\w*", re.ASCII)
PATH = re.compile(r"\w*(\.\w+)*", re.ASCII)
FORMS: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names", "type", "path_name"), NAME),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn"), PATH),
    **dict.fromkeys(("verifiers", "dialect"), NAME),
    "torch_version": re.compile(r"[\w.+-]*", re.ASCII),
    "as_float": re.compile(r"-?\w+", re.ASCII),
    "as_string": re.compile(r".*", re.DOTALL),
    "as_strings": re.compile(r".*", re.DOTALL),
}
"""What texts of a program look like, by the key they stand under, where torch can read nothing else into them."""
ARITHMETIC = re.compile(
    r"torch\.sym_(not|int|float|ite|max|min|sqrt|sum)|math\.(trunc|ceil|floor|sqrt)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift|getitem)"
)
"""What a program may call beside the operators of torch: arithmetic on sizes."""
FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|And|Or|Not|Eq|Equality|Ne|Unequality"
    "|Lt|StrictLessThan|Le|LessThan|Gt|StrictGreaterThan|Ge|GreaterThan|FloorDiv|ModularIndexing|Where|PythonMod"
    "|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat"
    "|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity|IsNonOverlappingAndDenseIndicator"
)
"""What the expression of a size may call."""
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
"""What the inputs and outputs of a program may be made of; others import modules by their name."""


class UntrustedError(ValueError):
    """Something in the file that torch would, or could, run as code."""


def load_program(path: Path, trust: bool) -> Any:
    """Read a program of torch.export.

    :param path: The file.
    :param trust: Leave it all to torch, which runs code from the file.
    :return: The program, a `torch.export.ExportedProgram`.
    :raises ValueError: If it is no such file, or one that needs trust.
    """
    try:
        with _quiet():
            return torch.export.load(path if trust else _rewritten(path))
    except UntrustedError as error:
        raise ValueError(f"model is '{path}', which holds {error}, and torch can run that as code; {TRUST}") from None
    except Exception as error:
        raise ValueError(
            f"model is '{path}', which is no file of torch.export that torch {torch.__version__} reads: {short(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of its own formats, with tracebacks in it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _rewritten(path: Path) -> io.BytesIO:
    """Write the archive anew, with what a network needs and nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as copy:
        check_stored(archive, path)
        files = set(archive.namelist())
        members = _old_members(archive) if "version" in files else _members(archive, files)
        for name, content in members:
            copy.writestr(name, content)
    buffer.seek(0)
    return buffer


def _old_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of an archive in the layout up to torch 2.7."""
    yield "version", archive.read("version")
    yield "serialized_exported_program.json", _plain_program(archive.read("serialized_exported_program.json"))
    for name in ("serialized_state_dict.pt", "serialized_constants.pt"):
        yield name, _plain_tensors(archive.read(name), name)
    yield "serialized_example_inputs.pt", b""


def _members(archive: zipfile.ZipFile, files: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of an archive in the layout since torch 2.8."""
    root = archive.namelist()[0].split("/")[0]
    for name in ("archive_format", "archive_version", "byteorder", ".data/version"):
        yield f"{root}/{name}", archive.read(f"{root}/{name}")
    yield f"{root}/models/model.json", _plain_program(archive.read(f"{root}/models/model.json"))
    yield f"{root}/data/sample_inputs/model.pt", b""
    for kind in ("weights", "constants"):
        folder = f"{root}/data/{kind}"
        if f"{folder}/model.pt" in files:
            yield f"{folder}/model.pt", _plain_tensors(archive.read(f"{folder}/model.pt"), kind)
            continue
        config = json.loads(archive.read(f"{folder}/model_{kind}_config.json"))
        _check(config, "config")
        pickled = {}
        for entry in config["config"].values():
            file = entry["path_name"]
            if file.startswith(("custom_obj", "opaque_obj")):
                raise UntrustedError(f"the object {file!r}")
            pickled[file] = entry["use_pickle"] is not False
        yield f"{folder}/model_{kind}_config.json", json.dumps(config).encode()
        for file, is_pickle in pickled.items():
            content = archive.read(f"{folder}/{file}")
            yield f"{folder}/{file}", _plain_tensors(content, file) if is_pickle else content


def _plain_tensors(content: bytes, name: str) -> bytes:
    """Pickle tensors anew that were read without running what their pickle says."""
    if not content:
        return content
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UntrustedError(f"a pickle of more than tensors, {name!r} ({short(error)})") from error
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _plain_program(content: bytes) -> bytes:
    """Leave out of a program what it does not need to run, and refuse what torch could read as code in the rest."""
    program = json.loads(content)
    module = program["graph_module"]
    module["module_call_graph"] = module["module_call_graph"][:1]  # the signature of the whole
    leave_out: list[tuple[dict[str, Any], str, Any]] = [
        (module, "metadata", {}),
        (module, "treespec_namedtuple_fields", {}),
        (program, "guards_code", []),
    ]
    leave_out += [(node, "metadata", {}) for node in module["graph"]["nodes"]]
    for part, key, empty in leave_out:
        if key in part:
            part[key] = empty
    _check(program, "program")
    return json.dumps(program).encode()


def _check(value: Any, key: str) -> None:
    """Refuse a text that torch could read as more than it should be.

    :raises UntrustedError: If there is one.
    """
    if isinstance(value, dict):
        for inner, part in value.items():
            if not PATH.fullmatch(inner):
                raise UntrustedError(f"the name {inner!r}")
            _check(part, inner)
    elif isinstance(value, list):
        for part in value:
            _check(part, key)
    elif isinstance(value, str):
        if key in ("in_spec", "out_spec"):
            _check_structure(json.loads(value)[1])
        elif key == "expr_str":
            _check_expression(value)
        elif key == "target":
            _check_operator(value)
        elif key not in FORMS or not FORMS[key].fullmatch(value):
            raise UntrustedError(f"the {key} {value[:80]!r}")


def _check_operator(target: str) -> None:
    """Refuse what a node calls if it is none of torch's own operators on tensors, or reads or writes a file."""
    if ARITHMETIC.fullmatch(target):
        return
    path, _, overload = target.rpartition(".")
    found = getattr(getattr(torch.ops.aten, path.removeprefix("torch.ops.aten."), None), overload, None)
    if not isinstance(found, torch._ops.OpOverload) or any(a.name == "filename" for a in found._schema.arguments):
        raise UntrustedError(f"the operator {target[:80]!r}")


def _check_structure(spec: dict[str, Any]) -> None:
    kind, context = spec["type"], spec["context"]
    if kind not in CONTAINERS or not isinstance(context, str | None):
        raise UntrustedError(f"the structure {str(kind)[:80]!r}")
    names = json.loads(context or "null")
    if not (names is None or (isinstance(names, list) and all(map(NAME.fullmatch, names)))):
        raise UntrustedError(f"the structure {str(context)[:80]!r}")
    for part in spec["children_spec"]:
        _check_structure(part)


def _check_expression(text: str) -> None:
    """Refuse the expression of a size that does more than compute: SymPy evaluates it as Python."""
    refusal = UntrustedError(f"the expression {text[:80]!r}")
    if not re.fullmatch(r"[\w .,+\-*/%()<>=!&|~']*", text, re.ASCII):
        raise refusal
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, RecursionError, MemoryError):
        raise refusal from None
    for node in nodes:
        if isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name) and FUNCTIONS.fullmatch(node.func.id) is not None
        elif isinstance(node, ast.Constant):
            allowed = (
                not isinstance(node.value, str)
                or re.fullmatch(r"\w+|-?\d+\.\d*(e[+-]?\d+)?", node.value, re.ASCII) is not None
            )
        else:
            computes = (ast.operator, ast.unaryop, ast.cmpop, ast.BinOp, ast.UnaryOp, ast.Compare)
            allowed = isinstance(node, (ast.Expression, ast.Name, ast.Load, ast.keyword, *computes))
        if not allowed:
            raise refusal
