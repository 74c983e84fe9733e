"""What is in tables of ours, object by object: so that a change sends what is changed, not everything.

A chain with its rules, a set, an element of a set: each is an object with a key, and a text that is
the same for the same content. Wanted and found are compared as such, and the difference is one
transaction (`Tables.become`). With 200 taps on a host their chains are half a megabyte of JSON, which
nft takes 0.4 s to put and 0.2 s to list; one chain more takes 30 ms.

What is found is listed only when the kernel's ruleset has another generation than when it was last
seen, and not by changes of ours (`nft.Ledger`): that question costs 0.1 ms. What is there after a change
of ours is known without listing, if nobody else was at work meanwhile.

The functions are pure. `Tables` may be called from any thread; it is about the network namespace of
the thread that calls, and one object of it is for one namespace.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ecompute.cluster.errors import NetworkError
from ecompute.network import nft
from ecompute.network.nft import Json


class Key(NamedTuple):
    kind: str
    """``table``, ``chain``, ``set``, ``map`` or ``element``."""
    family: str
    table: str
    name: str
    """Of the chain or set; of an element, that of its set."""
    element: str = ""


Objects = dict[Key, str]

_KINDS = frozenset({"table", "chain", "set", "map", "element"})
"""Of what is ours. Where there is something else in a table of ours, all of it is made anew."""


# --- what is wanted and found --------------------------------------------------------------------


def objects(items: Iterable[Json]) -> Objects:
    """Return what ``items`` say, asked for or listed (`nft.normalise`)."""
    found: dict[Key, Any] = {}
    for item in items:
        ((kind, body),) = item.items()
        family = body["family"]
        if kind == "table":
            found[Key("table", family, body["name"], "")] = {}
        elif kind == "chain":
            found[Key("chain", family, body["table"], body["name"])] = {"spec": _spec(body), "rules": []}
        elif kind == "rule":
            found[Key("chain", family, body["table"], body["chain"])]["rules"].append(_sorted(body["expr"]))
        elif kind in ("set", "map", "element"):
            if kind != "element":
                found[Key(kind, family, body["table"], body["name"])] = _spec(body)
            for element in body.get("elem", ()):
                found[_element_key(family, body["table"], body["name"], element)] = element
        else:
            found[Key(kind, family, body["table"], str(body.get("name")))] = body
    return {key: _text(content) for key, content in found.items()}


def _spec(body: Json) -> Json:
    return {name: value for name, value in body.items() if name not in ("family", "table", "name", "elem")}


def _element_key(family: str, table: str, name: str, element: Any) -> Key:
    """An element of a map is a pair, and its first part tells it from the others."""
    return Key("element", family, table, name, _text(element[0] if isinstance(element, list) else element))


def _sorted(expression: Any) -> Any:
    """Return it with the members of its sets in order: nft prints them in another one."""
    if isinstance(expression, list):
        return [_sorted(part) for part in expression]
    if not isinstance(expression, dict):
        return expression
    made = {name: _sorted(value) for name, value in expression.items()}
    if isinstance(made.get("set"), list):
        made["set"].sort(key=_text)
    return made


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


# --- from one to the other -----------------------------------------------------------------------


def commands(wanted: Mapping[Key, str], found: Mapping[Key, str]) -> list[Json]:
    """Return what leads from ``found`` to ``wanted``, in an order in which nothing lacks what it names."""
    gone = [key for key in found if key not in wanted or not _is_kept(key, wanted[key], found[key])]
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    return [
        *({"delete": _element(key, found[key])} for key in gone if key.kind == "element"),
        *({"flush": {"chain": _named(key)}} for key in found if key.kind == "chain" and found[key] != wanted.get(key)),
        *({"delete": {"chain": _named(key)}} for key in gone if key.kind == "chain"),
        *({"delete": {key.kind: _named(key)}} for key in gone if key.kind in ("set", "map")),
        *({"delete": {"table": {"family": key.family, "name": key.table}}} for key in gone if key.kind == "table"),
        *({"add": {"table": {"family": key.family, "name": key.table}}} for key in changed if key.kind == "table"),
        *(
            {"add": {key.kind: {**_named(key), **json.loads(wanted[key])}}}
            for key in changed
            if key.kind in ("set", "map")
        ),
        *(
            {"add": {"chain": {**_named(key), **json.loads(wanted[key])["spec"]}}}
            for key in changed
            if key.kind == "chain"
        ),
        *({"add": _element(key, wanted[key])} for key in changed if key.kind == "element"),
        *(
            {"add": {"rule": {"family": key.family, "table": key.table, "chain": key.name, "expr": expression}}}
            for key in changed
            if key.kind == "chain"
            for expression in json.loads(wanted[key])["rules"]
        ),
    ]


def _is_kept(key: Key, wanted: str, found: str) -> bool:
    """Whether an object can become what is wanted in its place: a chain takes other rules, but no other hook."""
    if key.kind == "chain":
        return bool(json.loads(wanted)["spec"] == json.loads(found)["spec"])
    return wanted == found


def _named(key: Key) -> Json:
    return {"family": key.family, "table": key.table, "name": key.name}


def _element(key: Key, content: str) -> Json:
    return {"element": {**_named(key), "elem": [json.loads(content)]}}


# --- in the kernel -------------------------------------------------------------------------------


class Tables:
    """Tables that are ours alone.

    Args:
        ledger: of their namespace, where others of this process have tables in it, too.
    """

    def __init__(self, tables: Sequence[nft.Table], ledger: nft.Ledger | None = None) -> None:
        self._tables = tuple(tables)
        self._ledger = ledger if ledger is not None else nft.Ledger()
        self._lock = threading.Lock()
        self._found: Objects = {}
        self._generation: int | None = None
        self._printed: dict[Key, tuple[str, str]] = {}
        """What another release of nft prints in another way than it was asked for: as asked, as printed."""
        self._is_printed_as_asked: bool | None = None
        """Whether this release of nft prints everything as it is asked for, once that is known."""

    def found(self) -> Objects:
        """Return what is there, in the words in which it was asked for; the same object while nothing has changed.

        Raises:
            NetworkError: nft is missing, or does not say.
        """
        with self._lock:
            return self._look()

    def become(self, wanted: Objects) -> None:
        """Make everything as it is wanted, in one transaction.

        Raises:
            NetworkError: nft is missing, or refused it; nothing was changed.
        """
        with self._lock:
            found, known = self._look(), self._generation
            assert known is not None
            script = commands(wanted, found)
            is_strange = any(key.kind not in _KINDS for key in found)
            if not script and not is_strange:
                return
            self._generation = None
            after = self._replace(wanted) if is_strange else self._change(script, wanted, found, known)
            if after is None:
                return  # somebody else was at work: the next look tells what there is
            if self._is_printed_as_asked is not True:
                listed = self._list()
                if not self._are_untouched(after, nft.generation()):
                    return
                self._printed = {
                    key: (text, listed.get(key, "")) for key, text in wanted.items() if listed.get(key) != text
                }
                self._is_printed_as_asked = not self._printed
            self._found, self._generation = dict(wanted), after

    def remove(self) -> None:
        """Take all of it away; nothing may be there.

        Raises:
            NetworkError: nft is missing, or refused it.
        """
        with self._lock:
            self._generation = None
            self._found, self._generation = {}, self._replace({})

    def _change(self, script: list[Json], wanted: Objects, found: Objects, known: int) -> int | None:
        """Make the change from what was found; return the generation at which all is as wanted, if that is known."""
        try:
            after = self._ledger.change(nft.as_script(script), self._tables)
        except NetworkError:
            if not found:
                raise
            # Somebody has put something into our tables that holds on to what is to go.
            return self._replace(wanted)
        return after if after is not None and self._are_untouched(known, after - 1) else None

    def _replace(self, wanted: Objects) -> int | None:
        """Do the same, whatever is there."""
        script = nft.script(self._tables, [command["add"] for command in commands(wanted, {})])
        return self._ledger.change(script, self._tables)

    def _look(self) -> Objects:
        generation = nft.generation()
        if self._generation is None or not self._are_untouched(self._generation, generation):
            self._found = {key: self._as_asked(key, text) for key, text in self._list().items()}
        self._generation = generation
        return self._found

    def _are_untouched(self, since: int, now: int) -> bool:
        return self._ledger.are_untouched(self._tables, since, now)

    def _list(self) -> Objects:
        listings = [nft.listing(table) for table in self._tables]
        return objects(item for listing in listings if listing is not None for item in nft.normalise(listing))

    def _as_asked(self, key: Key, text: str) -> str:
        asked, printed = self._printed.get(key, (text, text))
        return asked if text == printed else text
