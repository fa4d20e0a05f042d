"""The attention kernel of `fp8_kernels` for Hopper, in Gluon, where a warp group can wait for one product of two.

Two warp groups have 64 queries each and take turns on the tensor cores: while one computes weights, the products of the
other run. A warp besides loads blocks of keys and values ahead. In its turn a group issues the product of a block's
weights and values and that of the next block's scores; the first is added to the result while the second runs. This
follows FlashAttention 3 (Shah et al. 2024, arXiv:2407.08608), without its overlap within a group.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ltxgen.attention.fp8_kernels import HEADROOM, LN_2, Kernel, Rounded, head_lanes

GROUPS = gl.constexpr(2)
ROWS = gl.constexpr(64)  # of queries, of a group
KEYS, STAGES = 128, 3
TAKE_TURNS = True


@gluon.jit
def _weights(scores, largest, scale, v_scale):
    """As in `fp8_kernels`, and by how much less all before counts."""
    new_largest = gl.maximum(largest, gl.max(scores, 1) * scale + v_scale)
    weights = gl.exp2(scores * scale - (new_largest - (v_scale + HEADROOM))[:, None])
    return weights, new_largest, gl.exp2(largest - new_largest), gl.sum(weights, 1) * gl.exp2(-v_scale)


@gluon.jit
def _operand(weights, KEYS: gl.constexpr, layout: gl.constexpr):
    """The weights in e4m3, as the next product reads them: where they are, see `fp8_kernels._in_order`."""
    weights = weights.to(gl.float8e4nv).reshape(ROWS, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return gl.convert_layout(weights.reshape(ROWS, KEYS), layout, assert_trivial=True)


@gluon.jit
def _load(
    q_blocks,
    k_blocks,
    v_blocks,
    memory,
    ready,
    free,
    Q_BLOCKS,
    K_BLOCKS,
    LANES: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Loads what the groups read, blocks of keys and values as memory gets free."""
    q_memory, k_memory, v_memory = memory
    q_ready, k_ready, v_ready = ready
    k_free, v_free = free
    row = gl.program_id(1)
    q_row = (row * Q_BLOCKS + gl.program_id(0)) * (GROUPS * ROWS)
    first = row * K_BLOCKS
    mbarrier.expect(q_ready, GROUPS * ROWS * LANES)
    for group in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(q_blocks, [q_row + group * ROWS, 0], q_ready, q_memory.index(group))
    for t in range(K_BLOCKS):
        block = first + (t + K_BLOCKS - 1) % K_BLOCKS  # the last block first
        slot = t % STAGES
        phase = (t // STAGES + 1) & 1
        mbarrier.wait(k_free.index(slot), phase)
        mbarrier.expect(k_ready.index(slot), KEYS * LANES)
        tma.async_copy_global_to_shared(k_blocks, [block * KEYS, 0], k_ready.index(slot), k_memory.index(slot))
        mbarrier.wait(v_free.index(slot), phase)
        mbarrier.expect(v_ready.index(slot), KEYS * LANES)
        tma.async_copy_global_to_shared(v_blocks, [block * LANES, 0], v_ready.index(slot), v_memory.index(slot))


@gluon.jit
def _attend(
    group: gl.constexpr,
    memory,
    ready,
    free,
    turns,
    q_scales_ptr,
    k_scales_ptr,
    v_scales_ptr,
    out_ptr,
    lse_ptr,
    Q_TOKENS,
    K_TOKENS,
    Q_BLOCKS,
    K_BLOCKS,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    LANES: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    TAKE_TURNS: gl.constexpr,
):
    """The attention of a group's queries."""
    q_memory, k_memory, v_memory = memory
    q_ready, k_ready, v_ready = ready
    k_free, v_free = free
    of_scores: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 32]
    )
    of_out: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, LANES, 32])
    of_weights: gl.constexpr = gl.DotOperandLayout(0, of_out, 4)
    of_query: gl.constexpr = gl.SliceLayout(1, of_scores)
    of_row: gl.constexpr = gl.SliceLayout(1, of_out)
    no_scores = gl.full([ROWS, KEYS], 0.0, gl.float32, of_scores)
    no_out = gl.full([ROWS, LANES], 0.0, gl.float32, of_out)
    block = gl.program_id(0)
    row = gl.program_id(1)
    q_scale = gl.load(q_scales_ptr + row * Q_BLOCKS + block)
    first = row * K_BLOCKS
    last = first + K_BLOCKS - 1
    q = q_memory.index(group)

    # The last block comes first, since it alone may have padding: the loop needs no mask.
    mbarrier.wait(q_ready, 0)
    mbarrier.wait(k_ready.index(0), 0)
    scores = warpgroup_mma(q, k_memory.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(k_free.index(0))
    key = (K_BLOCKS - 1) * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, of_scores))
    scores = gl.where((key < K_TOKENS)[None, :], scores, -float("inf"))
    scale = q_scale * gl.load(k_scales_ptr + last)
    v_scale = gl.load(v_scales_ptr + last)
    largest = gl.full([ROWS], -float("inf"), gl.float32, of_query)
    total = gl.full([ROWS], 0.0, gl.float32, of_query)
    out = no_out

    for t in range(K_BLOCKS - 1):
        weights, largest, kept, sums = _weights(scores, largest, scale, v_scale)
        total = total * kept + sums
        scale = q_scale * gl.load(k_scales_ptr + first + t)
        v_scale = gl.load(v_scales_ptr + first + t)
        v_slot = t % STAGES
        k_slot = (t + 1) % STAGES
        mbarrier.wait(k_ready.index(k_slot), ((t + 1) // STAGES) & 1)
        mbarrier.wait(v_ready.index(v_slot), (t // STAGES) & 1)
        operand = _operand(weights, KEYS, of_weights)
        if TAKE_TURNS:
            mbarrier.wait(turns.index(group), t & 1)
        values = v_memory.index(v_slot).permute((1, 0))
        product = warpgroup_mma(operand, values, no_out, use_acc=False, is_async=True)
        keys = k_memory.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(q, keys, no_scores, use_acc=False, is_async=True)
        if TAKE_TURNS:
            mbarrier.arrive(turns.index(1 - group))
        product = warpgroup_mma_wait(1, deps=(product,))
        out = out * gl.convert_layout(kept, of_row)[:, None] + product
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(v_free.index(v_slot))
        mbarrier.arrive(k_free.index(k_slot))

    weights, largest, kept, sums = _weights(scores, largest, scale, v_scale)
    total = total * kept + sums
    t = K_BLOCKS - 1
    v_slot = t % STAGES
    mbarrier.wait(v_ready.index(v_slot), (t // STAGES) & 1)
    values = v_memory.index(v_slot).permute((1, 0))
    product = warpgroup_mma(_operand(weights, KEYS, of_weights), values, no_out, use_acc=False, is_async=True)
    product = warpgroup_mma_wait(0, deps=(product,))
    out = (out * gl.convert_layout(kept, of_row)[:, None] + product) * gl.convert_layout(1 / total, of_row)[:, None]

    begin = block * (GROUPS * ROWS) + group * ROWS
    token = begin + gl.arange(0, ROWS, layout=of_row)
    lane = gl.arange(0, LANES, layout=gl.SliceLayout(0, of_out))[None, :]
    place = ((row // HEADS).to(gl.int64) * Q_TOKENS + token) * HEADS + row % HEADS
    inside = (token < Q_TOKENS)[:, None] & (lane < DIM)
    gl.store(out_ptr + place[:, None] * DIM + lane, out.to(out_ptr.dtype.element_ty), mask=inside)
    if lse_ptr is not None:
        token = begin + gl.arange(0, ROWS, layout=of_query)
        lse = (largest + gl.log2(total) - HEADROOM) * LN_2
        gl.store(lse_ptr + row.to(gl.int64) * Q_TOKENS + token, lse, mask=token < Q_TOKENS)


@gluon.jit(do_not_specialize=["Q_TOKENS", "K_TOKENS", "Q_BLOCKS", "K_BLOCKS"])
def attention_kernel(
    q_blocks,  # as those of `fp8_kernels.attention_kernel`
    k_blocks,
    v_blocks,
    q_scales_ptr,
    k_scales_ptr,
    v_scales_ptr,
    out_ptr,
    lse_ptr,
    Q_TOKENS,
    K_TOKENS,
    Q_BLOCKS,
    K_BLOCKS,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    LANES: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    TAKE_TURNS: gl.constexpr,
):
    q_memory = gl.allocate_shared_memory(gl.float8e4nv, [GROUPS, ROWS, LANES], q_blocks.layout)
    k_memory = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, LANES], k_blocks.layout)
    v_memory = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, LANES, KEYS], v_blocks.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(v_ready.index(slot), count=1)
        mbarrier.init(k_free.index(slot), count=GROUPS)
        mbarrier.init(v_free.index(slot), count=GROUPS)
    for group in gl.static_range(GROUPS):
        mbarrier.init(turns.index(group), count=1)
    mbarrier.arrive(turns.index(0))  # the first group begins
    memory = (q_memory, k_memory, v_memory)
    ready = (q_ready, k_ready, v_ready)
    free = (k_free, v_free)
    # Constants would be lost in a tuple that has a name.
    gl.warp_specialize(
        [
            (
                _attend,
                (
                    gl.constexpr(0),
                    memory,
                    ready,
                    free,
                    turns,
                    q_scales_ptr,
                    k_scales_ptr,
                    v_scales_ptr,
                    out_ptr,
                    lse_ptr,
                    Q_TOKENS,
                    K_TOKENS,
                    Q_BLOCKS,
                    K_BLOCKS,
                    HEADS,
                    DIM,
                    LANES,
                    KEYS,
                    STAGES,
                    TAKE_TURNS,
                ),
            ),
            (
                _attend,
                (
                    gl.constexpr(1),
                    memory,
                    ready,
                    free,
                    turns,
                    q_scales_ptr,
                    k_scales_ptr,
                    v_scales_ptr,
                    out_ptr,
                    lse_ptr,
                    Q_TOKENS,
                    K_TOKENS,
                    Q_BLOCKS,
                    K_BLOCKS,
                    HEADS,
                    DIM,
                    LANES,
                    KEYS,
                    STAGES,
                    TAKE_TURNS,
                ),
            ),
            (_load, (q_blocks, k_blocks, v_blocks, memory, ready, free, Q_BLOCKS, K_BLOCKS, LANES, KEYS, STAGES)),
        ],
        [4, 1],  # warps, beside the first group's four
        [240, 24],  # registers a thread
    )


def launch(queries: Rounded, keys: Rounded, values: Rounded, k_tokens: int, out: Tensor, lse: Tensor | None) -> None:
    B, Tq, H, D = out.shape
    width = head_lanes(D)
    q_blocks, k_blocks = queries.scales.shape[2], keys.scales.shape[2]
    attention_kernel[(q_blocks, B * H)](
        _descriptor(queries.values, ROWS.value),
        _descriptor(keys.values, KEYS),
        _descriptor(values.values, width),
        queries.scales,
        keys.scales,
        values.scales,
        out,
        lse,
        Tq,
        k_tokens,
        q_blocks,
        k_blocks,
        HEADS=H,
        DIM=D,
        LANES=width,
        KEYS=KEYS,
        STAGES=STAGES,
        TAKE_TURNS=TAKE_TURNS,
        num_warps=4,
    )


def _descriptor(values: Tensor, rows: int) -> TensorDescriptor:
    shape = [rows, values.shape[1]]
    return TensorDescriptor.from_tensor(values, shape, gl.NVMMASharedLayout.get_default_for(shape, gl.float8e4nv))


KERNEL = Kernel(GROUPS.value * ROWS.value, KEYS, launch)
