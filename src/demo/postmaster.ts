/**
 * One PostgreSQL server process on one data directory: start, stop, kill. Owns the process and its port; knows
 * nothing of replication, roles or what the directory holds.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, fchmodSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type Account, type Binaries, run, serverEnvironment } from './native.ts';

/** Where a server listens and what it writes. */
export interface PostgresServer {
  readonly host: string;
  readonly port: number;
  readonly dataDirectory: string;
  /** What the server logged (its stderr), all starts in one file. */
  readonly logFile: string;
  readonly running: boolean;
}

/** PostgreSQL's shutdown modes (manual, section 18.5): SIGTERM, SIGINT, SIGQUIT. */
export type StopMode = 'smart' | 'fast' | 'immediate';

const SIGNALS = { smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT' } as const;
const HOST = '127.0.0.1';
const PORT_ATTEMPTS = 5;
const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 20_000;
const POLL_MS = 10;

/** Invariant: `#child` is the postmaster from the moment it was spawned until its exit was seen. */
export class Postmaster implements PostgresServer {
  readonly host: string = HOST;
  readonly dataDirectory: string;
  readonly logFile: string;
  readonly #binaries: Binaries;
  readonly #account: Account | null;
  #port = 0;
  #child: ChildProcess | null = null;
  #exited: Promise<void> = Promise.resolve();

  constructor(dataDirectory: string, binaries: Binaries, account: Account | null) {
    this.dataDirectory = dataDirectory;
    this.logFile = `${dataDirectory}.log`;
    this.#binaries = binaries;
    this.#account = account;
  }

  /** Chosen at the first start, kept for the later ones; 0 before. */
  get port(): number {
    return this.#port;
  }

  get running(): boolean {
    return this.#child !== null;
  }

  /** Resolves when the server takes connections. Rejects with the end of its log when it does not. */
  async start(): Promise<void> {
    if (this.#child) throw new Error('this PostgreSQL server is running already');
    const first = this.#port === 0;
    for (let attempt = 1; ; attempt++) {
      if (first) this.#port = await freePort();
      const logged = this.#logText().length;
      this.#spawn();
      try {
        return await this.#ready();
      } catch (cause) {
        await this.kill();
        const said = this.#logText().slice(logged);
        // Between our probe of the port and PostgreSQL's bind somebody else may take it.
        const taken = said.includes('could not bind');
        if (first && taken && attempt < PORT_ATTEMPTS) continue;
        if (first) this.#port = 0;
        const tail = said.trim().split('\n').slice(-8).join('\n');
        throw new Error(`PostgreSQL did not start (${(cause as Error).message})\n${tail}`, { cause });
      }
    }
  }

  /** Resolves when the process has ended; a server that does not end in time is killed. */
  async stop(mode: StopMode = 'fast'): Promise<void> {
    const child = this.#child;
    if (!child) return;
    child.ref();
    child.kill(SIGNALS[mode]);
    const timer = setTimeout(() => void this.kill(), STOP_TIMEOUT_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  /** As if the machine died: the postmaster and its children get SIGKILL; sockets are reset, nothing is flushed. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (!child?.pid) return;
    child.ref();
    // A stopped postmaster cannot fork a child between the listing and the kill.
    child.kill('SIGSTOP');
    const family = childrenOf(child.pid);
    child.kill('SIGKILL');
    for (const pid of family) signal(pid, 'SIGKILL');
    await this.#exited;
    for (let waited = 0; waited < STOP_TIMEOUT_MS && family.some(isAlive); waited += POLL_MS) {
      await delay(POLL_MS);
    }
    await this.#removeSharedMemory();
  }

  #spawn(): void {
    const log = openSync(this.logFile, 'a', 0o600);
    // Whatever the umask is, the next start must be able to open it again.
    fchmodSync(log, 0o600);
    const identity = this.#account ? { uid: this.#account.uid, gid: this.#account.gid } : {};
    const child = spawn(this.#binaries.postgres, ['-D', this.dataDirectory, '-p', String(this.#port)], {
      cwd: this.dataDirectory,
      env: serverEnvironment(this.#binaries.libraryDirectory),
      // Of its own session: a Ctrl-C at the terminal is for us to translate into an orderly end.
      detached: true,
      stdio: ['ignore', log, log],
      ...identity,
    });
    closeSync(log);
    child.unref();
    this.#child = child;
    this.#exited = new Promise((resolve) => {
      const gone = (): void => {
        this.#child = null;
        resolve();
      };
      child.once('exit', gone);
      child.once('error', gone);
    });
  }

  /** postmaster.pid says "ready" in its eighth line (LOCK_FILE_LINE_PM_STATUS), a hot standby does too. */
  async #ready(): Promise<void> {
    const pid = this.#child?.pid;
    for (let waited = 0; waited < START_TIMEOUT_MS; waited += POLL_MS) {
      if (!this.#child || pid === undefined) throw new Error('the server process ended');
      const lines = readText(join(this.dataDirectory, 'postmaster.pid')).split('\n');
      if (Number(lines[0]) === pid && lines[7]?.trim() === 'ready') return;
      await delay(POLL_MS);
    }
    throw new Error(`not ready after ${START_TIMEOUT_MS} ms`);
  }

  /** A killed server leaves its small System V segment (seventh line: key, id) behind, which nobody else frees. */
  async #removeSharedMemory(): Promise<void> {
    const id = readText(join(this.dataDirectory, 'postmaster.pid')).split('\n')[6]?.trim().split(/\s+/)[1];
    if (id) await run('ipcrm', ['-m', id], { account: this.#account, cwd: '/' }).catch(() => {});
  }

  #logText(): string {
    return readText(this.logFile);
  }
}

/** A TCP port on loopback that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, HOST, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}

/** Resolves after `ms` milliseconds. */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // Gone already.
  }
}

/** State and parent of a process (proc(5), fields 3 and 4); null where there is no such process, or no /proc. */
function processState(pid: number): { state: string; parent: number } | null {
  const stat = readText(`/proc/${pid}/stat`);
  if (stat === '') return null;
  const [state = '', parent = ''] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state, parent: Number(parent) };
}

/** A zombie that no init reaps, as in a container without one, is not alive. */
function isAlive(pid: number): boolean {
  const found = processState(pid);
  return found !== null && found.state !== 'Z';
}

/** Empty where there is no /proc: backends then notice by themselves that their postmaster died. */
function childrenOf(parent: number): number[] {
  try {
    return readdirSync('/proc')
      .map(Number)
      .filter((pid) => pid > 0 && processState(pid)?.parent === parent);
  } catch {
    return [];
  }
}
