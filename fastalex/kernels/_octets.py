"""Eight neighbouring channels a thread: how a kernel reads and writes a channels_last tensor.

For the kernels of response normalization and max-pooling. A pixel's channels are cut into octets,
group by group: octet j of group g holds channels g * GROUP + 8 * j + 0..7, GROUP = C / groups, of
which those beyond its group are masked. Where 8 divides GROUP no mask is left, and an octet of
16-bit numbers is one load or store of 16 bytes.

A block of N octets is a tensor [N, 8]; `around` is the tuple of the channels before it, [N, 2] or
[N, 4], the octets, and as many channels behind. To let neighbours meet, all are split into a tuple
of [N], and joined again: it costs nothing, since a thread holds all of an octet. `room` [N] is the
number of channels from an octet's first to its group's end; an octet with room == GROUP is its
group's first.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (to Triton's compiler a number is a constexpr, and tl.static_range is a range)

from fastalex.kernels._triton import tl, triton


@triton.jit
def octet(o, GROUP: tl.constexpr):
    """Octet o of a pixel -> its first channel, its room."""
    IN_GROUP: tl.constexpr = (GROUP + 7) // 8
    room = GROUP - 8 * (o % IN_GROUP)
    first = 8 * o if GROUP % 8 == 0 else o // IN_GROUP * GROUP + (GROUP - room)
    return first, room


@triton.jit
def octets_of_program(
    OCTETS: tl.constexpr, IN_PIXEL: tl.constexpr, NUMEL: tl.constexpr, BLOCK: tl.constexpr
):
    """An image's OCTETS pieces of work, BLOCK a program -> image, octet in its pixel, which pixel.

    Past the image's end the last piece again. The image's number has 64 bits; what is counted
    within the image has 32 if its NUMEL numbers can be counted so.
    """
    BLOCKS: tl.constexpr = (OCTETS + BLOCK - 1) // BLOCK
    q = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    q = tl.minimum(q, OCTETS - 1)
    if NUMEL >= 2**31:
        q = q.to(tl.int64)
    return (tl.program_id(0) // BLOCKS).to(tl.int64), q % IN_PIXEL, q // IN_PIXEL


@triton.jit
def load_channels(
    p, room, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    OTHER: tl.constexpr,
):  # fmt: skip
    """Channels FIRST..FIRST + WIDTH - 1, counted from octets at the addresses p -> [N, WIDTH].

    live: [N], or None where every octet is. OTHER, or anything where it is None, stands for
    channels of the dead and beyond the group.
    """
    i = FIRST + tl.arange(0, WIDTH)[None, :]
    if FIRST == 0 and GROUP % 8 == 0:
        if live is None:
            v = tl.load(p[:, None] + i)
        else:
            v = tl.load(p[:, None] + i, mask=live[:, None], other=OTHER)
    else:
        if FIRST < 0:
            inside = (room < GROUP)[:, None]
        elif GROUP % 8 == 0:
            inside = (room > 8)[:, None]
        else:
            inside = i < room[:, None]
        if live is not None:
            inside = inside & live[:, None]
        v = tl.load(p[:, None] + i, mask=inside, other=OTHER)
    return v


@triton.jit
def load_octets(p, room, live, GROUP: tl.constexpr, OTHER: tl.constexpr = 0.0):
    return load_channels(p, room, live, 0, 8, GROUP, OTHER)


@triton.jit
def load_around(p, room, live, HALO: tl.constexpr, GROUP: tl.constexpr, OTHER: tl.constexpr = 0.0):
    """The HALO channels before, the octet, the HALO channels behind."""
    return (
        load_channels(p, room, live, -HALO, HALO, GROUP, OTHER),
        load_channels(p, room, live, 0, 8, GROUP, OTHER),
        load_channels(p, room, live, 8, HALO, GROUP, OTHER),
    )


@triton.jit
def store_octets(p, room, live, v, GROUP: tl.constexpr):
    i = tl.arange(0, 8)[None, :]
    v = v.to(p.dtype.element_ty)
    if GROUP % 8 != 0:
        inside = i < room[:, None]
        if live is not None:
            inside = inside & live[:, None]
        tl.store(p[:, None] + i, v, mask=inside)
    elif live is not None:
        tl.store(p[:, None] + i, v, mask=live[:, None])
    else:
        tl.store(p[:, None] + i, v)


@triton.jit
def widened(x):
    """float32 of any float; bfloat16 by a shift, which is one instruction on either half."""
    if x.dtype == tl.bfloat16:
        wide = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def spread(around):
    """What `load_around` gave, or the like -> a tuple of [N], one for each channel, in order."""
    before, octets, behind = around
    return split(before) + split(octets) + split(behind)


@triton.jit
def split(x):
    """[N, 2], [N, 4] or [N, 8] -> a tuple of 2, 4 or 8 [N]."""
    if x.shape[1] == 2:
        first, second = tl.split(x)
        parts = (first, second)
    else:
        even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
        even, odd = split(even), split(odd)
        parts = ()
        for i in tl.static_range(len(even)):
            parts += (even[i], odd[i])
    return parts


@triton.jit
def join(x, FIRST: tl.constexpr):
    """Eight [N] of a tuple, from FIRST on -> [N, 8]."""
    even = tl.join(tl.join(x[FIRST], x[FIRST + 4]), tl.join(x[FIRST + 2], x[FIRST + 6]))
    odd = tl.join(tl.join(x[FIRST + 1], x[FIRST + 5]), tl.join(x[FIRST + 3], x[FIRST + 7]))
    return tl.reshape(tl.join(even, odd), (x[FIRST].shape[0], 8))
