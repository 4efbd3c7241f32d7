/**
 * The throughput rows: pgbench's select-only script, simple and prepared, at several client counts, with the
 * processor time of each pooler per transaction. Must not know how poolers are started.
 */
import { atLeast, atMost, makeRow } from './report.mjs';

const TARGET_CLIENTS = 16;
const WARM_UP = /** @type {const} */ ({ clients: 8, seconds: 1 });

/** @typedef {import('./report.mjs').Row} Row */
/** @typedef {Record<string, (import('./bench.mjs').Sample | null)[]>} Results */

/**
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<Row[]>}
 */
export async function measureThroughput(bench) {
  const { clients, poolSize } = bench.options;
  const carries = bench.tools.pgbouncer?.carriesPrepared ?? false;
  const direct = bench.direct();
  const pgbouncer = await bench.pgbouncer('any');
  const sessionPoolSize = Math.max(...clients, poolSize);
  const session = carries
    ? null
    : await bench.pgbouncer('any', { poolMode: 'session', poolSize: sessionPoolSize });
  const pgturnstile = await bench.pgturnstile('trust');
  const places = [pgbouncer, session, pgturnstile];
  /** @type {Row[]} */
  const rows = [];
  for (const place of places) {
    if (place) await bench.attempt('warm-up', () => bench.pgbench(place, WARM_UP));
  }
  for (const count of clients) {
    const what = `-S simple, ${countOf(count)}`;
    const results = await bench.rounds(what, { direct, pgbouncer, pgturnstile }, (place) =>
      bench.pgbench(place, { clients: count, protocol: 'simple' }),
    );
    rows.push(...makeRows(what, count, results, 'pgbouncer'));
  }
  for (const count of clients) {
    const what = `-S prepared, ${countOf(count)}`;
    /** @type {Record<string, import('./bench.mjs').Place | null>} */
    const contestants = carries
      ? { direct, pgbouncer, pgturnstile }
      : { direct, 'pgbouncer session': session, 'pgbouncer simple': pgbouncer, pgturnstile };
    const results = await bench.rounds(what, contestants, (place, name) =>
      bench.pgbench(place, { clients: count, protocol: name.endsWith('simple') ? 'simple' : 'prepared' }),
    );
    if (carries) rows.push(...makeRows(what, count, results, 'pgbouncer'));
    else {
      const version = bench.tools.pgbouncer?.version ?? '';
      rows.push(
        ...makeRows(what, count, results, 'pgbouncer session', sessionNote(version, sessionPoolSize)),
        ...makeRows(`${what}; PgBouncer: simple`, count, results, 'pgbouncer simple'),
      );
    }
  }
  await bench.stop(places);
  return rows;
}

/**
 * @param {string} version
 * @param {number} poolSize
 */
function sessionNote(version, poolSize) {
  return version === ''
    ? undefined
    : `PgBouncer ${version} cannot carry prepared statements in transaction mode: here it runs in session mode with ` +
        `up to ${poolSize} server connections, one per client; the rows below compare with its own -M simple in ` +
        'transaction mode.';
}

/**
 * @param {string} what
 * @param {number} clients
 * @param {Results} results
 * @param {string} rival
 * @param {string} [note]
 */
function makeRows(what, clients, results, rival, note) {
  const isJudged = clients === TARGET_CLIENTS;
  const figures = (/** @type {string} */ name, /** @type {'tps' | 'cpuUs'} */ key) =>
    (results[name] ?? []).map((sample) => sample?.[key] ?? null);
  const common = { section: 'throughput', ...(note === undefined ? {} : { note }) };
  return [
    makeRow({
      ...common,
      what,
      unit: 'transactions/s',
      direct: figures('direct', 'tps'),
      pgbouncer: figures(rival, 'tps'),
      pgturnstile: figures('pgturnstile', 'tps'),
      ...(isJudged ? { target: atLeast(0.85) } : {}),
    }),
    makeRow({
      ...common,
      what,
      unit: 'CPU µs/transaction',
      pgbouncer: figures(rival, 'cpuUs'),
      pgturnstile: figures('pgturnstile', 'cpuUs'),
      ...(isJudged ? { target: atMost(1.6) } : {}),
    }),
  ];
}

/** @param {number} count */
function countOf(count) {
  return `${count} client${count === 1 ? '' : 's'}`;
}
