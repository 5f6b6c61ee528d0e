"""triton and triton.language, or stand-ins where there is no triton (macOS, Windows).

For the files of this package that hold kernels. With the stand-ins a kernel's definition is a plain
function that nobody may call, and every op computes with ATen.
"""

from typing import TYPE_CHECKING, Any, TypeAlias


class _Absent:
    """Any attribute is itself; as a decorator it leaves the function as it is."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, function: Any = None, *_: Any, **__: Any) -> Any:
        return function if callable(function) else self


if TYPE_CHECKING:  # the language inside the kernels is not Python's, and no checker knows it

    class _AnyName(type):
        def __getattr__(cls, name: str) -> Any: ...

    class tl(metaclass=_AnyName):  # noqa: N801
        constexpr: TypeAlias = Any

    triton: Any
    AVAILABLE = True
else:
    try:
        import triton
        import triton.language as tl

        AVAILABLE = True
    except ModuleNotFoundError:
        triton = tl = _Absent()
        AVAILABLE = False

__all__ = ["AVAILABLE", "tl", "triton"]
