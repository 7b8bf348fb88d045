"""What a step computes and reads, found without computing it: under torch's fake tensors, and by watching its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_material import Case, make_step
from pipeline.data.batch import with_tensors

Shape = tuple[int, int, int]  # rows, inner, columns of a product
READS = ("_local_scalar_dense", "nonzero", "unique", "unique2", "_unique2", "is_nonzero", "masked_select", "bincount",
         "repeat_interleave", "equal", "unique_dim", "unique_consecutive")  # fmt: skip


class _Products(TorchDispatchMode):
    """The matrix products that pass, by shape; those of attention apart."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: Counter[Shape] = Counter()
        self.attention_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            first, second = args[-2], args[-1]
            self.plain[first.shape[0], first.shape[1], second.shape[1]] += 1
        elif name in ("bmm", "baddbmm"):
            first, second = args[-2], args[-1]
            self.attention_flops += 2 * first.shape[0] * first.shape[1] * first.shape[2] * second.shape[2]
        return func(*args, **(kwargs or {}))


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
COPIES = ("_to_copy", "copy_", "clone")
NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "is_pinned")


class Calls(TorchDispatchMode):
    """Calls for which the host would wait for a device, by kind; operators that compute, products and copies apart."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.kernels = self.products = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in READS:
            self.reads[name] += 1
        elif any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices):
            self.reads["index by a boolean mask"] += 1
        if not func.is_view and name not in NO_KERNEL:
            self.kernels += 1
            self.products += name in PRODUCTS
            self.copies += name in COPIES
        return func(*args, **(kwargs or {}))


def products_of(case: Case) -> tuple[Counter[Shape], int]:
    """The products of forward, losses and backward by shape, and the floating-point operations of attention.

    Nothing that is computed again in the backward counts: these are the products that the model needs.
    """
    case = Case(**{**vars(case), "recomputed": False})
    counted = _Products()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step = make_step_without_data(case, mode)
        batch = with_tensors(step.host_batch, mode.from_tensor)
        with counted, sdpa_kernel([SDPBackend.MATH]):
            step.forward(batch).backward()
    return counted.plain, counted.attention_flops


def make_step_without_data(case: Case, mode: FakeTensorMode) -> Any:
    """The step on the CPU with fake weights."""
    with _unfaked(mode):
        step = make_step(case, torch.device("cpu"), vocab_size=64, with_weights=False)
    for module in step.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
    return step


def _unfaked(mode: FakeTensorMode) -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def count_calls(work: Callable[[], object]) -> Calls:
    """What ``work`` calls."""
    with Calls() as calls:
        work()
    return calls


def flops_of_products(products: Counter[Shape]) -> int:
    """Floating-point operations, a multiplication and an addition each."""
    return sum(2 * rows * inner * columns * times for (rows, inner, columns), times in products.items())
