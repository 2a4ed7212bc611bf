"""The page that documents the addresses, made from their OpenAPI description: no script, nothing from another server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fbfaf6, #15181c); --card: light-dark(#fff, #1c2025);
  --ink: light-dark(#1c2024, #ebe8e2); --quiet: light-dark(#5a6068, #a9aeb5);
  --rule: light-dark(#dfdbd1, #353b43); --link: light-dark(#005a8f, #6cc0ee); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 900px; padding: 24px 16px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1, h2 { font-family: "Iowan Old Style", Palatino, "Liberation Serif", Georgia, serif; font-weight: 400; }
h2 { margin: 36px 0 4px; font-size: 20px; overflow-wrap: anywhere; }
h2 code { font-size: 17px; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "Liberation Mono", Menlo, monospace; font-size: 13px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px; overflow-x: auto; }
p { margin: 6px 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 8px 0; font-size: 14px; }
caption { text-align: left; color: var(--quiet); padding: 8px 0 2px; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-top: 1px solid var(--rule); }
th { font-weight: 600; color: var(--quiet); }
"""
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<link rel="icon" href="data:,">
<style>STYLE</style>
</head>
<body>
<h1>TITLE</h1>"""
EXAMPLES = {"/search", "/search/stream", "/answer", "/answer/stream"}


def page_policy(page: str) -> str:
    """The Content-Security-Policy of a page: nothing but the scripts and styles that stand in it, by their hashes, and this server."""
    kinds = []
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        found = [_hash(text) for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)]
        kinds.append(f"{kind} {' '.join(found) or chr(39) + 'none' + chr(39)}")
    more = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {'; '.join(kinds)}; {more}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def reference_page(description: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    title = html.escape(f"{description['info']['title']} {description['info']['version']}")
    parts = [HEAD.replace("TITLE", title).replace("STYLE", STYLE)]
    parts += [f"<p>{_text(part)}</p>" for part in description["info"]["description"].split("\n")]
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a>. For people: <a href="./">the page to ask</a>.</p>')
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation, description)
    return "\n".join([*parts, "</body>\n</html>\n"])


def _operation(path: str, method: str, operation: dict[str, Any], description: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>\n<p>{_text(operation.get('summary', ''))}</p>"
    if path in EXAMPLES:
        example = json.dumps({"question": "Where is the milk?", "budget": 4})
        yield f"<pre>curl{' -N' if path.endswith('stream') else ''} http://127.0.0.1:8000{path} --json '{html.escape(example)}'</pre>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        yield _table("The request, a JSON object", _fields(_resolved(body, description), description))
    if operation.get("parameters"):
        rows = [(one["name"], _kind(one["schema"], description), _about(one["schema"])) for one in operation["parameters"]]
        yield _table("In the address", rows)
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        fields = _fields(_resolved(schema, description), description) if schema else []
        if status.startswith("2") and fields:
            yield _table("The response, a JSON object", fields)
    refused = [f"{status} {one['description']}" for status, one in operation["responses"].items() if not status.startswith("2")]
    if refused:
        yield f"<p>Errors: {_text(' '.join(refused))}</p>"


def _table(caption: str, rows: list[tuple[str, str, str]]) -> str:
    lines = "".join(f"<tr><td><code>{_text(a)}</code></td><td>{_text(b)}</td><td>{_text(c)}</td></tr>\n" for a, b, c in rows)
    head = '<thead><tr><th scope="col">field</th><th scope="col">type</th><th scope="col">meaning</th></tr></thead>'
    return f'<div class="table"><table><caption>{caption}</caption>{head}<tbody>\n{lines}</tbody></table></div>'


def _resolved(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(description["components"]["schemas"][name]) if name else schema


def _fields(schema: dict[str, Any], description: dict[str, Any]) -> list[tuple[str, str, str]]:
    needed = schema.get("required", []) if "Request" in schema.get("title", "") else []
    found = []
    for name, field in schema.get("properties", {}).items():
        found.append((name, _kind(field, description) + (", required" if name in needed else ""), _about(field)))
    return found


def _about(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return schema.get("description", "") + (f" (default: {json.dumps(default)})" if default is not None else "")


def _kind(schema: dict[str, Any], description: dict[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in schema:
        return _object(_resolved(schema, description), description)
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one, description) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'], description)}"
    limits = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([str(schema.get("type", "anything")), *limits])


def _object(schema: dict[str, Any], description: dict[str, Any]) -> str:
    return f"object ({', '.join(schema.get('properties', {}))})"


def _text(text: str) -> str:
    """Escaped, with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
