# SPDX-License-Identifier: Apache-2.0
"""What `boot --explain` found, as tables for the terminal and as one self-contained HTML file.

Whatever a guest made (names, messages) is made printable first, and escaped in HTML.
"""
import html
import json

from explain import printable
from report import show_time

MOST_EXITS = 20
MOST_INITCALLS = 15
LABEL_EACH = 7.2  # pixels of a character in the drawing


def signed(seconds):
    return ("−" if seconds < 0 else "+") + show_time(abs(seconds))


def span(row):
    if row.get("low") is None:
        return ""
    return f"{signed(row['low'])} … {signed(row['high'])}"


def share(part, whole):
    return f"{100 * part / whole:.1f} %" if whole else ""


def columns(header, rows):
    """Lines with each column as wide as it needs; the first of them to the left, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    numeric = [i for i, name in enumerate(header) if name in RIGHT]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) if i in numeric else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip()


RIGHT = ("time", "CPU", "share", "count", "pages", "exits", "saving", "95 % interval", "ratio", "chance",
         "boots")


def step_rows(explanation):
    wall = explanation["wall"]
    for step in explanation["before"]:
        yield [step["label"], show_time(step["seconds"]), show_time(step["cpu"]), share(step["seconds"], wall)]
        for part in step["parts"]:
            yield ["  " + part["label"], show_time(part["seconds"]), "", share(part["seconds"], wall)]


def phase_rows(explanation):
    for phase in explanation["phases"]:
        yield ["guest: " + printable(phase["label"]), show_time(phase["seconds"]), show_time(phase["cpu"]),
               share(phase["seconds"], explanation["wall"]), phase["pages_touched"], phase["exits"]]


def guest_rows(explanation):
    guest = explanation["guest"]
    whole = guest["in_kvm_run"] + guest["handling"]
    yield ["in KVM_RUN: the guest, and KVM for it", show_time(guest["in_kvm_run"]), share(guest["in_kvm_run"], whole)]
    if guest["halted"]:
        yield ["  of it asleep (halt)", show_time(guest["halted"]), share(guest["halted"], whole)]
    labels = {"page_faults": "page faults", "exits_to_vireo": "exits to vireo, way and back",
              "exits_in_kvm": "exits that KVM answers"}
    for key, figure in explanation["estimates"].items():
        yield [f"  of it, estimated: {figure['count']} {labels[key]}", show_time(figure["estimate"]),
               share(figure["estimate"], whole)]
    yield ["in vireo, answering exits", show_time(guest["handling"]), share(guest["handling"], whole)]


def exit_table_rows(explanation):
    for row in explanation["exits"][:MOST_EXITS]:
        yield [f"{row['kind']} {row['direction']}".strip(), printable(row["device"]), row["place"], row["count"],
               show_time(row["seconds"])]


def slowest(explanation):
    calls = sorted(explanation["initcalls"], key=lambda call: -call["seconds"])
    return [call for call in calls[:MOST_INITCALLS] if call["seconds"] > 0]


def notes(explanation):
    """What the tables do not tell by themselves."""
    yield console_text(explanation)
    yield "pages of the guest's first phase: with those that vireo filled before it"
    for key, figure in explanation["estimates"].items():
        yield f"estimate of {key.replace('_', ' ')}: {figure['how']}"


def console_text(explanation):
    console = explanation["console"]
    text = (f"{console['bytes']} bytes of console by {console['exits']} exits, "
            f"{show_time(console['handling'])} of them in vireo")
    if "estimate" in console:
        text += f"; with the way and back {show_time(console['estimate'])} (estimated)"
    return text


def change_rows(rows):
    for row in rows:
        name = printable(row["name"], 56)
        if "saving" not in row:
            yield [name, "", "", "", "", "", row["verdict"], printable(row["failure"], 140)]
            continue
        yield [name, signed(row["saving"]), span(row), f"{100 * row['ratio']:+.1f} %", f"{row['p']:.3f}",
               row["rounds"], row["verdict"], f"gives up: {row['trade']}" if row["trade"] else ""]


CHANGE_HEADER = ["change", "saving", "95 % interval", "ratio", "chance", "boots", "verdict", "remark"]


def advice(result):
    """What to do about it, in words; only what was tried and held."""
    lines = []
    saving = sorted((row for row in result["changes"] if row["verdict"] == "saves"),
                    key=lambda row: -row["saving"])
    for row in saving:
        text = f"{row['name']}: saves {show_time(row['saving'])} ({100 * row['ratio']:.1f} %)"
        lines.append(text + (f"; gives up: {row['trade']}" if row["trade"] else ""))
    for row in result["changes"]:
        if row["verdict"] == "costs" and row["name"].startswith("without="):
            lines.append(f"keep {row['name'].removeprefix('without=')}: "
                         f"without it {show_time(-row['saving'])} more")
    for row in result["together"]:
        if "saving" in row:
            lines.append(f"{row['name']}: {signed(row['saving'])} of {show_time(row['base'])} "
                         f"({row['verdict']}): {' '.join(row['members'])}")
    if result["changes"] and not saving:
        lines.append("nothing that was tried saves time beyond the noise")
    return [printable(line, 400) for line in lines]


def sections(result):
    """(title, header, rows) of all tables."""
    explanation = result["explanation"]
    end = explanation["end"]
    yield ("before the first instruction", ["step", "time", "CPU", "share"], list(step_rows(explanation)))
    yield ("the guest", ["phase", "time", "CPU", "share", "pages", "exits"], [*phase_rows(explanation), [
        "end: " + end["label"], show_time(end["seconds"]), "", share(end["seconds"], explanation["wall"]), "", ""]])
    yield ("the guest's time, all vCPUs", ["where", "time", "share"], list(guest_rows(explanation)))
    yield ("exits to vireo by kind", ["kind", "count", "time"],
           [[row["kind"], row["count"], show_time(row["seconds"])] for row in explanation["exits_by_kind"]])
    yield ("exits to vireo by device", ["device", "count", "time"],
           [[printable(row["device"]), row["count"], show_time(row["seconds"])]
            for row in explanation["exits_by_device"]])
    yield ("exits to vireo by place (time: in vireo)", ["kind", "device", "place", "count", "time"],
           list(exit_table_rows(explanation)))
    yield ("KVM's own counters", ["counter", "count"], [[printable(name), number] for name, number in
                                                        explanation["kvm"].items()])
    if explanation["initcalls"]:
        yield ("slowest init functions of the kernel, as it told while it printed them", ["function", "time"],
               [[printable(call["name"]), show_time(call["seconds"])] for call in slowest(explanation)])
    if result["changes"]:
        yield ("changes tried", CHANGE_HEADER, list(change_rows(result["changes"])))
    if result["together"]:
        yield ("together", CHANGE_HEADER, list(change_rows(result["together"])))


def table(result, out):
    explanation = result["explanation"]
    out.write(f"a boot of {show_time(explanation['wall'])}, {show_time(explanation['cpu'])} of CPU time\n")
    if result["command_line"] is not None:
        out.write(f"command line: {printable(result['command_line'], 1000)}\n")
    for title, header, rows in sections(result):
        out.write(f"\n{title}\n")
        out.writelines(line + "\n" for line in columns(header, rows))
    out.write("\n" + "".join(f"{note}\n" for note in notes(explanation)))
    lines = advice(result)
    if lines:
        out.write("\nadvice\n" + "".join(f"  {line}\n" for line in lines))


def node(kind, label, begin, seconds, children=()):
    return {"kind": kind, "label": label, "begin": begin, "seconds": seconds, "children": list(children)}


def phase_node(phase, initcalls):
    """A phase; in the first the kernel starts, and its functions have no moments, only lengths: they
    stand one after the other at its end, shrunk where printing made them longer than the phase."""
    children = []
    total = sum(call["seconds"] for call in initcalls)
    if total > 0:
        scale = min(1.0, phase["seconds"] / total)
        at = phase["begin"] + phase["seconds"] - total * scale
        for call in initcalls:
            children.append(node("call", f"{call['name']}, {show_time(call['seconds'])} as told", at,
                                 call["seconds"] * scale))
            at += call["seconds"] * scale
    return node("phase", phase["label"], phase["begin"], phase["seconds"], children)


def tree(explanation):
    steps = [node("step", step["label"], step["begin"], step["seconds"],
                  [node("part", part["label"], part["begin"], part["seconds"]) for part in step["parts"]])
             for step in explanation["before"]]
    phases = [phase_node(phase, explanation["initcalls"] if number == 0 else ())
              for number, phase in enumerate(explanation["phases"])]
    first = steps[-1]["begin"] + steps[-1]["seconds"]
    end = explanation["end"]
    return node("whole", "vireo", 0.0, explanation["wall"], [
        node("before", "before the first instruction", 0.0, first, steps),
        node("guest", "guest", first, explanation["guest"]["seconds"], phases),
        node("end", end["label"], end["begin"], end["seconds"])])


def shortened(text, pixels):
    """What of a label there is room for."""
    most = int((pixels - 8) / LABEL_EACH)
    if len(text) <= most:
        return text
    return text[:most - 1] + "…" if most > 3 else ""


def flame(root, width=1120, row=26):
    """An SVG in which each thing lies below what it is part of, as wide as it is long."""
    scale = width / (root["seconds"] or 1)
    parts, depth = [], 0

    def draw(item, level):
        nonlocal depth
        depth = max(depth, level)
        x, long = (item["begin"] - root["begin"]) * scale, item["seconds"] * scale
        label = printable(item["label"], 100)
        text = html.escape(shortened(label, long))
        parts.append(f'<g class="{item["kind"]}"><title>{html.escape(label)}: {show_time(item["seconds"])}</title>'
                     f'<rect x="{x:.2f}" y="{level * row}" width="{max(long, 0.2):.2f}" height="{row - 2}"/>'
                     + (f'<text x="{x + 4:.2f}" y="{level * row + 17}">{text}</text>' if text else "") + "</g>")
        for child in item["children"]:
            draw(child, level + 1)

    draw(root, 0)
    height = (depth + 1) * row + 20
    anchors = ["start", *["middle"] * 4, "end"]
    ticks = "".join(f'<text class="tick" x="{width * i / 5:.0f}" y="{height - 4}" text-anchor="{anchor}">'
                    f'{show_time(root["seconds"] * i / 5)}</text>' for i, anchor in enumerate(anchors))
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(root["label"])}: where '
            f'the time went">{"".join(parts)}{ticks}</svg>')


STYLE = """
:root{color-scheme:light dark;--ink:#182026;--soft:#5c6b76;--paper:#fff;--line:#d8dee3;--a:#b9d3ec;--b:#8fc3b1;
--c:#f0cf8e;--d:#e2b0a3;--e:#cfc6e6}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ed;--soft:#93a3af;--paper:#14191d;--line:#333d45;--a:#2e5273;
--b:#2b6150;--c:#6f5518;--d:#743d30;--e:#4a4072}}
body{font:15px/1.5 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:var(--ink);
background:var(--paper)}
svg{width:100%;height:auto}svg text{font-size:13px;fill:var(--ink);pointer-events:none}svg .tick{fill:var(--soft)}
rect{stroke:var(--paper);stroke-width:.5}g:hover>rect{stroke:var(--ink);stroke-width:1.5}
.whole rect,.before rect{fill:var(--a)}.guest rect,.phase rect{fill:var(--b)}.step rect,.part rect{fill:var(--c)}
.call rect{fill:var(--d)}.end rect{fill:var(--e)}
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.15em .7em;border-bottom:1px solid var(--line);
text-align:left}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th{color:var(--soft);
font-weight:600}code{overflow-wrap:anywhere}
"""


def html_table(title, header, rows):
    def cell(tag, name, text):
        return f'<{tag}{" class=n" if name in RIGHT else ""}>{html.escape(str(text))}</{tag}>'
    head = "".join(cell("th", name, name) for name in header)
    body = "".join("<tr>" + "".join(cell("td", name, text) for name, text in zip(header, row)) + "</tr>"
                   for row in rows)
    return f"<h2>{html.escape(title)}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div>"


def page(result):
    explanation = result["explanation"]
    body = [f"<h1>a boot of {show_time(explanation['wall'])}</h1>",
            f"<p>{html.escape(json.dumps(result['machine']))}<br>{html.escape(json.dumps(result['settings']))}"]
    if result["command_line"] is not None:
        body.append(f"<br><code>{html.escape(printable(result['command_line'], 4096))}</code>")
    whole = tree(explanation)
    # What vireo does before the guest is a sliver of the whole, so it is drawn once more by itself.
    body.append(f"</p>{flame(whole)}{flame(whole['children'][0])}")
    lines = advice(result)
    if lines:
        body.append("<h2>advice</h2><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")
    tables = [html_table(*section) for section in sections(result)]
    # What was tried is what one comes for.
    body += sorted(tables, key=lambda text: not text.startswith(("<h2>changes", "<h2>together")))
    body += [f"<p>{html.escape(note)}</p>" for note in notes(explanation)]
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>vireo-bench boot --explain</title><style>{STYLE}</style>'
            f"<body>{''.join(body)}</body></html>\n")
