"""The OpenAPI description as one plain page: no script, no font, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse;width:100%}td,th{text-align:left;"
    "border-bottom:1px solid #8886;padding:.3rem .6rem;vertical-align:top}code{font-size:.95em}"
    "h2{margin-top:2.5rem}.m{font-weight:bold}"
)


def reference_page(openapi: dict[str, Any]) -> str:
    """HTML with every address, its fields and its answers."""
    info = openapi["info"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(info['title'])}: HTTP</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))}</p>",
        "<p>The same for programs: <a href=/openapi.json>/openapi.json</a>. Errors are RFC 9457 JSON.</p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code><span class=m>{method.upper()}</span> {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
            parts.append(_fields(operation))
            codes = ", ".join(sorted(operation["responses"]))
            parts.append(f"<p>Answers: {escape(codes)}</p>")
    return "".join([*parts, "</body></html>"])


def _fields(operation: dict[str, Any]) -> str:
    rows = [
        (
            p["name"],
            p["in"],
            p.get("required", False),
            p.get("schema", {}) | {"description": p.get("description", "")},
        )
        for p in operation.get("parameters", [])
    ]
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    needed = schema.get("required", [])
    rows += [(name, "body", name in needed, field) for name, field in schema.get("properties", {}).items()]
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code>{' *' if required else ''}</td><td>{escape(where)}</td>"
        f"<td>{escape(_kind(field))}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, where, required, field in rows
    )
    return f"<table><tr><th>Field (* needed)</th><th>In</th><th>Kind</th><th>Meaning</th></tr>{cells}</table>"


def _kind(field: dict[str, Any]) -> str:
    options = field.get("anyOf") or [field]
    names = []
    for option in options:
        if option.get("type") == "null":
            continue
        if "enum" in option or "const" in option:
            names.append(" | ".join(str(value) for value in option.get("enum", [option.get("const")])))
        elif option.get("type") == "array":
            names.append(f"list of {_kind(option.get('items', {}))}")
        else:
            low, high = option.get("minimum"), option.get("maximum")
            bounds = (
                "" if low is None and high is None else f" ({'' if low is None else low} .. {high or ''})"
            )
            names.append(option.get("type", "any") + bounds)
    return ", ".join(names)
