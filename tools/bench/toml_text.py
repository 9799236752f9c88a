# SPDX-License-Identifier: Apache-2.0
"""Configurations as TOML text; Python reads TOML and does not write it."""
import json


def value(item):
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, (int, float)):
        return str(item)
    if isinstance(item, str):
        # JSON's escapes are among TOML's, but JSON lets one control character through.
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, list):
        return "[" + ", ".join(value(part) for part in item) + "]"
    if isinstance(item, dict):
        return "{ " + ", ".join(f"{value(key)} = {value(part)}" for key, part in item.items()) + " }"
    raise TypeError(f"TOML has no {type(item).__name__} of ours")


def write(config):
    """A line for each key, and one for each table within it: short, not pretty."""
    tables = [(key, item) for key, item in config.items() if isinstance(item, dict)]
    lines = [f"{value(key)} = {value(item)}" for key, item in config.items()
             if not isinstance(item, dict)]
    for name, table in tables:
        lines.append(f"[{value(name)}]")
        lines.extend(f"{value(key)} = {value(item)}" for key, item in table.items())
    return "\n".join(lines) + "\n"
