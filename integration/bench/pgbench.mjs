/**
 * Runs pgbench and reads its report. Every run goes over TCP on the loopback, without TLS. Must not know who answers.
 */
import { DATABASE, postgresDirectories, ROLE } from './postgres.mjs';
import { findProgram, HOST, plainEnvironment } from './workplace.mjs';

/** Time beyond the run itself that connecting and stopping may take. */
const GRACE_MS = 30_000;

/**
 * @typedef {object} Run
 * @property {number} port
 * @property {number} clients
 * @property {number} seconds
 * @property {'simple' | 'prepared'} [protocol]
 * @property {boolean} [reconnect] A new connection for every transaction.
 * @property {string} [password]
 */

/** @typedef {{ transactions: number, tps: number }} Report */

/**
 * The program, the newest version first, or null. One that does not start is none: Debian's is a wrapper that stays
 * when the programs behind it go.
 * @param {import('./workplace.mjs').Workplace} workplace
 */
export async function findPgbench(workplace) {
  const path = findProgram('pgbench', postgresDirectories());
  if (path === null) return null;
  return await workplace.run(path, ['--version']).then(
    () => path,
    () => null,
  );
}

/**
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} pgbench
 * @param {number} port
 * @param {number} scale
 */
export async function createTables(workplace, pgbench, port, scale) {
  const args = ['-i', '-q', '-s', String(scale), '-h', HOST, '-p', String(port), '-U', ROLE, DATABASE];
  await workplace.run(pgbench, args, { env: environment(''), timeoutMs: 600_000 });
}

/**
 * The built-in select-only script. Rejects when a client was aborted: such a figure would compare nothing.
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} pgbench
 * @param {Run} run
 * @returns {Promise<Report>}
 */
export async function runPgbench(workplace, pgbench, run) {
  const { port, clients, seconds, protocol = 'simple', reconnect = false, password = '' } = run;
  const threads = Math.min(2, clients);
  const args = [
    '-n',
    '-S',
    '-M',
    protocol,
    '-c',
    String(clients),
    '-j',
    String(threads),
    '-T',
    String(seconds),
  ];
  if (reconnect) args.push('-C');
  args.push('-h', HOST, '-p', String(port), '-U', ROLE, DATABASE);
  const timeoutMs = seconds * 1000 + GRACE_MS;
  const { stdout } = await workplace.run(pgbench, args, { env: environment(password), timeoutMs });
  const transactions = Number(/transactions actually processed: (\d+)/.exec(stdout)?.[1] ?? Number.NaN);
  const tps = Number(/^tps = ([\d.]+)/m.exec(stdout)?.[1] ?? Number.NaN);
  if (!(transactions > 0) || !(tps > 0)) throw new Error('pgbench reports no transactions');
  return { transactions, tps };
}

/** @param {string} password */
function environment(password) {
  return {
    ...plainEnvironment(),
    PGSSLMODE: 'disable',
    PGGSSENCMODE: 'disable',
    PGCONNECT_TIMEOUT: '15',
    PGPASSWORD: password,
  };
}
