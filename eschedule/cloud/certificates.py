"""Keys and certificates by which etcd knows who asks, made with the ``openssl`` program.

A certificate's common name is the user in etcd. It serves for clients alone: whoever steals a host's
cannot play an etcd server with it. Keys are readable by their owner alone from the moment there is a
file; none is ever an argument of a program, or in a message.

Cut off anywhere, what was begun lies in a directory of its own that goes with it, or is a key without
the certificate that belongs to it, which the next call makes anew.

Threads: any, for different files.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from pathlib import Path

from ecompute.cluster.errors import InvalidInput, NotFound, StepFailed, one_line

CA_CERT = "ca.pem"
CA_KEY = "ca.key"
CA_NAME = "etcd-compute"
DAYS = 3650
RENEW_BEFORE_S = 30 * 86_400
TIMEOUT_S = 60.0

_CLIENT = "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n"
_AUTHORITY = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")


class Authority:
    """The one whose signature etcd believes: ``ca.pem`` and ``ca.key`` in a directory, made if neither is there.

    Raises:
        InvalidInput: only one of the two is there.
        NotFound: the program openssl is missing.
        StepFailed: openssl says no; says why.
    """

    def __init__(self, directory: Path) -> None:
        self.cert, self._key = directory / CA_CERT, directory / CA_KEY
        self.is_new = not self.cert.exists() and not self._key.exists()
        if self.is_new:
            self._make(directory)
        for path in (self.cert, self._key):
            if not path.exists():
                raise InvalidInput(
                    f"{directory} has no {path.name}", hint="name the directory with both, or an empty one"
                )

    def _make(self, directory: Path) -> None:
        private(directory)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=directory) as scratch:
            key, cert = Path(scratch) / CA_KEY, Path(scratch) / CA_CERT
            _make_key(key)
            extensions = [word for line in _AUTHORITY for word in ("-addext", line)]
            openssl(
                "req", "-x509", "-new", "-key", key, "-subj", f"/CN={CA_NAME}", "-days", DAYS, *extensions, "-out", cert
            )
            key.rename(self._key)
            cert.rename(self.cert)

    def certify(self, user: str, cert: Path, key: Path, *, days: int = DAYS) -> bool:
        """See to it that ``cert`` and ``key`` let their holder be ``user``; return whether they were made.

        Those that are there already stay, if they do so for another month.
        """
        if self._is_good(user, cert, key):
            return False
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cert.parent) as scratch:
            made_key, request, made = (Path(scratch) / name for name in ("key", "csr", "pem"))
            extensions = Path(scratch) / "extensions"
            extensions.write_text(_CLIENT, encoding="ascii")
            _make_key(made_key)
            openssl("req", "-new", "-key", made_key, "-subj", f"/CN={user}", "-out", request)
            openssl(
                *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-days", days),
                # Drawn by lot: a file of serial numbers would be one more thing to lose, and to lock.
                *("-set_serial", f"0x{secrets.randbits(126):x}", "-extfile", extensions, "-out", made),
            )
            made_key.rename(key)
            made.rename(cert)
        return True

    def _is_good(self, user: str, cert: Path, key: Path) -> bool:
        if not cert.exists() or not key.exists():
            return False
        try:
            subject = openssl("x509", "-in", cert, "-noout", "-subject", "-nameopt", "multiline")
            openssl("x509", "-in", cert, "-noout", "-checkend", RENEW_BEFORE_S)
            openssl("verify", "-CAfile", self.cert, cert)
            of_cert = openssl("x509", "-in", cert, "-noout", "-pubkey")
            of_key = openssl("pkey", "-in", key, "-pubout")
        except StepFailed:
            return False
        names = [line.partition("=")[2].strip() for line in subject.splitlines() if "commonName" in line]
        return names == [user] and of_cert == of_key


def private(directory: Path) -> Path:
    """Return ``directory``, made for its owner alone if it was not there."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody but its owner reads, not for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def openssl(*arguments: str | int | Path) -> str:
    """Run openssl and return what it says on standard output.

    Raises:
        NotFound: it is not installed.
        StepFailed: it says no, or takes too long.
    """
    # Without a configuration of the machine's own: it could add to a certificate what we do not know of.
    env = {**os.environ, "OPENSSL_CONF": "/dev/null"}
    argv = ["openssl", *map(str, arguments)]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, env=env, check=False
        )
    except FileNotFoundError as error:
        raise NotFound("the program openssl is missing", hint="apt-get install openssl") from error
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"openssl {arguments[0]} did not end within {TIMEOUT_S:g} s") from error
    if done.returncode:
        raise StepFailed(f"openssl {arguments[0]} failed: {one_line(done.stderr or done.stdout, 200)}")
    return done.stdout


def _make_key(path: Path) -> None:
    write_private(path, "")  # openssl keeps the mode of a file that is there
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", path)
