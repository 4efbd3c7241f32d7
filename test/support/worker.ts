/** A real worker in front of a scripted PostgreSQL: its configuration from TOML text, its log kept, its end awaited. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '../../src/base/log.ts';
import type { Config } from '../../src/config/config.ts';
import { loadConfig } from '../../src/config/load.ts';
import { startWorker, type Worker } from '../../src/worker.ts';
import { ScriptedClient } from './scripted-client.ts';

export interface TestWorkerOptions {
  /** Port of the fake PostgreSQL. */
  serverPort: number;
  /** Lines of `[general]`, `[turnstile]`, of every `[[databases]]` and of every `[[users]]`. */
  general?: string;
  turnstile?: string;
  database?: string;
  user?: string;
  users?: string[];
  databases?: string[];
}

/** trust, alice and bob, databases app and other on the same server, pools of one connection unless told otherwise. */
export function testConfig(options: TestWorkerOptions): Config {
  const directory = mkdtempSync(join(tmpdir(), 'pgturnstile-worker-'));
  const given = (key: string): boolean => new RegExp(`^${key} *=`, 'm').test(options.general ?? '');
  const preset: [string, string][] = [
    ['host', '"127.0.0.1"'],
    ['port', '0'],
    ['auth_type', '"trust"'],
    ['tls_verify', '"disabled"'],
    ['default_pool_size', '1'],
    ['min_pool_size', '0'],
    ['connect_attempts', '1'],
    ['checkout_timeout', '3000'],
    ['rollback_timeout', '1000'],
    ['log_level', '"debug"'],
  ];
  const general = preset.filter(([key]) => !given(key)).map(([key, value]) => `${key} = ${value}`);
  const databases = (options.databases ?? ['app', 'other']).map(
    (name) =>
      `[[databases]]\nname = "${name}"\nhost = "127.0.0.1"\nport = ${options.serverPort}\n${options.database ?? ''}\n`,
  );
  const users = (options.users ?? ['alice', 'bob']).map(
    (name) => `[[users]]\nname = "${name}"\nall_databases = true\npassword = "pw"\n${options.user ?? ''}\n`,
  );
  const configPath = join(directory, 'pgdog.toml');
  const usersPath = join(directory, 'users.toml');
  writeFileSync(
    configPath,
    `[general]\n${general.join('\n')}\n${options.general ?? ''}\n[turnstile]\n${options.turnstile ?? ''}\n${databases.join('')}`,
  );
  writeFileSync(usersPath, `[admin]\nuser = "root"\npassword = "admin-pw"\n${users.join('')}`);
  const { config, faults } = loadConfig({ configPath, usersPath, env: {} });
  rmSync(directory, { recursive: true, force: true });
  if (config === null) throw new Error(faults.map((fault) => `${fault.key}: ${fault.message}`).join('; '));
  return config;
}

export class TestWorker {
  readonly worker: Worker;
  readonly log: string[];
  readonly #clients: ScriptedClient[] = [];

  private constructor(worker: Worker, log: string[]) {
    this.worker = worker;
    this.log = log;
  }

  static async start(options: TestWorkerOptions): Promise<TestWorker> {
    const config = testConfig(options);
    const log: string[] = [];
    const logger = createLogger({
      level: config.general.logLevel,
      format: 'json',
      destination: { write: (line: string) => void log.push(line) },
    });
    return new TestWorker(await startWorker({ config, log: logger }), log);
  }

  get port(): number {
    return this.worker.port;
  }

  /** Server connections of all pools, in any state. */
  get serverCount(): number {
    let count = 0;
    for (const pool of this.worker.view.pools.pools()) count += pool.serverCount + pool.connectingCount;
    return count;
  }

  /** Connections that are lent or being cleaned. */
  get busyCount(): number {
    let count = 0;
    for (const pool of this.worker.view.pools.pools()) count += pool.activeCount + pool.cleaningCount;
    return count;
  }

  get waitingCount(): number {
    let count = 0;
    for (const pool of this.worker.view.pools.pools()) count += pool.waitingCount;
    return count;
  }

  get sessionCount(): number {
    return [...this.worker.view.sessions()].length;
  }

  async connect(): Promise<ScriptedClient> {
    const client = await ScriptedClient.connect({ port: this.port });
    this.#clients.push(client);
    return client;
  }

  async login(
    user = 'alice',
    database = 'app',
    parameters: Record<string, string> = {},
  ): Promise<ScriptedClient> {
    const client = await this.connect();
    await client.login({ user, database, parameters });
    return client;
  }

  async stop(): Promise<void> {
    for (const client of this.#clients) client.destroy();
    this.worker.destroy();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Waits until the condition holds, turn by turn of the event loop; throws after `timeoutMs`. */
export async function until(condition: () => boolean, what: string, timeoutMs = 3_000): Promise<void> {
  const startedAtMs = performance.now();
  while (!condition()) {
    if (performance.now() - startedAtMs > timeoutMs) throw new Error(`${what} did not happen`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
