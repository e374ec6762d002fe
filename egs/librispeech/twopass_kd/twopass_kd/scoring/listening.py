"""How systems do with pauses and in noise, and when words appear: as table cells. Imports neither torch nor k2."""

from twopass_kd.files.decode_json import Pass
from twopass_kd.files.results_json import ResultsJson
from twopass_kd.files.seeds_json import SeedsJson

CONDITIONS_UNIT = (
    "two-pass WER in %; noise and pauses are mixed into the audio, pauses are of noise at -70 to -50 dBFS, babble is of"
    " other utterances of the set; the first row is of the same utterances as they are"
)
DELAY_HEADS = ("set", "system", "pass", "words", "50%", "90%", "99%")
DELAYS_UNIT = (
    "milliseconds from the end of a word to the audio that the encoder frame of its last token needs, of words that are"
    " right; without computing, and without the wait for the chunk to be full; systems with the first pass of one above"
    " have no row"
)
LATENCY_HEADS = ("system", "runtime", "wait for the chunk", "compute", "emission", "sum", "second pass")
LATENCY_UNIT = (
    "milliseconds until a user sees a word, medians: half a chunk, the computing of one, the delay above, their sum;"
    " the second pass comes that long after the end of speech"
)


def condition_tables(results: ResultsJson | SeedsJson) -> list[tuple[str, list[str], list[list[str]]]]:
    """(test set, systems, rows of a condition and a cell for each system) where they were decoded."""
    tables = []
    for part in results.corpus.test_parts:
        systems = [system for system in results.systems if system.conditions.get(part)]
        names = list(dict.fromkeys(name for system in systems for name in system.conditions[part]))
        rows = [[name, *(_percent(system.conditions[part].get(name)) for system in systems)] for name in names]
        if systems:
            tables.append((part, [system.name for system in systems], rows))
    return tables


def delay_rows(results: ResultsJson) -> list[list[str]]:
    """Rows under `DELAY_HEADS`; a system with the first pass of one before it has none."""
    rows = []
    for part in results.corpus.test_parts:
        shown = []
        for system in results.systems:
            delays = system.delays.get(part, {})
            if delays in shown:
                continue
            shown.append(delays)
            for name, delay in delays.items():
                quantiles = (f"{1000 * value:.0f}" for value in (delay.p50, delay.p90, delay.p99))
                rows.append([part, system.name, Pass(name).title, f"{delay.words:,}", *quantiles])
    return rows


def latency_rows(results: ResultsJson) -> list[list[str]]:
    """Rows under `LATENCY_HEADS`, of the runtimes on which stage 10 measured systems whose delay is known."""
    device, rows = results.on_device, []
    for row in device.rows if device else ():
        system = results.system(row.system)
        delay = system.delays.get(device.set, {}).get(Pass.FIRST_PASS) if system else None
        if delay is None:
            continue
        parts = [device.chunk_ms / 2, row.chunk_ms.p50, 1000 * delay.p50]
        second = "-" if row.final_ms is None else f"{row.final_ms.p50:.0f}"
        rows.append([row.system, row.runtime.title, *(f"{ms:.0f}" for ms in (*parts, sum(parts))), second])
    return rows


def _percent(wers: dict[Pass, float] | None) -> str:
    return "-" if wers is None else f"{wers[Pass.TWO_PASS]:.2f}"
