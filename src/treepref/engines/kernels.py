"""Matrix products for decoding on a CPU: weights packed once, in float32, bfloat16 or int8.

A decoding step multiplies a few rows with every weight of the model. `torch.nn.Linear` lays a weight out for the
processor anew at each call; here it is laid out once, when it is first used, and again when it changed. Packed float32
computes what the plain layer does, in another order of summation (within 1e-5 of the output's scale); bfloat16 and int8
are faster and coarser. The packed copies come on top of the model's own weights, which stay as they are: as much memory
again in float32, half of it in bfloat16, a quarter in int8.

Knows no engine and no model family: any `torch.nn.Linear` inside a model is served. Training never runs on packed
weights: outside inference mode a layer is the plain one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from treepref.errors import ModelError

Precision = Literal["float32", "bfloat16", "int8"]

TYPICAL_ROWS = 64
"""The number of rows that the layout of a packed weight is chosen for; it serves any number."""
HANDED_BACK = 32 << 20
"""Bytes from which the C library always hands memory back to the system, to ask for it anew: the limit of glibc."""
SMALLEST = 1 << 16
"""Weights of a layer from which packing pays: below, calls cost more than products."""


class PackedLinear(nn.Linear):
    """A `torch.nn.Linear` whose forward runs on a packed copy of its weight in inference mode.

    Never constructed: `pack` turns a model's layers into these in place, and the parameters stay where they are, so
    state dicts, saving and loading are those of the plain layer. Copies of the layer start unpacked.
    """

    precision: Precision
    _packed: tuple[Any, tuple[int, int]] | None
    """The packed weight, and the state of the plain one that it was made of."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if not torch.is_inference_mode_enabled():
            return super().forward(input)
        state = _state(self.weight)
        if self._packed is None or self._packed[1] != state:
            self._packed = (_PACK[self.precision](self), state)
        return _MULTIPLY[self.precision](self, input, self._packed[0])

    def into(self, input: Tensor, out: Tensor) -> Tensor:
        """`forward` of [rows, in], written into the memory of `out` [rows, out]; in float32 by the plain product.

        For outputs so large that the system takes their memory back each time: the product's gain by packing is less
        than what it costs to have that much memory given anew.
        """
        if self.precision == "float32":
            torch.mm(input, self.weight.t(), out=out)
            return out if self.bias is None else out.add_(self.bias)
        rows = max(1, HANDED_BACK // 4 // max(1, out[0].numel() * out.element_size()))
        for part, part_out in zip(input.split(rows), out.split(rows), strict=True):
            part_out.copy_(self(part))
        return out

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: the layer without its packed weight."""
        return self.__dict__ | {"_packed": None}


def pack(model: nn.Module, precision: Precision = "float32") -> int:
    """Turn the large linear layers of `model` into packed ones, in place; returns how many.

    float32 leaves the model alone where packing gains nothing or cannot be: on other devices than the CPU, for models
    that are not float32 themselves, and where torch was built without MKL. Raises ModelError where a reduced precision
    is asked for and cannot be.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and type(m) in (nn.Linear, PackedLinear)]
    obstacle = _obstacle(layers, precision)
    if obstacle and precision != "float32":
        raise ModelError(f"engine.weights={precision} {obstacle}: take engine.weights=float32")
    if obstacle:
        return 0
    layers = [layer for layer in layers if layer.weight.numel() >= SMALLEST]
    for layer in layers:
        layer.__class__ = PackedLinear
        assert isinstance(layer, PackedLinear)
        layer.precision, layer._packed = precision, None
    return len(layers)


def _obstacle(layers: list[nn.Linear], precision: Precision) -> str | None:
    """Why these layers cannot be packed, or None."""
    if any(layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32 for layer in layers):
        return "needs a model in float32 on the CPU"
    engines = torch.backends.quantized.supported_engines
    available = {
        "float32": torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"),
        "bfloat16": torch.backends.mkldnn.is_available(),
        "int8": "x86" in engines or "fbgemm" in engines,
    }
    return None if available[precision] else f"is not to be had with torch {torch.__version__} on this machine"


def _state(weight: Tensor) -> tuple[int, int]:
    """Changes whenever the weight does: where it lies, and how often it was written in place."""
    return weight.data_ptr(), weight._version if not weight.is_inference() else 0


def _pack_float32(layer: PackedLinear) -> Tensor:
    return torch.ops.mkl._mkl_reorder_linear_weight(layer.weight.detach(), TYPICAL_ROWS)


def _multiply_float32(layer: PackedLinear, input: Tensor, packed: Tensor) -> Tensor:
    # The last argument names the rows that the packed layout is to be used for; for any other number the operator
    # would take the plain weight. MKL's layout itself depends on the weight alone.
    rows = input.numel() // input.shape[-1]
    return torch.ops.mkl._mkl_linear(input, packed, layer.weight, layer.bias, rows)


def _pack_bfloat16(layer: PackedLinear) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16(), TYPICAL_ROWS)


def _multiply_bfloat16(layer: PackedLinear, input: Tensor, packed: Tensor) -> Tensor:
    """Sums are kept in float32 and rounded to bfloat16 once, at the end."""
    product = torch.ops.mkldnn._linear_pointwise(input.bfloat16(), packed, None, "none", [], "").float()
    return product if layer.bias is None else product + layer.bias


def _pack_int8(layer: PackedLinear) -> Any:
    """Symmetric, one scale an output."""
    weight = layer.weight.detach()
    scale_O = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that quantised tensors will move to another package
        zero_O = torch.zeros(len(weight), dtype=torch.long)
        quantised = torch.quantize_per_channel(weight, scale_O.double(), zero_O, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantised, None)


def _multiply_int8(layer: PackedLinear, input: Tensor, packed: Any) -> Tensor:
    """Activations in int8 too. The operator has one scale for all rows, so each row is brought to the same first."""
    largest_R1 = input.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
    product = torch.ops.quantized.linear_dynamic(input / largest_R1, packed, _REDUCED_RANGE) * largest_R1
    return product if layer.bias is None else product + layer.bias


_REDUCED_RANGE = not torch.cpu._is_vnni_supported()
"""Without VNNI the sum of two products overflows 16 bits, so activations get 7 bits instead of 8."""
_PACK: dict[str, Callable[[PackedLinear], Any]] = {
    "float32": _pack_float32,
    "bfloat16": _pack_bfloat16,
    "int8": _pack_int8,
}
_MULTIPLY: dict[str, Callable[[PackedLinear, Tensor, Any], Tensor]] = {
    "float32": _multiply_float32,
    "bfloat16": _multiply_bfloat16,
    "int8": _multiply_int8,
}
