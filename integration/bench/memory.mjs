/**
 * The memory rows: resident memory per client that is logged in and idle, and again after each ran one query. Every
 * figure is from a fresh pooler. Must not know how poolers are started.
 */
import { startHelper } from './child.mjs';
import { openFilesMax, stableResidentKb } from './process-table.mjs';
import { RawClient } from './raw-client.mjs';
import { atMost, makeRow } from './report.mjs';

const OPEN_TIMEOUT_MS = 120_000;
const QUERY = 'SELECT 1';
const SPARE_FILES = 200;

/**
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
export async function measureMemory(bench) {
  const count = bench.options.idleClients;
  const filesMax = openFilesMax();
  if (filesMax !== null && filesMax < count + SPARE_FILES) {
    bench.skipped.push(
      `memory: ${count} connections need more than the ${filesMax} open files allowed (ulimit -n)`,
    );
    return [];
  }
  const kinds = /** @type {const} */ ({
    pgbouncer: () => bench.pgbouncer('any'),
    'pgturnstile jwt': () => bench.pgturnstile('jwt'),
    'pgturnstile trust': () => bench.pgturnstile('trust'),
  });
  /** @type {Record<string, { idle: number, queried: number } | null>} */
  const results = {};
  for (const [name, start] of Object.entries(kinds)) {
    const place = await start();
    const what = `memory, ${name}`;
    const result = place && (await bench.attempt(what, () => measure(bench, place, count)));
    await bench.stop([place]);
    results[name] = result;
    if (!result) continue;
    bench.runs.push({ what: 'memory', contestant: name, ...result });
    bench.say(
      `${what}: ${result.idle.toFixed(1)} kB per idle client, ${result.queried.toFixed(1)} after a query`,
    );
  }
  const row = (
    /** @type {string} */ what,
    /** @type {'idle' | 'queried'} */ key,
    /** @type {string} */ own,
  ) =>
    makeRow({
      section: 'memory',
      what: `${count} idle clients, ${what}`,
      unit: 'kB/client',
      pgbouncer: [results['pgbouncer']?.[key] ?? null],
      pgturnstile: [results[own]?.[key] ?? null],
      ...(key === 'idle' ? { target: atMost(25, ' kB'), judged: /** @type {const} */ ('value') } : {}),
    });
  return [
    row('token logins', 'idle', 'pgturnstile jwt'),
    row('token logins, after one query each', 'queried', 'pgturnstile jwt'),
    row('trust logins', 'idle', 'pgturnstile trust'),
    row('trust logins, after one query each', 'queried', 'pgturnstile trust'),
  ];
}

/**
 * @param {import('./bench.mjs').Bench} bench
 * @param {import('./bench.mjs').Place} place
 * @param {number} count
 */
async function measure(bench, place, count) {
  const { pooler } = place;
  if (!pooler) throw new Error('only a pooler is measured');
  const target = bench.target(place);
  // The pool exists and has its server connection before the first look: that is not the price of a client.
  const first = await RawClient.open(target);
  await first.query(QUERY);
  first.close();
  const before = await stableResidentKb(pooler.pid);
  const helper = startHelper(bench.workplace, 'idle-clients.mjs');
  try {
    await helper.ask({ open: { count, target } }, OPEN_TIMEOUT_MS);
    const idle = await stableResidentKb(pooler.pid);
    await helper.ask({ query: QUERY }, OPEN_TIMEOUT_MS);
    const queried = await stableResidentKb(pooler.pid);
    if (before === null || idle === null || queried === null) {
      throw new Error('the process table does not tell the resident memory');
    }
    return { idle: (idle - before) / count, queried: (queried - before) / count };
  } finally {
    await helper.end();
  }
}
