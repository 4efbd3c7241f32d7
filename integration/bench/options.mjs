/**
 * The command line of the benchmarks: what is measured, for how long, and where the figures go. Must not know how
 * anything is measured.
 */
import { parseArgs } from 'node:util';

export const SECTIONS = /** @type {const} */ (['throughput', 'login', 'memory', 'copy']);

/** @typedef {(typeof SECTIONS)[number]} Section */

/**
 * @typedef {object} Options
 * @property {Section[]} only Sections to run.
 * @property {number} rounds Alternating rounds; the figures are medians over them.
 * @property {number} seconds Length of one pgbench run.
 * @property {number[]} clients Client counts of the throughput rows.
 * @property {number} loginClients Clients that log in again and again.
 * @property {number} idleClients Connections held for the memory rows.
 * @property {number} copyMb Size of one COPY, in units of 1,048,576 bytes.
 * @property {number} poolSize Server connections of every pooler, except where a row says otherwise.
 * @property {number} scale pgbench's scale factor: 100,000 rows each.
 * @property {string} dist Directory with the compiled pgturnstile.
 * @property {string[]} nodeArgs Arguments for Node.js itself when it runs pgturnstile, for profiles.
 * @property {string | null} json File for every figure.
 * @property {boolean} markdown Print the table as Markdown.
 */

export const USAGE = `Usage: node integration/bench/main.mjs [options]

Compares pgturnstile with PgBouncer and with direct connections on one PostgreSQL.

  --only LIST          sections to run, of ${SECTIONS.join(',')} (default: all)
  --rounds N           alternating rounds (default: 3)
  --seconds N          length of one pgbench run (default: 3)
  --clients LIST       client counts of the throughput rows (default: 1,16,64)
  --login-clients N    clients that log in again and again (default: 8)
  --idle-clients N     connections of the memory rows (default: 2000)
  --copy-mb N          size of one COPY (default: 256; 1024 for a full run)
  --pool-size N        server connections of every pooler (default: 16)
  --scale N            pgbench's scale factor (default: 10)
  --dist DIR           compiled pgturnstile (default: dist)
  --node-args="ARGS"   for Node.js when it runs pgturnstile, such as --cpu-prof --cpu-prof-dir=DIR
  --json FILE          write every figure, single runs included
  --markdown           print the table as Markdown
  --help
`;

export class UsageError extends Error {
  name = 'UsageError';
}

/**
 * Returns null when help was asked for. Throws `UsageError`.
 * @param {string[]} argv
 * @param {string} defaultDist
 * @returns {Options | null}
 */
export function parseOptions(argv, defaultDist) {
  const values = parseRaw(argv);
  if (values.help) return null;
  const only = list(values.only ?? SECTIONS.join(','));
  const unknown = only.find((name) => !SECTIONS.some((section) => section === name));
  if (unknown !== undefined) throw new UsageError(`--only: there is no section "${unknown}"`);
  return {
    only: SECTIONS.filter((section) => only.includes(section)),
    rounds: whole('rounds', values.rounds ?? '3', 99),
    seconds: whole('seconds', values.seconds ?? '3', 3600),
    clients: list(values.clients ?? '1,16,64').map((text) => whole('clients', text, 150)),
    loginClients: whole('login-clients', values['login-clients'] ?? '8', 150),
    idleClients: whole('idle-clients', values['idle-clients'] ?? '2000', 20_000),
    copyMb: whole('copy-mb', values['copy-mb'] ?? '256', 65_536),
    poolSize: whole('pool-size', values['pool-size'] ?? '16', 64),
    scale: whole('scale', values.scale ?? '10', 1000),
    dist: values.dist ?? defaultDist,
    nodeArgs: (values['node-args'] ?? '').split(/\s+/).filter((arg) => arg !== ''),
    json: values.json ?? null,
    markdown: values.markdown ?? false,
  };
}

/** @param {string[]} argv */
function parseRaw(argv) {
  const string = /** @type {const} */ ({ type: 'string' });
  const boolean = /** @type {const} */ ({ type: 'boolean' });
  try {
    return parseArgs({
      args: argv,
      options: {
        only: string,
        rounds: string,
        seconds: string,
        clients: string,
        'login-clients': string,
        'idle-clients': string,
        'copy-mb': string,
        'pool-size': string,
        scale: string,
        dist: string,
        'node-args': string,
        json: string,
        markdown: boolean,
        help: boolean,
      },
    }).values;
  } catch (error) {
    throw new UsageError(/** @type {Error} */ (error).message);
  }
}

/** @param {string} text */
function list(text) {
  return text
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');
}

/**
 * @param {string} name
 * @param {string} text
 * @param {number} max
 */
function whole(name, text, max) {
  const value = /^\d{1,6}$/.test(text) ? Number(text) : 0;
  if (value < 1 || value > max) throw new UsageError(`--${name} must be a whole number from 1 to ${max}`);
  return value;
}
