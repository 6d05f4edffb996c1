"""Models from outside: a graph that could do harm is refused before ONNX Runtime sees it, at every door."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from covid_fastai.app.batch import run
from covid_fastai.app.batch.ray import PartPredictor
from covid_fastai.app.batch.run import predict_batch
from covid_fastai.app.export import export_model
from covid_fastai.app.server import workers as workers_module
from covid_fastai.app.server.workers import Workers
from covid_fastai.errors import ModelFormatError, UnavailableError
from covid_fastai.model import session
from covid_fastai.model.bundle import load_model
from covid_fastai.model.bundle_config import read_config, seal_config
from covid_fastai.model.hub import push_to_hub
from covid_fastai.model.onnx_reader import GraphError, read_graph
from covid_fastai.model.predictor import Predictor
from covid_fastai.model.session import Graph
from tests.examples import examples
from tests.small_model import SIZE, write_small_model

IMAGE = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))


@pytest.fixture
def folder(small_model, tmp_path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


@pytest.fixture
def never_opened(monkeypatch):
    """Fail if ONNX Runtime opens a file."""

    def opened(*arguments, **options):
        raise AssertionError("ONNX Runtime has opened the file")

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", opened)


def put_onnx(folder: Path, content: bytes) -> None:
    """Exchange the ONNX file and seal the config again, as an attacker would."""
    (folder / "model.onnx").write_bytes(content)
    fields = json.loads((folder / "config.json").read_text())
    fields.pop("fingerprint")
    fields["onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(seal_config(fields)))


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def graph_of(*nodes, outputs=()):
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "inner", [], made)


LOOP_BODY = helper.make_graph(
    [node("Identity", "going", "still"), node("Add", "sum sum", "more")],
    "body",
    [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
    ],
    [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
    ],
)


def external(model, location, *, name="head"):
    tensor = next(one for one in model.graph.initializer if one.name == name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)


def shorten(model):
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-1]


def external_constant(model):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "inner")
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(node("Constant", "", "more", value=tensor))


def function(model, *, called=True):
    """Add functions that call each other twice, so that 40 of them would be 2^40 operations."""
    for number in range(40):
        inner = "Relu" if number == 0 else f"f{number - 1}"
        domain = "" if number == 0 else "mine"
        nodes = [helper.make_node(inner, [a], [b], domain=domain) for a, b in (("x", "y"), ("y", "z"))]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        model.functions.append(helper.make_function("mine", f"f{number}", ["x"], ["z"], nodes, opsets))
    if called:
        model.opset_import.append(helper.make_opsetid("mine", 1))
        model.graph.node.append(helper.make_node("f39", ["logits"], ["more"], domain="mine"))


def add(*nodes, constants=()):
    def change(model):
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)

    return change


def of_column_and_row(operator):
    """Return a change that combines a column with its transpose, which has the square of its numbers."""
    column_and_row = node("Expand", "scale s", "column"), node("Transpose", "column", "row")
    return add(*column_and_row, node(operator, "column row", "more"), constants=[ints("s", 1 << 17, 1)])


def doubled(model):
    model.graph.node.append(node("Concat", "features features", "twice0", axis=1))
    for number in range(40):
        model.graph.node.append(node("Concat", f"twice{number} twice{number}", f"twice{number + 1}", axis=1))


def sparse(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "huge")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, ints("at", 0), [1 << 40]))


def training(model):
    model.training_info.add()


def heavy(model):
    """Multiply matrices of 2,000 times 2,000."""
    model.graph.initializer.append(ints("side", 2000, 2000))
    model.graph.node.append(node("Expand", "scale side", "square0"))
    for number in range(3):
        model.graph.node.append(node("MatMul", f"square{number} square{number}", f"square{number + 1}"))


def another_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("QuickGelu", ["logits"], ["more"], domain="com.microsoft"))


OUTSIDE = "weights outside of the file"
IN_MEMORY = "numbers in memory"
HOSTILE = {
    "external data": (lambda model: external(model, "weights.bin"), OUTSIDE),
    "absolute external data": (lambda model: external(model, "/etc/passwd"), OUTSIDE),
    "external data above": (lambda model: external(model, "../../weights.bin"), OUTSIDE),
    "external data in memory": (lambda model: external(model, "*/_ORT_MEM_ADDR_/*"), OUTSIDE),
    "external data without a path": (lambda model: external(model, None), OUTSIDE),
    "external data of a constant": (external_constant, OUTSIDE),
    "loop": (add(node("Loop", "n on logits", "more", body=LOOP_BODY), constants=[ints("n", 1 << 62)]), "as a loop"),
    "condition": (add(node("If", "flag", "more", then_branch=graph_of(), else_branch=graph_of())), "such as a loop"),
    "functions": (function, "functions"),
    "unused functions": (lambda model: function(model, called=False), "functions"),
    "graph for training": (training, "graph for training"),
    "another maker": (another_domain, "other makers"),
    "random numbers": (add(node("RandomNormal", "", "more", shape=[2])), "'RandomNormal', which is not allowed"),
    "recurrence": (add(node("LSTM", "a b c", "more", hidden_size=2)), "depends|lacks|not as|'LSTM'"),
    "sparse tensor": (sparse, "sparse tensor"),
    "operators of old versions": (lambda model: setattr(model.opset_import[0], "version", 11), "of version 11, and 13"),
    "dropout that is switched on": (
        add(node("Dropout", "logits ratio on", "more"), constants=[numpy_helper.from_array(np.array(True), "on"),
            numpy_helper.from_array(np.array(0.5, np.float32), "ratio")]),
        "random values",
    ),
    "constant shorter than its shape": (shorten, "bytes, and its shape needs"),
    "text": (add(node("StringConcat", "a b", "more")), "StringConcat|not as"),
    "filled": (add(node("ConstantOfShape", "s", "more"), constants=[ints("s", 1 << 17, 1 << 17)]), IN_MEMORY),
    "expanded": (add(node("Expand", "logits s", "more"), constants=[ints("s", 1 << 33, 1, 1)]), IN_MEMORY),
    "tiled": (add(node("Tile", "logits s", "more"), constants=[ints("s", 1, 1 << 34)]), IN_MEMORY),
    "padded": (add(node("Pad", "logits s", "more"), constants=[ints("s", 0, 1 << 34, 0, 0)]), IN_MEMORY),
    "resized": (
        add(node("Resize", "maps", "more", mode="nearest"), constants=[]),
        "depends on the pixels|not as|lacks",
    ),
    "resized to gigabytes": (
        lambda model: add(
            helper.make_node("Resize", ["maps", "", "", "s"], ["more"]), constants=[ints("s", 1, 2, 1 << 16, 1 << 17)]
        )(model),
        IN_MEMORY,
    ),
    "product of a column and a row": (of_column_and_row("MatMul"), IN_MEMORY),
    "sum of a column and a row": (of_column_and_row("Add"), IN_MEMORY),
    "counted": (
        add(node("Range", "a b c", "more"), constants=[ints("a", 0), ints("b", 1 << 39), ints("c", 1)]),
        IN_MEMORY,
    ),
    "doubled 40 times": (doubled, "output of the shape"),
    "a thousand constants": (
        lambda model: add(
            *(node("Expand", "scale s", f"more{number}") for number in range(1000)), constants=[ints("s", 1 << 20)]
        )(model),
        IN_MEMORY,
    ),
    "as many values as pixels say": (
        add(
            node("Cast", "images", "numbers", to=TensorProto.INT64),
            node("Flatten", "numbers", "flat", axis=0),
            node("Squeeze", "flat", "shape"),
            node("ConstantOfShape", "shape", "more"),
        ),
        "depends on the pixels",
    ),
    "divided by a pixel": (
        add(node("Cast", "images", "numbers", to=TensorProto.INT64), node("Div", "numbers numbers", "more")),
        "divides integers",
    ),
    "divided by zero": (
        add(node("Cast", "images", "numbers", to=TensorProto.INT64), node("Div", "numbers zero", "more"),
            constants=[ints("zero", 0)]),
        "divides integers",
    ),
    "no values": (
        add(node("Slice", "logits zero zero one", "more"), constants=[ints("zero", 0), ints("one", 1)]),
        "without values",
    ),
    "too many operations": (add(*[node("Relu", "features", "more")] * 20_001), "operations"),
    "too much work": (heavy, "multiplications"),
    "value twice": (add(node("Relu", "features", "logits")), "same name"),
    "unknown value": (add(node("Relu", "nowhere", "more")), "not as the ONNX standard"),
    "too many outputs": (add(node("Relu", "features", "more most")), "outputs"),
}  # fmt: skip


def content_of(small_model, change) -> bytes:
    model = onnx.load(small_model / "model.onnx")
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_harmful_graph_is_refused_before_it_is_opened(small_model, never_opened, name):
    change, words = HOSTILE[name]
    with pytest.raises(GraphError, match=words):
        Graph(content_of(small_model, change), image_size=SIZE)


def field(number, content: bytes) -> bytes:
    """Return a field of bytes as protocol buffers write it."""
    return bytes([number << 3 & 0x7F | 0x82, number >> 4, len(content)]) + content


def test_what_two_readers_may_read_differently_is_refused(small_model, never_opened):
    """As a field that is not known, stands twice, or is in another encoding; and parts of a file."""
    content = (small_model / "model.onnx").read_bytes()
    assert read_graph(content).inputs == ("images",)
    assert read_graph(content + field(14, b"\x0a\x01a")).inputs == ("images",)  # metadata may stand several times
    again = {
        "not write": field(90, b"new"),
        "twice": b"\x08\x09",  # the version of the file
        "another encoding": b"\x0d\0\0\0\0",
        "not an ONNX file": b"\x0b\x0c",  # a group
        "damaged": b"\x3a\x7f",  # a graph that ends after the file
    }
    for words, bad in again.items():
        with pytest.raises(GraphError, match=words):
            read_graph(content + bad)
    for end in (0, 1, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(GraphError):
            Graph(content[:end], image_size=SIZE)


def test_a_file_that_is_also_one_of_onnx_runtimes_own_format_is_read_as_onnx(small_model, folder):
    """Bytes 4 to 8 decide that for ONNX Runtime, if it is not told which format a file has."""
    model = onnx.load(small_model / "model.onnx")
    model.producer_name = "ORTM of a tool"
    content = model.SerializeToString()
    assert content[4:8] == b"ORTM"
    put_onnx(folder, content)
    assert Predictor(folder).predict(IMAGE)["status"].tolist() == ["ok"]


def test_what_a_graph_needs_is_checked_for_each_number_of_images(small_model, folder):
    """One image needs little here, and sixteen need sixteen to the power of nine."""

    def grows(model):
        shape = [node("Shape", "images", "n1", start=0, end=1)]
        shape += [node("Mul", f"n{number} n1", f"n{number + 1}") for number in range(1, 9)]
        add(*shape, node("Expand", "scale n9", "more"))(model)

    put_onnx(folder, content_of(small_model, grows))
    predictor = Predictor(folder)
    assert predictor.predict(IMAGE)["status"].tolist() == ["ok"]
    with pytest.raises(ModelFormatError, match=r"model.onnx .*numbers in memory for 16 images"):
        predictor.predict([IMAGE] * 16)


def test_a_pass_has_fewer_images_if_each_needs_much(small_model, monkeypatch):
    images = [IMAGE // divisor for divisor in range(1, 6)]
    whole = Predictor(small_model).predict(images)
    graph = Graph((small_model / "model.onnx").read_bytes(), image_size=SIZE)
    monkeypatch.setattr(session, "MOST_VALUES_OF_PASS", 2 * graph.measure(1).values + 1)
    predictor = Predictor(small_model)
    assert predictor._session.batch == 2
    np.testing.assert_allclose(predictor.predict(images)["p_Normal"], whole["p_Normal"], atol=1e-6)


def test_a_graph_that_takes_too_long_is_stopped(small_model, monkeypatch):
    class AtOnce:
        def __init__(self, seconds, function):
            self.start, self.cancel = function, lambda: None

    predictor = Predictor(small_model)
    monkeypatch.setattr(session.threading, "Timer", AtOnce)
    with pytest.raises(ModelFormatError, match=r"model.onnx .*no answer after 60 seconds") as caught:
        predictor.predict(IMAGE)
    assert "trust" in caught.value.hint


def test_an_error_of_onnx_runtime_is_typed(small_model, monkeypatch):
    class Full:
        def run(self, *arguments):
            raise MemoryError

    predictor = Predictor(small_model)
    monkeypatch.setattr(predictor._session, "_session", Full())
    with pytest.raises(ModelFormatError, match="cannot run it .MemoryError"):
        predictor.predict(IMAGE)


def test_names_that_are_not_text_are_an_error_of_the_file(small_model, folder):
    """As in metadata and sizes, which this package does not read and ONNX Runtime hands over as text."""
    content = (small_model / "model.onnx").read_bytes()
    changed = content.replace(b"\x12\x01n", b"\x12\x01\x95")
    assert changed != content
    for bad in (changed, content + field(14, b"\x0a\x01\x95")):
        put_onnx(folder, bad)
        with pytest.raises(ModelFormatError, match=r"model.onnx .*cannot (read|describe) it"):
            Predictor(folder)


@examples(80)
@given(data=st.data())
def test_any_change_of_the_bytes_gives_a_graph_or_a_typed_error(small_model, data):
    changed = bytearray((small_model / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["set", "remove", "insert"]))
        if kind == "set":
            changed[at] = data.draw(st.integers(0, 255))
        elif kind == "remove":
            del changed[at : at + data.draw(st.integers(1, 9))]
        else:
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=6))
    try:
        Graph(bytes(changed), image_size=SIZE).measure(16)
    except GraphError as error:
        assert len(str(error)) > 10


DOORS = {
    "Predictor": lambda folder, out: Predictor(folder),
    "load_model": lambda folder, out: load_model(folder, device="cpu"),
    "export_model": lambda folder, out: export_model(folder, out),
    "push_to_hub": lambda folder, out: push_to_hub(folder, "user/model", license="cc-by-4.0"),
    "predict_batch": lambda folder, out: predict_batch(folder, [folder / "a.png"], out.with_suffix(".csv"), workers=1),
    "Ray": lambda folder, out: PartPredictor(
        {path.name: path.read_bytes() for path in folder.iterdir()}, read_config(folder / "config.json").fingerprint
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_it_is_refused_at_every_door(small_model, folder, tmp_path, never_opened, door):
    change, words = HOSTILE["external data"]
    put_onnx(folder, content_of(small_model, change))
    with pytest.raises(ModelFormatError, match=f"model.onnx .*{words}"):
        DOORS[door](folder, tmp_path / "out")
    assert not any(tmp_path.glob("out*")) or list(tmp_path.glob("out*")) == [tmp_path / "out"]


# exchanged while it is in use


def exchange(folder: Path, other: Path) -> None:
    """Put another model in place of one, as `save_model` does: by renaming folders."""
    os.rename(folder, folder.with_name("old"))
    shutil.copytree(other, folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("other") / "model", seed=9)


def fingerprint_of(folder: Path) -> str:
    return read_config(folder / "config.json").fingerprint


def test_a_model_of_another_fingerprint_is_refused(folder, other, tmp_path):
    wanted = fingerprint_of(folder)
    assert Predictor(folder, fingerprint=wanted).config.fingerprint == wanted
    words = f"{folder} has the model {fingerprint_of(other)[:16]}, and {wanted[:16]} .*exchanged"
    exchange(folder, other)
    with pytest.raises(ModelFormatError, match=words):
        Predictor(folder, fingerprint=wanted)
    with pytest.raises(ModelFormatError, match="exchanged"):
        predict_batch(folder, [tmp_path / "a.png"], tmp_path / "a.csv", workers=1, fingerprint=wanted)
    with pytest.raises(ModelFormatError, match="exchanged"):
        PartPredictor({path.name: path.read_bytes() for path in folder.iterdir()}, wanted)


def test_a_batch_whose_model_is_exchanged_before_a_process_reads_it_has_no_table(folder, other, tmp_path, monkeypatch):
    original = run._Jobs.missing

    def missing(self):
        exchange(folder, other)  # the caller has read the model; its processes have not started
        yield from original(self)

    monkeypatch.setattr(run._Jobs, "missing", missing)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ModelFormatError, match="exchanged"):
        predict_batch(folder, [tmp_path / "a.png"], tmp_path / "a.csv", workers=1)
    assert not (tmp_path / "a.csv").exists()


def test_a_table_has_the_verdict_that_was_read_first(small_model, tmp_path, monkeypatch):
    def run_elsewhere(folder, jobs, *, fingerprint, **options):
        for number, paths in jobs:
            yield number, Predictor(folder).predict(b"", names=paths).assign(model_verdict="another one")

    monkeypatch.setattr("covid_fastai.app.batch.local.run_on_workers", run_elsewhere)
    (tmp_path / "a.png").write_bytes(b"nothing")
    predict_batch(small_model, [tmp_path / "a.png"], tmp_path / "a.csv", workers=1)
    assert "another one" not in (tmp_path / "a.csv").read_text() and "not stated" in (tmp_path / "a.csv").read_text()


def test_a_worker_of_the_server_that_starts_after_the_exchange_does_not_answer(folder, other, monkeypatch, caplog):
    image = b"P5 64 64 255\n"  # not of a format that is read: the answer says so, whatever the model
    options = {"number": 1, "seconds": 60, "memory": 2 << 30, "max_pixels": 10**6}
    workers = Workers(folder, fingerprint=fingerprint_of(folder), **options)
    try:
        exchange(folder, other)
        assert workers.predict(image, maps=False).status == "unreadable"  # the process has its model
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 1)
        monkeypatch.setattr(workers_module, "RETRY_SECONDS", 60)  # one try is enough
        for worker in workers._all:
            worker.process.kill()
            worker.process.join(10)
        with pytest.raises(UnavailableError, match="No worker process is running"):
            workers.predict(image, maps=False)
        assert not workers.ready
    finally:
        workers.close()
    assert "exchanged while it was in use" in caplog.text


def test_a_worker_that_ended_while_it_was_idle_costs_no_file(small_model, monkeypatch):
    """Two threads ask whether the process is alive, and one of them is told so for a moment after its end."""
    options = {"number": 1, "seconds": 60, "memory": 2 << 30, "max_pixels": 10**6}
    workers = Workers(small_model, fingerprint=fingerprint_of(small_model), **options)
    try:
        (worker,) = workers._all
        process, main = worker.process, threading.main_thread()
        alive = process.is_alive
        monkeypatch.setattr(process, "is_alive", lambda: threading.current_thread() is main or alive())
        process.kill()
        process.join(10)
        assert workers.predict(b"P5 64 64 255\n", maps=False).status == "unreadable"
    finally:
        workers.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX only")
@pytest.mark.slow
def test_a_worker_that_ends_before_it_reads_costs_no_file(small_model):
    """The file lies in the pipe of a stopped process that is then killed."""
    options = {"number": 1, "seconds": 60, "memory": 2 << 30, "max_pixels": 10**6}
    workers = Workers(small_model, fingerprint=fingerprint_of(small_model), **options)
    try:
        (worker,) = workers._all
        os.kill(worker.process.pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, worker.process.kill)
        killer.start()
        assert workers.predict(b"P5 64 64 255\n", maps=False).status == "unreadable"
        assert not worker.process.is_alive()
    finally:
        workers.close()


def test_a_file_that_no_worker_lives_to_read_is_given_up(small_model, monkeypatch):
    """For example one that takes more memory than the process may have while it is received."""
    options = {"number": 1, "seconds": 60, "memory": 2 << 30, "max_pixels": 10**6}
    workers = Workers(small_model, fingerprint=fingerprint_of(small_model), **options)
    asked = []

    def end_first(worker, *arguments, **more):
        asked.append(worker)
        worker.process.kill()
        worker.process.join(10)
        return predict(worker, *arguments, **more)

    predict = type(next(iter(workers._all))).predict
    monkeypatch.setattr(type(next(iter(workers._all))), "predict", end_first)
    try:
        answer = workers.predict(b"P5 64 64 255\n", maps=False)
        assert (answer.status, answer.reason) == ("failed", workers_module.UNREAD) and len(asked) == 2
    finally:
        workers.close()


def test_an_export_is_of_one_model(folder, other, tmp_path, monkeypatch):
    wanted = fingerprint_of(folder)

    def checked(given, **options):
        predictor = Predictor(given, **options)
        shutil.copy(other / "config.json", folder)
        return predictor

    monkeypatch.setattr("covid_fastai.app.export.Predictor", checked)
    exported = export_model(folder, tmp_path / "export")
    assert Predictor(exported).config.fingerprint == wanted
