"""The door's description in OpenAPI, made of the messages of the protocol."""

from typing import Any

from pydantic.json_schema import models_json_schema

from fedray.edges.protocol import (
    CHUNK,
    MIN_VERSION,
    PREFIX,
    PROTOCOL,
    CheckIn,
    Commit,
    Enrol,
    Enrolment,
    Fail,
    Message,
    Refusal,
    Task,
    Verdict,
)

JSON, BYTES = "application/json", "application/octet-stream"
MESSAGES = (CheckIn, Commit, Enrol, Enrolment, Fail, Refusal, Task, Verdict)
REF = "#/components/schemas/"
EVERY_CALL = {
    401: "the token is unknown or was revoked",
    410: "the run has ended",
    429: "later: Retry-After",
    503: "later: Retry-After",
    507: "the service's disk is full",
}
OFFSET = "Upload-Offset: where the next byte belongs"


def describe() -> dict[str, Any]:
    """The whole description."""
    pairs: Any = [(message, "validation") for message in MESSAGES]
    _, schemas = models_json_schema(pairs, ref_template=REF + "{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fedray: calls of edges",
            "version": str(PROTOCOL),
            "description": f"For fedray {MIN_VERSION} and newer at the edge.",
        },
        "servers": [{"url": PREFIX}],
        "paths": _paths(),
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


VOID_TOO = "nothing to do: Retry-After; of a task that is closed Edge-Task: void"
ANSWERS: dict[str, dict[int, Any]] = {  # beside those that every call may have
    "enrol": {
        201: Enrolment,
        403: "the invitation enrols nobody: why",
        409: "the invitation has enrolled another key or token",
        426: "the edge is too old: min_version",
    },
    "checkin": {
        200: Task,
        204: VOID_TOO,
        409: "another process has this identity",
        426: "the edge is too old: min_version",
    },
    "object": {
        200: BYTES,
        206: BYTES,
        304: "the edge has it",
        404: "an edge with a task has no such object",
        416: "there is no such range",
    },
    "offset": {204: OFFSET, 409: "the task is not open"},
    "chunk": {
        204: OFFSET,
        409: f"other bytes are needed, or the task is not open. {OFFSET}",
        413: f"more than {CHUNK} bytes, or than the file may have",
    },
    "commit": {
        200: Verdict,
        409: f"another file stands, or bytes are missing. {OFFSET}",
    },
}


def _paths() -> dict[str, Any]:
    task = {"parameters": [_parameter("task", "path", "a task of this edge")]}
    sha256 = {"parameters": [_parameter("sha256", "path", "of weights, plan or state")]}
    offset = _parameter("Upload-Offset", "header", "where the first byte belongs")
    chunk = _call(BYTES, ANSWERS["chunk"]) | {"parameters": [offset]}
    update = {"head": _call(None, ANSWERS["offset"]), "patch": chunk}
    return {
        "/enrol": {"post": _call(Enrol, ANSWERS["enrol"], is_open=True)},
        "/checkin": {"post": _call(CheckIn, ANSWERS["checkin"])},
        "/objects/{sha256}": {**sha256, "get": _call(None, ANSWERS["object"])},
        "/tasks/{task}/update": {**task, **update},
        "/tasks/{task}/commit": {**task, "post": _call(Commit, ANSWERS["commit"])},
        "/tasks/{task}/fail": {**task, "post": _call(Fail, {200: "noted"})},
        "/leave": {"post": _call(None, {200: "token, uploads, invitation are erased"})},
        "/health": {"get": _call(None, {200: "the door is up"}, is_open=True)},
    }


def _parameter(name: str, place: str, text: str) -> dict[str, Any]:
    kind = "integer" if place == "header" else "string"
    schema = {"type": kind}
    described = {"name": name, "in": place, "required": True, "description": text}
    return described | {"schema": schema}


def _call(
    body: type[Message] | str | None, answers: dict[int, Any], is_open: bool = False
) -> dict[str, Any]:
    """One call. Answers are messages, a type of bytes, or a sentence.

    is_open : whether it needs no token.
    """
    common = {k: v for k, v in EVERY_CALL.items() if not (is_open and k == 401)}
    described: dict[str, Any] = {
        "responses": {
            str(status): _answer(status, answer)
            for status, answer in sorted({**common, **answers}.items())
        }
    }
    if is_open:
        described["security"] = []
    if body is not None:
        content = _content(body)
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(status: int, answer: Any) -> dict[str, Any]:
    is_text = isinstance(answer, str) and answer != BYTES
    described = {"description": answer if is_text else "done"}
    if status >= 400:
        return described | {"content": _content(Refusal)}
    return described if is_text else described | {"content": _content(answer)}


def _content(body: Any) -> dict[str, Any]:
    if body == BYTES:
        return {BYTES: {"schema": {"type": "string", "format": "binary"}}}
    return {JSON: {"schema": {"$ref": REF + body.__name__}}}
