/**
 * A temporary directory for server processes, which leaves nothing behind: a guard process waits on a pipe that
 * only we hold, so however we end (return, signal, crash, SIGKILL) it ends the postmasters and removes the
 * directory. What even the guard missed (power cut, both killed) a later start sweeps. Knows a postmaster only by
 * its postmaster.pid file.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type Account, run } from './native.ts';

const PREFIX = 'pgturnstile-postgres-';
const OWNER_FILE = 'owner.json';
/** A directory without an owner file is being made at this moment, unless it is older than this. */
const OWNERLESS_AGE_MS = 3_600_000;

/**
 * $1 is the directory. The process id in a data directory is believed only if that process stands in the same
 * directory (a postmaster changes into its data directory): ids are reused, and the file belongs to another user.
 */
const CLEAN = `
cat >/dev/null 2>&1
for data in "$1"/*/; do
  data=\${data%/}
  pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
  [ -n "$pid" ] || continue
  if [ -e /proc/self/cwd ]; then
    [ "$(readlink "/proc/$pid/cwd")" = "$data" ] || continue
  fi
  kill -QUIT "$pid" 2>/dev/null || continue
  tries=0
  while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
done
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
`;

/** The directory and its guard. Invariant: as long as the directory exists, a guard waits for our end. */
export class Scratch {
  /** Absolute, without symbolic links. */
  readonly path: string;
  readonly #account: Account | null;
  readonly #guard: ChildProcess;

  constructor(path: string, account: Account | null) {
    this.path = path;
    this.#account = account;
    this.#guard = spawn('/bin/sh', ['-c', CLEAN, 'sh', path], {
      cwd: '/',
      // Of its own session: a Ctrl-C at the terminal must not end it before us.
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    this.#guard.on('error', () => {});
    this.#guard.stdin?.on('error', () => {});
    this.#guard.unref();
    (this.#guard.stdin as { unref?: () => void } | null)?.unref?.();
  }

  /** Makes a subdirectory of mode 700 that belongs to the server account; returns its path. */
  makeDirectory(name: string): string {
    const path = join(this.path, name);
    mkdirSync(path);
    chmodSync(path, 0o700);
    if (this.#account) chownSync(path, this.#account.uid, this.#account.gid);
    return path;
  }

  /** Writes a file of mode 600 that belongs to the server account; returns its path. */
  writeFile(name: string, content: string | Uint8Array): string {
    const path = join(this.path, name);
    writeFileSync(path, content, { mode: 0o600 });
    chmodSync(path, 0o600);
    if (this.#account) chownSync(path, this.#account.uid, this.#account.gid);
    return path;
  }

  /** Removes the directory; every server in it must have ended. */
  async remove(): Promise<void> {
    await rm(this.path, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
    this.#guard.kill('SIGKILL');
  }
}

/**
 * Makes a scratch directory below `parent` that `account` can enter; rejects, leaving nothing, when it cannot.
 * Root owns the directory itself, so that the server account cannot plant an owner file that a sweep would trust.
 */
export async function makeScratch(parent: string, account: Account | null): Promise<Scratch> {
  const path = realpathSync(mkdtempSync(join(parent, PREFIX)));
  const scratch = new Scratch(path, account);
  try {
    chmodSync(path, account ? 0o711 : 0o700);
    writeFileSync(join(path, OWNER_FILE), JSON.stringify(describeOwner(process.pid)));
    if (account) {
      const probe = scratch.makeDirectory('probe');
      await run('/bin/sh', ['-c', 'cd "$1" && test -w .', 'sh', probe], { account, cwd: '/' });
    }
    return scratch;
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

/** Cleans what dead processes of ours left below `parent`; returns the paths. Directories of the living stay. */
export function sweepStale(parent: string, nowMs: number): string[] {
  const swept: string[] = [];
  let names: string[];
  try {
    names = readdirSync(parent).filter((name) => name.startsWith(PREFIX));
  } catch {
    return swept;
  }
  for (const name of names) {
    const path = join(parent, name);
    try {
      const stat = lstatSync(path);
      if (!stat.isDirectory() || stat.uid !== process.geteuid?.()) continue;
      if (!isStale(path, nowMs - stat.mtimeMs)) continue;
      const child = spawn('/bin/sh', ['-c', CLEAN, 'sh', realpathSync(path)], {
        cwd: '/',
        detached: true,
        stdio: 'ignore',
      });
      child.on('error', () => {});
      child.unref();
      swept.push(path);
    } catch {
      // Another process swept it first.
    }
  }
  return swept;
}

interface Owner {
  pid: number;
  /** When the process started, in clock ticks since boot: tells a reused process id from the old owner. */
  startTicks: string;
  /** Process ids mean nothing in another container or on another machine that shares the directory. */
  realm: string;
}

function describeOwner(pid: number): Owner {
  let realm = hostname();
  let startTicks = '';
  try {
    realm += ` ${readlinkSync('/proc/self/ns/pid')}`;
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // proc(5): field 2 is the name in parentheses, which may hold spaces; field 22 is the start time.
    startTicks = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    // No /proc: the process id alone has to do.
  }
  return { pid, startTicks, realm };
}

function isStale(path: string, ageMs: number): boolean {
  let owner: Owner;
  try {
    owner = JSON.parse(readFileSync(join(path, OWNER_FILE), 'utf8')) as Owner;
  } catch {
    return ageMs > OWNERLESS_AGE_MS;
  }
  const now = describeOwner(owner.pid);
  if (owner.realm !== now.realm) return false;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH';
  }
  return owner.startTicks !== now.startTicks;
}
