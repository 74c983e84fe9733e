"""What is shipped to deploy with: files that name each other, and configuration that loads."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ecompute.cluster import config

ROOT = Path(__file__).parents[3]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("directory", ["docker", "placement"])
def test_deployment_directories_cannot_be_imported(directory: str) -> None:
    # They would shadow the docker SDK and the placement service.
    assert (ROOT / directory).is_dir()
    assert not list((ROOT / directory).rglob("*.py"))


def test_the_compose_file_names_targets_and_files_that_exist() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE))
    services = compose["services"]
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", ())) <= services.keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        for port in service.get("ports", ()):
            assert port.startswith("${PUBLISH:-127.0.0.1}:"), "nothing is published to all by default"
    for line in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", dockerfile, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).is_file()


def test_the_compose_files_secret_is_never_committed() -> None:
    assert "secrets/" in (ROOT / "docker/.gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("document", ["INSTALL.md", "docker/README.md"])
def test_every_configuration_in_the_documents_loads(document: str) -> None:
    found = blocks(document, "yaml")
    assert found
    for text in found:
        config.parse(text.encode(), Path("/etc/ecompute/compute.yaml"))


@pytest.mark.parametrize("document", ["INSTALL.md", "docker/README.md", "placement/README.md"])
def test_every_command_in_the_documents_is_shell(document: str) -> None:
    shell = shutil.which("bash")
    assert shell, "bash is part of every Debian"
    for text in [*blocks(document, "sh"), (ROOT / "docker/placement.sh").read_text(encoding="utf-8")]:
        subprocess.run([shell, "-n", "-c", text], check=True)


@pytest.mark.parametrize("document", ["INSTALL.md", "docker/README.md", "placement/README.md"])
def test_every_link_in_the_documents_leads_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / document).parent.joinpath(target).exists(), target


def test_the_unit_starts_what_was_installed_and_starts_again_but_not_after_a_wrong_configuration() -> None:
    [text] = blocks("INSTALL.md", "ini")
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["ExecStart"] == "/opt/ecompute/bin/ecompute --config /etc/ecompute/compute.yaml run"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
