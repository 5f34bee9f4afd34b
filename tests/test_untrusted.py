# SPDX-License-Identifier: MIT
"""Model files of a stranger: nothing in them is executed, each attack is one that works where the file is trusted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art_wdro._sources.exported import FORMS, NAME, PATH, UntrustedError, _check
from art_wdro._sources.networks import load_classifier

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)
CODE = "__import__('os').mkdir('evil')"
"""What a file must not get executed."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Evil:
    """What makes the folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


class Network(nn.Module):
    """A layer, a constant, and a size that depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer((x - torch.tensor(0.5)).reshape(x.shape[0] * 2, 2).reshape(-1, 4))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "network.pt2"
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(Network(), (torch.rand(2, 4),), dynamic_shapes=({0: batch},)), path)
    return path


@pytest.fixture
def members(original, tmp_path, monkeypatch):
    """What the archive holds, by its name below the archive's root."""
    if OLD:
        pytest.skip("files have this layout since torch 2.9")
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(original) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(members: dict[str, bytes], root: str = "network/", file: str = "evil.pt2", **keywords) -> None:
    with zipfile.ZipFile(file, "w", **keywords) as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def program(members: dict[str, bytes], change) -> None:
    """Change the program of an archive."""
    content = json.loads(members["models/model.json"])
    change(content, content["graph_module"]["graph"])
    members["models/model.json"] = json.dumps(content).encode()


def call(members: dict[str, bytes], target: str, **arguments: dict) -> None:
    """Make a program begin with a call of something."""
    inputs = [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()]
    node = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "called"}}], "metadata": {}}

    def change(_, graph):
        graph["nodes"].insert(0, node | {"name": "called"})
        graph["tensor_values"]["called"] = graph["tensor_values"]["x"]

    program(members, change)


def config_entry(members: dict[str, bytes], kind: str, **entry) -> None:
    file = f"data/{kind}/model_{kind}_config.json"
    content = json.loads(members[file])
    changed = next(iter(content["config"].values()), None)
    if changed is None:
        changed = content["config"]["new"] = {"is_param": False, "tensor_meta": None}
    changed |= entry
    members[file] = json.dumps(content).encode()


def sample_inputs(members):
    members["data/sample_inputs/model.pt"] = pickled(((Evil(),), {}))


def weights(members):
    members["data/weights/model.pt"] = pickled({"layer.weight": Evil()})


def one_weight(members):
    config_entry(members, "weights", use_pickle=True)
    members["data/weights/weight_0"] = pickled(Evil())


def constants(members):
    members["data/constants/model.pt"] = pickled({"constant": Evil()})


def one_constant(members):
    config_entry(members, "constants", use_pickle=True)
    members["data/constants/tensor_0"] = pickled(Evil())


def an_object(members):
    config_entry(members, "constants", path_name="opaque_obj_0", use_pickle=True)
    members["data/constants/opaque_obj_0"] = pickle.dumps(Evil())


def guards(members):
    program(members, lambda whole, _: whole.update(guards_code=[CODE]))


def size(members):
    def change(_, graph):
        for value in graph["tensor_values"].values():
            for side in value["sizes"]:
                if "as_expr" in side:
                    side["as_expr"]["expr_str"] = f"{CODE} or 2"

    program(members, change)


def symbol(members):
    def change(_, graph):
        value = next(value for value in graph["sym_int_values"].values() if "as_expr" in value)
        value["as_expr"]["expr_str"] = f'Max("{CODE} or 2", 2)'

    program(members, change)


def any_function(members):
    call(members, "torch.os.mkdir", path={"as_string": "evil"})


def function_of_an_operator(members):
    call(members, "torch.ops.aten.name.format", name={"as_string": "evil"})


def writing_operator(members):
    file = {"as_string": "evil"}
    call(members, "torch.ops.aten.from_file.default", filename=file, shared={"as_bool": True}, size={"as_int": 4})


def node_name(members):
    def change(_, graph):
        first = graph["nodes"][0]
        name = f"{CODE}; " + first["name"]
        text = json.dumps(graph).replace(json.dumps(first["name"]), json.dumps(name))
        graph.update(json.loads(text))

    program(members, change)


def argument_name(members):
    def change(whole, _):
        signature = whole["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"x={CODE}"]

    program(members, change)


def structure(members):
    Path("malice.py").write_text(CODE)

    def change(whole, _):
        signature = whole["graph_module"]["module_call_graph"][0]["signature"]
        protocol, spec = json.loads(signature["out_spec"])
        context = {"default_factory_module": "malice", "default_factory_name": "no", "dict_context": []}
        spec = {"type": "collections.defaultdict", "context": context, "children_spec": [spec]}
        signature["out_spec"] = json.dumps([protocol, spec])

    program(members, change)


def another_program(members):
    members["models/other.json"] = members["models/model.json"]
    for kind in ("weights", "constants"):
        members[f"data/{kind}/other.pt"] = pickled({"layer.weight": Evil()})
    members["data/sample_inputs/other.pt"] = b""


ATTACKS = [
    *(sample_inputs, weights, one_weight, constants, one_constant, an_object, guards, size, symbol, any_function),
    *(function_of_an_operator, writing_operator, node_name, argument_name, structure, another_program),
]
LEFT_OUT = (sample_inputs, guards, another_program)
"""Attacks by what a network does not need."""
PARRIED = (any_function, function_of_an_operator, node_name, argument_name)
"""Attacks that torch 2.14 parries itself."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_an_exported_program_is_executed(members, attack, monkeypatch):
    monkeypatch.syspath_prepend(".")
    attack(members)
    write(members)
    if attack in LEFT_OUT:
        classifier = load_classifier("evil.pt2", (4,), device="cpu")
        assert classifier.predict(np.zeros((2, 4), np.float32)).shape == (2, 3)
    else:
        with pytest.raises(ValueError, match=r"model is 'evil\.pt2', which holds .* give --trust"):
            load_classifier("evil.pt2", (4,), device="cpu")
    assert not Path("evil").exists()
    with contextlib.suppress(Exception):
        load_classifier("evil.pt2", (4,), device="cpu", trust=True)
    sys.modules.pop("malice", None)
    if torch.__version__.startswith("2.14."):
        assert Path("evil").exists() != (attack in PARRIED)


def test_no_pickle_in_a_file_of_this_torch_is_executed(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(original) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in files if name.endswith(".pt")]
    assert len(pickles) == (1 if not OLD else 3)
    for name in pickles:
        write(files | {name: pickled(({"layer.weight": Evil()},))}, root="")
        with contextlib.suppress(ValueError):
            load_classifier("evil.pt2", (4,), device="cpu")
        assert not Path("evil").exists()
        with contextlib.suppress(ValueError):
            load_classifier("evil.pt2", (4,), device="cpu", trust=True)
        assert Path("evil").exists()
        Path("evil").rmdir()


@pytest.mark.parametrize("both", [False, True])
def test_nothing_of_the_old_layout_is_executed(members, both):
    whole = json.loads(members["models/model.json"])
    version = whole["schema_version"]
    old = {
        "version": f"{version['major']}.{version['minor']}".encode(),
        "serialized_exported_program.json": members["models/model.json"],
        "serialized_state_dict.pt": pickled({"layer.weight": Evil()}),
        "serialized_constants.pt": pickled({}),
        "serialized_example_inputs.pt": b"",
    }
    if both:
        members["archive_format"] = b"no"  # torch tries the old layout then
        old |= {f"network/{name}": content for name, content in members.items()}
    write(old, root="")
    with pytest.raises(ValueError, match=r"a pickle of more than tensors, 'serialized_state_dict.pt'.* give --trust"):
        load_classifier("evil.pt2", (4,), device="cpu")
    assert not Path("evil").exists()
    with pytest.raises(ValueError, match=r"no file of torch\.export"):
        load_classifier("evil.pt2", (4,), device="cpu", trust=True)
    assert Path("evil").exists()


def test_the_old_layout_is_read(original, members):
    whole = json.loads(members["models/model.json"])
    version = whole["schema_version"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.export.load(original)
    old = {
        "version": f"{version['major']}.{version['minor']}".encode(),
        "serialized_exported_program.json": members["models/model.json"],
        "serialized_state_dict.pt": pickled(dict(loaded.state_dict)),
        "serialized_constants.pt": pickled(dict(loaded.constants)),
        "serialized_example_inputs.pt": members["data/sample_inputs/model.pt"],
    }
    write(old, root="")
    x = np.random.default_rng(0).random((5, 4), np.float32)
    expected = loaded.module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(load_classifier("evil.pt2", (4,), device="cpu").predict(x), expected, atol=1e-6)


def test_compiled_code_and_other_files_are_left_out(members):
    write(members | {"data/aotinductor/model/model.so": b"\x7fELF", "extra/notes.txt": b"", "data/weights/more": b""})
    assert load_classifier("evil.pt2", (4,), device="cpu").nb_classes == 3


def test_archives_that_grow_are_refused(members):
    write(members | {"data/weights/zeros": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its members are compressed"):
        load_classifier("evil.pt2", (4,), device="cpu")


GOOD = ["s77", "2*s77 + 1", "Mul(Integer(16), Symbol('s77', positive=True, integer=True))", "Max(1, FloorDiv(s0, 2))"]
BAD = [CODE, "s77.is_integer", "(lambda: 1)()", "[1][0]", "Max(open('f'))", 'Max("x")', "x if y else z", "(" * 999]
BAD += ["Symbol('x', positive=print(1))", "Max('a.b')", "Integer('1(')", "s77 #", "s77\n"]


def test_expressions_of_sizes():
    for text in GOOD:
        _check({"expr_str": text}, "")
    for text in BAD:
        with pytest.raises(UntrustedError, match="the expression"):
            _check({"expr_str": text}, "")


def test_operators_are_those_of_torch_that_use_no_file():
    for schema in torch._C._jit_get_all_schemas():
        files = {"file", "filename", "file_name", "f"} & {argument.name for argument in schema.arguments}
        if schema.name.startswith("aten::") and files:
            with pytest.raises(UntrustedError, match="the operator"):
                _check(
                    {"target": f"torch.ops.{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"}, ""
                )
    for target in ("torch.ops.aten.relu.default", "_operator.getitem", "math.trunc", "torch.sym_max"):
        _check({"target": target}, "")
    bad = ("torch.load", "torch.ops.aten.relu", "torch.ops.aten.name.format", "_operator.methodcaller", "aten.relu", "")
    for target in (*bad, "torch.ops.aten.relu.default ", "torch.ops.prims.relu.default", "torch.ops.load_library"):
        with pytest.raises(UntrustedError, match="the operator"):
            _check({"target": target}, "")


def test_names_are_names():
    for pattern in {FORMS[key] for key in FORMS if FORMS[key] in (NAME, PATH)}:
        assert pattern.fullmatch("layer_1")
        for text in ("x y", "x\n", "x()", "x;y", "x=1", "é", ".", "a..b"):
            assert not pattern.fullmatch(text)
    with pytest.raises(UntrustedError, match=r"the class_fqn '__main__\.X'"):
        _check({"custom_obj_values": {"x": {"class_fqn": "__main__.X"}}}, "")


def test_torchscript_needs_trust(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Writer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "evil")
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writer()).save("writer.pt")
    for file in ("writer.pt", "writer.pth", "writer.ts"):
        Path(file).write_bytes(Path("writer.pt").read_bytes())
        with pytest.raises(
            ValueError, match="a TorchScript file, and that is a program, which may write any file; give"
        ):
            load_classifier(file, (4,), device="cpu")
    assert not Path("evil").exists()
    load_classifier("writer.pt", (4,), device="cpu", trust=True)
    assert Path("evil").is_file()


def test_weights_are_never_unpickled(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"layer.weight": Evil()}, Evil()):
        torch.save(content, "evil.pth")
        with pytest.raises(ValueError, match=r"weights are 'evil\.pth', which is no state dict of this network"):
            load_classifier(str(original), (4,), weights=Path("evil.pth"), device="cpu", trust=True)
        with pytest.raises(ValueError, match="which is no TorchScript file"):
            load_classifier("evil.pth", (4,), device="cpu", trust=True)
    assert not Path("evil").exists()
