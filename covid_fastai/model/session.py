"""Open the ONNX file of a saved model and run it: the one place where somebody else's graph is computed.

An ONNX file is a program. It is read and measured before ONNX Runtime sees it: only known operators, no weights outside
of the file, and no more memory and work than a network for images of this size needs. What has passed runs under a
limit of time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covid_fastai.errors import ModelFormatError
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    BundleConfig,
    check_golden,
    golden_image,
    read_verified,
    unusable_model,
)
from covid_fastai.model.onnx_operators import Value, constant, infer, work_of
from covid_fastai.model.onnx_reader import DTYPES, GraphError, read_graph
from covid_fastai.runtime import onnxruntime

__all__ = ["Graph", "ModelSession", "check_graph", "read_onnx"]

SAVED_BY_HINT = "Export it again with save_model, and use only models whose author you trust."
BATCH = 16  # images of a forward pass, at most
UINT8 = 2
# Networks keep 5 to 130 values for each pixel at a time, one with attention over patches of 1024 pixels about 200.
MOST_VALUES_PER_PIXEL = 512
MOST_VALUES_BESIDE = 16 << 20  # that do not depend on the size of the image
MOST_COPIES_OF_WEIGHTS = 8  # such as transposed ones; networks that standardise their weights hold 3.4
MOST_VALUES_OF_PASS = 512 << 20  # 2 GiB of 32 bits; a pass with more has fewer images
MOST_WORK_PER_PIXEL = 4_000_000  # multiplications; ResNet-50 needs 80,000, ConvNeXt-XLarge 1.2 million
SECONDS_PER_IMAGE = 60.0  # the largest network that is allowed takes some seconds on two processor cores


class Cost(NamedTuple):
    """What a forward pass needs.

    Attributes:
        values: The most values that exist at the same time, beside the weights.
        fixed: Values that are computed from the weights only, such as transposed ones, which stay.
        work: Multiplications.
        shapes: The shapes of the outputs.
    """

    values: int
    fixed: int
    work: int
    shapes: tuple[tuple[int, ...], ...]


class Graph:
    """The graph of an ONNX file, after it was checked.

    Args:
        content: The bytes of the file.
        image_size: Side of the square input, pixels.

    Raises:
        GraphError: The file is not a graph that this package runs, or needs more than is allowed for one image.
    """

    def __init__(self, content: bytes, *, image_size: int):
        self._graph, self._image_size = read_graph(content), image_size
        if self._graph.inputs != (ONNX_INPUT,):
            raise GraphError(f"it takes {', '.join(self._graph.inputs)[:200] or 'nothing'}, not {ONNX_INPUT}")
        self._last_use = {
            name: number for number, node in enumerate(self._graph.nodes) for name in (*node.inputs, *node.outputs)
        }
        self._costs: dict[int, Cost] = {}
        self.measure(1)

    def measure(self, n: int) -> Cost:
        """Return what a forward pass of `n` images needs; it is computed once for each `n`.

        Raises:
            GraphError: It is more than is allowed for images of this size.
        """
        if n not in self._costs:
            cost = self._compute_cost(n)
            pixels = n * self._image_size**2
            weights = sum(
                len(tensor.content) // DTYPES[tensor.type].itemsize for tensor in self._graph.constants.values()
            )
            limits = (cost.values, MOST_VALUES_PER_PIXEL * pixels), (cost.fixed, MOST_COPIES_OF_WEIGHTS * weights)
            of_images = f"for {_images(n)} of {self._image_size} x {self._image_size} pixels"
            for values, allowed in limits:
                if values > allowed + MOST_VALUES_BESIDE:  # guard: onnx_memory
                    raise GraphError(
                        f"it holds {values:,} numbers in memory {of_images}, and {allowed + MOST_VALUES_BESIDE:,} are "
                        "allowed"
                    )
            if cost.work > MOST_WORK_PER_PIXEL * pixels:  # guard: onnx_work
                raise GraphError(
                    f"it needs {cost.work:,} multiplications {of_images}, and {MOST_WORK_PER_PIXEL * pixels:,} are "
                    "allowed"
                )
            self._costs[n] = cost
        return self._costs[n]

    def _compute_cost(self, n: int) -> Cost:
        side, graph = self._image_size, self._graph
        values: dict[str, Value | None] = {name: constant(tensor) for name, tensor in graph.constants.items()}
        values |= {"": None, ONNX_INPUT: Value((n, 1, side, side), UINT8)}
        held, most, fixed, work = n * side * side, 0, 0, 0
        for number, node in enumerate(graph.nodes):
            try:
                inputs = [values[name] for name in node.inputs]
                outputs = infer(node, inputs, graph.opset)
                work += work_of(node, inputs, outputs)
            except GraphError:
                raise
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                reason = f"its operation {number} ({node.operator[:100]}) is not as the ONNX standard describes it"
                raise GraphError(reason) from error
            # what is computed from constants may exist from the opening of the file on
            fixed += sum(output.size for output in outputs if output.fixed)
            held += sum(output.size for output in outputs if not output.fixed)
            most = max(most, held)
            values |= dict(zip(node.outputs, outputs, strict=True))
            for name in {*node.inputs, *node.outputs}:
                value = values[name]
                last = self._last_use[name] == number and name not in graph.outputs
                if last and value is not None and not value.fixed:
                    held -= value.size
        made = [value for name in graph.outputs if (value := values.get(name)) is not None]
        if len(made) != len(graph.outputs):
            raise GraphError("it has an output that it does not compute")
        shapes = tuple(value.shape for value in made)
        if any(shape[:1] != (n,) for shape in shapes):
            raise GraphError(f"its outputs for {_images(n)} have the shapes {', '.join(map(str, shapes))[:200]}")
        return Cost(most, fixed, work, shapes)


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n} images"


def read_onnx(path: Path, config: BundleConfig) -> tuple[bytes, Graph]:
    """Read the ONNX file of a saved model, verify its sha256 and check its graph. Nothing is run.

    Args:
        path: The file.
        config: The configuration of the model, which has an ONNX file.

    Returns:
        The bytes of the file and its graph.

    Raises:
        ModelFormatError: The file is missing, is not the one that was saved, or has a graph that is not allowed.
    """
    if config.onnx is None:
        hint = "Load it with load_model, and save it with save_model."
        raise unusable_model(path, "the model was saved without it", hint)
    content = read_verified(path, config.onnx.sha256)  # guard: onnx_there
    return content, check_graph(content, config, path)


def check_graph(content: bytes, config: BundleConfig, path: Path) -> Graph:
    """Check the graph of an ONNX file. Nothing is run.

    Args:
        content: The bytes of the file.
        config: The configuration of the model.
        path: The file, for messages.

    Raises:
        ModelFormatError: The graph is not allowed.
    """
    try:
        return Graph(content, image_size=config.image_size)
    except GraphError as error:
        raise unusable_model(path, str(error), SAVED_BY_HINT) from error


class ModelSession:
    """The ONNX file of a saved model, opened within limits and verified to be the model that the config describes.

    Several threads may share a session.

    Args:
        content: The bytes of the file.
        graph: Its graph, as `check_graph` returns it.
        config: The configuration of the model.
        path: The file, for messages.
        threads: CPU cores that the session uses; None for all.
        verified: Whether the self-test must give the outputs of the config; False for a file that is being made.

    Attributes:
        golden: The logits and probabilities of the self-test, by name.
        batch: The number of images for one pass.
        map_shape: `(h, w)` of the class activation maps.

    Raises:
        ModelFormatError: The file cannot be read, its inputs, outputs, classes or self-test do not match the config, or
            the self-test needs too much memory or time.
    """

    def __init__(
        self,
        content: bytes,
        graph: Graph,
        config: BundleConfig,
        path: Path = Path(ONNX_FILE),
        *,
        threads: int | None = None,
        verified: bool = True,
    ):
        self._graph, self._path = graph, path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal errors only; other errors are raised as exceptions
        # the bytes decide otherwise, and a file could be both a graph and something in ONNX Runtime's own format
        options.add_session_config_entry("session.load_model_format", "ONNX")  # guard: onnx_format
        # otherwise 8-bit products overflow on x64 processors without these instructions; with them it costs two thirds
        options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni() else "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = self._within(
            "cannot read it", lambda: onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        )
        self._within(
            "cannot describe it", lambda: _check_signature(self._session, graph.measure(1).shapes, config, path)
        )
        logits, probabilities = self.run(
            ["logits", "probabilities"], {ONNX_INPUT: golden_image(config.image_size)[None, None]}
        )
        self.golden = {"logits": logits[0].tolist(), "probabilities": probabilities[0].tolist()}
        if verified:
            check_golden(config, self.golden, path, of_onnx=True)
        self.map_shape = graph.measure(1).shapes[ONNX_OUTPUTS.index("maps")][2:]
        self.batch = max(1, min(BATCH, MOST_VALUES_OF_PASS // graph.measure(1).values))

    def run(self, outputs: Sequence[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Compute some of `ONNX_OUTPUTS` for images, uint8 `(n, 1, image_size, image_size)`.

        Raises:
            ModelFormatError: The graph cannot be computed, or not within the limits of memory and time.
        """
        n = len(inputs[ONNX_INPUT])
        try:
            self._graph.measure(n)
        except GraphError as error:
            raise unusable_model(self._path, str(error), SAVED_BY_HINT) from error
        seconds, limits = SECONDS_PER_IMAGE * n, onnxruntime.RunOptions()
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            limits.terminate = True

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            return self._within("cannot run it", lambda: self._session.run(list(outputs), inputs, limits))
        except ModelFormatError:
            if timed_out.is_set():  # guard: onnx_time
                reason = f"it had no answer after {seconds:g} seconds for {_images(n)}"
                raise unusable_model(self._path, reason, SAVED_BY_HINT) from None
            raise
        finally:
            timer.cancel()

    def _within(self, fault: str, compute: Callable[[], Any]) -> Any:
        """Return a result of ONNX Runtime, whose dozen types of exceptions have no common base."""
        try:
            return compute()
        except ModelFormatError:
            raise
        except Exception as error:  # guard: onnx_errors
            reason = str(error)[:200] or type(error).__name__
            raise unusable_model(self._path, f"onnxruntime {onnxruntime.__version__} {fault} ({reason})") from error


@cache
def has_vnni() -> bool:
    """Return whether this processor is known to add 8-bit products without overflow (AVX512-VNNI or AVX-VNNI)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # another system: the slower way is right on every processor
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _check_signature(
    session: onnxruntime.InferenceSession, shapes: Sequence[tuple[int, ...]], config: BundleConfig, path: Path
) -> None:
    """Check the inputs, outputs and classes of an ONNX model against the config."""
    size, n_classes = config.image_size, len(config.classes)
    inputs = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    if inputs != [(ONNX_INPUT, "tensor(uint8)", [1, size, size])]:
        raise unusable_model(path, f"it takes {inputs}, not {ONNX_INPUT} of 8 bits and {size} pixels")
    outputs = [(node.name, node.type, *shape[1:2]) for node, shape in zip(session.get_outputs(), shapes, strict=True)]
    # guard: onnx_form
    if outputs != [(name, "tensor(float)", n_classes) for name in ONNX_OUTPUTS] or [*map(len, shapes)] != [2, 2, 4]:
        raise unusable_model(path, f"it gives {outputs}, not {', '.join(ONNX_OUTPUTS)} of {n_classes} classes")
    classes = session.get_modelmeta().custom_metadata_map.get("classes", "none")
    if classes != json.dumps(config.classes):  # guard: class_order
        raise unusable_model(
            path, f"its classes are {classes}, those of {CONFIG_FILE} are {json.dumps(config.classes)}"
        )
