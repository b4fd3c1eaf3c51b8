"""What else computes the same ViT, made from timm's: torch's own encoder layer, torch's int8, onnxruntime, torchao.

Each function takes a model (onnxruntime's take an exported one) and returns something to call with images. What is not
installed or does not work here raises: `missing` makes one sentence of it. onnx, onnxruntime and torchao are optional:

    pip install onnx onnxruntime torchao
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError

Model = Callable[[Tensor], Tensor]
LONGEST = 160  # characters of a reason
SIZE = 224  # pixels of a side


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@contextmanager
def quiet() -> Iterator[None]:
    """Deprecations are no news to who reads a table of rivals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def missing(error: Exception) -> str:
    """The first line of what went wrong, without folders of this machine."""
    told = (str(error).strip().splitlines() or [""])[0]
    told = re.sub(r"/[\w./-]+/", "", told)
    if len(told) > LONGEST:
        told = told[: LONGEST - 1].rsplit(" ", 1)[0] + "…"
    return told if isinstance(error, ImportError | LabkitError) else f"{type(error).__name__}: {told}"


def torch_encoder(theirs: nn.Module) -> nn.Module:
    """timm's weights in `nn.TransformerEncoderLayer`, whose fused pass wants evaluation and an even number of heads."""
    theirs = copy.deepcopy(theirs)
    theirs.blocks = nn.Sequential(*map(_encoder_layer, theirs.blocks))  # type: ignore[arg-type]
    return theirs.eval()


def _encoder_layer(block: Any) -> nn.TransformerEncoderLayer:
    attn, mlp, eps = block.attn, block.mlp, block.norm1.eps
    sizes = attn.qkv.in_features, attn.num_heads, mlp.fc1.out_features
    layer = nn.TransformerEncoderLayer(*sizes, 0.0, "gelu", eps, batch_first=True, norm_first=True)
    layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = attn.qkv.weight, attn.qkv.bias
    layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias = attn.proj.weight, attn.proj.bias
    layer.linear1, layer.linear2, layer.norm1, layer.norm2 = mlp.fc1, mlp.fc2, block.norm1, block.norm2
    return layer


def torch_dynamic(model: nn.Module) -> Model:
    """Torch's own: weights in 8 bits by output channel, inputs rounded anew at each call."""
    with quiet():
        toolkit = importlib.import_module("torch.ao.quantization")
        rounded: Model = toolkit.quantize_dynamic(model, {nn.Linear: toolkit.per_channel_dynamic_qconfig})
    return rounded


def exported(model: nn.Module, folder: Path) -> Path:
    """The model as ONNX, for batches of any size."""
    importlib.import_module("onnx")  # torch would find out late that it is not there, and call it an error of export
    path = folder / "float.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    with quiet():
        torch.onnx.export(model, (images(2, seed=0),), str(path), dynamo=False, **names)
    return path


def onnxruntime_dynamic(exported: Path) -> Model:
    """The idea of `torch_dynamic` in onnxruntime.

    Its convolution of integers is ten times slower than the one of floats, which stays.
    """
    toolkit, rounded = importlib.import_module("onnxruntime.quantization"), exported.with_name("int8.onnx")
    how = {"weight_type": toolkit.QuantType.QInt8, "per_channel": True, "op_types_to_quantize": ["MatMul", "Gemm"]}
    with quiet():
        toolkit.quantize_dynamic(str(exported), str(rounded), **how)
    return onnxruntime(rounded)


def onnxruntime(exported: Path) -> Model:
    """The stored model, with as many threads as torch has at the time of the call."""
    runtime, stored = importlib.import_module("onnxruntime"), exported.read_bytes()

    @functools.cache
    def session(threads: int) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait in a loop would take the processor from whoever has the next turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return runtime.InferenceSession(stored, options, providers=["CPUExecutionProvider"])

    session(1)
    return lambda x: torch.from_numpy(session(torch.get_num_threads()).run(None, {"x": x.numpy()})[0])


def torchao_int8(model: nn.Module) -> nn.Module:
    """Weights in 8 bits by output channel, inputs rounded anew for each token; layer by layer as torch runs it."""
    with quiet():
        toolkit = importlib.import_module("torchao.quantization")
        model = copy.deepcopy(model)
        toolkit.quantize_(model, toolkit.Int8DynamicActivationInt8WeightConfig())
    return model


def torchao_compiled(model: nn.Module) -> Model:
    """The same compiled with frozen weights, once for one image and once for more, and again for other threads."""
    rounded = torchao_int8(model)
    torch._dynamo.reset()  # models of one class share a limit of recompilations
    compiled = torch.compile(rounded, fullgraph=True, options={"freezing": True})
    known = set()

    def call(x: Tensor) -> Tensor:
        case = len(x) > 1, torch.get_num_threads()
        if case[0]:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        if case in known:
            return compiled(x)
        known.add(case)
        with quiet():
            return compiled(x)

    return call
