/**
 * Benchmarks against PgBouncer and direct connections, on one PostgreSQL of their own: `npm run bench`. Owns the
 * order of things, interruption and the exit code: 0 also when a target is missed or a tool is missing, 1 when
 * something broke, 2 on wrong usage. Needs pgbench and PgBouncer for most rows, and Linux for processor time and
 * memory; what cannot be measured is said.
 */
import { writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg } from 'node:os';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Bench } from './bench.mjs';
import { measureCopy } from './copy.mjs';
import { measureLogins } from './login.mjs';
import { measureMemory } from './memory.mjs';
import { parseOptions, USAGE, UsageError } from './options.mjs';
import { createTables, findPgbench } from './pgbench.mjs';
import { findPgBouncer, missingPgturnstile } from './poolers.mjs';
import { startPostgres } from './postgres.mjs';
import { readTickUs } from './process-table.mjs';
import { markdownTable, textTable } from './report.mjs';
import { measureThroughput } from './throughput.mjs';
import { Workplace } from './workplace.mjs';

const MEASURES = {
  throughput: measureThroughput,
  login: measureLogins,
  memory: measureMemory,
  copy: measureCopy,
};
const NEEDS_PGBENCH = ['throughput', 'login'];
/** Above this the scheduler decides the figures, not the poolers. */
const BUSY_LOAD_PER_CORE = 0.25;
const DEFAULT_DIST = fileURLToPath(new URL('../../dist', import.meta.url));

/** @param {import('./options.mjs').Options} options */
async function main(options) {
  const loadAtStart = loadavg()[0] ?? 0;
  const workplace = new Workplace();
  for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
    process.once(signal, () => {
      process.stderr.write('interrupted: cleaning up\n');
      void workplace.close().finally(() => process.exit(130));
    });
  }
  try {
    const bench = await prepare(workplace, options);
    /** @type {import('./report.mjs').Row[]} */
    const rows = [];
    for (const section of options.only) {
      if (bench.tools.pgbench === null && NEEDS_PGBENCH.includes(section)) {
        bench.skipped.push(`${section}: there is no pgbench that runs`);
        continue;
      }
      rows.push(...((await bench.attempt(section, () => MEASURES[section](bench))) ?? []));
    }
    const environment = describeEnvironment(bench, loadAtStart);
    print(options, environment, rows, bench);
    return bench.failures.length > 0 ? 1 : 0;
  } catch (error) {
    // An interruption ends the process by itself, once everything is cleaned up.
    if (workplace.isClosed) return await new Promise(() => {});
    process.stderr.write(`${/** @type {Error} */ (error).message}\n`);
    return 1;
  } finally {
    await workplace.close();
  }
}

/**
 * @param {Workplace} workplace
 * @param {import('./options.mjs').Options} options
 */
async function prepare(workplace, options) {
  const missing = missingPgturnstile(options.dist);
  const pgbench = await findPgbench(workplace);
  const pgbouncer = await findPgBouncer(workplace);
  const postgres = await startPostgres(workplace, options.dist);
  const tools = { pgbench, pgbouncer, pgturnstile: missing === null };
  const bench = new Bench(workplace, options, postgres, tools, readTickUs());
  if (missing !== null) bench.skipped.push(`everything of pgturnstile: ${missing}`);
  if (pgbouncer === null) bench.skipped.push('everything of PgBouncer: it is not installed');
  if (process.platform !== 'linux') bench.skipped.push('processor time and memory: only Linux tells them');
  if (pgbench !== null && options.only.some((section) => NEEDS_PGBENCH.includes(section))) {
    await createTables(workplace, pgbench, postgres.port, options.scale);
  }
  return bench;
}

/**
 * @param {Bench} bench
 * @param {number} loadAtStart
 */
function describeEnvironment(bench, loadAtStart) {
  const { postgres, tools, options } = bench;
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    loadAtStart: Number(loadAtStart.toFixed(2)),
    node: process.version,
    postgres: `${postgres.version} (${postgres.origin})`,
    pgbouncer: tools.pgbouncer?.version ?? null,
    rounds: options.rounds,
    seconds: options.seconds,
    poolSize: options.poolSize,
  };
}

/**
 * @param {import('./options.mjs').Options} options
 * @param {ReturnType<typeof describeEnvironment>} environment
 * @param {import('./report.mjs').Row[]} rows
 * @param {Bench} bench
 */
function print(options, environment, rows, bench) {
  const { failures, skipped, runs } = bench;
  const line =
    `${environment.date}; ${environment.cpu}, ${environment.cores} cores, load ${environment.loadAtStart} at the start; ` +
    `Node.js ${environment.node}, PostgreSQL ${environment.postgres}, PgBouncer ${environment.pgbouncer ?? 'none'}; ` +
    `${environment.poolSize} server connections per pool; medians of ${environment.rounds} alternating rounds of ` +
    `${environment.seconds} s`;
  const out = [line, ''];
  if (environment.loadAtStart > environment.cores * BUSY_LOAD_PER_CORE) {
    out.push('The machine was busy with other work: do not rely on these figures.', '');
  }
  if (rows.length > 0) out.push(options.markdown ? markdownTable(rows) : textTable(rows), '');
  for (const text of skipped) out.push(`not measured: ${text}`);
  for (const text of failures) out.push(`failed: ${text}`);
  process.stdout.write(`${out.join('\n').trimEnd()}\n`);
  if (options.json !== null) {
    const everything = { environment, rows, skipped, failures, runs };
    writeFileSync(options.json, `${JSON.stringify(everything, null, 2)}\n`);
  }
}

try {
  const options = parseOptions(process.argv.slice(2), DEFAULT_DIST);
  if (options === null) process.stdout.write(USAGE);
  else process.exitCode = await main({ ...options, dist: resolve(options.dist) });
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n\n${USAGE}`);
  process.exitCode = 2;
}
