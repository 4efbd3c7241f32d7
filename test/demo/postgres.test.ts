/** The embedded PostgreSQL: replication, failover, and every obstacle that was met when starting it. */
import { spawn } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Client } from 'pg';
import ts from 'typescript';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { installedNativeDirectory, unprivilegedAccount, usableBinaries } from '../../src/demo/native.ts';
import { type EmbeddedPostgres, startPostgres } from '../../src/demo/postgres.ts';
import { delay } from '../../src/demo/postmaster.ts';
import { makeScratch, sweepStale } from '../../src/demo/scratch.ts';
import { makeCertificate } from '../support/certificates.ts';

const PASSWORD = "it's \\ a pass";
const PROJECT = fileURLToPath(new URL('../..', import.meta.url));
const asRoot = process.geteuid?.() === 0;
const started: EmbeddedPostgres[] = [];
let place: string;

beforeAll(() => {
  place = mkdtempSync(join(tmpdir(), 'pgturnstile-test-'));
  chmodSync(place, 0o755);
});

afterAll(() => {
  rmSync(place, { recursive: true, force: true });
});

afterEach(async () => {
  await Promise.all(started.splice(0).map((postgres) => postgres.stop()));
});

async function start(options: Partial<Parameters<typeof startPostgres>[0]> = {}): Promise<EmbeddedPostgres> {
  const postgres = await startPostgres({ superuserPassword: PASSWORD, ...options });
  started.push(postgres);
  return postgres;
}

async function loginCode(postgres: EmbeddedPostgres, user: string, password: string): Promise<string> {
  const { host, port } = postgres.primary;
  const client = new Client({ host, port, user, password, database: 'postgres' });
  client.on('error', () => {});
  try {
    await client.connect();
    return 'ok';
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  } finally {
    await client.end();
  }
}

async function until(condition: () => boolean): Promise<boolean> {
  for (let tries = 0; tries < 500; tries++) {
    if (condition()) return true;
    await delay(20);
  }
  return false;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function postmasterPid(dataDirectory: string): number {
  return Number(readFileSync(join(dataDirectory, 'postmaster.pid'), 'utf8').split('\n')[0]);
}

describe('primary and replica', () => {
  let pair: EmbeddedPostgres;

  beforeAll(async () => {
    pair = await startPostgres({ superuserPassword: PASSWORD, replica: true });
  });

  afterAll(() => pair.stop());

  it('a row written on the primary arrives on the replica, which refuses writes', async () => {
    const postgres = pair;
    await postgres.query('CREATE TABLE marker (value text)');
    await postgres.query('INSERT INTO marker VALUES ($1)', ['x']);
    await postgres.replicaCaughtUp();
    const target = { replica: true };
    expect(
      await postgres.query('SELECT value, pg_is_in_recovery() AS standby FROM marker', [], target),
    ).toEqual([{ value: 'x', standby: true }]);
    expect(await postgres.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: false }]);
    await expect(postgres.query("INSERT INTO marker VALUES ('y')", [], target)).rejects.toMatchObject({
      code: '25006',
    });
    const [version] = await postgres.query('SHOW server_version_num');
    expect(Number(version?.['server_version_num'])).toBeGreaterThanOrEqual(180_000);
  });

  it('a synchronous commit is on the replica when the client hears of it, a hundred times', async () => {
    const postgres = await start({ replica: true, synchronous: true });
    await postgres.query('CREATE TABLE counter AS SELECT 0 AS value');
    const replica = postgres.client({ replica: true });
    await replica.connect();
    for (let value = 1; value <= 100; value++) {
      await postgres.query('UPDATE counter SET value = $1', [value]);
      expect((await replica.query('SELECT value FROM counter')).rows).toEqual([{ value }]);
    }
    await replica.end();
  });

  it('stop removes every process and file, and may be called twice', async () => {
    const postgres = await start({ replica: true });
    const pids = [postgres.primary, postgres.replica!].map((server) => postmasterPid(server.dataDirectory));
    expect(pids.every(alive)).toBe(true);
    await postgres.stop();
    await postgres.stop();
    expect(existsSync(postgres.directory)).toBe(false);
    expect(pids.filter(alive)).toEqual([]);
  });

  it('the promoted replica of a killed primary takes writes, and the old primary can come back', async () => {
    const postgres = await start({ replica: true });
    await postgres.query('CREATE TABLE marker (value text)');
    await postgres.replicaCaughtUp();
    const witness = postgres.client();
    await witness.connect();
    const broken = new Promise((resolve) => witness.once('end', resolve));
    await postgres.killPrimary();
    await broken;
    expect(postgres.primary.running).toBe(false);
    await expect(postgres.query('SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await postgres.promoteReplica();
    await postgres.query("INSERT INTO marker VALUES ('after')", [], { replica: true });
    const port = postgres.primary.port;
    await postgres.startPrimary();
    expect(postgres.primary.port).toBe(port);
    expect(await postgres.query('SELECT value FROM marker')).toEqual([]);
  });

  it('a replica that was stopped catches up after its return', async () => {
    const postgres = pair;
    await postgres.stopReplica();
    await postgres.query('CREATE TABLE many AS SELECT generate_series(1, 10000) AS value');
    await postgres.startReplica();
    await postgres.replicaCaughtUp();
    const rows = await postgres.query('SELECT count(*)::int AS n FROM many', [], { replica: true });
    expect(rows).toEqual([{ n: 10_000 }]);
  });

  it('a server is not started a second time over itself', async () => {
    await expect(pair.startPrimary()).rejects.toThrow('running already');
    await expect(pair.startReplica()).rejects.toThrow('running already');
    expect(await pair.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
  });
});

describe('access', () => {
  it('TCP on loopback wants the SCRAM password, and hba lines are obeyed and replaced without a restart', async () => {
    const postgres = await start({ hba: ['host all /^trust_ 127.0.0.1/32 trust'] });
    await postgres.query("CREATE ROLE trust_me LOGIN PASSWORD 'other'");
    expect(await loginCode(postgres, 'postgres', 'wrong')).toBe('28P01');
    expect(await loginCode(postgres, 'postgres', PASSWORD)).toBe('ok');
    expect(await loginCode(postgres, 'trust_me', 'wrong')).toBe('ok');
    await postgres.setHba(['host all trust_me 127.0.0.1/32 reject', 'host all all 0.0.0.0/0 trust']);
    expect(await loginCode(postgres, 'trust_me', 'other')).toBe('28000');
    expect(await loginCode(postgres, 'postgres', 'wrong')).toBe('28P01');
    await expect(postgres.startReplica()).rejects.toThrow('without a replica');
  });

  it('TLS is verified against the authority, and the data directory stays closed to others', async () => {
    const authority = makeCertificate({ name: 'authority', authority: true });
    const server = makeCertificate({ name: 'localhost', issuer: authority });
    const certFile = join(place, 'server.crt');
    const keyFile = join(place, 'server.key');
    writeFileSync(certFile, server.cert);
    writeFileSync(keyFile, server.key);
    const postgres = await start({ ssl: { certFile, keyFile } });
    const client = new Client({
      host: 'localhost',
      port: postgres.primary.port,
      user: postgres.superuser,
      password: PASSWORD,
      database: 'postgres',
      ssl: { ca: authority.cert },
    });
    await client.connect();
    const { rows } = await client.query('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()');
    await client.end();
    expect(rows).toEqual([{ ssl: true }]);
    expect(lstatSync(join(postgres.directory, 'server.key')).mode & 0o777).toBe(0o600);
    expect(lstatSync(postgres.primary.dataDirectory).mode & 0o777).toBe(0o700);
  });

  it('a setting of the caller wins over ours, quotes and backslashes included', async () => {
    const postgres = await start({ settings: { max_connections: '50', log_line_prefix: "'\\ %p " } });
    expect(await postgres.query('SHOW max_connections')).toEqual([{ max_connections: '50' }]);
    expect(await postgres.query('SHOW log_line_prefix')).toEqual([{ log_line_prefix: "'\\ %p " }]);
  });

  it.each([
    [{ 'bad name': '1' }, 'not a postgresql.conf setting'],
    [{ work_mem: "1MB'\nfsync = 'on" }, 'not a postgresql.conf setting'],
    [{ no_such_setting: '1' }, 'unrecognized configuration parameter "no_such_setting"'],
  ])('settings %j are refused with the reason, and nothing stays behind', async (settings, message) => {
    const directory = mkdtempSync(join(place, 'refused-'));
    chmodSync(directory, 0o755);
    await expect(start({ settings, directory })).rejects.toThrow(message);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('obstacles', () => {
  /** The installed package without its library links: what is there when npm ran no install script. */
  function unlinkedPackage(name: string): string {
    const native = join(place, name, 'native');
    const source = installedNativeDirectory();
    cpSync(source, native, {
      recursive: true,
      filter: (path) => !path.endsWith('.a') && !lstatSync(path).isSymbolicLink(),
    });
    return native;
  }

  it('library links that no install script made are made in a copy; the package is left as it is', async () => {
    const native = unlinkedPackage('unlinked');
    const before = readdirSync(join(native, 'lib'));
    const postgres = await start({ nativeDirectory: native });
    expect(await postgres.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
    expect(existsSync(join(postgres.directory, 'native', 'bin', 'postgres'))).toBe(true);
    expect(readdirSync(join(native, 'lib'))).toEqual(before);
  });

  it.runIf(asRoot)(
    'a package below a directory that only root may enter is copied to where it runs',
    async () => {
      const locked = join(place, 'locked');
      mkdirSync(locked, { mode: 0o700 });
      const native = join(locked, 'native');
      cpSync(installedNativeDirectory(), native, { recursive: true, verbatimSymlinks: true });
      const postgres = await start({ nativeDirectory: native, replica: true });
      await postgres.replicaCaughtUp();
      expect(existsSync(join(postgres.directory, 'native', 'bin', 'postgres'))).toBe(true);
    },
  );

  it.runIf(asRoot)('a temporary directory that only root may enter is passed over', async () => {
    const locked = join(place, 'locked-tmp');
    mkdirSync(locked, { mode: 0o700 });
    const before = process.env['TMPDIR'];
    process.env['TMPDIR'] = locked;
    try {
      const postgres = await start();
      expect(postgres.directory.startsWith(locked)).toBe(false);
      expect(await postgres.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
      expect(readdirSync(locked)).toEqual([]);
      await expect(start({ directory: locked })).rejects.toThrow('cannot run here');
      expect(readdirSync(locked)).toEqual([]);
    } finally {
      if (before === undefined) delete process.env['TMPDIR'];
      else process.env['TMPDIR'] = before;
    }
  });

  it('binaries that can be executed where they are installed are not copied', async () => {
    const account = unprivilegedAccount();
    const native = installedNativeDirectory();
    const scratch = await makeScratch(place, account);
    try {
      const linked = join(scratch.path, 'reachable');
      cpSync(native, linked, { recursive: true, verbatimSymlinks: true });
      const binaries = await usableBinaries(linked, scratch.path, account);
      expect(binaries.postgres).toBe(join(linked, 'bin', 'postgres'));
    } finally {
      await scratch.remove();
    }
  });

  it.runIf(asRoot).each([
    ['postgres', 'nobody:x:65534:65534::/:/x\npostgres:x:101:104::/:/x\n', 'postgres'],
    ['nobody when there is no postgres', 'root:x:0:0::/:/x\nnobody:x:65534:65534::/:/x\n', 'nobody'],
    ['nobody when postgres is another name of root', 'postgres:x:0:0::/:/x\nnobody:x:9:9::/:/x\n', 'nobody'],
  ])('root drops to %s', (_what, passwd, name) => {
    expect(unprivilegedAccount(passwd)?.name).toBe(name);
  });

  it.runIf(asRoot)('root without an account to drop to is told so', () => {
    expect(() => unprivilegedAccount('root:x:0:0::/:/x\npostgres:x:x\n')).toThrow('neither');
  });
});

describe('a process that ends without saying so', () => {
  it.each([
    'SIGKILL',
    'SIGTERM',
    'uncaught',
  ] as const)('%s takes the servers and their files along', async (how) => {
    const directory = mkdtempSync(join(place, 'child-'));
    chmodSync(directory, 0o755);
    const child = spawn(process.execPath, [compiledChild(), directory, how], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const pid = await new Promise<number>((resolve) => {
      child.stdout.once('data', (data: Buffer) => resolve(Number(data.toString())));
    });
    if (how !== 'uncaught') child.kill(how);
    expect(await until(() => !alive(pid) && readdirSync(directory).length === 0)).toBe(true);
  });
});

describe('sweeping', () => {
  it('directories of dead owners go, those of living, foreign and unknown ones stay', async () => {
    const parent = mkdtempSync(join(place, 'sweep-'));
    const living = await makeScratch(parent, null);
    const owner = JSON.parse(readFileSync(join(living.path, 'owner.json'), 'utf8')) as Record<
      string,
      unknown
    >;
    const make = (name: string, content: string | null): string => {
      const path = join(parent, name);
      mkdirSync(path);
      if (content !== null) writeFileSync(join(path, 'owner.json'), content);
      return path;
    };
    const dead = { ...owner, pid: await deadPid() };
    const stale = make('pgturnstile-postgres-dead', JSON.stringify(dead));
    const reused = make('pgturnstile-postgres-reused', JSON.stringify({ ...owner, startTicks: '1' }));
    const kept = [
      make('pgturnstile-postgres-realm', JSON.stringify({ ...dead, realm: 'another machine' })),
      make('pgturnstile-postgres-new', null),
      make('somebody-elses', JSON.stringify(dead)),
      living.path,
    ];
    const expected = existsSync('/proc/self/stat') ? [stale, reused] : [stale];
    expect(sweepStale(parent, Date.now()).sort()).toEqual(expected.sort());
    expect(await until(() => !existsSync(stale))).toBe(true);
    expect(kept.filter((path) => !existsSync(path))).toEqual([]);
    await living.remove();
    expect(sweepStale(join(parent, 'missing'), Date.now())).toEqual([]);
  });

  it('an orphaned postmaster in a swept directory ends, and its id is believed only if it stands there', async () => {
    const parent = mkdtempSync(join(place, 'orphan-'));
    chmodSync(parent, 0o755);
    const postgres = await start({ directory: parent });
    const pid = postmasterPid(postgres.primary.dataDirectory);
    const owner = join(postgres.directory, 'owner.json');
    const foreign = join(postgres.directory, 'foreign');
    mkdirSync(foreign);
    // A process id in a planted file: ours. The sweep must not end this test.
    writeFileSync(join(foreign, 'postmaster.pid'), `${process.pid}\n`);
    const content = JSON.parse(readFileSync(owner, 'utf8')) as Record<string, unknown>;
    writeFileSync(owner, JSON.stringify({ ...content, pid: await deadPid() }));
    sweepStale(parent, Date.now());
    expect(await until(() => !existsSync(postgres.directory) && !postgres.primary.running)).toBe(true);
    expect(alive(pid)).toBe(false);
  });
});

/** Compiles src/demo to where plain Node.js can run it, and a script that starts PostgreSQL and never stops it. */
function compiledChild(): string {
  const directory = join(place, 'child');
  const script = join(directory, 'child.js');
  if (existsSync(script)) return script;
  mkdirSync(directory);
  writeFileSync(join(directory, 'package.json'), '{"type":"module"}');
  symlinkSync(join(PROJECT, 'node_modules'), join(directory, 'node_modules'));
  for (const name of ['native', 'scratch', 'postmaster', 'postgres']) {
    const { outputText } = ts.transpileModule(
      readFileSync(join(PROJECT, 'src', 'demo', `${name}.ts`), 'utf8'),
      {
        compilerOptions: {
          module: ts.ModuleKind.ESNext,
          target: ts.ScriptTarget.ES2023,
          rewriteRelativeImportExtensions: true,
        },
      },
    );
    writeFileSync(join(directory, `${name}.js`), outputText);
  }
  writeFileSync(
    script,
    `import { readFileSync } from 'node:fs';
    import { startPostgres } from './postgres.js';
    const [directory, how] = process.argv.slice(2);
    const { primary } = await startPostgres({ directory, superuserPassword: 'x' });
    const pid = readFileSync(primary.dataDirectory + '/postmaster.pid', 'utf8').split('\\n')[0];
    process.stdout.write(pid, () => {
      if (how === 'uncaught') throw new Error('thrown on purpose');
      setInterval(() => {}, 1000);
    });
    `,
  );
  return script;
}

async function deadPid(): Promise<number> {
  const child = spawn(process.execPath, ['-e', '']);
  await new Promise((resolve) => child.once('exit', resolve));
  return child.pid ?? 0;
}
