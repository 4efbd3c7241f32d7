/** The commands as child processes of a real build: run, check, token mint, token explain, demo; exit codes, signals. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { cpSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { decodeJwt, decodeProtectedHeader } from 'jose';
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startIssuer } from '../src/demo/issuer.ts';
import { ed25519, toPem, toPrivatePem } from '../test/auth/support.ts';
import {
  cleanUp,
  configText,
  hasPsql,
  makeWorld,
  type PoolerFiles,
  psql,
  scratchDirectory,
  type Table,
  until,
  usersText,
  WHO,
  type World,
} from './support/login-support.ts';

const project = fileURLToPath(new URL('..', import.meta.url));
const root = realpathSync(mkdtempSync(path.join(tmpdir(), 'pgturnstile-cli-')));
const children = new Set<ChildProcess>();
let world: World;

beforeAll(async () => {
  // What types say is `npm run typecheck`'s; here the build has to run.
  const args = ['tsc', '-p', 'tsconfig.build.json', '--noCheck', '--outDir', path.join(root, 'dist')];
  const built = promisify(execFile)('npx', ['--no-install', ...args], { cwd: project });
  world = await makeWorld();
  await built;
  cpSync(path.join(project, 'package.json'), path.join(root, 'package.json'));
  symlinkSync(path.join(project, 'node_modules'), path.join(root, 'node_modules'));
  writeFileSync(path.join(root, 'private.pem'), toPrivatePem(ed25519.privateKey));
  writeFileSync(path.join(root, 'public.pem'), toPem(ed25519.publicKey));
});
afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  cleanUp();
  await world.drop();
  rmSync(root, { recursive: true, force: true });
});

interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

class Command {
  readonly child: ChildProcess;
  readonly result: Outcome = { code: null, stdout: '', stderr: '' };
  readonly ended: Promise<Outcome>;

  constructor(args: string[], cwd: string, env: Record<string, string> = {}) {
    this.child = spawn(process.execPath, [path.join(root, 'dist/main.js'), ...args], {
      cwd,
      env: { PATH: process.env['PATH'], HOME: process.env['HOME'], TMPDIR: process.env['TMPDIR'], ...env },
    });
    children.add(this.child);
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.result.stdout += text;
    });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.result.stderr += text;
    });
    this.ended = new Promise((resolve) => {
      this.child.on('close', (code) => {
        children.delete(this.child);
        this.result.code = code;
        resolve(this.result);
      });
    });
  }

  /** Waits for a pattern on standard output and returns its match; fails early when the command ends. */
  async sees(pattern: RegExp): Promise<RegExpExecArray> {
    let match: RegExpExecArray | null = null;
    await until(`${pattern} on standard output`, () => {
      match = pattern.exec(this.result.stdout);
      if (match === null && this.child.exitCode !== null) {
        throw new Error(`the command ended: ${JSON.stringify(this.result)}`);
      }
      return match !== null;
    });
    return match!;
  }
}

/** A directory with pgdog.toml and users.toml. */
function directoryWith(files: PoolerFiles): string {
  const directory = scratchDirectory();
  writeFileSync(path.join(directory, 'pgdog.toml'), configText(files));
  writeFileSync(path.join(directory, 'users.toml'), usersText(files));
  return directory;
}

function jwtFiles(general: Table = {}): PoolerFiles {
  return {
    general: world.jwt({
      host: '127.0.0.1',
      port: 0,
      jwt_public_key_file: path.join(root, 'public.pem'),
      jwt_audience: 'app',
      ...general,
    }),
    databases: [world.row()],
  };
}

async function mint(...args: string[]): Promise<string> {
  const { code, stdout } = await new Command(
    ['token', 'mint', '--key', 'private.pem', '--sub', world.alice, '--aud', 'app', ...args],
    root,
  ).ended;
  expect(code).toBe(0);
  return stdout.trim();
}

async function clientAt(port: number, password: string): Promise<Client> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: world.alice,
    password,
    database: world.database,
    ssl: false,
  });
  client.on('error', () => {});
  await client.connect();
  return client;
}

const portOf = async (command: Command): Promise<number> =>
  Number((await command.sees(/listening.*port=(\d+)/))[1]);

test('--version and --help, of every command', async () => {
  expect(await new Command(['--version'], root).ended).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
  });
  for (const args of [
    [],
    ['run'],
    ['check'],
    ['demo'],
    ['doctor'],
    ['token', 'mint'],
    ['token', 'explain'],
    ['sql', 'provision'],
    ['sql', 'claims'],
  ]) {
    const { code, stdout, stderr } = await new Command([...args, '--help'], root).ended;
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(/^Usage: pgturnstile/);
  }
});

describe('run', () => {
  test('on port 0 logs the port it has; a minted token opens it; SIGTERM drains and ends with 0', async () => {
    const command = new Command([], directoryWith(jwtFiles()));
    const port = await portOf(command);
    expect(port).toBeGreaterThan(1024);
    const token = await mint('--ttl', '1m');
    const client = await clientAt(port, token);
    expect((await client.query(WHO)).rows[0]).toMatchObject({ current_user: world.alice });
    if (hasPsql) {
      const connection = { port, user: 'jwt', dbname: world.database, password: token };
      expect((await psql(connection, 'SELECT current_user')).stdout).toBe(`${world.alice}\n`);
    }
    await client.query('BEGIN');
    command.child.kill('SIGTERM');
    await command.sees(/draining/);
    // No new one gets in, and the transaction is carried to its end.
    await expect(clientAt(port, token)).rejects.toThrow();
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    const gone = new Promise((resolve) => client.once('end', resolve));
    await client.query('COMMIT');
    await gone;
    const { code, stdout, stderr } = await command.ended;
    expect([code, stderr]).toEqual([0, '']);
    for (const part of token.split('.')) expect(stdout).not.toContain(part);
    expect(stdout).not.toContain(world.servicePassword);
  });

  test('a second signal ends at once, though a transaction is open', async () => {
    const command = new Command(['run'], directoryWith(jwtFiles()));
    const client = await clientAt(await portOf(command), await mint());
    await client.query('BEGIN');
    command.child.kill('SIGTERM');
    await command.sees(/draining/);
    const startedAtMs = performance.now();
    command.child.kill('SIGINT');
    const { code } = await command.ended;
    expect(code).not.toBe(0);
    expect(performance.now() - startedAtMs).toBeLessThan(2_000);
  });

  test('SIGINT drains like SIGTERM; idle clients are told 57P01', async () => {
    const command = new Command(['run'], directoryWith(jwtFiles()));
    const client = await clientAt(await portOf(command), await mint());
    const told = new Promise<{ code?: string }>((resolve) => client.once('error', resolve));
    command.child.kill('SIGINT');
    expect((await told).code).toBe('57P01');
    expect((await command.ended).code).toBe(0);
  });

  test('a taken port is exit code 3, and the log says which', async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as { port: number };
    const { code, stdout } = await new Command(
      ['run', '--port', String(port), '--host', '127.0.0.1'],
      directoryWith(jwtFiles()),
    ).ended;
    expect(code).toBe(3);
    expect(stdout).toMatch(
      new RegExp(`FATAL cannot listen code=EADDRINUSE host=127\\.0\\.0\\.1 port=${port}`),
    );
    server.close();
  });

  test('an address this machine does not have is exit code 3 too; a bad configuration is 1', async () => {
    const directory = directoryWith(jwtFiles());
    expect((await new Command(['run', '--host', '203.0.113.7'], directory).ended).code).toBe(3);
    const bad = directoryWith({ general: { prot: 1 } });
    expect(await new Command(['run'], bad).ended).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('pgdog.toml:2: general.prot: unknown key; did you mean "port"?'),
    });
    expect((await new Command(['run', '--prot', '1'], directory).ended).code).toBe(2);
  });

  test('PGDOG_* variables fill what the file leaves out, and the file wins', async () => {
    const files = jwtFiles({ log_format: 'json_flattened' });
    const { host: _, jwt_audience: __, ...general } = files.general ?? {};
    const command = new Command(['run'], directoryWith({ ...files, general }), {
      PGDOG_HOST: '127.0.0.1',
      PGDOG_JWT_AUDIENCE: 'app',
      PGDOG_LOG_FORMAT: 'text',
      PGDOG_PORT: 'tcp://10.0.0.1:6432',
      PGDOG_LOG_CONNECTIONS: 'false',
      PGDOG_DEFAULT_POOL_SIZE: '1',
    });
    const [line] = await command.sees(/^\{.*listening.*$/m);
    const { port, host } = JSON.parse(line) as { port: number; host: string };
    expect(host).toBe('127.0.0.1');
    const client = await clientAt(port, await mint());
    await client.end();
    const other = await new Command(
      ['token', 'mint', '--key', 'private.pem', '--sub', world.alice, '--aud', 'other'],
      root,
    ).ended;
    await expect(clientAt(port, other.stdout.trim())).rejects.toMatchObject({ code: '28P01' });
    command.child.kill('SIGTERM');
    const { stdout, code } = await command.ended;
    expect(code).toBe(0);
    expect(stdout).not.toContain('client logged in');
    for (const one of stdout.trim().split('\n')) expect(() => JSON.parse(one)).not.toThrow();
  });

  test('a variable with a bad value is a fault that names it', async () => {
    const { code, stderr } = await new Command(['check'], directoryWith(jwtFiles()), {
      PGDOG_CHECKOUT_TIMEOUT: 'soon',
    }).ended;
    expect(code).toBe(1);
    expect(stderr).toMatch(/PGDOG_CHECKOUT_TIMEOUT/);
  });

  test('--allowed-oidc-issuer finds keys by discovery; a stranger is refused without a request to anybody', async () => {
    const [issuer, stranger] = [await startIssuer(), await startIssuer()];
    try {
      const { jwt_public_key_file: _, ...general } = jwtFiles().general ?? {};
      const directory = directoryWith({ ...jwtFiles(), general });
      const allowed = ['--allowed-oidc-issuer', issuer.url];
      const command = new Command(['run', ...allowed, '--auth-required'], directory);
      const port = await portOf(command);
      const options = { subject: world.alice, audience: 'app' };
      const client = await clientAt(port, await issuer.mint(options));
      expect((await client.query(WHO)).rows[0]).toMatchObject({ current_user: world.alice });
      await client.end();
      await expect(clientAt(port, await stranger.mint(options))).rejects.toMatchObject({ code: '28P01' });
      expect([stranger.discoveryRequests, stranger.requests]).toEqual([0, 0]);
      const explained = new Command(['token', 'explain', ...allowed, '-d', world.database], directory);
      explained.child.stdin!.end(await issuer.mint(options));
      expect(await explained.ended).toMatchObject({ code: 0, stdout: expect.stringMatching(/^accepted\n/) });
      command.child.kill('SIGTERM');
      expect((await command.ended).code).toBe(0);
    } finally {
      await Promise.all([issuer.stop(), stranger.stop()]);
    }
  });
});

describe('check', () => {
  test('--strict fails for what is less safe than it could be, and says where', async () => {
    const directory = directoryWith(jwtFiles());
    const loose = await new Command(['check'], directory).ended;
    expect([loose.code, loose.stdout]).toEqual([
      0,
      expect.stringContaining('turnstile.jwt_issuer: is not set'),
    ]);
    const strict = await new Command(['check', '--strict'], directory).ended;
    expect([strict.code, strict.stdout]).toEqual([1, '']);
    expect(strict.stderr).toContain('pgdog.toml: turnstile.jwt_issuer: is not set');
    const pinned = directoryWith({ ...jwtFiles(), turnstile: { jwt_issuer: 'https://id.example.com' } });
    expect(await new Command(['check', '--strict'], pinned).ended).toMatchObject({ code: 0, stderr: '' });
  });

  test('prints every fault with its file, its line and its key, and no secret', async () => {
    const directory = scratchDirectory();
    const main = [
      '[general]',
      'auth_type = "jwt"',
      'jwt_server_password = "hush-hush"',
      'default_poolsize = 3',
      'checkout_timeout = "5s"',
      'jwt_jwks_url = "http://issuer.example/keys"',
      'tls_client_required = true',
      'sharding = 1',
      '[[databases]]',
      'name = "app"',
      '[turnstile]',
      'user_match = "exakt"',
    ];
    const users = [
      '[[users]]',
      'name = "a"',
      'pasword = "hush-hush"',
      'database = "ap"',
      '[[users]]',
      'name = 7',
    ];
    writeFileSync(path.join(directory, 'pgdog.toml'), main.join('\n'));
    writeFileSync(path.join(directory, 'users.toml'), users.join('\n'));
    const { code, stdout, stderr } = await new Command(['check'], directory).ended;
    expect([code, stdout]).toEqual([1, '']);
    for (const line of [
      'pgdog.toml:4: general.default_poolsize: unknown key; did you mean "default_pool_size"?',
      'pgdog.toml:5: general.checkout_timeout: ',
      'pgdog.toml:6: general.jwt_jwks_url: must be https',
      'pgdog.toml:7: general.tls_client_required: is true, but there is no tls_certificate',
      'pgdog.toml:9: databases[0].host: ',
      'pgdog.toml:12: turnstile.user_match: ',
      'users.toml:3: users[0].pasword: unknown key; did you mean "password"?',
      'users.toml:4: users[0].database: there is no database "ap"; did you mean "app"?',
      'users.toml:6: users[1].name: ',
    ]) {
      expect(stderr).toContain(line);
    }
    expect(stderr).not.toContain('hush');
  });

  test('a key of PgDog’s that is not supported is a warning that names it', async () => {
    const files = jwtFiles();
    const directory = directoryWith({
      ...files,
      general: { ...files.general, workers: 4, two_phase_commit: true },
    });
    const { code, stdout } = await new Command(['check'], directory).ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(/warning: pgdog\.toml:\d+: general\.workers: /);
    expect(stdout).toMatch(/the configuration is fine: 1 database, 0 users, \d+ warnings?\n$/);
  });

  test('the sample files of the project are fine', async () => {
    const { code, stdout, stderr } = await new Command(['check'], project).ended;
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout).toContain('the configuration is fine');
  });
});

describe('token', () => {
  test('mint signs by the kind of the key, with every option', async () => {
    const token = await mint('--iss', 'https://me', '--kid', 'k1', '--ttl', '2h', '--claim', 'a.b=[1]');
    expect(decodeProtectedHeader(token)).toMatchObject({ alg: expect.stringMatching(/^Ed/), kid: 'k1' });
    const claims = decodeJwt(token);
    expect(claims).toMatchObject({ sub: world.alice, aud: 'app', iss: 'https://me', a: { b: [1] } });
    expect(claims.exp! - claims.iat!).toBe(7_200);
    for (const key of [
      generateKeyPairSync('rsa', { modulusLength: 2048 }),
      generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    ]) {
      const file = path.join(scratchDirectory(), 'key.pem');
      writeFileSync(file, toPrivatePem(key.privateKey));
      const { code, stdout } = await new Command(['token', 'mint', '--key', file, '--sub', 'x'], root).ended;
      expect([code, decodeProtectedHeader(stdout.trim()).alg]).toEqual([
        0,
        key.privateKey.asymmetricKeyType === 'rsa' ? 'RS256' : 'ES256',
      ]);
    }
  });

  test('mint piped into explain tells role, database, access and expiry; a bad one its exact reason', async () => {
    const directory = directoryWith(jwtFiles({ jwt_user_auto_provision_read_only: true }));
    const explain = async (token: string, ...args: string[]): Promise<Outcome> => {
      const command = new Command(['token', 'explain', '-', ...args], directory);
      command.child.stdin!.end(`${token}\n`);
      return command.ended;
    };
    const good = await mint();
    const { code, stdout, stderr } = await explain(good, '--database', world.database);
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout).toContain(`role: ${world.alice}\n`);
    expect(stdout).toContain(`database: ${world.database}\n`);
    expect(stdout).toContain('access: read-only\n');
    expect(stdout).toMatch(/expires: in (29\d|300) s\n/);
    for (const part of good.split('.')) expect(stdout).not.toContain(part);
    for (const [args, reason] of [
      [['--sub', 'postgres'], 'role_reserved'],
      [['--aud', 'elsewhere'], 'bad_audience'],
      [['--ttl', '1s'], 'expired'],
    ] as const) {
      const base = { '--sub': world.alice, '--aud': 'app', '--key': 'private.pem', [args[0]]: args[1] };
      const minted = await new Command(['token', 'mint', ...Object.entries(base).flat()], root).ended;
      const token = minted.stdout.trim();
      if (reason === 'expired') {
        await until('the end of the token', () => decodeJwt(token).exp! * 1000 <= Date.now(), 3_000);
      }
      const outcome = await explain(token);
      expect([outcome.code, outcome.stdout.split('\n')[0]]).toEqual([
        1,
        expect.stringContaining(`refused: ${reason}: `),
      ]);
    }
    expect((await explain(good, '--database', 'nowhere')).stdout).toContain('refused: database_unknown: ');
    expect((await explain('rubbish')).stdout).toMatch(/^refused: not_jwt: /);
  });
});

test('demo --once takes its whole tour on a PostgreSQL of its own and ends with 0', async () => {
  const command = new Command(['demo', '--once'], scratchDirectory());
  const { code, stdout, stderr } = await command.ended;
  expect(stdout.match(/✗.*/g) ?? []).toEqual([]);
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout.match(/✓/g)?.length).toBeGreaterThanOrEqual(10);
});
