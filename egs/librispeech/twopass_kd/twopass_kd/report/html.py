"""The report as one self-contained HTML page: style, figures and text inside, nothing loaded from anywhere."""

from collections.abc import Sequence
from html import escape

from twopass_kd.files.decode_json import PARTS, Pass
from twopass_kd.files.ondevice_json import Difference, OnDeviceJson
from twopass_kd.files.results_json import ResultsJson
from twopass_kd.report import plots, plots_ondevice
from twopass_kd.report.content import (
    Phase,
    Report,
    Utterance,
    Worst,
    corpus_line,
    environment_rows,
    fewer,
    format_duration,
    only_dev_parts,
    rtf_note,
    scan_at_chosen_reward,
    stage_rows,
)
from twopass_kd.report.style import CSS
from twopass_kd.scoring.further_searches import SEARCHES_UNIT, search_rows, searches_left_out
from twopass_kd.scoring.on_device import (
    COST_GROUPS,
    METHOD_TITLES,
    agreements,
    cost_cells,
    how_measured,
    int8_differences,
    long_audio_line,
    percent_same,
    quantization_lines,
    size_line,
    streaming_lines,
    wer_cells,
)
from twopass_kd.scoring.summary import dev_set_mark
from twopass_kd.scoring.verdicts import comparisons, format_p, judge, verdict

_DIFFERENCE_HEADS = ("difference in WER", "95% interval", "p")
# Nothing may be fetched or run, whatever the transcripts hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_html(report: Report) -> str:
    """The page. All text that comes from data is escaped."""
    results = report.results
    sections = [
        ("wer", "Word error rate", _wer_section(results)),
        ("significance", "Significance", _significance_section(results)),
        ("size", "Size, speed, training time", _size_section(results)),
        *([("ondevice", "On the device", _on_device_section(results))] if results.on_device else []),
        *([("searches", "Further searches", searches)] if (searches := _searches_section(results)) else []),
        ("weights", "Rescoring weight", _weights_section(results)),
        ("losses", "Losses", _losses_section(report)),
        ("time", "Wall time by stage", _time_section(results)),
        ("worst", "Worst utterances", _worst_section(report.worst)),
        ("environment", "Environment", _environment_section(results)),
        ("commands", "Commands", _commands_section(report)),
    ]
    title = f"{escape(results.conf)}: two-pass compression by distillation"
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "\n".join(f'<section id="{key}">\n<h2>{name}</h2>\n{html}\n</section>' for key, name, html in sections)
    badge = '<p><span class="badge">synthetic speech</span></p>' if results.corpus.synthetic else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"/>
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<header id="summary">
<h1>{title}</h1>
{badge}
<p class="soft">{escape(corpus_line(results))}</p>
{_facts(results)}
{_verdicts(results)}
</header>
<nav aria-label="sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""


def _facts(results: ResultsJson) -> str:
    """The figures one looks for first: compression, and the WER of teacher and student."""
    facts: list[tuple[str, str]] = []
    if results.compression is not None:
        sizes = [f"{results.system(s).params.total / 1e6:.2f} M" for s in ("teacher", "student")]
        share = f"{100 * results.compression.params:.1f}%"
        facts.append((share, f"fewer deployed parameters ({' → '.join(sizes)})"))
    teacher, student = (results.system(s) for s in ("teacher", "student"))
    for set_name in results.corpus.test_parts:
        found = [s.wer[set_name].two_pass for s in (teacher, student) if s and s.wer[set_name].two_pass]
        if teacher and student and len(found) == 2:
            wers = f"{found[0].wer:.2f} → {found[1].wer:.2f}%"
            facts.append((wers, f"two-pass WER, teacher → student, {set_name}"))
    compared = results.on_device and results.on_device.int8.get("student")
    ratio = compared and compared.size_ratio
    if ratio:
        facts.append((f"1/{1 / ratio:.1f}", "of the teacher’s bytes on disk: student in int8, teacher in fp32"))
    if results.stages:
        total = sum(seconds for _, seconds in stage_rows(results))
        facts.append((format_duration(total), f"wall time of {len(results.stages)} stages"))
    cells = (f'<div class="fact"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in facts)
    return f'<div class="facts">{"".join(cells)}</div>' if facts else ""


def _verdicts(results: ResultsJson) -> str:
    """The sentences on student against teacher; the other comparisons are in their table."""
    found = [c for c in comparisons(results) if c[1] == "teacher"]
    items = (f"<li><b>{escape(s)}</b>: {escape(verdict(base, suffix, r))}</li>" for s, base, suffix, r in found)
    return f'<ul class="verdicts">{"".join(items)}</ul>' if found else ""


def _significance_section(results: ResultsJson) -> str:
    found = comparisons(results)
    if not found:
        return "<p>No comparison: it takes a student and a teacher, or a student and student_copy.</p>"
    rows = []
    for set_name, baseline, suffix, result in found:
        rows.append((escape(set_name), [_name(baseline), suffix.title, *_difference_cells(result)]))
    header = f"<tr>{_heads(['set', 'student against', 'pass', *_DIFFERENCE_HEADS, 'student is'])}</tr>"
    return _table(header, rows, "mixed") + (
        '<p class="note">Absolute percent, negative where the student is better. Paired bootstrap over utterances, '
        "two-sided p; significant means p &lt; 0.05.</p>"
    )


def _difference_cells(result: Difference) -> list[str]:
    low, high = (_signed(v) for v in result.ci95)
    p = escape(format_p(result)[1:].lstrip("="))
    return [_signed(result.delta_wer), f"{low} to {high}", p, escape(judge(result))]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _key(system: str) -> str:
    """A square in the colour that a system has in the figures."""
    return f'<span class="key" style="background: {plots.themed(plots.system_style(system)[0])}"></span>'


def _name(system: str) -> str:
    return _key(system) + escape(system)


def _table(header: str, rows: Sequence[tuple[str, Sequence[str]]], kind: str = "numbers") -> str:
    """`header` is HTML; rows are (HTML of the row's heading, HTML of its cells). `kind` is a class in the style."""
    body = "".join(f'<tr><th scope="row">{h}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>' for h, cells in rows)
    table = f'<table class="{kind}"><thead>{header}</thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'


def _heads(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def _span(name: str, columns: int) -> str:
    """A heading over so many columns; one that stands alone (0) takes both rows."""
    if columns:
        return f'<th scope="colgroup" colspan="{columns}">{escape(name)}</th>'
    return f'<th scope="col" rowspan="2">{escape(name)}</th>'


def _wer_section(results: ResultsJson) -> str:
    corpus = results.corpus
    blocks = [
        "<p>Percent, with 95% bootstrap intervals over utterances. The first pass is the transducer's beam search, "
        "two-pass is after rescoring by the attention decoder.</p>",
        _wer_table(results, corpus.test_parts),
    ]
    if results.not_decoded:
        blocks.append(f'<p class="note">Not decoded, so not scored: {escape(", ".join(results.not_decoded))}.</p>')
    charts = "".join(
        f'<figure class="chart">{plots.wer_against_size(results.systems, s)}</figure>' for s in corpus.test_parts
    )
    blocks.append(f'<h3 id="wer-size">WER against size</h3><div class="charts">{charts}</div>')
    blocks.append(
        '<p class="note">Hollow: first pass, without the attention decoder. Filled: two-pass. '
        "Bars: 95% intervals. Systems of one size are drawn side by side.</p>"
    )
    dev_parts = only_dev_parts(results)
    if dev_parts:
        blocks.append(f"<h3>Dev sets, on which the rescoring weight was chosen</h3>{_wer_table(results, dev_parts)}")
    return "\n".join(blocks)


def _wer_table(results: ResultsJson, sets: Sequence[str]) -> str:
    top = _span("system", 0) + "".join(_span(s + dev_set_mark(results, s), len(Pass)) for s in sets)
    header = f"<tr>{top}</tr><tr>{_heads([p.title for p in Pass]) * len(sets)}</tr>"
    rows = []
    for system in results.systems:
        cells = []
        for set_name in sets:
            for scored in (system.wer[set_name][p] for p in Pass):
                ci = f"{scored.ci95[0]:.2f}–{scored.ci95[1]:.2f}" if scored else ""
                cells.append(f"{scored.wer:.2f}<small>{ci}</small>" if scored else "–")
        rows.append((_name(system.name), cells))
    return _table(header, rows)


def _size_section(results: ResultsJson) -> str:
    first_set = results.corpus.test_parts[0]
    rows = []
    for system in results.systems:
        share, rtf = fewer(results, system), system.rtf.get(first_set, {})
        cells = [f"{getattr(system.params, part):,}" for part in PARTS]
        cells.append("–" if share is None else f"{100 * share:.1f}%")
        cells.append(f"{system.bytes.total / 1e6:.2f}")
        cells += [_number(rtf.get(p)) for p in Pass]
        cells.append(format_duration(system.train_seconds))
        rows.append((_name(system.name), cells))
    groups = [("deployed parameters", len(PARTS) + 1), ("MB", 0), ("real-time factor", len(Pass)), ("training", 0)]
    top = "".join(_span(name, columns) for name, columns in [("system", 0), *groups])
    heads = _heads([*(part.removesuffix("_decoder") for part in PARTS), "fewer", *(p.title for p in Pass)])
    header = f"<tr>{top}</tr><tr>{heads}</tr>"
    return _table(header, rows) + (
        '<p class="note">Heads used in training only are not counted; “fewer” is against '
        f"the teacher; {escape(rtf_note(results))}.</p>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _on_device_section(results: ResultsJson) -> str:
    on_device: OnDeviceJson = results.on_device
    corpus, rows = results.corpus, on_device.rows
    names = [f"{_name(row.system)}<small>{row.runtime.title}</small>" for row in rows]
    top = "".join(_span(name, len(below)) for name, below in [("system", ()), *COST_GROUPS])
    header = f"<tr>{top}</tr><tr>{_heads([name for _, below in COST_GROUPS for name in below])}</tr>"
    blocks = [f"<p>{escape(how_measured(on_device))}</p>"]
    blocks.append(_table(header, [(name, cost_cells(row, "–")) for name, row in zip(names, rows, strict=True)]))
    facts = [size_line(on_device), long_audio_line(on_device), *streaming_lines(on_device)]
    blocks += [f"<p>{escape(line)}</p>" for line in facts if line]
    figures = (
        f'<figure class="chart">{draw(rows, set_name)}</figure>'
        for set_name in corpus.test_parts
        for draw in (plots_ondevice.wer_against_bytes, plots_ondevice.wer_against_rtf)
    )
    blocks.append(f'<h3>WER against size and speed</h3><div class="charts">{"".join(figures)}</div>')
    blocks.append(
        '<p class="note">Filled: two-pass. Hollow: first pass; a line leads from it to the same runtime’s two-pass. '
        "Runtimes of one system that lie on each other share a label.</p>"
    )
    sets = corpus.test_parts
    header = f"<tr>{_span('system', 0)}{''.join(_span(s, len(Pass)) for s in sets)}</tr>"
    header += f"<tr>{_heads([p.title for p in Pass]) * len(sets)}</tr>"
    wer = [[cell for s in sets for cell in wer_cells(row, s, "–")] for row in rows]
    blocks.append(f"<h3>WER by runtime</h3>{_table(header, list(zip(names, wer, strict=True)))}")
    return "\n".join([*blocks, *_int8_block(on_device), *_agreement_block(on_device)])


def _searches_section(results: ResultsJson) -> str:
    rows, blocks = search_rows(results), []
    if rows:
        cells = [(_name(row[0]), ["–" if cell == "-" else escape(cell) for cell in row[1:]]) for row in rows[1:]]
        what = f'<p class="note">{escape(SEARCHES_UNIT[0].upper() + SEARCHES_UNIT[1:])}.</p>'
        blocks = [_table(f"<tr>{_heads(rows[0])}</tr>", cells, "mixed"), what]
    return "".join([*blocks, *(f"<p>{escape(line)}</p>" for line in searches_left_out(results))])


def _int8_block(on_device: OnDeviceJson) -> list[str]:
    found = int8_differences(on_device)
    rows = []
    for system, set_name, suffix, result in found:
        cells = [escape(set_name), escape(suffix.title), *_difference_cells(result)]
        rows.append((_name(system), cells))
    header = f"<tr>{_heads(['system', 'set', 'pass', *_DIFFERENCE_HEADS, 'int8 is'])}</tr>"
    notes = "".join(f'<p class="note">{escape(line)}.</p>' for line in quantization_lines(on_device))
    return [f"<h3>WER of int8 minus fp32</h3>{_table(header, rows, 'mixed')}{notes}"] if found else []


def _agreement_block(on_device: OnDeviceJson) -> list[str]:
    rows = []
    for system, precision, method, counts in agreements(on_device):
        share = f"{percent_same(counts)} ({counts.same} of {counts.of})"
        different = escape(", ".join(counts.different)) or "–"
        title = escape(METHOD_TITLES.get(method, method))
        rows.append((_name(system), [escape(precision), title, share, f'<div class="ids">{different}</div>']))
    header = f"<tr>{_heads(['system', 'precision', 'method', 'same text', 'different (at most 10)'])}</tr>"
    what = "<p>sherpa-onnx against the recipe’s own search on ONNX Runtime: all test sets, both on padded audio.</p>"
    return [f"<h3>Agreement with sherpa-onnx</h3>{what}{_table(header, rows, 'mixed')}"] if rows else []


def _weights_section(results: ResultsJson) -> str:
    systems = [s for s in results.systems if s.rescore_weight is not None]
    if not systems:
        return "<p>No system has a second pass.</p>"
    rows = []
    for s in systems:
        reward = "–" if s.length_reward is None else f"{s.length_reward:g}"
        rows.append((_name(s.name), [f"{s.rescore_weight:g}", reward]))
    header = f"<tr>{_heads(['system', 'weight', 'length reward'])}</tr>"
    drawn = [s for s in systems if scan_at_chosen_reward(s)]
    figure = f'<figure class="chart">{plots.weight_scan(drawn)}</figure>' if drawn else ""
    return (
        "<p>Score of a hypothesis = (1 − w) log P(transducer) + w log P(attention) + length reward per token; "
        "w chosen on dev only (ringed).</p>"
        f'<div class="charts">{figure}'
        f"{_table(header, rows)}</div>"
    )


def _losses_section(report: Report) -> str:
    blocks = [
        '<p class="note">Thin line: training data. Line with markers: validation data. '
        "Means per frame after subsampling; each term before its scale, “loss” is their scaled sum.</p>"
    ]
    blocks += [_phase_block(phase) for phase in report.phases]
    if report.untrained:
        blocks.append(f'<p class="note">Without metrics in this experiment: {escape(", ".join(report.untrained))}.</p>')
    return "\n".join(blocks)


def _phase_block(phase: Phase) -> str:
    system = phase.name.split("/")[0]
    panels = (f"<figure>{plots.loss_curve(c.train, c.valid, system, c.term)}</figure>" for c in phase.curves)
    what = f"{phase.steps:,} steps, {format_duration(phase.seconds)}"
    heading = f'<h3>{_key(system)}{escape(phase.name)} <span class="soft">{what}</span></h3>'
    return f'{heading}<div class="panels">{"".join(panels)}</div>'


def _time_section(results: ResultsJson) -> str:
    rows = stage_rows(results)
    if not rows:
        return "<p>No stage of run.sh left its time here.</p>"
    total = format_duration(sum(seconds for _, seconds in rows))
    return f'<p>{total} in all.</p><figure class="chart">{plots.stage_times(rows)}</figure>'


def _worst_section(worst: Worst) -> str:
    what = escape(f"{worst.system}, {worst.pass_name.title}, {worst.set_name}")
    if not worst.utterances:
        return f"<p>{what}: no errors.</p>"
    legend = (
        '<p class="legend note"><span class="sub">substitution</span><span class="ins">insertion</span>'
        '<span class="del">deletion</span> above: reference; below: hypothesis</p>'
    )
    return f"<p>{what}: the {len(worst.utterances)} with the most errors.</p>{legend}" + "".join(
        _utterance(i, u) for i, u in enumerate(worst.utterances, start=1)
    )


def _utterance(rank: int, utterance: Utterance) -> str:
    """Word pairs as small two-row tables, so that a long utterance wraps instead of running off the screen."""
    pairs = "".join(_pair(ref, hyp) for ref, hyp in utterance.pairs)
    u = utterance
    counts = f"{u.errors} errors in {u.ref_words} words: {u.subs} sub, {u.ins} ins, {u.dels} del"
    heads = "".join(f'<tr><th scope="row">{name}</th></tr>' for name in ("ref", "hyp"))
    return (
        f'<article class="utt"><header><b>{rank}. {escape(u.cut_id)}</b> · {counts}</header>'
        f'<div class="words"><table><tbody>{heads}</tbody></table>{pairs}</div></article>'
    )


def _pair(ref: str | None, hyp: str | None) -> str:
    kind = "ins" if ref is None else "del" if hyp is None else "sub" if ref != hyp else "ok"
    cells = ('<td class="gap">–</td>' if w is None else f"<td>{escape(w)}</td>" for w in (ref, hyp))
    return f'<table class="{kind}"><tbody>{"".join(f"<tr>{c}</tr>" for c in cells)}</tbody></table>'


def _environment_section(results: ResultsJson) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in environment_rows(results)
    )
    return f'<table class="plain"><tbody>{rows}</tbody></table>'


def _commands_section(report: Report) -> str:
    return "".join(f"<p>{escape(what)}</p><pre><code>{escape(cmd)}</code></pre>" for what, cmd in report.commands)
