"""The style sheet of `report.html`: one column, for laptop and phone, light or dark as the reader has it."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1c2128; --soft: #57606a; --line: #d8dee4; --grid: #e4e8ec;
  --link: #0b62b0; --sub: #fde8c4; --sub-ink: #6b3a00; --ins: #d5e8f7; --ins-ink: #0a4570;
  --del: #f7d9e6; --del-ink: #7a1f4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --card: #1d2229; --ink: #e4e8ed; --soft: #9aa4b0; --line: #363d47; --grid: #2d333b;
    --link: #7cb8ee; --sub: #4a3410; --sub-ink: #ffd591; --ins: #12354f; --ins-ink: #a8d6f7;
    --del: #4a1c33; --del-ink: #f7b6d2;
    --c0072b2: #57aee6; --c767676: #a9a9a9; --cb87700: #f0ae2a; --c008560: #2fc295; --cc85200: #ff8a3d;
    --cb35c8d: #e59ac4; --c2e8fc4: #8fd0f5; --c8f6210: #d9ab57; --c7a5fb0: #b6a0e6;
  }
}
* { box-sizing: border-box; stroke-linejoin: round; stroke-linecap: butt; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 76rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  color: var(--ink); background: var(--paper);
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.3rem 0 0.4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 0.7rem; padding-top: 0.7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
a { color: var(--link); }
.soft, .note { color: var(--soft); }
.note { font-size: 0.9rem; }
.badge {
  display: inline-block; padding: 0.1rem 0.6rem; border-radius: 1rem; border: 1px solid var(--line);
  background: var(--card); font-size: 0.85rem;
}
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; padding: 0; margin: 0.9rem 0; list-style: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.8rem; margin: 1.1rem 0; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.75rem 0.95rem; }
.fact b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.fact span { display: block; line-height: 1.4; color: var(--soft); font-size: 0.88rem; }
ul.verdicts { padding-left: 1.1rem; margin: 0.6rem 0; }
ul.verdicts li { margin: 0.2rem 0; }
.wide { overflow-x: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.38rem 0.65rem; text-align: right; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 1.5px solid var(--soft); font-weight: 600; vertical-align: bottom; }
thead tr:first-child th[colspan] { text-align: center; border-bottom: 1px solid var(--line); }
thead tr + tr th:first-child { position: static; text-align: right; }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--line); }
tbody th, thead th:first-child {
  text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--paper); z-index: 1;
}
td small, tbody th small { display: block; color: var(--soft); font-size: 0.8rem; font-weight: 400; }
tbody th small { padding-left: 1.15rem; }
td .ids { min-width: 14rem; max-width: 26rem; white-space: normal; overflow-wrap: anywhere; }
.mixed td, .mixed th { text-align: left; }
.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.key { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 0.15rem; margin-right: 0.45rem; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 0.6rem 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.6rem; }
.chart { max-width: 36rem; }
.utt { margin: 1.1rem 0; }
.utt header { font-size: 0.9rem; color: var(--soft); overflow-wrap: anywhere; }
.utt header b { color: var(--ink); }
.words { display: flex; flex-wrap: wrap; gap: 0.35rem 0.2rem; margin-top: 0.3rem; }
.words table { font-size: 0.88rem; }
.words th, .words td { padding: 0 0.3rem; text-align: left; border: 0; font-weight: 400; line-height: 1.45; }
.words tbody th { position: static; color: var(--soft); background: none; }
.words .gap { opacity: 0.6; }
.sub { background: var(--sub); color: var(--sub-ink); }
.ins { background: var(--ins); color: var(--ins-ink); }
.del { background: var(--del); color: var(--del-ink); }
.words .sub, .words .ins, .words .del { border-radius: 0.25rem; }
.legend span { padding: 0.05rem 0.45rem; border-radius: 0.25rem; margin-right: 0.3rem; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.6rem 0.8rem;
  overflow-x: auto; margin: 0.3rem 0 0.9rem;
  font: 0.88rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace;
}
@media (max-width: 40rem) {
  h1 { font-size: 1.4rem; }
  th, td { padding: 0.32rem 0.5rem; }
  table { font-size: 0.86rem; }
  .panels { display: flex; overflow-x: auto; scroll-snap-type: x proximity; }
  .panels figure { flex: 0 0 15rem; scroll-snap-align: start; }
}
@media print { nav { display: none; } h2 { break-after: avoid; } .utt, .panels figure { break-inside: avoid; } }
"""
