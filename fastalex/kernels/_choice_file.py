"""The times of `_choice`, in a file that outlives the process.

For `_choice` alone. One JSON file per kind of GPU and version of torch, triton and fastalex, so
that an upgrade measures anew: {"op|pass|case": {"candidate": milliseconds or null}}. A writer takes
a lock, reads what stands there, adds its own and replaces the file as a whole: two processes lose
nothing of each other's, and a reader never sees half a file. What is broken is as good as absent.
"""

import json
import re
import warnings
from pathlib import Path

import torch

from fastalex import files, version
from fastalex.errors import RunError
from fastalex.kernels._triton import triton

Times = dict[str, float | None]

_read: dict[Path, dict[str, Times]] = {}
"""What the files held when this process last looked."""


def recall(device: str, key: str) -> Times | None:
    """The times kept for `key` on this kind of device, or None."""
    path = _path(device)
    if path not in _read:
        _read[path] = _load(path)
    return _read[path].get(key)


def remember(device: str, key: str, times: Times) -> None:
    """Keeps `times`; where the cache cannot be written, warns and goes on without."""
    path = _path(device)
    try:
        import fcntl  # not every system has it

        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _read[path] = {**_load(path), key: times}
            files.write(path, json.dumps(_read[path], indent=1, sort_keys=True).encode())
    except (OSError, ImportError, RunError) as error:
        _read.setdefault(path, {})[key] = times
        warnings.warn(
            f"the kernels' times cannot be kept ({error}); they will be measured again in the next "
            "process; set FASTALEX_CACHE to a folder that can be written",
            stacklevel=2,
        )


def _path(device: str) -> Path:
    versions = f"torch{torch.__version__}-triton{triton.__version__}-fastalex{version.__version__}"
    name = re.sub(r"[^\w.+-]+", "_", f"{device}-{versions}")
    return files.cache_dir() / "kernels" / f"{name}.json"


def _load(path: Path) -> dict[str, Times]:
    try:
        content = json.loads(path.read_bytes())
        for times in content.values():
            if not all(time is None or float(time) > 0 for time in times.values()):
                raise ValueError("a time that is none")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{path} is damaged and ignored ({error}); the kernels are timed again", stacklevel=2
        )
        return {}
    return content
