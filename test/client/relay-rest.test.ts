/**
 * Clients whose next request comes ahead of the answers to our own batches: the connection comes to rest all the
 * same where settings are to be read back, where it is to be closed, and where others wait for it.
 */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { encodeParse, encodeQuery, SYNC } from '../../src/protocol/message-writer.ts';
import { type MiniBackend, type MiniOptions, MiniPostgres } from '../support/mini-postgres.ts';
import type { ScriptedClient } from '../support/scripted-client.ts';
import { TestWorker, type TestWorkerOptions, until } from '../support/worker.ts';

const directory = mkdtempSync(join(tmpdir(), 'pgturnstile-rest-'));
const keyPath = join(directory, 'key.pem');
const { publicKey } = generateKeyPairSync('ed25519');
writeFileSync(keyPath, publicKey.export({ type: 'spki', format: 'pem' }));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let mini: MiniPostgres;
let pooler: TestWorker;

/** Our batches take longer to answer than a client on the same machine needs for its next request. */
const slowly = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 10));

async function start(options: Partial<TestWorkerOptions> = {}, server: MiniOptions = {}): Promise<void> {
  mini = await MiniPostgres.listen({ beforeOwn: slowly, ...server });
  pooler = await TestWorker.start({ serverPort: mini.port, ...options });
}

/** Sessions of a role that is taken with SET ROLE, and asserted behind each transaction. */
const startGuarded = (options: Partial<TestWorkerOptions> = {}, server: MiniOptions = {}): Promise<void> =>
  start(
    {
      ...options,
      general: `auth_type = "jwt"\njwt_server_user = "service"\njwt_public_key_file = "${keyPath}"\n${options.general ?? ''}`,
      turnstile: `${options.turnstile ?? ''}\nauth_required = false\nanonymous_role = "anon"\nanonymous_users = ["guest"]\nrole_check_interval = 600000\nnologin_roles = "allow"`,
    },
    { role: 'anon', ...server },
  );

afterEach(async () => {
  await pooler.stop();
  await mini.close();
});

const backend = (): MiniBackend => mini.open.at(-1)!;

/** Asks again as soon as it has its answer, until told to stop. */
function talk(client: ScriptedClient, request: () => Buffer): { count: number; stop(): Promise<void> } {
  let stopped = false;
  const talker = {
    count: 0,
    stop: async (): Promise<void> => {
      stopped = true;
      await done;
    },
  };
  const done = (async () => {
    while (!stopped) {
      client.send(request());
      await client.readReply();
      talker.count++;
    }
  })();
  return talker;
}

/** The same without waiting for an answer: there is always a request under way. */
function pipeline(client: ScriptedClient): { count: number; stop(): Promise<void> } {
  client.sendQuery('SELECT 0');
  client.sendQuery('SELECT 0');
  const talker = talk(client, () => encodeQuery('SELECT 0'));
  const stop = async (): Promise<void> => {
    await talker.stop();
    await client.readReply();
    await client.readReply();
  };
  return {
    get count() {
      return talker.count;
    },
    stop,
  };
}

const plain = (): Buffer => encodeQuery('SELECT 1');

test('a text that is prepared right behind SET is not matched to a statement of the old settings', async () => {
  await start();
  const text = 'SELECT a FROM t';
  const other = await pooler.login();
  await other.extended({ sql: text, statement: 'one' });
  const client = await pooler.login();
  for (const path of ['tenant', 'another']) {
    await client.query(`SET search_path = '${path}'`);
    expect((await client.extended({ sql: text, statement: path })).types).toBe('12TTDCZ');
  }
  const names = [...backend().statements].filter(([, known]) => known === text).map(([name]) => name);
  expect(names).toHaveLength(3);
});

test('nor is one in a pipeline behind SET, whose answer comes while more is under way', async () => {
  await start({}, { beforeOwn: async () => {} });
  const text = 'SELECT a FROM t';
  const other = await pooler.login();
  await other.extended({ sql: text, statement: 'one' });
  const client = await pooler.login();
  client.send(encodeQuery("SET search_path = 'tenant'"), encodeQuery('ROWS 1 1'), encodeQuery('HANG'));
  await client.readReply();
  client.send(encodeParse('two', text), SYNC);
  await client.readReply();
  backend().cancel();
  expect((await client.readReply()).error?.code).toBe('57014');
  expect((await client.readReply()).types).toBe('1Z');
  const names = [...backend().statements].filter(([, known]) => known === text).map(([name]) => name);
  expect(names).toHaveLength(2);
});

test.each([
  ['talks without pause', (client: ScriptedClient) => talk(client, plain)],
  ['pipelines without end', pipeline],
])('a session that %s does not keep a retired connection', async (_, begin) => {
  await startGuarded();
  const client = await pooler.login('guest');
  const talker = begin(client);
  await until(() => talker.count > 3, 'some transactions');
  const old = backend();
  pooler.worker.view.pools.reconnect(null);
  await until(() => backend() !== old && old.closed, 'the new connection', 1_000);
  const { count } = talker;
  await until(() => talker.count > count, 'its next answers');
  await talker.stop();
});

test('nor one whose server_lifetime is over', async () => {
  await startGuarded({ general: 'server_lifetime = 200\nserver_lifetime_jitter = 0' });
  const client = await pooler.login('guest');
  const talker = talk(client, plain);
  await until(() => talker.count > 3, 'some transactions');
  await until(() => mini.backends.length > 1, 'another connection', 2_000);
  await talker.stop();
});

test.each([
  ['talks without pause', (client: ScriptedClient) => talk(client, plain), 10],
  ['pipelines without end', pipeline, 1_000],
])('of two sessions and one connection, one that %s leaves the other its turns', async (_, begin, bound) => {
  await startGuarded();
  const busy = await pooler.login('guest');
  const other = await pooler.login('guest');
  const talker = begin(busy);
  await until(() => talker.count > 3, 'some transactions');
  for (let turn = 0; turn < 3; turn++) {
    const before = talker.count;
    expect((await other.query('SELECT 2')).tags).toEqual(['SELECT 1']);
    expect(talker.count - before).toBeLessThan(bound);
  }
  await talker.stop();
  expect(backend().texts.filter((text) => text === 'SELECT 2')).toHaveLength(3);
});

test('a session of another role gets its turn where the cap on connections is one', async () => {
  await start({ turnstile: 'max_server_connections = 1' });
  const busy = await pooler.login('alice');
  const talker = talk(busy, () => encodeQuery("SET work_mem = '1MB'"));
  await until(() => talker.count > 3, 'some transactions');
  const other = await pooler.login('bob');
  expect((await other.query('SELECT 2')).tags).toEqual(['SELECT 1']);
  await talker.stop();
});

test('a session that nobody waits for sends its next request before our batch is answered', async () => {
  let release = (): void => {};
  let held = 0;
  const beforeOwn = (): Promise<void> =>
    new Promise((resolve) => {
      held++;
      release = resolve;
    });
  await startGuarded({}, { beforeOwn });
  const client = await pooler.login('guest');
  await client.query('SELECT 1');
  await until(() => held > 0, 'the assertion of the role');
  const before = backend().chunks.length;
  client.sendQuery('SELECT 2');
  await until(() => backend().chunks.length > before, 'the next request at the server');
  release();
  expect((await client.readReply()).tags).toEqual(['SELECT 1']);
  release();
});

test('a session that drains ends behind its request, however soon the next one comes', async () => {
  await startGuarded();
  const client = await pooler.login('guest');
  await client.query('SELECT 1');
  for (const session of pooler.worker.view.sessions()) session.drain();
  client.sendQuery('SELECT 2');
  expect((await client.expectFatal()).code).toBe('57P01');
  expect(backend().texts).not.toContain('SELECT 2');
});

test('a client that leaves behind its last answer cancels nothing of ours', async () => {
  await startGuarded();
  for (let round = 0; round < 3; round++) {
    const client = await pooler.login('guest');
    await client.query('SELECT 1');
    await client.terminate();
  }
  await until(() => pooler.busyCount === 0, 'the return of the connection');
  expect(mini.cancels).toEqual([]);
  expect(mini.backends).toHaveLength(1);
});

test('a role that appears is everybody’s from then on, whoever logged in before', async () => {
  await startGuarded({ turnstile: 'missing_role = "server_user"' }, { roleMissing: true });
  const before = await pooler.login('guest');
  await before.query('SELECT 1');
  await until(() => pooler.busyCount === 0, 'the return of the connection');
  expect(backend().roles.at(-1)).toBe('none');
  mini.options.roleMissing = false;
  pooler.worker.view.pools.reconnect(null);
  const next = await pooler.login('guest', 'app', { work_mem: '1MB' });
  for (const client of [next, before, next]) await client.query('SELECT 1');
  await until(() => pooler.busyCount === 0, 'the return of the connection');
  expect(backend().roles.length).toBeGreaterThan(2);
  expect([...new Set(backend().roles)]).toEqual(['anon']);
});

test('a role with clients that always wait leaves a shared place to another before those give up', async () => {
  await start({ turnstile: 'max_server_connections = 1' }, { beforeOwn: async () => {} });
  const talkers: ReturnType<typeof talk>[] = [];
  for (let index = 0; index < 3; index++) talkers.push(talk(await pooler.login('alice'), plain));
  await until(() => talkers.every(({ count }) => count > 3), 'some transactions');
  const other = await pooler.login('bob');
  expect((await other.query('SELECT 2')).tags).toEqual(['SELECT 1']);
  const counts = talkers.map(({ count }) => count);
  await until(() => talkers.every(({ count }, index) => count > counts[index]!), 'their next turns');
  for (const talker of talkers) await talker.stop();
});
