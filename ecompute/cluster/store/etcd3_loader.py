"""Makes the etcd3 package work with a current protobuf: the one place that knows how it is loaded.

etcd3's generated message modules are from 2020 and no current protobuf runs them. They hold,
however, the serialized descriptors of every message, and from those today's protobuf builds the
same classes. So: read the generated files as text, never run them; build the messages in a
descriptor pool of our own (the files are called ``kv.proto`` and ``rpc.proto``, names that another
package may use, too); put the modules where etcd3 imports them from. Nothing on disk is changed.

If that fails and nobody has loaded protobuf yet, protobuf's slow implementation in Python is used,
which still runs the old modules; a warning says so.

Runs once, when this module is first imported; Python's import lock serves as its lock.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "etcd3.etcdrpc"
_FILES = ("kv", "auth", "rpc")
"""In the order in which they import one another."""

_SERIALIZED = re.compile(r"serialized_pb=(?:_b\()?(?P<literal>b?(?P<quote>['\"])(?:\\.|(?!(?P=quote)).)*(?P=quote))")
"""To parse all of the largest file takes each of our programs 50 ms at its start."""

_SLOW = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


def serialized_descriptor(source: str) -> bytes:
    """Return the file descriptor that a generated module of 2020 holds.

    Args:
        source: the module's text.

    Raises:
        ValueError: there is none in it.
    """
    found = _SERIALIZED.search(source)
    if found is not None:
        # Written for Python 2 and 3 at once: `_b('…')`, text whose characters are the bytes.
        value: str | bytes = ast.literal_eval(found["literal"])
        return value.encode("latin-1") if isinstance(value, str) else value
    raise ValueError("it holds no serialized descriptor")


def _rebuild(directory: Path) -> dict[str, ModuleType]:
    """Return the message modules, by name, built anew from the generated files in ``directory``."""
    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    pool = descriptor_pool.DescriptorPool()
    modules: dict[str, ModuleType] = {}
    for file in _FILES:
        name = f"{_PACKAGE}.{file}_pb2"
        data = serialized_descriptor((directory / f"{file}_pb2.py").read_text(encoding="utf-8"))
        pool.AddSerializedFile(data)
        descriptor = pool.FindFileByName(f"{file}.proto")
        module = ModuleType(name, f"The messages of {file}.proto, built by {__name__}.")
        module.__dict__["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, name, module.__dict__)
        modules[name] = module
    return modules


def _forget(prefix: str) -> None:
    for name in [name for name in sys.modules if name == prefix or name.startswith(prefix + ".")]:
        del sys.modules[name]


def load() -> ModuleType:
    """Return the etcd3 package, ready for use.

    Raises:
        ImportError: it is not installed, or cannot be made to work with the installed protobuf.
    """
    if "etcd3" in sys.modules:
        return sys.modules["etcd3"]
    spec = importlib.util.find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package etcd3 is not installed; run: pip install 'etcd3==0.12.0'")
    is_protobuf_ours = "google.protobuf" not in sys.modules
    try:
        sys.modules.update(_rebuild(Path(spec.submodule_search_locations[0]) / "etcdrpc"))
        return importlib.import_module("etcd3")
    # Whatever protobuf of the future raises here, the other way may still work.
    except Exception as error:
        _forget("etcd3")
        if not is_protobuf_ours or _SLOW in os.environ:
            raise ImportError(f"etcd3 cannot be loaded with the installed protobuf: {error}") from error
        return _load_slowly(error)


def _load_slowly(reason: Exception) -> ModuleType:
    _forget("google.protobuf")
    os.environ[_SLOW] = "python"
    try:
        etcd3 = importlib.import_module("etcd3")
    except (ImportError, TypeError) as error:  # TypeError: how protobuf refuses the old modules
        _forget("etcd3")
        raise ImportError(f"etcd3 cannot be loaded with the installed protobuf: {error}") from reason
    finally:
        del os.environ[_SLOW]  # protobuf has chosen; what we start is to choose for itself
    warnings.warn(
        f"etcd3's messages could not be rebuilt ({reason}): protobuf's slow implementation is used",
        RuntimeWarning,
        stacklevel=2,
    )
    return etcd3


etcd3: Any = load()
"""The package; its types end here."""

rpc: Any = etcd3.etcdrpc
"""Messages and stubs of etcd's API, as in its ``rpc.proto`` of version 3.3.

What later versions added travels as fields unknown to these messages.
"""
