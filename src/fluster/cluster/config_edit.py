"""Writing and removing a configured cluster in the user's file, which may hold other things and comments: they stay."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluster.cluster.config import user_config_file
from fluster.cluster.context import normal_address
from fluster.cluster.validation import check_name

_DEFAULT = re.compile(r"\s*cluster\s*=")
_ANY_TABLE = re.compile(r"\s*\[")


def configure_cluster(
    name: str,
    address: str,
    token_file: str | os.PathLike[str],
    ca_file: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Writes a cluster into the user's configuration and makes it the default; returns the file.

    Raises:
        ValueError: The name or the address is none, or the file has a form this cannot edit safely.
        OSError: The file cannot be written.
    """
    entry = {"address": normal_address(address), "token_file": os.path.abspath(token_file)}
    if ca_file is not None:
        entry["ca_file"] = os.path.abspath(ca_file)
    check_name(name, "a cluster's name")
    table = [f"[clusters.{_quoted(name)}]\n", *(f"{key} = {_quoted(value)}\n" for key, value in entry.items())]
    with _editing(user_config_file(environ)) as file:
        text, old = _load(file)
        wanted = {**old, "cluster": name, "clusters": {**old.get("clusters", {}), name: entry}}
        others = _without_default(_without_table(text.splitlines(keepends=True), name))
        lines = [f"cluster = {_quoted(name)}\n", *others]
        _save(file, "".join(lines).rstrip("\n") + "\n\n" + "".join(table), wanted)
    return file


def choose_cluster(cluster: str, *, environ: Mapping[str, str] | None = None) -> None:
    """Makes a configured cluster, or an address, the default in the user's configuration.

    Raises:
        ValueError: The file has a form this cannot edit safely.
        OSError: The file cannot be written.
    """
    with _editing(user_config_file(environ)) as file:
        text, old = _load(file)
        lines = [f"cluster = {_quoted(cluster)}\n", *_without_default(text.splitlines(keepends=True))]
        _save(file, "".join(lines), {**old, "cluster": cluster})


def forget_cluster(name: str, *, environ: Mapping[str, str] | None = None) -> bool:
    """Removes a cluster from the user's configuration, as the default too; `False` when it was not there.

    Raises:
        ValueError: The file has a form this cannot edit safely.
        OSError: The file cannot be written.
    """
    if not user_config_file(environ).exists():
        return False
    with _editing(user_config_file(environ)) as file:
        text, old = _load(file)
        if name not in old.get("clusters", {}):
            return False
        wanted = {**old, "clusters": {key: value for key, value in old["clusters"].items() if key != name}}
        lines = _without_table(text.splitlines(keepends=True), name)
        if old.get("cluster") == name:
            lines = _without_default(lines)
            del wanted["cluster"]
        _save(file, "".join(lines), wanted)
    return True


@contextmanager
def _editing(file: Path) -> Iterator[Path]:
    """The file while nobody else edits it: what two write at once must both be there."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The directory is locked, for the file is replaced.
    directory = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(directory)


def _load(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        return "", {}
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def _without_table(lines: list[str], name: str) -> list[str]:
    header = re.compile(rf"""\s*\[\s*clusters\s*\.\s*(["']?){re.escape(name)}\1\s*\]\s*(#.*)?$""")
    kept, inside = [], False
    for line in lines:
        if _ANY_TABLE.match(line):
            inside = bool(header.match(line.rstrip("\n")))
        if not inside or line.lstrip().startswith("#"):
            kept.append(line)
    return kept


def _without_default(lines: list[str]) -> list[str]:
    first_table = next((number for number, line in enumerate(lines) if _ANY_TABLE.match(line)), len(lines))
    return [line for number, line in enumerate(lines) if number >= first_table or not _DEFAULT.match(line)]


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string as long as nothing beyond the basic plane is escaped.
    return json.dumps(text, ensure_ascii=False)


def _save(file: Path, text: str, wanted: dict[str, Any]) -> None:
    """Replaces the file in one step, if the edited text says exactly what is wanted."""
    if not _says(text, wanted):
        raise ValueError(f"{file} is written in a form that cannot be edited without losing something; edit it by hand")
    if not text.strip():
        file.unlink(missing_ok=True)
        return
    # mkstemp creates with 0600: which clusters somebody uses is nobody else's business.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".config-")
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return _pruned(tomllib.loads(text)) == _pruned(wanted)
    except tomllib.TOMLDecodeError:
        return False


def _pruned(table: dict[str, Any]) -> dict[str, Any]:
    """Without a `clusters` table that has become empty: no line says it any more."""
    return {key: value for key, value in table.items() if key != "clusters" or value}
