/**
 * The one PostgreSQL that everything is measured on: a temporary cluster from the system's own binaries where there
 * are some, else the embedded one. Owns its settings, roles and tables. Must not know the poolers.
 */
import { randomBytes } from 'node:crypto';
import { appendFileSync, existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import pg from 'pg';
import { findProgram, freePort, HOST, logTail } from './workplace.mjs';

const DEBIAN_VERSIONS = '/usr/lib/postgresql';
const SETTINGS = {
  max_connections: '300',
  shared_buffers: '256MB',
  fsync: 'off',
  synchronous_commit: 'off',
  full_page_writes: 'off',
};
const START_TIMEOUT_MS = 30_000;

export const DATABASE = 'bench';
/** Owns the tables; every benchmark client is this role. */
export const ROLE = 'bench';
/** Logs in for token users and becomes their role. */
export const SERVICE_USER = 'bench_service';

/**
 * @typedef {object} Postgres
 * @property {number} port
 * @property {string} version
 * @property {string} origin
 * @property {string} rolePassword Password of ROLE, for SCRAM.
 * @property {string} roleVerifier What PostgreSQL stores of it (pg_authid.rolpassword).
 */

/** Directories with PostgreSQL's programs, the newest version first. */
export function postgresDirectories() {
  if (!existsSync(DEBIAN_VERSIONS)) return [];
  return readdirSync(DEBIAN_VERSIONS)
    .filter((version) => /^\d+$/.test(version))
    .sort((a, b) => Number(b) - Number(a))
    .map((version) => join(DEBIAN_VERSIONS, version, 'bin'))
    .filter((directory) => existsSync(join(directory, 'initdb')));
}

/**
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} dist
 * @returns {Promise<Postgres>}
 */
export async function startPostgres(workplace, dist) {
  const initdb = findProgram('initdb', postgresDirectories());
  const superuser = initdb ? await startOwn(workplace, initdb) : await startEmbedded(workplace, dist);
  const rolePassword = randomBytes(12).toString('hex');
  const client = new pg.Client({ host: HOST, database: 'postgres', ...superuser });
  await client.connect();
  try {
    await client.query("SET password_encryption = 'scram-sha-256'");
    await client.query(`CREATE ROLE ${ROLE} LOGIN PASSWORD '${rolePassword}'`);
    await client.query(`CREATE ROLE ${SERVICE_USER} LOGIN NOINHERIT`);
    await client.query(`GRANT ${ROLE} TO ${SERVICE_USER}`);
    await client.query(`CREATE DATABASE ${DATABASE} OWNER ${ROLE}`);
    const stored = await client.query('SELECT rolpassword FROM pg_authid WHERE rolname = $1', [ROLE]);
    const { rows } = await client.query('SHOW server_version');
    return {
      port: superuser.port,
      version: String(rows[0].server_version).split(' ')[0] ?? '',
      origin: initdb ? 'system' : 'embedded',
      rolePassword,
      roleVerifier: stored.rows[0].rolpassword,
    };
  } finally {
    await client.end();
  }
}

/**
 * @typedef {{ port: number, user: string, password: string }} Superuser
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} initdb
 * @returns {Promise<Superuser>}
 */
async function startOwn(workplace, initdb) {
  const { account } = workplace;
  const data = workplace.makeDirectory('postgres', account);
  const port = await freePort();
  const args = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'];
  await workplace.run(initdb, args, { account });
  const settings = { ...SETTINGS, listen_addresses: HOST, port: String(port), unix_socket_directories: '' };
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value}'\n`);
  appendFileSync(join(data, 'postgresql.conf'), lines.join(''));
  const server = workplace.start('postgres-server', join(initdb, '..', 'postgres'), ['-D', data], {
    account,
  });
  // SIGINT is the fast shutdown (manual, "Shutting Down the Server"): it does not wait for clients.
  workplace.onClose(() => workplace.stop(server, 'SIGINT'));
  const superuser = { port, user: 'postgres', password: '' };
  const deadlineMs = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    const client = new pg.Client({ host: HOST, database: 'postgres', ...superuser });
    client.on('error', () => {});
    try {
      await client.connect();
      await client.end();
      return superuser;
    } catch (error) {
      const ended = server.child.exitCode !== null || server.child.signalCode !== null;
      if (ended || performance.now() > deadlineMs) {
        throw new Error(`PostgreSQL does not start: ${logTail(server)}`, { cause: error });
      }
      await delay(50);
    }
  }
}

/**
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} dist
 * @returns {Promise<Superuser>}
 */
async function startEmbedded(workplace, dist) {
  const module = await import(pathToFileURL(join(dist, 'demo', 'postgres.js')).href);
  const password = randomBytes(12).toString('hex');
  const postgres = await module.startPostgres({
    superuserPassword: password,
    settings: SETTINGS,
    hba: [`host all ${ROLE},${SERVICE_USER} ${HOST}/32 trust`],
  });
  workplace.onClose(() => postgres.stop());
  return { port: postgres.primary.port, user: postgres.superuser, password };
}
