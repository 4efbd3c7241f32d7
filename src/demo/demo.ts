/**
 * `pgturnstile demo`: a real PostgreSQL primary and replica, a token issuer, sample roles and tables, and the
 * pooler in front, all in one process and gone when it ends. Owns their order and the words on the screen; the
 * pooler is configured through the same two files as anybody's.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from '../base/log.ts';
import type { Config } from '../config/config.ts';
import { formatFault } from '../config/faults.ts';
import { loadConfig } from '../config/load.ts';
import { createDemoDatabase, DEMO_DATABASE, READER, SERVICE_USER, WRITER } from './demo-database.ts';
import { type Issuer, startIssuer } from './issuer.ts';
import { type EmbeddedPostgres, startPostgres } from './postgres.ts';
import { runTour } from './tour.ts';

/** The running pooler, as the demo needs it; `startWorker` of worker.ts gives one. */
export interface DemoWorker {
  readonly host: string;
  readonly port: number;
  /** Ends politely: clients finish their transactions first. */
  drain(): Promise<unknown>;
  /** Ends now. */
  destroy(): unknown;
}

export type StartWorker = (options: { config: Config; log: Logger }) => Promise<DemoWorker>;

export interface DemoOptions {
  /** Run the tour and end, instead of staying until SIGINT or SIGTERM. */
  once: boolean;
  /** Default 6432, or any free port when that is taken; any free port with `once`. */
  port?: number;
  /** Default 127.0.0.1. */
  host?: string;
  log: Logger;
  /** Default: the real pooler. */
  startWorker?: StartWorker;
  /** Default: standard output. */
  print?: (line: string) => void;
  /** Ends the stay, as a SIGINT would. */
  signal?: AbortSignal;
}

const AUDIENCE = 'pgturnstile-demo';
const TOKEN_TTL_SECONDS = 3_600;
const POOL_SIZE = 4;
const DEFAULT_PORT = 6432;
const DEFAULT_HOST = '127.0.0.1';
/** The exit code of the command line for "cannot listen". */
const EXIT_CANNOT_LISTEN = 3;

/**
 * Runs the demo and resolves with the exit code: 0; 1 when a step of the tour did not come out as it must or
 * something could not be started; 3 when the pooler cannot listen. Nothing is left running or on disk.
 */
export async function runDemo(options: DemoOptions): Promise<number> {
  const print = options.print ?? ((line: string) => void process.stdout.write(`${line}\n`));
  let stage: Stage | null = null;
  try {
    print('Starting PostgreSQL (a primary and a streaming replica), a token issuer and pgturnstile …');
    stage = await setStage(options.log);
    const worker = await startPooler(stage, options);
    try {
      if (options.once) return (await tour(stage, worker, print)) ? 0 : 1;
      await printWelcome(stage, worker, print);
      await untilEnd(options.signal);
      print('\nStopping: clients finish their transactions; once more to stop at once.');
      const drained = new AbortController();
      await Promise.race([worker.drain(), untilEnd(drained.signal)]);
      drained.abort();
      return 0;
    } finally {
      await worker.destroy();
    }
  } catch (error) {
    print(`The demo cannot run: ${(error as Error).message}`);
    return isListenError(error) ? EXIT_CANNOT_LISTEN : 1;
  } finally {
    await stage?.issuer.stop();
    await stage?.postgres.stop();
  }
}

interface Stage {
  postgres: EmbeddedPostgres;
  issuer: Issuer;
  servicePassword: string;
  adminPassword: string;
}

async function setStage(log: Logger): Promise<Stage> {
  const secret = (): string => randomBytes(18).toString('base64url');
  const stage = { servicePassword: secret(), adminPassword: secret() };
  const postgres = await startPostgres({
    replica: true,
    superuserPassword: secret(),
    log: (line) => log.info(line),
  });
  try {
    const tokenEndpoint = { audience: AUDIENCE, ttlSeconds: TOKEN_TTL_SECONDS };
    const [issuer] = await Promise.all([
      startIssuer({ tokenEndpoint }),
      createDemoDatabase(postgres, stage.servicePassword),
    ]);
    return { ...stage, postgres, issuer };
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

async function startPooler(stage: Stage, options: DemoOptions): Promise<DemoWorker> {
  const host = options.host ?? DEFAULT_HOST;
  const startWorker: StartWorker = options.startWorker ?? (await import('../worker.ts')).startWorker;
  const start = (port: number): Promise<DemoWorker> =>
    startWorker({ config: writeConfig(stage, host, port), log: options.log });
  if (options.port !== undefined || options.once) return start(options.port ?? 0);
  try {
    return await start(DEFAULT_PORT);
  } catch (error) {
    if (!isListenError(error)) throw error;
    return start(0);
  }
}

/** Writes pgdog.toml and users.toml below PostgreSQL's temporary directory and loads them as anybody's. */
function writeConfig(stage: Stage, host: string, port: number): Config {
  const directory = join(stage.postgres.directory, 'pgturnstile');
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const configPath = join(directory, 'pgdog.toml');
  const usersPath = join(directory, 'users.toml');
  const { primary, replica } = stage.postgres;
  const text = JSON.stringify;
  const servers = [primary, replica].flatMap((server, index) =>
    server
      ? [
          '[[databases]]',
          `name = ${text(DEMO_DATABASE)}`,
          `host = ${text(server.host)}`,
          `port = ${server.port}`,
          `role = ${text(index === 0 ? 'primary' : 'replica')}`,
          '',
        ]
      : [],
  );
  const main = [
    '[general]',
    `host = ${text(host)}`,
    `port = ${port}`,
    `default_pool_size = ${POOL_SIZE}`,
    'auth_type = "jwt"',
    `jwt_jwks_url = ${text(stage.issuer.jwksUrl)}`,
    `jwt_audience = ${text(AUDIENCE)}`,
    'jwt_username_claim = "sub"',
    `jwt_server_user = ${text(SERVICE_USER)}`,
    `jwt_server_password = ${text(stage.servicePassword)}`,
    'jwt_user_auto_provision = true',
    '',
    '[turnstile]',
    `jwt_issuer = ${text(stage.issuer.url)}`,
    '',
    ...servers,
  ];
  const users = ['[admin]', `password = ${text(stage.adminPassword)}`, ''];
  writeFileSync(configPath, main.join('\n'), { mode: 0o600 });
  writeFileSync(usersPath, users.join('\n'), { mode: 0o600 });
  // The demo is what its files say, whatever PGDOG_* variables are set for a real installation.
  const { config, faults } = loadConfig({ configPath, usersPath, env: {} });
  if (!config) throw new Error(`its configuration is refused: ${faults.map(formatFault).join('; ')}`);
  return config;
}

function tour(stage: Stage, worker: DemoWorker, print: (line: string) => void): Promise<boolean> {
  print('');
  return runTour({
    host: reachable(worker.host),
    port: worker.port,
    database: DEMO_DATABASE,
    mint: (options) => stage.issuer.mint({ audience: AUDIENCE, ...options }),
    askReplica: async (sql, values) => {
      const [row] = await stage.postgres.query(sql, values, { replica: true, database: DEMO_DATABASE });
      return row ? Object.values(row)[0] : null;
    },
    poolSize: POOL_SIZE,
    print,
  });
}

async function printWelcome(stage: Stage, worker: DemoWorker, print: (line: string) => void): Promise<void> {
  const host = reachable(worker.host);
  const { primary, replica } = stage.postgres;
  const psql = (user: string, database = DEMO_DATABASE): string =>
    `psql "host=${host} port=${worker.port} dbname=${database} user=${user} sslmode=disable"`;
  const token = (subject: string): Promise<string> =>
    stage.issuer.mint({ subject, audience: AUDIENCE, ttlSeconds: TOKEN_TTL_SECONDS });
  print(
    `
pgturnstile listens on ${worker.host}:${worker.port}.
Behind it: PostgreSQL on ${primary.host}:${primary.port} (primary) and ${replica?.host}:${replica?.port} (replica); issuer ${stage.issuer.url}.

${WRITER}, who may read and write (the token is good for an hour):

PGPASSWORD=${await token(WRITER)} ${psql(WRITER)}

${READER}, who may only read:

PGPASSWORD=${await token(READER)} ${psql(READER)}

Try there:
  SELECT session_user, current_user;                               -- ${SERVICE_USER} logged in, the token's role works
  INSERT INTO customer (name, city) VALUES ('Me', 'Here');         -- ${WRITER}: done; ${READER}: permission denied
  SELECT pg_backend_pid();                                         -- lent for one transaction at a time
  SET ROLE ${READER};                                                   -- refused: nobody leaves the role of the token
  SELECT pg_sleep(60);                                             -- and Ctrl-C cancels it

${READER} is read-only by PostgreSQL's GRANTs, which give her nothing but SELECT; her statements run on the primary
like ${WRITER}'s, for pgturnstile does not send them to the replica.

Another token, for an hour, straight into psql:

PGPASSWORD=$(curl -s -d sub=${WRITER} ${stage.issuer.tokenUrl}) ${psql(WRITER)}

The console (SHOW POOLS; SHOW CLIENTS; SHOW SERVERS;):

PGPASSWORD=${stage.adminPassword} ${psql('admin', 'admin')}

Ctrl-C ends it all and removes every file.`,
  );
}

/** An address that a client on this machine can use for what the listener is bound to. */
function reachable(host: string): string {
  return host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
}

/** Resolves at the next SIGINT or SIGTERM, or when `signal` is aborted. */
function untilEnd(signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      process.removeListener('SIGINT', end);
      process.removeListener('SIGTERM', end);
      signal?.removeEventListener('abort', end);
      resolve();
    };
    process.on('SIGINT', end);
    process.on('SIGTERM', end);
    if (signal?.aborted) end();
    else signal?.addEventListener('abort', end);
  });
}

function isListenError(error: unknown): boolean {
  const code = String((error as { code?: unknown }).code);
  return ['EADDRINUSE', 'EACCES', 'EADDRNOTAVAIL'].includes(code);
}
