/**
 * Where the benchmarks work: one temporary directory and every process they start. Invariant: after `close()`, or
 * after the 'exit' event, none of them is left. Must not know what the processes are for.
 */
import { execFile, fork, spawn } from 'node:child_process';
import {
  accessSync,
  chmodSync,
  chownSync,
  closeSync,
  constants,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

export const HOST = '127.0.0.1';

const STOP_TIMEOUT_MS = 10_000;
const READY_TIMEOUT_MS = 20_000;
const READY_POLL_MS = 20;
const OUTPUT_BYTES_MAX = 1024 * 1024;

/** @typedef {{ name: string, uid: number, gid: number }} Account */
/** @typedef {{ stdout: string, stderr: string }} Output */

/**
 * @typedef {object} Running A process that stays.
 * @property {string} name
 * @property {number} pid
 * @property {import('node:child_process').ChildProcess} child
 * @property {string} logFile
 * @property {Promise<void>} ended
 */

export class Workplace {
  /** @type {string} */
  directory;
  /** Who runs the programs that refuse to run as root; null when nobody else is needed. @type {Account | null} */
  account;
  /** @type {Set<import('node:child_process').ChildProcess>} */
  #children = new Set();
  /** Those of them that only ask: they go first, so that what serves them can end in peace. @type {Set<import('node:child_process').ChildProcess>} */
  #askers = new Set();
  /** @type {(() => Promise<void>)[]} */
  #closers = [];
  /** @type {Promise<void> | null} */
  #closed = null;

  constructor() {
    this.account = unprivilegedAccount();
    this.directory = mkdtempSync(join(tmpdir(), 'pgturnstile-bench-'));
    // Others must get through to their own directories below; those are closed to everyone else.
    chmodSync(this.directory, 0o711);
    process.on('exit', () => this.#destroy());
  }

  get isClosed() {
    return this.#closed !== null;
  }

  /**
   * @param {string} name
   * @param {Account | null} [owner]
   */
  makeDirectory(name, owner = null) {
    const path = join(this.directory, name);
    mkdirSync(path, { mode: 0o700 });
    if (owner) chownSync(path, owner.uid, owner.gid);
    return path;
  }

  /**
   * @param {string} path
   * @param {string} text
   * @param {Account | null} [owner]
   */
  writeFile(path, text, owner = null) {
    writeFileSync(path, text, { mode: 0o600 });
    if (owner) chownSync(path, owner.uid, owner.gid);
    return path;
  }

  /**
   * What else must end; the last one given is the first to go.
   * @param {() => Promise<void>} closer
   */
  onClose(closer) {
    this.#closers.push(closer);
  }

  /**
   * Starts a process that stays; its output goes to a file.
   * @param {string} name
   * @param {string} command
   * @param {string[]} args
   * @param {{ account?: Account | null, env?: NodeJS.ProcessEnv }} [how]
   * @returns {Running}
   */
  start(name, command, args, { account = null, env = plainEnvironment() } = {}) {
    this.#assertOpen();
    const logFile = join(this.directory, `${name}.log`);
    const log = openSync(logFile, 'a', 0o600);
    const child = spawn(command, args, { stdio: ['ignore', log, log], env, cwd: '/', ...asUser(account) });
    closeSync(log);
    return { name, pid: child.pid ?? 0, child, logFile, ended: this.#track(child) };
  }

  /**
   * Resolves when something listens on the port; rejects with the end of its log when the process ended first.
   * @param {Running} running
   * @param {number} port
   */
  async listening(running, port) {
    const deadlineMs = performance.now() + READY_TIMEOUT_MS;
    while (!(await accepts(port))) {
      const ended = running.pid === 0 || running.child.exitCode !== null || running.child.signalCode !== null;
      if (ended) throw new Error(`${running.name} ended at once: ${logTail(running)}`);
      if (performance.now() > deadlineMs)
        throw new Error(`${running.name} does not listen: ${logTail(running)}`);
      await delay(READY_POLL_MS);
    }
  }

  /**
   * @param {Running} running
   * @param {NodeJS.Signals} [signal]
   */
  async stop(running, signal = 'SIGTERM') {
    running.child.kill(signal);
    const timer = setTimeout(() => running.child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await running.ended;
    clearTimeout(timer);
  }

  /**
   * Runs a command to its end. Rejects with what it said when it fails or takes too long.
   * @param {string} command
   * @param {string[]} args
   * @param {{ account?: Account | null, env?: NodeJS.ProcessEnv, timeoutMs?: number }} [how]
   * @returns {Promise<Output>}
   */
  run(command, args, { account = null, env = plainEnvironment(), timeoutMs = 60_000 } = {}) {
    this.#assertOpen();
    const options = {
      env,
      cwd: '/',
      timeout: timeoutMs,
      killSignal: /** @type {const} */ ('SIGKILL'),
      maxBuffer: OUTPUT_BYTES_MAX,
      ...asUser(account),
    };
    return new Promise((resolve, reject) => {
      const child = execFile(command, args, options, (error, stdout, stderr) => {
        if (!error) return resolve({ stdout, stderr });
        const said = stderr.trim().split('\n').slice(-4).join(' | ').slice(-600);
        const why = error.killed ? 'was ended' : `ended with ${error.code ?? error.signal}`;
        reject(new Error(`${command.split('/').at(-1)} ${why}${said === '' ? '' : `: ${said}`}`));
      });
      void this.#track(child, this.#askers);
    });
  }

  /**
   * Starts one of our own scripts with a channel for messages; it ends when the channel does.
   * @param {URL} script
   */
  fork(script) {
    this.#assertOpen();
    const child = fork(script, [], {
      execArgv: [],
      env: plainEnvironment(),
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    const ended = this.#track(child, this.#askers);
    return { child, ended };
  }

  /** Ends everything, the last thing started first, and removes the directory. Safe to call again. */
  close() {
    this.#closed ??= (async () => {
      for (const child of this.#askers) child.kill('SIGKILL');
      for (const closer of this.#closers.reverse()) await closer().catch(() => {});
      this.#destroy();
    })();
    return this.#closed;
  }

  #assertOpen() {
    if (this.#closed) throw new Error('interrupted');
  }

  #destroy() {
    for (const child of this.#children) child.kill('SIGKILL');
    this.#children.clear();
    rmSync(this.directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }

  /**
   * @param {import('node:child_process').ChildProcess} child
   * @param {Set<import('node:child_process').ChildProcess>} [also]
   * @returns {Promise<void>}
   */
  #track(child, also) {
    this.#children.add(child);
    also?.add(child);
    return new Promise((resolve) => {
      const end = () => {
        this.#children.delete(child);
        also?.delete(child);
        resolve();
      };
      child.once('exit', end);
      child.once('error', end);
    });
  }
}

/** Our environment without what would change how PostgreSQL's programs, PgBouncer or pgturnstile behave. */
export function plainEnvironment() {
  /** @type {NodeJS.ProcessEnv} */
  const env = { LC_ALL: 'C' };
  for (const [name, value] of Object.entries(process.env)) {
    if (/^(PG|PGDOG_|LC_|LANG|RUST_LOG|NODE_OPTIONS|NODE_V8)/.test(name)) continue;
    env[name] = value;
  }
  return env;
}

/**
 * The full path of a program in PATH or in one of the directories, or null.
 * @param {string} name
 * @param {string[]} directories Tried first.
 */
export function findProgram(name, directories) {
  for (const directory of [...directories, ...(process.env['PATH'] ?? '').split(delimiter)]) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {}
  }
  return null;
}

/** @returns {Promise<number>} */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, HOST, () => {
      const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
      server.close(() => resolve(port));
    });
  });
}

/**
 * @param {number} port
 * @returns {Promise<boolean>}
 */
function accepts(port) {
  return new Promise((resolve) => {
    const socket = connect(port, HOST);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** @param {Running} running */
export function logTail(running) {
  const lines = readFileSync(running.logFile, 'utf8').trim().split('\n');
  return lines.slice(-5).join(' | ').slice(-800) || 'it said nothing';
}

/** @param {Account | null} account */
function asUser(account) {
  return account ? { uid: account.uid, gid: account.gid } : {};
}

/** PostgreSQL and PgBouncer refuse to run as root. */
function unprivilegedAccount() {
  if (process.getuid?.() !== 0) return null;
  const rows = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  for (const name of ['postgres', 'nobody']) {
    const row = rows.find((fields) => fields[0] === name);
    if (row) return { name, uid: Number(row[2]), gid: Number(row[3]) };
  }
  throw new Error('as root this needs an account "postgres" or "nobody" to run PostgreSQL and PgBouncer as');
}
