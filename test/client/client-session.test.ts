import { afterEach, describe, expect, test } from 'vitest';
import {
  encodeBind,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
  TERMINATE,
} from '../../src/protocol/message-writer.ts';
import { errorFrame, type MiniBackend, type MiniOptions, MiniPostgres } from '../support/mini-postgres.ts';
import { frame, ScriptedClient } from '../support/scripted-client.ts';
import { TestWorker, type TestWorkerOptions, until } from '../support/worker.ts';

let mini: MiniPostgres;
let pooler: TestWorker;

async function start(options: Partial<TestWorkerOptions> = {}, server: MiniOptions = {}): Promise<void> {
  mini = await MiniPostgres.listen(server);
  pooler = await TestWorker.start({ serverPort: mini.port, ...options });
}

afterEach(async () => {
  await pooler.stop();
  await mini.close();
});

const backend = (): MiniBackend => mini.open.at(-1)!;
const settled = (): Promise<void> =>
  until(() => pooler.busyCount === 0 && pooler.waitingCount === 0, 'the return of all connections');
const show = async (client: ScriptedClient, name: string): Promise<string | null | undefined> =>
  (await client.query(`SHOW ${name}`)).rows[0]?.[0];

describe('settings', () => {
  test('differences go out in the same write, ahead of the request, and only when there are any', async () => {
    await start();
    const alice = await pooler.login('alice', 'app', { application_name: 'first' });
    const other = await pooler.login('alice', 'app', { application_name: 'second' });
    await other.query('SELECT 1');
    backend().chunks.length = 0;
    await alice.query('SELECT 2');
    const [chunk] = backend().chunks;
    expect(backend().chunks.length).toBe(1);
    const sent = chunk!.toString('latin1');
    expect(sent.indexOf('first')).toBeGreaterThan(0);
    expect(sent.indexOf('first')).toBeLessThan(sent.indexOf('SELECT 2'));
    await alice.query('SELECT 3');
    expect(backend().chunks[1]?.equals(encodeQuery('SELECT 3'))).toBe(true);
  });

  test('of each client are his on every connection, set at startup or by SET, reported or not', async () => {
    await start();
    const one = await pooler.login('alice', 'app', { application_name: 'one', work_mem: '1MB' });
    const two = await pooler.login('alice', 'app');
    await two.query("SET work_mem = '2MB'");
    await two.query("SET TimeZone = 'Mars'");
    for (let round = 0; round < 3; round++) {
      expect(await show(one, 'application_name')).toBe('one');
      expect(await show(one, 'work_mem')).toBe('1MB');
      expect(await show(one, 'TimeZone')).toBe('UTC');
      expect(await show(two, 'application_name')).toBe('');
      expect(await show(two, 'work_mem')).toBe('2MB');
      expect(await show(two, 'TimeZone')).toBe('Mars');
    }
  });

  test('set inside a transaction survive its commit and not its rollback', async () => {
    await start();
    const client = await pooler.login();
    const other = await pooler.login();
    for (const [name, end, wanted] of [
      ['work_mem', 'COMMIT', 'x'],
      ['work_mem', 'ROLLBACK', 'x'],
      ['TimeZone', 'COMMIT', 'y'],
      ['TimeZone', 'ROLLBACK', 'y'],
    ] as const) {
      await client.query('BEGIN');
      await client.query(`SET ${name} = '${end === 'COMMIT' ? wanted : 'lost'}'`);
      await client.query(end);
      expect(await show(other, name)).not.toBe('lost');
      expect(await show(client, name)).toBe(wanted);
    }
  });

  test('RESET ALL and DISCARD ALL go back to what the startup packet said', async () => {
    await start();
    const client = await pooler.login('alice', 'app', { application_name: 'mine', work_mem: '7MB' });
    const other = await pooler.login();
    for (const command of ['RESET ALL', 'DISCARD ALL']) {
      await client.query("SET application_name = 'changed'; SET work_mem = '9MB'; SET TimeZone = 'Mars'");
      expect(await show(client, 'application_name')).toBe('changed');
      await client.query(command);
      for (let round = 0; round < 2; round++) {
        expect([command, await show(client, 'application_name')]).toEqual([command, 'mine']);
        expect([command, await show(client, 'work_mem')]).toEqual([command, '7MB']);
        expect([command, await show(client, 'TimeZone')]).toEqual([command, 'UTC']);
        expect(await show(other, 'application_name')).toBe('');
        expect(await show(other, 'work_mem')).toBe('4MB');
      }
    }
  });

  test('the client hears of a RESET ALL by ParameterStatus, with his startup value last', async () => {
    await start();
    const client = await pooler.login('alice', 'app', { application_name: 'mine' });
    await client.query("SET application_name = 'changed'");
    const reply = await client.query('RESET ALL');
    const later = await client.query('SELECT 1');
    const told = [...reply.frames, ...later.frames]
      .filter(({ type }) => type === 'S')
      .map(({ body }) => body.toString().split('\0')[1]);
    expect(told.at(-1)).toBe('mine');
  });

  test('a SET whose client leaves in the same breath is not the next client’s', async () => {
    await start();
    for (const last of [
      [encodeQuery("SET work_mem = 'stray'"), TERMINATE],
      [encodeParse('', "SET work_mem = 'stray'"), encodeBind('', '', []), encodeExecute(''), SYNC, TERMINATE],
      [encodeQuery("SET TimeZone = 'stray'"), TERMINATE],
      [encodeQuery("BEGIN; SET TimeZone = 'stray'"), TERMINATE],
      [encodeQuery("BEGIN; SET work_mem = 'stray'"), TERMINATE],
    ]) {
      const client = await pooler.login('alice', 'app');
      client.send(...last);
      await client.readToEnd();
      await settled();
      const next = await pooler.login('alice', 'app');
      expect(await show(next, 'work_mem')).toBe('4MB');
      expect(await show(next, 'TimeZone')).toBe('UTC');
    }
  });

  test('a transaction of a client that left takes its reported settings back, and nobody trusts them', async () => {
    await start();
    const venus = await pooler.login('alice', 'app', { TimeZone: 'Venus' });
    const client = await pooler.login('alice', 'app', { TimeZone: 'Mars' });
    await client.query('BEGIN');
    await client.query("SET TimeZone = 'Venus'");
    client.destroy();
    await settled();
    expect(await show(venus, 'TimeZone')).toBe('Venus');
    const mars = await pooler.login('alice', 'app', { TimeZone: 'Mars' });
    expect(await show(mars, 'TimeZone')).toBe('Mars');
  });

  test('a startup setting that PostgreSQL refuses is the login’s FATAL error', async () => {
    await start();
    const client = await pooler.connect();
    client.sendStartup({ user: 'alice', database: 'app', work_mem: 'invalid' });
    for (;;) {
      const { type, body } = await client.readFrame();
      if (type !== 'E') continue;
      expect(body.toString()).toContain('22023');
      expect(body.toString()).toContain('FATAL');
      break;
    }
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });
});

describe('pins', () => {
  test('LISTEN keeps the connection until DISCARD ALL, and notifications reach the client', async () => {
    await start({ general: 'default_pool_size = 1\ncheckout_timeout = 300' });
    const client = await pooler.login();
    await client.query('LISTEN news');
    const other = await pooler.login();
    expect((await other.query('SELECT 1')).error?.code).toBe('53300');
    backend().inject(frame('A', Buffer.from('\0\0\0\x01news\0hello\0', 'latin1')));
    expect((await client.expect('A')).toString('latin1')).toContain('hello');
    await client.query('DISCARD ALL');
    expect((await other.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('a pinned client that leaves has his connection discarded before anybody else gets it', async () => {
    await start();
    const client = await pooler.login();
    await client.query('LISTEN news');
    client.destroy();
    await settled();
    expect(backend().texts.at(-1)).toBe('DISCARD ALL');
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('a pin that comes into force while its client is leaving counts too', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeQuery('LISTEN news'), TERMINATE);
    await client.readToEnd();
    await settled();
    expect(backend().texts.at(-1)).toBe('DISCARD ALL');
  });
});

describe('session mode', () => {
  test('keeps one connection for one client and cleans it afterwards', async () => {
    await start({ general: 'pooler_mode = "session"\ncheckout_timeout = 300' });
    const client = await pooler.login();
    await client.query("SET work_mem = '9MB'");
    const other = await pooler.login();
    expect((await other.query('SELECT 1')).error?.code).toBe('53300');
    await client.terminate();
    expect(await show(other, 'work_mem')).toBe('4MB');
    expect(mini.backends.length).toBe(1);
  });
});

describe('a client that leaves', () => {
  test('idle costs nothing', async () => {
    await start();
    const client = await pooler.login();
    await client.query('SELECT 1');
    const frames = backend().frames.length;
    await client.terminate();
    await until(() => pooler.sessionCount === 0, 'the end of the session');
    expect(backend().frames.length).toBe(frames);
  });

  test('in a transaction has it rolled back before the connection is lent again', async () => {
    await start();
    const client = await pooler.login();
    await client.query('BEGIN');
    client.destroy();
    const next = await pooler.login();
    expect((await next.query('SELECT 1')).status).toBe('I');
    expect(backend().texts).toEqual(['BEGIN', 'ROLLBACK', 'SELECT 1']);
    expect(mini.backends.length).toBe(1);
  });

  test('while his statement runs has it cancelled, and the connection is used again', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    client.destroy();
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    expect(mini.cancels).toEqual([{ processId: backend().processId, hit: true }]);
    expect(mini.backends.length).toBe(1);
  });

  test('in the middle of a large result has it drained or the connection closed, never lent in between', async () => {
    await start();
    const client = await pooler.login();
    client.pause();
    client.sendQuery('ROWS 5000 8000');
    await until(
      () => [...pooler.worker.view.sessions()].some((s) => s.relay.server?.wire.paused),
      'the pause',
    );
    client.destroy();
    const next = await pooler.login();
    expect((await next.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    await settled();
  });

  test('with a statement that cannot be cancelled loses the connection at rollback_timeout', async () => {
    await start({ general: 'rollback_timeout = 200' }, { cancelCloseDelayMs: 600 });
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    client.destroy();
    const next = await pooler.login();
    expect((await next.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    expect(mini.backends.length).toBe(2);
  });

  test('in the middle of a message takes the connection with him, since its rest will never come', async () => {
    await start();
    const client = await pooler.login();
    const bind = encodeBind('', 's1', ['v'.repeat(150_000)]);
    client.send(encodeParse('s1', 'SELECT 1'), bind.subarray(0, 100_000));
    await until(
      () => [...pooler.worker.view.sessions()].some((s) => s.relay.sendingPart),
      'the part of a message',
    );
    client.destroy();
    const next = await pooler.login();
    expect((await next.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    expect([mini.backends.length, mini.open.length]).toEqual([2, 1]);
  });

  test('while he waits for a connection leaves the queue', async () => {
    await start();
    const holder = await pooler.login();
    await holder.query('BEGIN');
    const client = await pooler.login();
    client.sendQuery('SELECT never');
    await until(() => pooler.waitingCount === 1, 'the wait');
    client.destroy();
    await until(() => pooler.waitingCount === 0, 'the end of the wait');
    await holder.query('COMMIT');
    expect(backend().texts).not.toContain('SELECT never');
  });
});

describe('cancel', () => {
  /** The key that the pooler gave to a client. */
  async function loginWithKey(): Promise<{ client: ScriptedClient; processId: number; key: Buffer }> {
    const client = await pooler.connect();
    const { processId, secretKey } = await client.login({ user: 'alice', database: 'app' });
    return { client, processId, key: secretKey };
  }
  async function sendCancel(processId: number, key: Buffer): Promise<void> {
    const canceller = await ScriptedClient.connect({ port: pooler.port });
    canceller.sendCancelRequest(processId, key);
    await canceller.readToEnd();
  }

  test('reaches the statement of its own session and no other', async () => {
    await start({ general: 'default_pool_size = 2' });
    const one = await loginWithKey();
    const two = await loginWithKey();
    expect(one.key.equals(two.key)).toBe(false);
    one.client.sendQuery('HANG');
    two.client.sendQuery('HANG');
    await until(() => mini.open.length === 2 && mini.open.every((b) => b.texts.includes('HANG')), 'both');
    await sendCancel(two.processId, two.key);
    expect((await two.client.readReply()).error?.code).toBe('57014');
    expect(mini.cancels.length).toBe(1);
    expect((await two.client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    await sendCancel(one.processId, one.key);
    expect((await one.client.readReply()).error?.code).toBe('57014');
  });

  test('with a wrong key, of nobody, or for an idle session is ignored', async () => {
    await start();
    const one = await loginWithKey();
    await one.client.query('SELECT 1');
    await sendCancel(one.processId, one.key);
    one.client.sendQuery('HANG');
    await until(() => backend().texts.includes('HANG'), 'the statement');
    const wrong = Buffer.from(one.key);
    wrong[0]! ^= 1;
    await sendCancel(one.processId, wrong);
    await sendCancel(one.processId, Buffer.concat([one.key, one.key]));
    await sendCancel(one.processId + 1, one.key);
    expect(mini.cancels).toEqual([]);
    await sendCancel(one.processId, one.key);
    expect((await one.client.readReply()).error?.code).toBe('57014');
  });

  test('answers a session that waits for a connection at once, and the holder feels nothing', async () => {
    await start();
    const holder = await pooler.login();
    await holder.query('BEGIN');
    const one = await loginWithKey();
    for (const request of [
      [encodeQuery('SELECT 1')],
      [encodeParse('', 'SELECT 1'), encodeBind('', '', []), encodeExecute(''), SYNC],
    ]) {
      one.client.send(...request);
      await until(() => pooler.waitingCount === 1, 'the wait');
      await sendCancel(one.processId, one.key);
      const reply = await one.client.readReply();
      expect([reply.types, reply.error?.code]).toEqual(['EZ', '57014']);
    }
    expect(mini.cancels).toEqual([]);
    await holder.query('COMMIT');
    expect((await one.client.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('in flight keeps the connection from the next client until it is done with', async () => {
    await start({}, { cancelCloseDelayMs: 250 });
    const one = await loginWithKey();
    const next = await pooler.login();
    one.client.sendQuery('COPYIN x');
    await one.client.expectTypes('G');
    const canceller = await ScriptedClient.connect({ port: pooler.port });
    canceller.sendCancelRequest(one.processId, one.key);
    await until(
      () => [...pooler.worker.view.sessions()].some((s) => (s.relay.server?.cancelsInFlight ?? 0) > 0),
      'the cancel',
    );
    // The statement ends by itself before the signal comes.
    one.client.send(frame('c'));
    expect((await one.client.readReply()).tags).toEqual(['COPY 0']);
    next.sendQuery('HANG');
    await until(() => mini.cancels.length === 1, 'the signal');
    expect(mini.cancels[0]?.hit).toBe(false);
    await until(() => backend().texts.includes('HANG'), 'the next statement');
  });
});

describe('a server that goes away', () => {
  test('of its own accord with a FATAL error: the client gets exactly that one', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('FATAL');
    const error = await client.expectFatal();
    expect([error.severity, error.code]).toEqual(['FATAL', '57P01']);
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test.each([
    'DIE',
    'BEGIN; DIE',
    'COPYOUT 1 10; DIE',
  ])('without a word during %s: FATAL 08006', async (text) => {
    await start();
    const client = await pooler.login();
    client.sendQuery(text);
    let last = await client.readFrame();
    while (last.type !== 'E') last = await client.readFrame();
    expect(last.body.toString()).toContain('08006');
    expect(await client.readToEnd()).toEqual(Buffer.alloc(0));
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('in a transaction between two statements, or while it is pinned: FATAL 08006', async () => {
    await start();
    for (const text of ['BEGIN', 'LISTEN news']) {
      const client = await pooler.login();
      await client.query(text);
      backend().peer.socket.destroy();
      expect((await client.expectFatal()).code).toBe('08006');
    }
  });

  test('in the middle of a row: the connection ends without an error stuck into the row', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    const row = frame('D', Buffer.alloc(40_000, 0x61));
    backend().inject(row.subarray(0, 30_000));
    await until(() => client.bufferedBytes === 30_000, 'the part of the row');
    backend().peer.socket.destroy();
    expect((await client.readToEnd()).equals(row.subarray(0, 30_000))).toBe(true);
  });

  test('while it is idle: nobody notices', async () => {
    await start();
    const client = await pooler.login();
    await client.query('SELECT 1');
    backend().peer.socket.destroy();
    await until(() => pooler.serverCount === 0, 'the loss');
    expect((await client.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('after an unsolicited FATAL while it is idle: it is not lent any more', async () => {
    await start();
    const client = await pooler.login();
    await client.query('SELECT 1');
    const fatal = errorFrame('E', { S: 'FATAL', V: 'FATAL', C: '57P01', M: 'terminating connection' });
    backend().inject(fatal);
    await until(() => pooler.serverCount === 0, 'the end of the connection');
    expect((await client.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
    expect(mini.backends.length).toBe(2);
  });

  test('while its client is being cleaned: the next client gets a new one', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    const first = backend();
    client.destroy();
    first.peer.socket.destroy();
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });
});

describe('a server that breaks the protocol', () => {
  const cases: [string, Buffer][] = [
    ['a message type that does not exist', frame('?', 'x')],
    ['a length below four', frame('C', 'x', 2)],
    ['a negative length', frame('D', 'x', -5)],
    ['a length beyond everything', frame('D', 'x', 0x7fffffff)],
    ['ReadyForQuery nobody waits for', Buffer.concat([frame('Z', 'I'), frame('Z', 'I'), frame('Z', 'I')])],
    ['ReadyForQuery of a wrong size', frame('Z', 'III')],
    ['ReadyForQuery with a status that does not exist', frame('Z', 'X')],
    ['CommandComplete that nothing asked for', Buffer.concat([frame('Z', 'I'), frame('C', 'SELECT 1\0')])],
    ['a row that nothing asked for', Buffer.concat([frame('Z', 'I'), frame('D', '\0\0')])],
    ['ParseComplete out of step', frame('1')],
    ['BindComplete out of step', frame('2')],
    ['an error without an end', frame('E', 'SERROR')],
    ['a ParameterStatus without a value', frame('S', 'name')],
    ['a CommandComplete of a gigabyte', frame('C', 'x', 0x3fffffff)],
  ];

  test.each(cases)('with %s: that connection ends, everything else goes on', async (_, bytes) => {
    await start({ general: 'default_pool_size = 2' });
    const other = await pooler.login();
    await other.query('BEGIN');
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.open.length === 2 && backend().texts.includes('HANG'), 'the statement');
    const broken = backend();
    broken.inject(bytes);
    await until(() => broken.closed, 'the end of the connection');
    await until(() => pooler.serverCount === 1, 'the count');
    expect((await other.query('COMMIT')).tags).toEqual(['COMMIT']);
    client.destroy();
    expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });
});

describe('deadlines', () => {
  test('query_timeout counts from the request, not from the beginning of time, when settings go first', async () => {
    await start({ general: 'query_timeout = 600' });
    const one = await pooler.login('alice', 'app', { application_name: 'one' });
    const two = await pooler.login('alice', 'app', { application_name: 'two' });
    await one.query('SELECT 1');
    two.sendQuery('HANG');
    await until(() => backend().texts.includes('HANG'), 'the statement');
    const startedAtMs = performance.now();
    const reply = await two.readReply();
    expect(reply.error?.code).toBe('57014');
    expect(performance.now() - startedAtMs).toBeGreaterThan(400);
  });

  test('client_idle_in_transaction_timeout counts from the end of the statement', async () => {
    await start({ general: 'client_idle_in_transaction_timeout = 300' });
    const client = await pooler.login();
    await client.query('BEGIN');
    client.sendQuery('COPYIN x');
    await client.expectTypes('G');
    const backendOne = backend();
    // The statement takes longer than the limit: the answers come from the server, the client says nothing.
    await new Promise((resolve) => setTimeout(resolve, 450));
    backendOne.cancel();
    expect((await client.readReply()).error?.code).toBe('57014');
    await new Promise((resolve) => setTimeout(resolve, 120));
    expect((await client.query('ROLLBACK')).tags).toEqual(['ROLLBACK']);
    await client.query('BEGIN');
    expect((await client.expectFatal()).code).toBe('25P03');
    await settled();
    expect(backendOne.texts.at(-1)).toBe('ROLLBACK');
  });

  test('client_idle_timeout ends an idle client with 57P05', async () => {
    await start({ general: 'client_idle_timeout = 200' });
    const client = await pooler.login();
    await client.query('SELECT 1');
    expect((await client.expectFatal()).code).toBe('57P05');
  });
});

describe('back-pressure and the end of a link', () => {
  const linkedSession = (): { relay: { server: { wire: object } | null; wire: object } } =>
    [...pooler.worker.view.sessions()].find((session) => session.relay.server !== null)!;
  const makeBlocked = (wire: object): (() => void) => {
    Object.defineProperty(wire, 'writeBlocked', { configurable: true, get: () => true });
    return () => void delete (wire as { writeBlocked?: boolean }).writeBlocked;
  };

  test('a connection that was paused for a slow client is read again for its next owner', async () => {
    await start();
    const slow = await pooler.login();
    slow.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    const unblock = makeBlocked(linkedSession().relay.wire);
    backend().cancel();
    await settled();
    unblock();
    const other = await pooler.login();
    expect((await other.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('a client that was paused for a slow server is read again once the server has answered', async () => {
    await start();
    const client = await pooler.login();
    await client.query('BEGIN');
    const wire = linkedSession().relay.server!.wire;
    const unblock = makeBlocked(wire);
    client.sendQuery('COMMIT');
    expect((await client.readReply()).tags).toEqual(['COMMIT']);
    unblock();
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });
});
