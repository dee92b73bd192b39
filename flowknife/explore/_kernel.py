"""The matrix product of the page as WebAssembly, two columns at a time: twice as fast as JavaScript.

    for each pair of columns j, and each four rows r:
        a, b, c, d = 0
        for i in range(k):  a += x[r, i] w[i, j],  b += x[r + 1, i] w[i, j],  ...     # w[i, j] is a pair of doubles
        out[r, j], out[r + 1, j], ... = a, b, c, d

It is assembled here, instruction by instruction, so that there is no compiled file whose source is elsewhere. The names
of instructions are those of the WebAssembly specification, version 2.0.
"""

from functools import cache

_X, _N, _K, _W, _M, _OUT = range(6)  # arguments: places in bytes of x, w, out; n a multiple of 4, m a multiple of 2
_POINTERS = (6, 7, 8, 9)  # into the four rows
_AT, _END, _ROW, _TO, _J, _ROW_BYTES, _OUT_BYTES = range(10, 17)
_SUMS, _PAIR = (17, 18, 19, 20), 21

_LOAD_PAIR, _LOAD_SPLAT, _STORE_PAIR = b"\xfd\x00\x03\x00", b"\xfd\x0a\x03\x00", b"\xfd\x0b\x03\x00"
_ADD, _MULTIPLY, _ZERO = b"\xfd\xf0\x01", b"\xfd\xf2\x01", b"\xfd\x0c" + bytes(16)  # of pairs of doubles
_PLUS, _SHIFT, _LESS = b"\x6a", b"\x74", b"\x49"  # i32.add, i32.shl, i32.lt_u
_LOOP, _AGAIN, _DONE = b"\x03\x40", b"\x0d\x00", b"\x0b"  # loop, br_if 0, end


def _get(local: int) -> bytes:
    return bytes([0x20, local])


def _set(local: int) -> bytes:
    return bytes([0x21, local])


def _number(value: int) -> bytes:
    """i32.const of a number from 0 to 63."""
    return bytes([0x41, value])


def _moved(local: int, by: bytes) -> bytes:
    return _get(local) + by + _PLUS + _set(local)


def _body() -> bytes:
    first, *others = _POINTERS
    step = [
        _get(total)
        + _get(pointer)
        + _LOAD_SPLAT
        + _get(_PAIR)
        + _MULTIPLY
        + _ADD
        + _set(total)
        + _moved(pointer, _number(8))
        for total, pointer in zip(_SUMS, _POINTERS, strict=True)
    ]
    inner = _get(_AT) + _LOAD_PAIR + _set(_PAIR) + b"".join(step) + _moved(_AT, _number(16))
    inner = _LOOP + inner + _get(_AT) + _get(_END) + _LESS + _AGAIN + _DONE
    start = b"".join(
        _get(before) + _get(_ROW_BYTES) + _PLUS + _set(after) for before, after in zip(_POINTERS, others, strict=False)
    )
    start += b"".join(_ZERO + _set(total) for total in _SUMS)
    start += _get(_W) + _set(_AT) + _get(_W) + _get(_K) + _number(4) + _SHIFT + _PLUS + _set(_END)
    store = b"".join(_get(_TO) + _get(total) + _STORE_PAIR + _moved(_TO, _get(_OUT_BYTES)) for total in _SUMS)
    rows = start + inner + store + _get(_POINTERS[-1]) + _set(first) + _moved(_ROW, _number(4))
    rows = _LOOP + rows + _get(_ROW) + _get(_N) + _LESS + _AGAIN + _DONE
    columns = _number(0) + _set(_ROW) + _get(_X) + _set(first)
    columns += _get(_OUT) + _get(_J) + _number(4) + _SHIFT + _PLUS + _set(_TO) + rows
    columns += _get(_END) + _set(_W) + _moved(_J, _number(1))
    columns += _get(_J) + _number(1) + _SHIFT + _get(_M) + _LESS
    sizes = _get(_K) + _number(3) + _SHIFT + _set(_ROW_BYTES) + _get(_M) + _number(3) + _SHIFT + _set(_OUT_BYTES)
    return sizes + _LOOP + columns + _AGAIN + _DONE


def _sized(content: bytes) -> bytes:
    """Content after its length, LEB128."""
    length, size = len(content), b""
    while length >= 0x80:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return size + bytes([length]) + content


@cache
def kernel() -> bytes:
    """The module: it imports a memory `m.m`, and exports the function `product(x, n, k, w, m, out)`."""
    i32, v128 = 0x7F, 0x7B
    locals_ = bytes([2, _OUT_BYTES - _OUT, i32, 5, v128])
    sections = {
        1: bytes([1, 0x60, 6, *[i32] * 6, 0]),
        2: bytes([1, 1]) + b"m" + bytes([1]) + b"m" + bytes([2, 0, 1]),
        3: bytes([1, 0]),
        7: bytes([1]) + _sized(b"product") + bytes([0, 0]),
        10: bytes([1]) + _sized(locals_ + _body() + _DONE),
    }
    return b"\0asm\1\0\0\0" + b"".join(bytes([number]) + _sized(content) for number, content in sections.items())
