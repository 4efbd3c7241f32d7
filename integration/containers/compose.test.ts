/**
 * docker-compose.yml as a user starts it: the image is built, PostgreSQL and the pooler come up, tokens come from the
 * helper, psql comes from another container. One start for the whole file, and its last test stops the pooler.
 * Skipped, with a line that says why, where no Docker engine can be used.
 */
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../support/world.ts';
import { ComposeProject, docker, type Outcome, whyNoContainers } from './docker.ts';

const why = whyNoContainers();
if (why !== null) process.stderr.write(`${why}: the tests of the containers are SKIPPED\n`);

const project = new ComposeProject(`pgturnstile-test-${process.pid}`);
const secrets: string[] = [];
const clients = new Set<Client>();
let alice: string;
let rita: string;

async function token(name: string): Promise<string> {
  const text = await project.ask(['run', '--rm', 'token', name]);
  secrets.push(text);
  return text;
}

/** psql in a container of its own, over TLS with the certificate and its name checked. */
function psql(user: string, password: string, sql: string, sslmode = 'verify-full'): Promise<Outcome> {
  const env = { PGPASSWORD: password, TEST_SSLMODE: sslmode };
  const args = [`--username=${user}`, `--command=${sql}`];
  return project.run(['run', '--rm', '--env', 'PGPASSWORD', 'client', ...args], env);
}

/** A client on this machine, through the published port. */
async function connect(): Promise<Client> {
  const [host, port] = (await project.ask(['port', 'pgturnstile', '6432'])).split(':');
  const read = ['node', '--print', 'fs.readFileSync("/keys/tls.crt", "utf8")'];
  const ca = await project.ask(['exec', '-T', 'pgturnstile', ...read]);
  const options = { host: host!, port: Number(port), user: 'alice', password: alice, database: 'app' };
  const client = new Client({ ...options, ssl: { ca } });
  client.on('error', () => {});
  clients.add(client);
  await client.connect();
  return client;
}

/** The superuser's answer, past the pooler. */
const direct = (sql: string): Promise<string> =>
  project.ask(['exec', '-T', 'postgres', 'psql', '-XAtU', 'postgres', '-d', 'app', '-c', sql]);
const health = (): Promise<string> => project.inspect('pgturnstile', '{{.State.Health.Status}}');

describe.skipIf(why !== null)('docker compose', () => {
  beforeAll(async () => {
    await project.ask(['build']);
    await project.ask(['up', '--wait', '--no-build']);
    alice = await token('alice');
    rita = await token('rita');
  }, 900_000);
  afterAll(async () => {
    for (const client of clients) await client.end();
    await project.run(['down', '--volumes', '--timeout', '5']);
    await docker(['image', 'rm', 'pgturnstile-test']);
  });

  test('the image holds neither compiler nor tests nor PostgreSQL, and nothing that its process could write', async () => {
    const list = ['ls', 'node_modules', 'node_modules/.bin'];
    const modules = (await project.ask(['exec', '-T', 'pgturnstile', ...list])).split(/\s+/);
    expect(modules).toContain('jose');
    expect(
      modules.filter((name) => /typescript|tsc|vitest|biome|testcontainers|@embedded/.test(name)),
    ).toEqual([]);
    const script = 'id -u; grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/1/status';
    const { stdout } = await project.run(['exec', '-T', 'pgturnstile', 'sh', '-c', script]);
    const none = '0000000000000000';
    expect(stdout.trim().split(/\s+/)).toEqual([
      '1000',
      'CapEff:',
      none,
      'CapBnd:',
      none,
      'NoNewPrivs:',
      '1',
    ]);
    const touch = await project.run(['exec', '-T', 'pgturnstile', 'touch', '/tmp/file']);
    expect(touch.stderr).toContain('Read-only file system');
    // Also where the file system is not read-only.
    const find = ['run', '--rm', '--entrypoint', 'find', 'pgturnstile-test', '/app', '-writable'];
    expect(await docker(find)).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  test('alice writes and rita reads; what rita may not do PostgreSQL refuses', async () => {
    const added = await psql('alice', alice, "INSERT INTO customer (name) VALUES ('D') RETURNING created_by");
    expect(added).toMatchObject({ code: 0, stdout: 'alice\n' });
    const read = await psql('rita', rita, 'SELECT count(*), current_user FROM customer');
    expect(read).toMatchObject({ code: 0, stdout: '4|rita\n' });
    const refused = await psql('rita', rita, 'DELETE FROM customer');
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toContain('ERROR:  42501: permission denied for table customer');
    expect(await direct('SELECT count(*) FROM customer')).toBe('4');
  });

  const FAILED = 'password authentication failed for user "alice"';
  test.each([
    ['a token with one changed letter', FAILED, () => alice.replace(/\.(.)/, '.x')],
    ['a token of somebody else', 'role "alice" is not permitted to log in through this pooler', () => rita],
    [
      'the service user’s password',
      FAILED,
      () => direct("SELECT pg_read_file('/secrets/turnstile-password')"),
    ],
  ])('%s is refused: %s', async (_, message, make) => {
    const wrong = await make();
    secrets.push(wrong);
    const { code, stdout, stderr } = await psql('alice', wrong, 'SELECT 1');
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(`FATAL:  ${message}`);
  });

  test('a token is not asked for without TLS', async () => {
    const { code, stderr } = await psql('alice', alice, 'SELECT 1', 'disable');
    expect(code).toBe(2);
    expect(stderr).toContain('SSL connection is required');
  });

  test('PostgreSQL is restarted under the pooler: the client stays and its next transactions run', async () => {
    const client = await connect();
    const started = 'SELECT pg_postmaster_start_time()::text AS at';
    const before = (await client.query(started)).rows[0].at;
    await project.ask(['restart', 'postgres']);
    const answered = (): Promise<boolean> =>
      client.query(started).then(
        ({ rows }) => rows[0].at !== before,
        () => false,
      );
    await until(answered, 'the client is served by the new PostgreSQL', 30_000);
    expect((await client.query('SELECT current_user AS me')).rows).toEqual([{ me: 'alice' }]);
    await client.end();
    expect(await project.inspect('pgturnstile', '{{.State.Running}} {{.RestartCount}}')).toBe('true 0');
  });

  test('a second run of the keys changes none of them: the same token goes on working', async () => {
    const again = await token('alice');
    expect(again).not.toBe(alice);
    for (const each of [alice, again])
      expect(await psql('alice', each, 'SELECT 1')).toMatchObject({ code: 0 });
  });

  test('a pooler that hangs turns unhealthy, and healthy when it goes on', async () => {
    expect(await health()).toBe('healthy');
    await project.ask(['kill', '--signal', 'STOP', 'pgturnstile']);
    await until(async () => (await health()) === 'unhealthy', 'the engine notices', 45_000);
    await project.ask(['kill', '--signal', 'CONT', 'pgturnstile']);
    await until(async () => (await health()) === 'healthy', 'the engine notices', 45_000);
  }, 120_000);

  test('docker stop: an open transaction may finish, nobody new gets in, exit code 0', async () => {
    const idle = await connect();
    const busy = await connect();
    const ended = new Promise<{ code?: string }>((resolve) => idle.once('error', resolve));
    await busy.query('BEGIN');
    await busy.query("INSERT INTO customer (name) VALUES ('while it stops')");
    const stopped = project.run(['stop', 'pgturnstile']);
    expect(await ended).toMatchObject({ code: '57P01' });
    await expect(connect()).rejects.toThrow();
    await busy.query('COMMIT');
    await stopped;
    expect(await project.inspect('pgturnstile', '{{.State.Status}} {{.State.ExitCode}}')).toBe('exited 0');
    expect(await direct("SELECT created_by FROM customer WHERE name = 'while it stops'")).toBe('alice');
  });

  test('no log holds a token or a password, whole or in part', async () => {
    const log = await project.ask(['logs', '--no-color']);
    expect(log).toContain('client logged in');
    expect(log).toContain('auth_reject');
    const parts = secrets
      .flatMap((secret) => [secret, ...secret.split('.')])
      .filter((part) => part.length > 20);
    expect(parts.length).toBeGreaterThan(10);
    // The header is the same in every token and says only which algorithm it is; what follows it is secret.
    const header = alice.split('.')[0];
    expect(parts.filter((part) => part !== header && log.includes(part))).toEqual([]);
  });
});
