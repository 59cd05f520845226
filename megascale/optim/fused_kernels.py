# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, N803
"""The Triton kernels of `megascale.optim.fused`. Triton's language has no type annotations.

Each program works on one chunk of one tensor: a row of `table` has the addresses of matching tensors, `sizes`
the number of their values, `chunk_tensor` the row of each chunk, `chunk_number` its index within the tensor.
"""

import triton
import triton.language as tl


@triton.jit
def _address(table, row, column, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of a tensor's first value."""
    address = tl.load(table + row * COLUMNS + column).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _values(start, offset, size, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Positions within a tensor, and a mask of those that exist; if aligned, four neighbours share it."""
    at = start + offset + tl.arange(0, BLOCK)
    inside = at < size
    if ALIGNED:
        inside = tl.max_constancy(inside, [4])
    return at, inside


@triton.jit
def directions(
    table,
    sizes,
    chunk_tensor,
    chunk_number,
    squares,
    scale,
    new1,
    beta2,
    new2,
    correction1,
    correction2,
    eps,
    weight_decay,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """LAMB: update the moments, overwrite g with the direction u, sum squares of w and u per chunk."""
    chunk = tl.program_id(0)
    row = tl.load(chunk_tensor + chunk)
    start = tl.load(chunk_number + chunk) * CHUNK
    size = tl.load(sizes + row)
    w_at = _address(table, row, 0, 4, ALIGNED)
    g_at = _address(table, row, 1, 4, ALIGNED)
    m_at = _address(table, row, 2, 4, ALIGNED)
    v_at = _address(table, row, 3, 4, ALIGNED)
    w_square = tl.zeros([BLOCK], tl.float32)
    u_square = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        at, inside = _values(start, offset, size, BLOCK, ALIGNED)
        w = tl.load(w_at + at, mask=inside, other=0.0)
        g = tl.load(g_at + at, mask=inside, other=0.0) * scale
        m = tl.load(m_at + at, mask=inside, other=0.0)
        v = tl.load(v_at + at, mask=inside, other=0.0)
        m += (g - m) * new1
        v = v * beta2 + g * g * new2
        u = m / (tl.sqrt(v / correction2) + eps) / correction1 + w * weight_decay
        tl.store(m_at + at, m, mask=inside)
        tl.store(v_at + at, v, mask=inside)
        tl.store(g_at + at, u, mask=inside)
        w_square += w * w
        u_square += u * u
    tl.store(squares + 2 * chunk, tl.sum(w_square))
    tl.store(squares + 2 * chunk + 1, tl.sum(u_square))


@triton.jit
def apply(
    table,
    sizes,
    chunk_tensor,
    chunk_number,
    rates,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """w -= rate * u with one rate per tensor."""
    chunk = tl.program_id(0)
    row = tl.load(chunk_tensor + chunk)
    start = tl.load(chunk_number + chunk) * CHUNK
    size = tl.load(sizes + row)
    rate = tl.load(rates + row)
    w_at = _address(table, row, 0, 4, ALIGNED)
    u_at = _address(table, row, 1, 4, ALIGNED)
    for offset in range(0, CHUNK, BLOCK):
        at, inside = _values(start, offset, size, BLOCK, ALIGNED)
        w = tl.load(w_at + at, mask=inside, other=0.0)
        u = tl.load(u_at + at, mask=inside, other=0.0)
        tl.store(w_at + at, w - rate * u, mask=inside)


@triton.jit
def lion(
    table,
    sizes,
    chunk_tensor,
    chunk_number,
    scale,
    lr,
    new1,
    new2,
    kept,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Lion: update w and m from g."""
    chunk = tl.program_id(0)
    row = tl.load(chunk_tensor + chunk)
    start = tl.load(chunk_number + chunk) * CHUNK
    size = tl.load(sizes + row)
    w_at = _address(table, row, 0, 3, ALIGNED)
    g_at = _address(table, row, 1, 3, ALIGNED)
    m_at = _address(table, row, 2, 3, ALIGNED)
    for offset in range(0, CHUNK, BLOCK):
        at, inside = _values(start, offset, size, BLOCK, ALIGNED)
        w = tl.load(w_at + at, mask=inside, other=0.0)
        g = tl.load(g_at + at, mask=inside, other=0.0) * scale
        m = tl.load(m_at + at, mask=inside, other=0.0)
        u = m + (g - m) * new1
        sign = tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
        tl.store(w_at + at, w * kept - lr * sign, mask=inside)
        tl.store(m_at + at, m + (g - m) * new2, mask=inside)
