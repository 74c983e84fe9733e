"""One way to decode."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

FIRST_AT_ONCE = """
import sys, threading, types
from ecompute.cluster.decoding import from_json

SOURCE = '''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
    text: str
class Outer(msgspec.Struct):
    one: Inner
    many: dict[str, tuple[Inner, ...]]
'''
DATA = {"Outer": b'{"one": {"text": "x"}, "many": {"y": [{"text": "z"}]}}', "Inner": b'{"text": "x"}'}
sys.setswitchinterval(1e-6)
for n in range(300):
    module = sys.modules[f"fresh{n}"] = types.ModuleType(f"fresh{n}")
    exec(SOURCE, vars(module))
    barrier = threading.Barrier(4)

    def decode(name):
        barrier.wait()
        from_json(DATA[name], getattr(module, name))

    threads = [threading.Thread(target=decode, args=[name]) for name in ("Outer", "Inner") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_decode_a_type_for_the_first_time_at_once_do_not_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FIRST_AT_ONCE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_decoded_in_another_way() -> None:
    others = [
        path
        for package in ("ecompute", "eschedule", "md_server")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"msgspec\.(json\.(decode|Decoder)|convert)\b", path.read_text()) and path.name != "decoding.py"
    ]
    assert others == []
