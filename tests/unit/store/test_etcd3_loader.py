"""etcd3 loads, fast, with the protobuf that is installed; run also with the oldest one allowed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecompute.cluster.store.etcd3_loader import etcd3, rpc, serialized_descriptor

LOADER = importlib.util.find_spec("ecompute.cluster.store.etcd3_loader")
assert LOADER is not None
assert LOADER.origin is not None


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    # The loader alone, by its path: nothing else of ours has imported protobuf before it.
    begin = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('loader', {LOADER.origin!r})\n"
        "loader = importlib.util.module_from_spec(spec)\n"
        "sys.modules['loader'] = loader\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", begin + code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_messages_survive_the_wire() -> None:
    request = rpc.TxnRequest(
        compare=[rpc.Compare(key=b"a", range_end=b"b", target=rpc.Compare.CREATE, create_revision=0)],
        success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", value=b"\xff\x00", lease=1 << 62))],
    )
    assert rpc.TxnRequest.FromString(request.SerializeToString()) == request
    assert etcd3.__version__ == "0.12.0"


def test_a_progress_request_travels_as_an_unknown_field() -> None:
    from ecompute.cluster.store.watch import _PROGRESS_REQUEST

    assert _PROGRESS_REQUEST.SerializeToString() == b"\x1a\x00"


def test_the_fast_implementation_is_used_and_the_environment_left_alone() -> None:
    done = run_python(
        "import os\n"
        "spec.loader.exec_module(loader)\n"
        "from google.protobuf.internal import api_implementation\n"
        "print(api_implementation.Type(), 'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION' in os.environ)\n"
    )
    assert (done.stdout, done.stderr) == ("upb False\n", "")


def test_a_package_with_files_of_the_same_names_does_not_get_in_the_way() -> None:
    done = run_python(
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        "for name in ('kv.proto', 'rpc.proto', 'auth.proto'):\n"
        "    other = descriptor_pb2.FileDescriptorProto(name=name, package='other')\n"
        "    other.message_type.add(name='X' + name[0])\n"
        "    descriptor_pool.Default().Add(other) if hasattr(descriptor_pool.Default(), 'Add') else"
        " descriptor_pool.Default().AddSerializedFile(other.SerializeToString())\n"
        "spec.loader.exec_module(loader)\n"
        "print(loader.rpc.PutRequest(key=b'a').key)\n"
    )
    assert done.stdout == "b'a'\n", done.stderr


def test_the_slow_way_serves_when_the_fast_one_fails() -> None:
    done = run_python(
        "from pathlib import Path\n"
        "source = Path(spec.origin).read_text().replace('_rebuild(Path(', '_break(Path(')\n"
        "exec(compile(source, 'loader', 'exec'), loader.__dict__)\n"
        "from google.protobuf.internal import api_implementation\n"
        "print(api_implementation.Type(), loader.rpc.PutRequest(key=b'a').key)\n"
    )
    assert done.stdout == "python b'a'\n", done.stderr
    assert "slow implementation" in done.stderr


@pytest.mark.parametrize(
    "source", [r"D = F(serialized_pb=_b('\n\x08\xff'))", r"D = F(name='x', serialized_pb=b'\n\x08\xff')"]
)
def test_a_descriptor_is_found_in_the_text(source: str) -> None:
    assert serialized_descriptor(source) == b"\n\x08\xff"


def test_a_text_without_descriptor_is_refused() -> None:
    with pytest.raises(ValueError, match="no serialized descriptor"):
        serialized_descriptor("x = 1")


def test_the_loader_is_the_only_place_that_imports_etcd3() -> None:
    packages = [Path(LOADER.origin).parents[3] / name for name in ("ecompute", "eschedule")]
    importers = {
        path.name
        for package in packages
        for path in package.rglob("*.py")
        if any(line.strip().startswith(("import etcd3", "from etcd3")) for line in path.read_text().splitlines())
    }
    assert importers == set()
