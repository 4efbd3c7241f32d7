/**
 * What every section needs: the tools that were found, the poolers, and alternating rounds that survive the failure
 * of one contestant. Must not know the sections.
 */

import { runPgbench } from './pgbench.mjs';
import { startFloor, startPgBouncer, startPgturnstile } from './poolers.mjs';
import { DATABASE, ROLE } from './postgres.mjs';
import { cpuTimeUs } from './process-table.mjs';
import { HOST } from './workplace.mjs';

/**
 * @typedef {object} Tools
 * @property {string | null} pgbench
 * @property {import('./poolers.mjs').PgBouncer | null} pgbouncer
 * @property {boolean} pgturnstile
 */

/** @typedef {{ pooler: import('./poolers.mjs').Pooler | null, port: number, password: string }} Place Direct without a pooler. */
/** @typedef {{ tps: number, cpuUs: number | null }} Sample Per second; processor time of the pooler per transaction. */

const LOGINS_TIMEOUT_MS = 120_000;

export class Bench {
  /** @type {import('./workplace.mjs').Workplace} */ workplace;
  /** @type {import('./options.mjs').Options} */ options;
  /** @type {import('./postgres.mjs').Postgres} */ postgres;
  /** @type {Tools} */ tools;
  /** What broke; the exit code tells. @type {string[]} */ failures = [];
  /** What could not be measured here, and why. @type {string[]} */ skipped = [];
  /** Every single run. @type {object[]} */ runs = [];
  #tickUs;
  #started = 0;

  /**
   * @param {import('./workplace.mjs').Workplace} workplace
   * @param {import('./options.mjs').Options} options
   * @param {import('./postgres.mjs').Postgres} postgres
   * @param {Tools} tools
   * @param {number} tickUs
   */
  constructor(workplace, options, postgres, tools, tickUs) {
    this.workplace = workplace;
    this.options = options;
    this.postgres = postgres;
    this.tools = tools;
    this.#tickUs = tickUs;
  }

  /** @returns {Place} */
  direct() {
    return { pooler: null, port: this.postgres.port, password: '' };
  }

  /**
   * Null without PgBouncer, or when it does not start, which is a failure.
   * @param {'any' | 'scram-verifier' | 'scram-password'} auth
   * @param {{ poolMode?: 'transaction' | 'session', poolSize?: number }} [how]
   * @returns {Promise<Place | null>}
   */
  async pgbouncer(auth, { poolMode = 'transaction', poolSize = this.options.poolSize } = {}) {
    const { pgbouncer } = this.tools;
    if (!pgbouncer) return null;
    const name = `pgbouncer-${++this.#started}`;
    return await this.#place(`PgBouncer (${auth})`, () =>
      startPgBouncer(this.#setting(), pgbouncer, { name, auth, poolMode, poolSize }),
    );
  }

  /**
   * Null without pgturnstile, or when it does not start, which is a failure.
   * @param {'jwt' | 'trust'} auth
   * @param {import('./poolers.mjs').Algorithm} [algorithm] Of the tokens; RS256 unless told otherwise.
   * @returns {Promise<Place | null>}
   */
  async pgturnstile(auth, algorithm = 'RS256') {
    if (!this.tools.pgturnstile) return null;
    const { dist, nodeArgs, poolSize } = this.options;
    const name = `pgturnstile-${++this.#started}`;
    return await this.#place(`pgturnstile (${auth})`, () =>
      startPgturnstile(this.#setting(), { name, dist, nodeArgs, auth, poolSize, algorithm }),
    );
  }

  /** A server of node:net with nothing behind it. @returns {Promise<Place | null>} */
  async floor() {
    const name = `floor-${++this.#started}`;
    return await this.#place('an empty server', () => startFloor(this.#setting(), name));
  }

  /** @param {readonly (Place | null)[]} places */
  async stop(places) {
    await Promise.all(places.map((place) => place?.pooler?.stop()));
  }

  /**
   * Runs every contestant once per round, in turn. A contestant that fails is left out from then on. The figures of a
   * contestant have null for a round without one.
   * @template T
   * @param {string} what
   * @param {Record<string, Place | null>} contestants
   * @param {(place: Place, name: string) => Promise<T>} measure
   * @returns {Promise<Record<string, (T | null)[]>>}
   */
  async rounds(what, contestants, measure) {
    /** @type {Map<string, Place | null>} */
    const live = new Map(Object.entries(contestants));
    /** @type {Record<string, (T | null)[]>} */
    const results = Object.fromEntries(Object.keys(contestants).map((name) => [name, []]));
    for (let round = 0; round < this.options.rounds; round++) {
      for (const [name, place] of live) {
        const result = place ? await this.attempt(`${what}, ${name}`, () => measure(place, name)) : null;
        if (result === null) live.set(name, null);
        else {
          this.runs.push({ what, contestant: name, round, ...result });
          this.say(`${what}, ${name}, round ${round + 1}: ${describe(result)}`);
        }
        results[name]?.push(result);
      }
    }
    return results;
  }

  /**
   * Null when it fails, which is noted.
   * @template T
   * @param {string} what
   * @param {() => Promise<T>} task
   * @returns {Promise<T | null>}
   */
  async attempt(what, task) {
    try {
      return await task();
    } catch (error) {
      if (this.workplace.isClosed) throw error;
      const failure = `${what}: ${/** @type {Error} */ (error).message}`;
      this.failures.push(failure);
      this.say(`failed: ${failure}`);
      return null;
    }
  }

  /**
   * @param {Place} place
   * @param {{ clients: number, protocol?: 'simple' | 'prepared', reconnect?: boolean, seconds?: number }} how
   * @returns {Promise<Sample>}
   */
  async pgbench(place, how) {
    const { pgbench } = this.tools;
    if (pgbench === null) throw new Error('there is no pgbench');
    const { port, password, pooler } = place;
    const cpuBefore = pooler && cpuTimeUs(pooler.pid, this.#tickUs);
    const { tps, transactions } = await runPgbench(this.workplace, pgbench, {
      port,
      password,
      seconds: this.options.seconds,
      ...how,
    });
    const cpuAfter = pooler && cpuTimeUs(pooler.pid, this.#tickUs);
    const cpuUs = cpuBefore === null || cpuAfter === null ? null : (cpuAfter - cpuBefore) / transactions;
    return { tps, cpuUs };
  }

  /**
   * Logs in again and again, each time with the next password, and leaves: no query.
   * @param {Place} place
   * @param {import('./child.mjs').Helper} helper Runs login-storm.mjs.
   * @param {{ clients: number, count: number, passwords: string[] }} how
   * @returns {Promise<Sample>}
   */
  async logins(place, helper, { clients, count, passwords }) {
    const { pooler } = place;
    const cpuBefore = pooler && cpuTimeUs(pooler.pid, this.#tickUs);
    const order = { target: this.target(place), clients, count, passwords };
    const { seconds } = await helper.ask(order, LOGINS_TIMEOUT_MS);
    const cpuAfter = pooler && cpuTimeUs(pooler.pid, this.#tickUs);
    const cpuUs = cpuBefore === null || cpuAfter === null ? null : (cpuAfter - cpuBefore) / count;
    return { tps: count / seconds, cpuUs };
  }

  /** @param {Place} place @returns {import('./raw-client.mjs').Target} */
  target({ port, password }) {
    return { host: HOST, port, user: ROLE, database: DATABASE, password };
  }

  /** @param {string} line */
  say(line) {
    process.stderr.write(`${line}\n`);
  }

  /**
   * @param {string} what
   * @param {() => Promise<import('./poolers.mjs').Pooler>} start
   * @returns {Promise<Place | null>}
   */
  async #place(what, start) {
    const pooler = await this.attempt(what, start);
    return pooler && { pooler, port: pooler.port, password: pooler.password };
  }

  #setting() {
    const { workplace, postgres, options } = this;
    return { workplace, postgres, clientsMax: options.idleClients + 500 };
  }
}

/** @param {unknown} result */
function describe(result) {
  return Object.entries(/** @type {object} */ (result))
    .filter(([, value]) => typeof value === 'number')
    .map(([name, value]) => `${name} ${value >= 100 ? Math.round(value) : value.toFixed(1)}`)
    .join(', ');
}
