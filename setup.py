"""Packaging. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="etcd-compute",
    version="0.1.0",
    description="A cloud for virtual machines whose control plane is OpenStack placement and etcd",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # `placement` and `docker` hold deployment files: as packages they would shadow the installed
    # placement service and the docker SDK.
    packages=find_packages(include=["ecompute", "ecompute.*", "eschedule", "eschedule.*", "md_server", "md_server.*"]),
    package_data={"ecompute": ["py.typed", "dev/files/*"], "eschedule": ["py.typed"], "md_server": ["py.typed"]},
    install_requires=[
        "click>=8.2",
        "etcd3==0.12.0",
        "falcon>=4.0",  # routes of the metadata service
        "grpcio>=1.60",  # with protobuf, what etcd3 stands on, in the versions that its loader was tried with
        "protobuf>=4.25,<8",
        "libvirt-python>=9.0",
        "msgspec>=0.18",
        "psutil>=5.9",
        "pycdlib>=1.14",
        "pyroute2>=0.9",
        "pyyaml>=6.0",
        "qemu.qmp>=0.0.3",
        "requests>=2.31",
        "waitress>=3.0",  # serves it
    ],
    extras_require={
        "embedded": ["openstack-placement>=16", "gunicorn>=22"],
        "api": [],
        "dev": [
            "configobj>=5.0",  # with the next four, what cloud-init's reader of config drives imports
            "jinja2>=3.0",
            "jsonpatch>=1.33",
            "jsonschema>=4.0",
            "oauthlib>=3.2",
            "psycopg2-binary>=2.9",  # placement on PostgreSQL, for races and the bench
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "mypy>=1.10",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.6",
            "types-PyYAML",
            "types-psutil",
            "types-requests",
        ],
    },
    entry_points={
        "console_scripts": [
            "ecompute = ecompute.cli:main",
            "eschedule = eschedule.cli.main:main",
            "md-server = md_server.cli:main",
        ]
    },
)
