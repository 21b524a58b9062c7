# SPDX-License-Identifier: LGPL-2.1-or-later
"""peewee's view of the tables that migrations.py makes. A test compares the two, column by column.

The models are bound to no database: the store names its own in each query, so that two stores never meet in one
process.
"""

from __future__ import annotations

import json
from typing import Any

from peewee import AutoField, BooleanField, FloatField, IntegerField, Model, TextField

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError


class WordsField(TextField):  # type: ignore[misc, unused-ignore]
    """Text for people. What SQLite cannot hold (a lone surrogate from a JSON escape, a NUL) becomes U+FFFD.

    Agents' output ends up here: an event that could not be stored would be sent again for ever.
    """

    def db_value(self, value: str | None) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ExactField(TextField):  # type: ignore[misc, unused-ignore]
    """Text that is used as a name or a path again, so it is stored as it is or not at all (``InvalidArgument``)."""

    def db_value(self, value: str | None) -> str | None:
        if value is not None:
            try:
                if "\0" in value:
                    raise ValueError
                value.encode()
            except ValueError as error:
                raise CcorchError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"{value!r} cannot be kept in the database, since it is not valid UTF-8",
                    "Rename the file or folder.",
                ) from error
        return value


class JsonField(TextField):  # type: ignore[misc, unused-ignore]
    """A JSON object, in ASCII: that way it holds any text that JSON can."""

    def db_value(self, value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)

    def python_value(self, value: str) -> Any:
        return json.loads(value)


class Project(Model):  # type: ignore[misc, unused-ignore]
    id = AutoField()
    name = ExactField()
    repository = ExactField()
    created = FloatField()
    agreed_hash = ExactField()

    class Meta:
        table_name = "project"


class Instance(Model):  # type: ignore[misc, unused-ignore]
    id = AutoField()
    project_id = IntegerField()
    name = ExactField()
    agent = ExactField()
    session_id = ExactField()
    branch = ExactField()
    base = ExactField()
    base_commit = ExactField()
    worktree = ExactField()
    port = IntegerField()
    prompt = WordsField()
    limits = JsonField()
    environment = JsonField()
    options = JsonField()
    wanted = BooleanField()
    state = ExactField()
    reason = ExactField()
    reason_text = WordsField()
    since = FloatField()
    created = FloatField()
    restarts = IntegerField()
    pid = IntegerField()
    boot_id = ExactField()
    started = BooleanField()
    doing = WordsField()

    class Meta:
        table_name = "instance"


class Event(Model):  # type: ignore[misc, unused-ignore]
    id = AutoField()
    time = FloatField()
    kind = ExactField()
    project_id = IntegerField(null=True)
    instance_id = IntegerField(null=True)
    project = WordsField()
    instance = WordsField()
    actor = WordsField()
    priority = IntegerField()
    message = WordsField()
    data = JsonField()
    uid = WordsField(null=True)

    class Meta:
        table_name = "event"
