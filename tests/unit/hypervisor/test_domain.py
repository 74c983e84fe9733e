"""Domain XML: its format in golden files, its robustness by properties.

``UPDATE_GOLDEN=1 pytest tests/unit/hypervisor`` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput
from ecompute.hypervisor.domain import METADATA_NAMESPACE, DomainPlan, Owner, TapPlan, owner, render

GOLDEN = Path(__file__).parents[2] / "golden" / "domain"

UUID = "1c1a3c8e-8a53-4d0e-9f0e-0d4f6a1f7a11"
PROVIDER = "aa0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b22"
FILES = Path("/var/lib/ecompute/instances") / UUID

PLAIN = DomainPlan(
    uuid=UUID,
    name="web",
    namespace="system",
    provider=PROVIDER,
    vcpus=2,
    memory_mb=2048,
    accelerator="kvm",
    root_disk=FILES / "disk.qcow2",
    config_drive=FILES / "config.iso",
    interfaces=(TapPlan("ect0123456789a", "ecb000001", "52:54:00:12:34:56", 1450),),
    console_log=FILES / "console.log",
)

PLANS = {
    "kvm": PLAIN,
    "tcg": replace(PLAIN, accelerator="tcg", vcpus=1, memory_mb=256),
    "bare": replace(PLAIN, interfaces=(), config_drive=None),
    "two-interfaces": replace(
        PLAIN,
        interfaces=(*PLAIN.interfaces, TapPlan("ectffffffffffff"[:14], "br0", "52:54:00:00:00:01", None, "e1000e")),
    ),
    "hostile-name": replace(PLAIN, name="</title><devices/>&amp;\x00\x1b\n\ud800\ufffe ok", namespace="a<b>&\"'"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_rendered_as_in_its_golden_file(name: str) -> None:
    path = GOLDEN / f"{name}.xml"
    rendered = render(PLANS[name])
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered, encoding="utf-8")
    assert rendered == path.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(PLANS)


@given(name=st.text(), namespace=st.text())
def test_no_text_of_a_user_changes_the_structure(name: str, namespace: str) -> None:
    plain = ET.fromstring(render(PLAIN))
    other = ET.fromstring(render(replace(PLAIN, name=name, namespace=namespace)))
    assert [element.tag for element in other.iter()] == [element.tag for element in plain.iter()]
    assert [element.attrib for element in other.iter()] == [element.attrib for element in plain.iter()]
    for path in ("name", "uuid", "devices"):
        assert ET.tostring(other.find(path)) == ET.tostring(plain.find(path))  # type: ignore[arg-type]


@given(name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1))
def test_what_xml_can_carry_comes_back_from_the_metadata(name: str) -> None:
    metadata = ET.fromstring(render(replace(PLAIN, name=name))).find(f"metadata/{{{METADATA_NAMESPACE}}}instance")
    assert metadata is not None
    assert owner(ET.tostring(metadata, encoding="unicode")) == Owner(PROVIDER, "system", name)


@pytest.mark.parametrize("text", ["", "no xml", "<instance/>", "<other><provider>x</provider></other>"])
def test_metadata_that_is_not_as_we_write_it_has_no_owner(text: str) -> None:
    assert owner(text) is None


def test_metadata_is_read_whatever_prefix_libvirt_gives_it() -> None:
    # Asked for the element alone, libvirt leaves our prefix away.
    assert owner("<instance><provider>p</provider><namespace>n</namespace><name>x</name></instance>") == Owner(
        "p", "n", "x"
    )


def test_the_config_drive_is_the_second_disk_and_readonly() -> None:
    disks = ET.fromstring(render(PLAIN)).findall("devices/disk")
    assert [disk.find("target").get("dev") for disk in disks] == ["vda", "vdb"]  # type: ignore[union-attr]
    assert [disk.find("readonly") is not None for disk in disks] == [False, True]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"uuid": "../../etc"}, "not a uuid"),
        ({"uuid": UUID.upper()}, "canonical"),
        ({"provider": ""}, "provider"),
        ({"vcpus": 0}, "0 vcpus"),
        ({"memory_mb": -1}, "-1 MB"),
        ({"accelerator": "xen"}, "neither kvm nor tcg"),
        ({"root_disk": Path("disk")}, "not absolute"),
        ({"console_log": Path("/a\nb")}, "unprintable"),
        ({"interfaces": (TapPlan("t" * 16, "b", "52:54:00:00:00:01", None),)}, "device"),
        ({"interfaces": (TapPlan("t", "a/b", "52:54:00:00:00:01", None),)}, "device"),
        ({"interfaces": (TapPlan("t", "b", "52:54:00:00:00", None),)}, "MAC"),
        ({"interfaces": (TapPlan("t", "b", "52:54:00:00:00:01", 1),)}, "MTU"),
        ({"interfaces": (TapPlan("t", "b", "52:54:00:00:00:01", None, "<x>"),)}, "model"),
    ],
)
def test_a_plan_that_no_guest_can_be_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        render(replace(PLAIN, **changes))  # type: ignore[arg-type]


def test_all_problems_of_a_plan_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        render(replace(PLAIN, vcpus=0, memory_mb=0))
    assert "vcpus" in str(caught.value)
    assert "memory" in str(caught.value)
