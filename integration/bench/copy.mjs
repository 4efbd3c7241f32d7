/**
 * The COPY rows: a large COPY TO STDOUT read by one client that throws it away, and how far pgturnstile's memory
 * rises meanwhile. Must not know how poolers are started.
 */
import { startHelper } from './child.mjs';
import { stableResidentKb, watchPeakKb } from './process-table.mjs';
import { RawClient } from './raw-client.mjs';
import { atLeast, atMost, makeRow } from './report.mjs';

const MB = 1024 * 1024;
/** One text row with its line end; on the wire each is a CopyData message, 5 bytes more. */
const ROW_BYTES = 1024;
const COPY_DATA_HEADER_BYTES = 5;
/** Slower than this means that something hangs. */
const SLOWEST_MB_PER_S = 4;

/** @typedef {{ mbPerS: number, riseMb: number | null }} CopyResult */

/**
 * @param {import('./bench.mjs').Bench} bench
 * @returns {Promise<import('./report.mjs').Row[]>}
 */
export async function measureCopy(bench) {
  const { copyMb } = bench.options;
  const contestants = {
    direct: bench.direct(),
    pgbouncer: await bench.pgbouncer('any'),
    pgturnstile: await bench.pgturnstile('trust'),
  };
  /** @type {Map<string, number>} */
  const idleKb = new Map();
  for (const [name, place] of Object.entries(contestants)) {
    if (!place?.pooler) continue;
    const { pid } = place.pooler;
    await bench.attempt(`warm-up, ${name}`, async () => {
      const client = await RawClient.open(bench.target(place));
      await client.query('SELECT 1');
      client.close();
      const kb = await stableResidentKb(pid);
      if (kb !== null) idleKb.set(name, kb);
    });
  }
  const what = `COPY out of ${copyMb} MB`;
  const results = await bench.rounds(what, contestants, (place, name) =>
    copyOnce(bench, place, idleKb.get(name)),
  );
  await bench.stop(Object.values(contestants));
  const figures = (/** @type {keyof typeof contestants} */ name) =>
    (results[name] ?? []).map((result) => result?.mbPerS ?? null);
  const rises = (/** @type {keyof typeof contestants} */ name) => {
    const seen = (results[name] ?? [])
      .map((result) => result?.riseMb ?? null)
      .filter((value) => value !== null);
    return seen.length > 0 ? [Math.max(...seen)] : [];
  };
  return [
    makeRow({
      section: 'copy',
      what,
      unit: 'MB/s',
      direct: figures('direct'),
      pgbouncer: figures('pgbouncer'),
      pgturnstile: figures('pgturnstile'),
      target: atLeast(0.8),
    }),
    makeRow({
      section: 'copy',
      what: `${what}, memory above idle`,
      unit: 'MB',
      pgbouncer: rises('pgbouncer'),
      pgturnstile: rises('pgturnstile'),
      target: atMost(64, ' MB'),
      judged: 'value',
    }),
  ];
}

/**
 * @param {import('./bench.mjs').Bench} bench
 * @param {import('./bench.mjs').Place} place
 * @param {number | undefined} idleKb
 * @returns {Promise<CopyResult>}
 */
async function copyOnce(bench, place, idleKb) {
  const { copyMb } = bench.options;
  const rows = (copyMb * MB) / ROW_BYTES;
  const sql = `COPY (SELECT repeat('x', ${ROW_BYTES - 1}) FROM generate_series(1, ${rows})) TO STDOUT`;
  const helper = startHelper(bench.workplace, 'copy-reader.mjs');
  const endWatch = place.pooler ? watchPeakKb(place.pooler.pid) : () => null;
  try {
    const order = { sql, target: bench.target(place) };
    const { bytes, seconds } = await helper.ask(order, 30_000 + (copyMb / SLOWEST_MB_PER_S) * 1000);
    const least = rows * (ROW_BYTES + COPY_DATA_HEADER_BYTES);
    if (bytes < least) throw new Error(`only ${bytes} of at least ${least} bytes arrived`);
    const peakKb = endWatch();
    const riseMb = peakKb === null || idleKb === undefined ? null : Math.max(0, peakKb - idleKb) / 1024;
    return { mbPerS: copyMb / seconds, riseMb };
  } finally {
    endWatch();
    await helper.end();
  }
}
