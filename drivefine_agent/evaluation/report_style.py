"""The report's style sheet. No script, no font and no picture from elsewhere: the page is one file."""

CSS = """
:root { --ink: #1f252d; --soft: #5d6773; --line: #e1e4e8; --paper: #ffffff; --ground: #f4f5f3;
  --accent: #0072b2;
  --good: #dff1e8; --good-ink: #07694a; --bad: #fbe3dd; --bad-ink: #a4391c; --half: #fdf2d6;
  --half-ink: #7d5a00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 44px 0 10px; }
p { max-width: 76ch; margin: 8px 0; }
.lead, .note { color: var(--soft); }
.note { font-size: 0.88rem; }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0 0; padding: 0; list-style: none; }
.facts li { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 16px; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 0.85rem; }
.panel { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: 0.85rem; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; color: var(--soft); font-size: 0.8rem;
  white-space: normal; max-width: 200px; line-height: 1.3; }
tr.main th, tr.main td { background: #eef5fa; }
td.score { font-weight: 700; }
td.interval { text-align: left; }
td.interval svg { vertical-align: middle; margin-right: 10px; }
.sure { font-weight: 600; }
.columns { display: flex; flex-wrap: wrap; gap: 24px; align-items: center; padding: 16px 20px; }
.columns > div { flex: 1 1 320px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 12px 0 0; padding: 0; list-style: none;
  font-size: 0.9rem; color: var(--soft); }
.legend svg { margin-right: 7px; vertical-align: middle; }
.legend i { display: inline-block; width: 18px; height: 13px; margin-right: 7px; vertical-align: middle;
  border-radius: 3px; outline: 1px solid rgba(0,0,0,0.08); }
article { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; margin: 22px 0;
  overflow: hidden; break-inside: avoid; }
article header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline;
  padding: 14px 18px 10px; }
article h3 { margin: 0; font-size: 1.02rem; }
article header .note { margin-left: auto; }
.tag { font-size: 0.76rem; font-weight: 700; text-transform: uppercase; letter-spacing: 0.04em;
  border-radius: 20px;
  padding: 3px 11px; background: #e8ebef; color: var(--ink); }
.tag.best, .tag.gained { background: var(--good); color: var(--good-ink); }
.tag.worst, .tag.lost { background: var(--bad); color: var(--bad-ink); }
.pictures { display: grid; grid-template-columns: 1.62fr 1fr; gap: 2px; background: var(--line); }
.pictures figure { margin: 0; background: #f3f4f1; display: flex; flex-direction: column; }
.pictures img { width: 100%; display: block; }
.pictures .scores { flex: 1; background: var(--paper); overflow-x: auto; }
.pictures figure.birdseye { justify-content: center; }
article table { font-size: 0.88rem; }
article th, article td { padding: 7px 9px; }
article td.one { color: var(--good-ink); }
article td.zero { background: var(--bad); color: var(--bad-ink); font-weight: 700; }
article td.half { background: var(--half); color: var(--half-ink); font-weight: 700; }
article tbody th i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 8px; }
.error { color: var(--bad-ink); white-space: normal; text-align: left; }
footer { margin-top: 40px; color: var(--soft); font-size: 0.85rem; }
code { background: #eceeea; border-radius: 4px; padding: 1px 5px; font-size: 0.88em; }
@media (max-width: 820px) { .pictures { grid-template-columns: 1fr;
  } article header .note { margin-left: 0; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; } }
"""
