"""Regional compilation: what a block does is compiled once and serves all blocks, steps and sizes.

Compiled anew for a different structure only: a block that skips a self attention, isolated modalities, one pass or a
batch of them, an absent mask or modality. B batch, H heads, Tq query tokens, D head dim
"""

import functools
import itertools
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor
from torch._dynamo import lookup_backend

from ltxgen.models.transformer.attention import Attention, AttentionFunction, sdpa
from ltxgen.models.transformer.block import BlockFunctions, TransformerBlock
from ltxgen.models.transformer.model import Transformer
from ltxgen.models.transformer.sharing import SharedSubexpressions

MAX_VARIANTS = 64  # structures times widths of models in one process; torch refuses to compile more


def compile_blocks(
    transformer: Transformer,
    note: Callable[[str], None] = lambda text: None,
    backend: str = "inductor",
) -> None:
    """Let `transformer`'s blocks run compiled; `note` is told what is being compiled when that happens.

    An attention function is compiled with the block if it says so (`traceable`); others are called as they are.
    """
    functions = _compiled(note, backend)
    opaque = functools.cache(OpaqueAttention)  # one for all blocks
    for block in transformer.transformer_blocks:
        assert isinstance(block, TransformerBlock)
        block.functions = functions
        for module in block.modules():
            if isinstance(module, Attention) and not is_traceable(module.attend):
                module.attend = opaque(module.attend)


def is_traceable(attend: AttentionFunction) -> bool:
    """Whether torch.compile may look into it: it is made of torch operations and reads nothing that changes."""
    return attend is sdpa or getattr(attend, "traceable", False)


@functools.cache  # functions compiled anew would know nothing of what was compiled before
def _compiled(note: Callable[[str], None], backend: str) -> BlockFunctions:
    # Sizes that happen to be equal once (text and video tokens, say) are not taken to be equal always.
    shape_config.use_duck_shape = False
    # The norms' epsilon is a constant: taken for a variable, it has everything traced twice before code is generated.
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    options = {"config_patches": {"post_grad_custom_pre_pass": SharedSubexpressions()}} if backend == "inductor" else {}

    def compiled(function: Callable, what: str) -> Callable:
        def noting(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable:
            note(f"compiling {what} (once for all blocks, steps and sizes; later runs find it on disk)")
            return lookup_backend(backend)(graph, examples, **options)

        return torch.compile(function, backend=noting, dynamic=True, fullgraph=True)

    return BlockFunctions(
        compiled(TransformerBlock.advance, "the transformer's block"),
        compiled(TransformerBlock.project_texts, "the block's projection of text"),
    )


class OpaqueAttention:
    """An attention function that torch.compile calls without looking into it."""

    def __init__(self, attend: AttentionFunction) -> None:
        self.attend = attend
        # The lowest that is free: a transformer loaded after another finds the code that was compiled for that one.
        self.number = next(number for number in itertools.count() if number not in _opaque)
        _opaque[self.number] = self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return _attend(q, k, v, mask, self.number)


_opaque: WeakValueDictionary[int, OpaqueAttention] = WeakValueDictionary()


@torch.library.custom_op(
    "ltxgen::attend", mutates_args=(), schema="(Tensor q, Tensor k, Tensor v, Tensor? mask, int number) -> Tensor"
)
def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, number: int) -> Tensor:
    out = _opaque[number].attend(q, k, v, mask)
    return out.transpose(1, 2).contiguous().transpose(1, 2)  # as most kernels leave it


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, number: int) -> Tensor:
    B, H, Tq, _ = q.shape
    return q.new_empty(B, Tq, H, v.shape[-1]).transpose(1, 2)
