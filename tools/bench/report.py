# SPDX-License-Identifier: Apache-2.0
"""The three shapes of a result: a table for the terminal, JSON, and one self-contained HTML file."""
import html
import json
import os
import platform

UNITS = [(1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6)]


def show_mebibytes(value):
    return f"{value / 2**20:.2f} MiB"


FORMATS = {"resident": show_mebibytes, "anonymous": show_mebibytes, "file": show_mebibytes,
           "iops": lambda value: f"{value:.0f}/s",
           "bandwidth": lambda value: f"{value / 1e6:.{1 if value < 1e8 else 0}f} MB/s",
           "doorbells": lambda value: f"{value:.2f}", "others": lambda value: f"{value:.0%}"}


def show(value, figure=""):
    """A figure with its unit: seconds, but for those of FORMATS."""
    return FORMATS.get(figure, show_time)(value)


def show_time(seconds):
    for least, unit, factor in UNITS:
        if seconds >= least:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 100 \
                else f"{seconds * factor:.0f} {unit}"
    return str(seconds)


def table(result, out):
    """A row for each contender and figure, with the ratio of medians to the first contender."""
    out.write(f"{'contender':28} {'figure':14} {'min':>9} {'median':>9} {'95 % of median':>21} "
              f"{'p99':>9} {'ratio':>6} {'good':>7}\n")
    base = None
    for contender in result["contenders"]:
        runs = f"{contender['good']}/{contender['runs']}"
        if not contender["figures"]:
            out.write(f"{contender['name']:28} no good run: {contender['failures'][0]}\n")
            continue
        base = base or contender["figures"]
        for key, figure in contender["figures"].items():
            ratio = f"{figure['median'] / base[key]['median']:.2f}" \
                if base.get(key) and base[key]["median"] > 0 else ""
            least, median, p99, low, high = (
                show(figure[name], key)
                for name in ("min", "median", "p99", "median_low", "median_high"))
            interval = f"{low} – {high}"
            out.write(f"{contender['name']:28} {key:14} {least:>9} "
                      f"{median:>9} {interval:>21} {p99:>9} "
                      f"{ratio:>6} {runs:>7}\n")
    for contender in result["contenders"]:
        for failure in contender["failures"]:
            out.write(f"failed: {contender['name']}: {failure}\n")
    out.write("\ncommands:\n")
    for contender in result["contenders"]:
        out.write(f"  {contender['name']}: {' '.join(contender['command'])}\n")


def machine():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
        model = next((line.split(":", 1)[1].strip() for line in cpuinfo
                      if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release()}


def plot(result, key):
    """An SVG strip plot: a dot for each run, a bar at the median."""
    rows = [c for c in result["contenders"] if c["figures"] and key in c["figures"]]
    if not rows:
        return ""
    most = max(max(c["values"][key]) for c in rows)
    scale = 640 / (most * 1.05)
    height = 34 * len(rows) + 30
    parts = [f'<svg width="960" height="{height}" role="img" aria-label="{html.escape(key)}">']
    for index, row in enumerate(rows):
        y = 20 + 34 * index
        median = row["figures"][key]["median"] * scale
        parts.append(f'<text x="0" y="{y + 5}">{html.escape(row["name"])}</text>')
        parts.append(f'<rect x="230" y="{y - 8}" width="{median:.1f}" height="16" class="bar"/>')
        parts.extend(f'<circle cx="{230 + value * scale:.1f}" cy="{y}" r="3"/>'
                     for value in row["values"][key])
        parts.append(f'<text x="{240 + most * scale:.0f}" y="{y + 5}">'
                     f'{show(row["figures"][key]["median"], key)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def document(result, sections, commands):
    """One HTML file of the sections and the commands of `commands`, a list of contenders."""
    body = [f"<h1>vireo-bench {html.escape(result['benchmark'])}</h1>",
            f"<p>{html.escape(json.dumps(result['machine']))}<br>"
            f"{html.escape(json.dumps(result['settings']))}</p>", *sections]
    body.append("<h2>commands</h2><dl>")
    for contender in commands:
        body.append(f"<dt>{html.escape(contender['name'])}</dt>"
                    f"<dd><code>{html.escape(' '.join(contender['command']))}</code></dd>")
    body.append("</dl>")
    style = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
             "svg text{font-size:13px}.bar{fill:#7aa6d8}circle{fill:#123;opacity:.55}"
             "code{overflow-wrap:anywhere}")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>vireo-bench</title>'
            f"<style>{style}</style><body>{''.join(body)}</body></html>\n")


def page(result):
    keys = []
    for contender in result["contenders"]:
        keys.extend(key for key in contender["figures"] or {} if key not in keys)
    return document(result, [f"<h2>{html.escape(key)}</h2>{plot(result, key)}" for key in keys], result["contenders"])
