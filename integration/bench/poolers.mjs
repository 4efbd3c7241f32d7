/**
 * The poolers under test, each started with a configuration of its own: PgBouncer and pgturnstile, in front of the
 * same database, on free ports of the loopback. Must not know what is measured.
 */
import { generateKeyPairSync, sign } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DATABASE, ROLE, SERVICE_USER } from './postgres.mjs';
import { findProgram, freePort, HOST } from './workplace.mjs';

const AUDIENCE = 'bench';
const TOKEN_TTL_S = 6 * 3600;
/** First PgBouncer release that carries prepared statements in transaction mode (max_prepared_statements). */
const PREPARED_SINCE = [1, 21];

/**
 * @typedef {object} Pooler
 * @property {string} name
 * @property {number} port
 * @property {number} pid
 * @property {string} password What its clients log in with; empty where nothing is asked.
 * @property {((count: number) => string[]) | null} mint Makes tokens that differ from each other; null without tokens.
 * @property {() => Promise<void>} stop
 */

/**
 * @typedef {object} Setting What both kinds of pooler have in common.
 * @property {import('./workplace.mjs').Workplace} workplace
 * @property {import('./postgres.mjs').Postgres} postgres
 * @property {number} clientsMax
 */

/** @typedef {{ path: string, version: string, carriesPrepared: boolean }} PgBouncer */

/**
 * The installed PgBouncer, or null.
 * @param {import('./workplace.mjs').Workplace} workplace
 * @returns {Promise<PgBouncer | null>}
 */
export async function findPgBouncer(workplace) {
  const path = findProgram('pgbouncer', ['/usr/sbin', '/usr/local/sbin']);
  if (path === null) return null;
  const { stdout } = await workplace.run(path, ['--version'], { account: workplace.account });
  const version = /(\d+)\.(\d+)[.\d]*/.exec(stdout);
  const [major, minor] = [Number(version?.[1] ?? 0), Number(version?.[2] ?? 0)];
  const [sinceMajor, sinceMinor] = PREPARED_SINCE;
  const carriesPrepared = major > sinceMajor || (major === sinceMajor && minor >= sinceMinor);
  return { path, version: version?.[0] ?? 'unknown', carriesPrepared };
}

/**
 * `any` checks nothing; with `scram` the auth_file holds the verifier, as PostgreSQL stores it, or the password
 * itself, from which PgBouncer then derives the keys at every login.
 * @param {Setting} setting
 * @param {PgBouncer} pgbouncer
 * @param {{ name: string, auth: 'any' | 'scram-verifier' | 'scram-password', poolMode: 'transaction' | 'session', poolSize: number }} how
 * @returns {Promise<Pooler>}
 */
export async function startPgBouncer({ workplace, postgres, clientsMax }, pgbouncer, how) {
  const { account } = workplace;
  const directory = workplace.makeDirectory(how.name, account);
  const port = await freePort();
  const known = how.auth === 'scram-password' ? postgres.rolePassword : postgres.roleVerifier;
  const authFile = workplace.writeFile(join(directory, 'users.txt'), `"${ROLE}" "${known}"\n`, account);
  const lines = [
    '[databases]',
    `${DATABASE} = host=${HOST} port=${postgres.port} dbname=${DATABASE} user=${ROLE}`,
    '[pgbouncer]',
    `listen_addr = ${HOST}`,
    `listen_port = ${port}`,
    'unix_socket_dir =',
    `auth_type = ${how.auth === 'any' ? 'any' : 'scram-sha-256'}`,
    `auth_file = ${authFile}`,
    `pool_mode = ${how.poolMode}`,
    `default_pool_size = ${how.poolSize}`,
    `max_client_conn = ${clientsMax}`,
    'log_connections = 0',
    'log_disconnections = 0',
    'log_stats = 0',
    'server_tls_sslmode = disable',
    ...(pgbouncer.carriesPrepared ? ['max_prepared_statements = 200'] : []),
  ];
  const ini = workplace.writeFile(join(directory, 'pgbouncer.ini'), `${lines.join('\n')}\n`, account);
  const running = workplace.start(`${how.name}-process`, pgbouncer.path, [ini], { account });
  return await serve(workplace, running, how.name, port, how.auth === 'any' ? '' : postgres.rolePassword);
}

/** Why there is no pgturnstile to start, or null. @param {string} dist */
export function missingPgturnstile(dist) {
  return existsSync(join(dist, 'main.js')) ? null : `there is no ${join(dist, 'main.js')}: run npm run build`;
}

/**
 * With `jwt` the clients' password is a token (RS256 unless told otherwise, checked against a PEM file) and the role
 * is provisioned; with `trust` the user stands in users.toml and nothing is asked.
 * @param {Setting} setting
 * @param {{ name: string, dist: string, nodeArgs: string[], auth: 'jwt' | 'trust', poolSize: number, algorithm?: Algorithm }} how
 * @returns {Promise<Pooler>}
 */
export async function startPgturnstile({ workplace, postgres, clientsMax }, how) {
  const directory = workplace.makeDirectory(how.name);
  const port = await freePort();
  const write = (/** @type {string} */ name, /** @type {string[]} */ lines) =>
    workplace.writeFile(join(directory, name), `${lines.join('\n')}\n`);
  /** @type {((count: number) => string[]) | null} */
  let mint = null;
  const general = [
    '[general]',
    `host = "${HOST}"`,
    `port = ${port}`,
    `default_pool_size = ${how.poolSize}`,
    'min_pool_size = 0',
    'tls_verify = "disabled"',
    'log_level = "warn"',
    'log_connections = false',
    'log_disconnections = false',
    `auth_type = "${how.auth}"`,
  ];
  if (how.auth === 'jwt') {
    const algorithm = how.algorithm ?? 'RS256';
    const { publicKey, privateKey } = makeKeys(algorithm);
    const pem = write('issuer.pem', [publicKey.export({ type: 'spki', format: 'pem' }).toString()]);
    mint = (count) => Array.from({ length: count }, () => mintToken(algorithm, privateKey));
    general.push(
      `jwt_public_key_file = ${JSON.stringify(pem)}`,
      `jwt_audience = "${AUDIENCE}"`,
      `jwt_server_user = "${SERVICE_USER}"`,
      'jwt_user_auto_provision = true',
    );
  }
  const config = write('pgdog.toml', [
    ...general,
    '[turnstile]',
    `max_clients = ${clientsMax}`,
    '[[databases]]',
    `name = "${DATABASE}"`,
    `host = "${HOST}"`,
    `port = ${postgres.port}`,
  ]);
  const users = write(
    'users.toml',
    how.auth === 'jwt' ? [''] : ['[[users]]', `name = "${ROLE}"`, `databases = ["${DATABASE}"]`],
  );
  const args = [...how.nodeArgs, join(how.dist, 'main.js'), 'run', '--config', config, '--users', users];
  const running = workplace.start(`${how.name}-process`, process.execPath, args);
  return await serve(workplace, running, how.name, port, mint?.(1)[0] ?? '', mint);
}

/**
 * A server in plain node:net that answers a login and nothing else with bytes made beforehand: what Node.js itself
 * costs, with neither a pooler nor a database behind it.
 * @param {Setting} setting
 * @param {string} name
 * @returns {Promise<Pooler>}
 */
export async function startFloor({ workplace }, name) {
  const port = await freePort();
  const script = fileURLToPath(new URL('floor.mjs', import.meta.url));
  const running = workplace.start(`${name}-process`, process.execPath, [script, HOST, String(port)]);
  return await serve(workplace, running, name, port, 'a password that nobody checks');
}

/**
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {import('./workplace.mjs').Running} running
 * @param {string} name
 * @param {number} port
 * @param {string} password
 * @param {((count: number) => string[]) | null} [mint]
 * @returns {Promise<Pooler>}
 */
async function serve(workplace, running, name, port, password, mint = null) {
  const stop = () => workplace.stop(running);
  workplace.onClose(stop);
  await workplace.listening(running, port);
  return { name, port, pid: running.pid, password, mint, stop };
}

/** @typedef {'RS256' | 'ES256' | 'EdDSA'} Algorithm */

/** @param {Algorithm} algorithm */
function makeKeys(algorithm) {
  if (algorithm === 'RS256') return generateKeyPairSync('rsa', { modulusLength: 2048 });
  if (algorithm === 'ES256') return generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return generateKeyPairSync('ed25519');
}

let minted = 0;

/**
 * A compact JWT (RFC 7519), unlike every one before it by its jti.
 * @param {Algorithm} algorithm
 * @param {import('node:crypto').KeyObject} privateKey
 */
function mintToken(algorithm, privateKey) {
  const nowS = Math.floor(Date.now() / 1000);
  const claims = {
    iss: 'https://issuer.bench',
    sub: ROLE,
    aud: AUDIENCE,
    iat: nowS,
    exp: nowS + TOKEN_TTL_S,
    jti: String(++minted),
  };
  const encode = (/** @type {object} */ part) => Buffer.from(JSON.stringify(part)).toString('base64url');
  const signed = `${encode({ alg: algorithm, typ: 'JWT' })}.${encode(claims)}`;
  const hash = algorithm === 'EdDSA' ? null : 'sha256';
  const signature = sign(hash, Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
  return `${signed}.${signature.toString('base64url')}`;
}
