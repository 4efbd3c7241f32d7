/**
 * Figures into rows, rows into tables: medians, ratios, targets and how they are printed. Must not know how a figure
 * was come by.
 */

/** @typedef {'direct' | 'pgbouncer' | 'pgturnstile'} Contestant */

/**
 * @typedef {object} Row
 * @property {string} section
 * @property {string} what
 * @property {string} unit
 * @property {number | null} direct
 * @property {number | null} pgbouncer
 * @property {number | null} pgturnstile
 * @property {number | null} ratio pgturnstile to PgBouncer: median of the ratios of each round.
 * @property {string | null} target
 * @property {'met' | 'missed' | 'not measured' | null} verdict Null where there is no target.
 * @property {string | null} note
 */

/** @typedef {{ text: string, holds: (value: number) => boolean }} Target */

/** @type {(limit: number, unit?: string) => Target} */
export const atLeast = (limit, unit = ' ×') => ({
  text: `≥ ${limit}${unit}`,
  holds: (value) => value >= limit,
});

/** @type {(limit: number, unit?: string) => Target} */
export const atMost = (limit, unit = ' ×') => ({
  text: `≤ ${limit}${unit}`,
  holds: (value) => value <= limit,
});

/**
 * Null without values.
 * @param {readonly (number | null)[]} values
 */
export function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? 0) + upper) / 2;
}

/**
 * Median of a[i] / b[i]: what was measured side by side is compared, and a slow minute slows both.
 * @param {readonly (number | null)[]} a
 * @param {readonly (number | null)[]} b
 */
export function medianRatio(a, b) {
  const ratios = a.map((value, round) => {
    const other = b[round] ?? null;
    return value === null || other === null || other === 0 ? null : value / other;
  });
  return median(ratios);
}

/**
 * A row of medians over rounds. The target is held against the ratio, or against pgturnstile's own value where
 * `judged` says so.
 * @param {object} row
 * @param {string} row.section
 * @param {string} row.what
 * @param {string} row.unit
 * @param {readonly (number | null)[]} [row.direct]
 * @param {readonly (number | null)[]} [row.pgbouncer]
 * @param {readonly (number | null)[]} [row.pgturnstile]
 * @param {Target} [row.target]
 * @param {'ratio' | 'value'} [row.judged]
 * @param {string} [row.note]
 * @returns {Row}
 */
export function makeRow(row) {
  const { section, what, unit, direct = [], pgbouncer = [], pgturnstile = [], target, note } = row;
  const ratio = medianRatio(pgturnstile, pgbouncer);
  const own = median(pgturnstile);
  const judged = row.judged === 'value' ? own : ratio;
  return {
    section,
    what,
    unit,
    direct: median(direct),
    pgbouncer: median(pgbouncer),
    pgturnstile: own,
    ratio,
    target: target?.text ?? null,
    verdict: target ? (judged === null ? 'not measured' : target.holds(judged) ? 'met' : 'missed') : null,
    note: note ?? null,
  };
}

const HEADINGS = ['What', 'Unit', 'direct', 'PgBouncer', 'pgturnstile', 'ratio', 'target', ''];

/** @param {readonly Row[]} rows */
export function textTable(rows) {
  const { cells, notes } = layOut(rows);
  const widths = HEADINGS.map((_, column) => Math.max(...cells.map((line) => line[column]?.length ?? 0)));
  const lines = cells.map((line) =>
    line
      .map((cell, column) =>
        isNumeric(column) ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0),
      )
      .join('  ')
      .trimEnd(),
  );
  return [...lines, ...notes].join('\n');
}

/** @param {readonly Row[]} rows */
export function markdownTable(rows) {
  const { cells, notes } = layOut(rows);
  const line = (/** @type {string[]} */ parts) => `| ${parts.join(' | ')} |`;
  const rule = line(HEADINGS.map((_, column) => (isNumeric(column) ? '---:' : '---')));
  const table = [line(cells[0] ?? []), rule, ...cells.slice(1).map(line)];
  return [...table, ...(notes.length > 0 ? ['', ...notes.map((note) => `${note}  `)] : [])].join('\n');
}

/** Cells of the whole table with its heading, and the numbered notes below it. @param {readonly Row[]} rows */
function layOut(rows) {
  /** @type {string[]} */
  const notes = [];
  const cells = rows.map((row) => {
    let what = row.what;
    if (row.note !== null) {
      if (!notes.includes(row.note)) notes.push(row.note);
      what += ` [${notes.indexOf(row.note) + 1}]`;
    }
    const figures = [row.direct, row.pgbouncer, row.pgturnstile].map(figure);
    const ratio = row.ratio === null ? '–' : `${row.ratio.toFixed(2)} ×`;
    return [what, row.unit, ...figures, ratio, row.target ?? '', row.verdict ?? ''];
  });
  return { cells: [HEADINGS, ...cells], notes: notes.map((note, index) => `[${index + 1}] ${note}`) };
}

/** @param {number} column */
function isNumeric(column) {
  return column >= 2 && column <= 5;
}

/** @param {number | null} value */
function figure(value) {
  if (value === null) return '–';
  return value >= 100 ? Math.round(value).toLocaleString('en-US') : value.toFixed(1);
}
