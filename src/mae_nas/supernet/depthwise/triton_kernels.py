"""The code that runs on the GPU; see `triton`, which calls it.

A program computes BLOCK rows, all channels of each. Tables are None where every site has a row.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
import triton
import triton.language as tl

_COUNTS = ["rows", "per", "edges", "height", "width", "x_height", "x_width"]


@triton.jit
def _pick(values, e):
    """values[e], e known to the device alone."""
    value = values[0]
    for i in tl.static_range(1, len(values)):
        value = tl.where(e == i, values[i], value)
    return value


@triton.jit
def _stride(doubled, e):
    return tl.multiple_of(_pick(doubled, e) // 2, 8).to(tl.int64)


@triton.jit
def _block(matrix, stride, block, BLOCK: tl.constexpr):
    """Where neighbouring rows lie: (BLOCK, 1)."""
    # The wide product is the program's: a thread's would be kept in registers that run short.
    first = matrix + stride * block * BLOCK
    return first + tl.arange(0, BLOCK)[:, None] * stride.to(tl.int32)


@triton.jit
def _site(site_of, row, exists, height, width):
    """Image, row and column of a matrix' rows."""
    site = row
    if site_of is not None:
        site = tl.load(site_of + row, mask=exists, other=0)
    return site // (height * width), site // width % height, site % width


@triton.jit
def _row(row_of, image, i, j, exists, height, width):
    """The inverse of `_site`, and whether there is such a row."""
    # The order of this sum, and of the conditions in `_met`, decides what ptxas can keep.
    row = image * (height * width) + (i * width + j)
    if row_of is not None:
        row = tl.load(row_of + row, mask=exists, other=-1)
        exists = row >= 0
    return row.to(tl.int64)[:, None], exists[:, None]


@triton.jit
def _met(
    i,
    tap,
    side,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Which input `tap` of output i reads; transposed, which output reads input i by it; if any."""
    reach = (tap - KERNEL // 2) * DILATION
    if TRANSPOSED:
        steps = i - reach
        at = steps // STRIDE
        exists = ((steps >= 0) & (at < side)) & (steps % STRIDE == 0)
    else:
        at = i * STRIDE + reach
        exists = (at >= 0) & (at < side)
    return at, exists


@triton.jit(do_not_specialize=[*_COUNTS, "has_shift"])
def correlate(
    xs,
    x_strides,
    weight,
    shift,
    has_shift,
    outs,
    out_strides,
    site_of,
    row_of,
    rows,
    per,
    edges,
    height,
    width,
    x_height,
    x_width,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Σ_taps w · x − shift of each edge; transposed, Σ_taps w · x of `per` edges, added to out."""
    # Edges that read the same rows are neighbours in time, and find them in the cache.
    first = tl.program_id(0) % (edges // per) * per
    block = tl.program_id(0) // (edges // per)
    row = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED)[None, :]
    inside = channel < CHANNELS
    image, i, j = _site(site_of, row, row < rows, height, width)
    total = tl.zeros((BLOCK, PADDED), SUM)
    for e in range(first, first + per):
        x, stride = _pick(xs, e), _stride(x_strides, e)
        taps = weight + e * (KERNEL * KERNEL * CHANNELS) + channel
        for u in range(KERNEL):  # not unrolled: registers
            x_i, i_exists = _met(i, u, x_height, KERNEL, DILATION, STRIDE, TRANSPOSED)
            i_exists &= row < rows
            for v in tl.static_range(KERNEL):
                x_j, exists = _met(j, v, x_width, KERNEL, DILATION, STRIDE, TRANSPOSED)
                at, exists = _row(row_of, image, x_i, x_j, exists & i_exists, x_height, x_width)
                value = tl.load(x + at * stride + channel, mask=exists & inside, other=0)
                tap = tl.load(taps + (u * KERNEL + v) * CHANNELS, mask=inside, other=0)
                total += value.to(SUM) * tap.to(SUM)
    out = _block(_pick(outs, first), _stride(out_strides, first), block, BLOCK) + channel
    kept = (row < rows)[:, None] & inside
    if TRANSPOSED:
        total += tl.load(out, mask=kept, other=0).to(SUM)
    else:
        shifts = shift + first * CHANNELS + channel
        total -= tl.load(shifts, mask=inside & (has_shift != 0), other=0).to(SUM)
    tl.store(out, total.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=_COUNTS)
def gather_taps(
    xs,
    gradients,
    gradient_strides,
    sums,
    site_of,
    row_of,
    rows,
    per,
    edges,
    height,
    width,
    x_height,
    x_width,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Σ_rows gradient · x of one edge and row of the kernel, over a strip of `per` blocks."""
    e, u, strip = tl.program_id(0) // KERNEL, tl.program_id(0) % KERNEL, tl.program_id(1)
    channel = tl.arange(0, PADDED)[None, :]
    inside = channel < CHANNELS
    x, stride = _pick(xs, e), _stride(gradient_strides, e)
    gradient = _pick(gradients, e)
    total = (tl.zeros((BLOCK, PADDED), SUM),) * KERNEL
    for block in range(strip * per, strip * per + per):
        row = block * BLOCK + tl.arange(0, BLOCK)
        image, i, j = _site(site_of, row, row < rows, height, width)
        x_i, i_exists = _met(i, u, x_height, KERNEL, DILATION, STRIDE, False)
        i_exists &= row < rows
        kept = (row < rows)[:, None] & inside
        here = _block(gradient, stride, block, BLOCK) + channel
        sent = tl.load(here, mask=kept, other=0).to(SUM)
        added = ()
        for v in tl.static_range(KERNEL):
            x_j, exists = _met(j, v, x_width, KERNEL, DILATION, STRIDE, False)
            at, exists = _row(row_of, image, x_i, x_j, exists & i_exists, x_height, x_width)
            value = tl.load(x + at * CHANNELS + channel, mask=exists & inside, other=0)
            added = added + (total[v] + value.to(SUM) * sent,)  # noqa: RUF005 - a starred one fails
        total = added
    to = sums + ((strip * edges + e) * KERNEL + u) * (KERNEL * CHANNELS)
    for v in tl.static_range(KERNEL):
        tap = tl.sum(total[v], 0)[None, :]
        tl.store(to + v * CHANNELS + channel, tap, mask=inside)
