import { afterEach, describe, expect, test } from 'vitest';
import {
  COPY_DONE,
  encodeBind,
  encodeClose,
  encodeCopyFail,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  SYNC,
  TERMINATE,
} from '../../src/protocol/message-writer.ts';
import { type MiniBackend, type MiniOptions, MiniPostgres } from '../support/mini-postgres.ts';
import { frame, type ScriptedClient } from '../support/scripted-client.ts';
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

/** The one backend that is open. */
const backend = (): MiniBackend => mini.open.at(-1)!;
const bindAll = (name: string, portal = ''): Buffer[] => [
  encodeBind(portal, name, []),
  encodeExecute(portal),
];

/** Every server connection is back in its pool, and one client's request works. */
async function settled(): Promise<void> {
  await until(() => pooler.busyCount === 0 && pooler.waitingCount === 0, 'the return of all connections');
}

describe('pipelines', () => {
  test('Parse that the server knows is answered in its turn, behind the answers before it', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    expect((await client.readReply()).types).toBe('1Z');
    client.send(
      encodeParse('s2', 'SELECT 2'),
      ...bindAll('s2'),
      encodeParse('s3', 'SELECT 1'),
      ...bindAll('s3'),
      SYNC,
    );
    const reply = await client.readReply();
    expect(reply.types).toBe('12TDC12TDCZ');
    expect(reply.rows).toEqual([['SELECT 2'], ['SELECT 1']]);
    // One Parse went to the server for each text.
    expect(backend().frames.filter(({ type }) => type === 'P').length).toBe(2);
  });

  test('an error in the second of three pipelined requests skips to its own Sync only', async () => {
    await start();
    const client = await pooler.login();
    const request = (sql: string): Buffer[] => [encodeParse('', sql), ...bindAll(''), SYNC];
    client.send(...request('SELECT 1'), ...request('ERROR 22012'), ...request('SELECT 3'));
    expect((await client.readReply()).rows).toEqual([['SELECT 1']]);
    const second = await client.readReply();
    expect([second.types, second.error?.code]).toEqual(['12EZ', '22012']);
    expect((await client.readReply()).rows).toEqual([['SELECT 3']]);
    await settled();
  });

  test('a name whose Parse was skipped or failed does not exist afterwards, and is free again', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s0', 'SELECT known'), SYNC);
    await client.readReply();
    client.send(
      encodeParse('bad', 'BAD SQL'),
      encodeParse('skipped', 'SELECT 5'),
      encodeParse('faked', 'SELECT known'),
      encodeClose('S', 's0'),
      SYNC,
    );
    expect((await client.readReply()).types).toBe('EZ');
    for (const name of ['bad', 'skipped', 'faked']) {
      client.send(...bindAll(name), SYNC);
      const reply = await client.readReply();
      expect([name, reply.types, reply.error?.code]).toEqual([name, 'EZ', '26000']);
      expect(reply.error?.message).toContain(`"${name}"`);
    }
    client.send(...bindAll('s0'), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT known']]);
    client.send(encodeParse('skipped', 'SELECT 5'), ...bindAll('skipped'), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT 5']]);
  });

  test('an injected Parse that fails gives the client that error, and the rest of the request is skipped', async () => {
    await start({ general: 'default_pool_size = 2' });
    const client = await pooler.login();
    const other = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    await client.readReply();
    await other.query('BEGIN');
    const failing = await pooler.login();
    await failing.query('BEGIN');
    await failing.query('ERROR 22012');
    // On a server without the statement, inside a failed transaction, the Parse itself is refused.
    failing.send(encodeParse('f1', 'SELECT 9'), ...bindAll('f1'), SYNC);
    const reply = await failing.readReply();
    expect([reply.types, reply.error?.code, reply.status]).toEqual(['EZ', '25P02', 'E']);
    await failing.query('ROLLBACK');
    failing.send(encodeParse('f1', 'SELECT 9'), ...bindAll('f1'), SYNC);
    expect((await failing.readReply()).rows).toEqual([['SELECT 9']]);
  });

  test('a name prepared twice is refused as PostgreSQL refuses it, and leaves nothing behind', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC, encodeParse('s1', 'SELECT 2'), SYNC);
    await client.readReply();
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code]).toEqual(['EZ', '42P05']);
    client.send(...bindAll('s1'), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT 1']]);
    await settled();
    expect([...backend().statements.keys()].filter((name) => name === 's1')).toEqual([]);
  });

  test('a client name with our prefix cannot reach a statement of ours', async () => {
    await start();
    const alice = await pooler.login();
    alice.send(encodeParse('s1', 'SELECT hers'), SYNC);
    await alice.readReply();
    const client = await pooler.login();
    for (const request of [
      [encodeParse('turnstile_1', 'SELECT 1')],
      bindAll('turnstile_1'),
      [encodeDescribe('S', 'turnstile_1')],
    ]) {
      client.send(...request, SYNC);
      expect((await client.readReply()).error).not.toBeNull();
    }
    client.send(encodeClose('S', 'turnstile_1'), SYNC);
    expect((await client.readReply()).types).toBe('3Z');
    alice.send(...bindAll('s1'), SYNC);
    expect((await alice.readReply()).rows).toEqual([['SELECT hers']]);
  });

  test('a transaction that Flush leaves open between Syncs belongs to its client alone', async () => {
    await start({ general: 'default_pool_size = 1' });
    const client = await pooler.login();
    client.send(encodeParse('', 'SELECT 1'), ...bindAll(''), FLUSH);
    await client.expectTypes('12TDC');
    const other = await pooler.login();
    other.sendQuery('SELECT 2');
    await until(() => pooler.waitingCount === 1, 'the wait of the other client');
    // The request goes on where it stopped, on the same server connection.
    client.send(encodeParse('', 'SELECT 3'), ...bindAll(''), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT 3']]);
    expect((await other.readReply()).rows).toEqual([['SELECT 2']]);
  });

  test('a client that leaves between Flush and Sync has its implicit transaction rolled back, not committed', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('', "SET work_mem = '64MB'"), ...bindAll(''), FLUSH);
    await client.expectTypes('12C');
    client.destroy();
    await settled();
    const other = await pooler.login();
    expect((await other.query('SHOW work_mem')).rows).toEqual([['4MB']]);
  });

  test('a request without Sync whose client leaves is rolled back even when answers are still due', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('', "SET work_mem = '64MB'"), ...bindAll(''), TERMINATE);
    await until(
      () => mini.backends.length > 0 && backend().frames.some(({ type }) => type === 'E'),
      'the Execute',
    );
    await settled();
    const other = await pooler.login();
    expect((await other.query('SHOW work_mem')).rows).toEqual([['4MB']]);
  });

  test('the unnamed statement outlives its Sync, on another server connection too', async () => {
    await start({ general: 'default_pool_size = 2' });
    const client = await pooler.login();
    const blocker = await pooler.login();
    client.send(encodeParse('', 'SELECT mine'), encodeDescribe('S', ''), SYNC);
    expect((await client.readReply()).types).toBe('1tTZ');
    await blocker.query('BEGIN');
    client.send(...bindAll(''), SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.rows]).toEqual(['2TDCZ', [['SELECT mine']]]);
    await blocker.query('COMMIT');
  });

  test('the unnamed statement of one client is never the one that another client binds', async () => {
    await start();
    const alice = await pooler.login();
    alice.send(encodeParse('', 'SELECT hers'), SYNC);
    await alice.readReply();
    const eve = await pooler.login();
    eve.send(...bindAll(''), SYNC);
    expect((await eve.readReply()).error?.code).toBe('26000');
    alice.send(encodeParse('', 'SELECT hers'), SYNC);
    await alice.readReply();
    // A Parse that PostgreSQL skips replaces nothing, so the statement of alice is still there.
    eve.send(encodeBind('', 'nothing', []), encodeParse('', 'SELECT mine'), SYNC, ...bindAll(''), SYNC);
    await eve.readReply();
    const seen = [await eve.readReply()];
    eve.send(...bindAll(''), SYNC);
    seen.push(await eve.readReply());
    alice.send(encodeParse('', 'SELECT hers'), SYNC);
    await alice.readReply();
    eve.send(encodeBind('', 'nothing', []), encodeQuery('SELECT skipped'), SYNC);
    await eve.readReply();
    eve.send(...bindAll(''), SYNC);
    seen.push(await eve.readReply());
    for (const { rows, error } of seen) {
      expect(rows.flat()).not.toContain('SELECT hers');
      expect(rows.length === 1 || error?.code === '26000').toBe(true);
    }
  });

  test('an evicted statement whose Close was skipped is neither lost nor prepared twice', async () => {
    await start({ general: 'prepared_statements_limit = 2' });
    const client = await pooler.login();
    for (const name of ['a', 'b']) {
      client.send(encodeParse(name, `SELECT ${name}`), SYNC);
      await client.readReply();
    }
    client.send(encodeBind('', 'nothing', []), encodeParse('c', 'SELECT c'), SYNC);
    expect((await client.readReply()).types).toBe('EZ');
    for (const name of ['a', 'b', 'a']) {
      client.send(...bindAll(name), SYNC);
      expect((await client.readReply()).rows).toEqual([[`SELECT ${name}`]]);
    }
    for (let index = 0; index < 6; index++) {
      client.send(encodeParse(`n${index}`, `SELECT ${index}`), ...bindAll(`n${index}`), SYNC);
      expect((await client.readReply()).rows).toEqual([[`SELECT ${index}`]]);
    }
    expect(backend().statements.size).toBeLessThanOrEqual(4);
  });

  test('row limits: a portal goes on where it stopped within its transaction', async () => {
    await start();
    const client = await pooler.login();
    await client.query('BEGIN');
    client.send(encodeParse('', 'SELECT p'), encodeBind('p', '', []), encodeExecute('p', 1), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT p']]);
    client.send(encodeExecute('p', 1), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT p']]);
    expect((await client.query('COMMIT')).tags).toEqual(['COMMIT']);
  });

  test('an empty query and a FunctionCall come back as they are', async () => {
    await start();
    const client = await pooler.login();
    expect((await client.query('')).types).toBe('IZ');
    client.send(encodeParse('', ''), ...bindAll(''), SYNC);
    expect((await client.readReply()).types).toBe('12IZ');
  });

  test('a 26000 for a statement that vanished behind our back costs one error, not the connection’s future', async () => {
    await start();
    const client = await pooler.login();
    for (const name of ['a', 'b']) {
      client.send(encodeParse(name, `SELECT ${name}`), SYNC);
      await client.readReply();
    }
    for (const [name, text] of backend().statements)
      if (text === 'SELECT a') backend().statements.delete(name);
    client.send(...bindAll('a'), SYNC);
    expect((await client.readReply()).error?.code).toBe('26000');
    for (const name of ['a', 'b', 'a', 'b']) {
      client.send(...bindAll(name), SYNC);
      expect((await client.readReply()).rows).toEqual([[`SELECT ${name}`]]);
    }
  });
});

describe('stale plans (0A000)', () => {
  async function prepared(): Promise<ScriptedClient> {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    await client.readReply();
    backend().makeStale('SELECT 1');
    return client;
  }

  test('in autocommit the request is prepared anew and the client never sees it', async () => {
    const client = await prepared();
    client.send(encodeBind('', 's1', []), encodeDescribe('P', ''), encodeExecute(''), SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.error]).toEqual(['2TTDCZ', null]);
    client.send(...bindAll('s1'), SYNC);
    expect((await client.readReply()).types).toBe('2TDCZ');
    await settled();
  });

  test('inside a transaction the error is the client’s, and the statement works afterwards', async () => {
    const client = await prepared();
    await client.query('BEGIN');
    client.send(...bindAll('s1'), SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code, reply.status]).toEqual(['EZ', '0A000', 'E']);
    await client.query('ROLLBACK');
    client.send(...bindAll('s1'), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT 1']]);
  });

  test('behind work of the same implicit transaction nothing is sent again, since that work is gone', async () => {
    const client = await prepared();
    client.send(encodeParse('', 'SELECT work'), ...bindAll(''), FLUSH);
    await client.expectTypes('12TDC');
    client.send(...bindAll('s1'), SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code]).toEqual(['EZ', '0A000']);
  });

  test('of two requests in flight each gets its own answer, in order', async () => {
    const client = await prepared();
    client.send(...bindAll('s1'), SYNC, encodeParse('', 'SELECT second'), ...bindAll(''), SYNC);
    const first = await client.readReply();
    const second = await client.readReply();
    expect(second.rows).toEqual([['SELECT second']]);
    expect([first.types, first.error?.code ?? null]).toEqual(['EZ', '0A000']);
    client.send(...bindAll('s1'), SYNC);
    expect((await client.readReply()).rows).toEqual([['SELECT 1']]);
  });
});

describe('COPY', () => {
  const copyExtended = (): Buffer[] => [encodeParse('', 'COPYIN x'), ...bindAll('')];

  test('in the extended protocol with the double Sync of libpq', async () => {
    await start();
    const client = await pooler.login();
    for (let round = 0; round < 2; round++) {
      client.send(...copyExtended(), SYNC);
      await client.expectTypes('12G');
      client.send(frame('d', 'one'), frame('d', 'two'), COPY_DONE, SYNC);
      const reply = await client.readReply();
      expect([reply.types, reply.tags]).toEqual(['CZ', ['COPY 2']]);
    }
    await settled();
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('with all of it in one write, before the server has said a word', async () => {
    await start();
    const client = await pooler.login();
    client.send(...copyExtended(), frame('d', 'one'), COPY_DONE, SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.tags]).toEqual(['12GCZ', ['COPY 1']]);
    await settled();
    client.send(encodeQuery('COPYIN x'), frame('d', 'one'), COPY_DONE, encodeQuery('SELECT 2'));
    expect((await client.readReply()).tags).toEqual(['COPY 1']);
    expect((await client.readReply()).rows).toEqual([['SELECT 2']]);
    await settled();
  });

  test.each([
    ['the client fails it', encodeCopyFail('no more'), '57014'],
    ['the data are bad', frame('d', 'bad'), '22P04'],
  ])('that fails since %s: one error, one ReadyForQuery, the rest is dropped', async (_, message, code) => {
    await start();
    const client = await pooler.login();
    client.send(...copyExtended(), SYNC);
    await client.expectTypes('12G');
    client.send(frame('d', 'one'), message);
    expect((await client.expectError()).code).toBe(code);
    client.send(frame('d', 'late'), COPY_DONE, SYNC);
    expect((await client.readReply()).types).toBe('Z');
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    await settled();
    expect(mini.open.length).toBe(1);
  });

  test('that fails before the first Sync is read is answered twice, as PostgreSQL does', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('', 'COPYIN early'), ...bindAll(''), SYNC);
    expect((await client.readReply()).types).toBe('12GEZ');
    client.send(frame('d', 'late'), COPY_DONE, SYNC);
    expect((await client.readReply()).types).toBe('Z');
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    await settled();
  });

  test('in the simple protocol that fails: leftover data are dropped on the way, whoever is next', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('COPYIN x');
    await client.expectTypes('G');
    client.send(frame('d', 'bad'));
    expect((await client.readReply()).types).toBe('EZ');
    client.send(frame('d', 'x'.repeat(100_000)), COPY_DONE);
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    const other = await pooler.login();
    expect((await other.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('a client that leaves in the middle leaves the connection usable, in both protocols', async () => {
    await start();
    for (const begin of [[encodeQuery('COPYIN x')], [...copyExtended(), SYNC]]) {
      const client = await pooler.login();
      client.send(...begin);
      for (;;) if ((await client.readFrame()).type === 'G') break;
      client.send(frame('d', 'one'));
      client.destroy();
      const startedAtMs = performance.now();
      await settled();
      expect(performance.now() - startedAtMs).toBeLessThan(800);
      expect((await (await pooler.login()).query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    }
    expect(mini.backends.length).toBe(1);
  });
});

describe('every split', () => {
  const script: Buffer[] = [
    encodeParse('s1', 'SELECT 1'),
    encodeBind('p1', 's1', ['a value']),
    encodeDescribe('P', 'p1'),
    encodeExecute('p1'),
    SYNC,
    encodeQuery('NOTICE hello; SELECT 2'),
    encodeParse('s2', 'ERROR 22012'),
    ...bindAll('s2'),
    SYNC,
    encodeQuery("SET application_name = 'x'"),
    encodeQuery('COPYOUT 3 50'),
    encodeQuery('COPYIN x'),
    frame('d', 'row'),
    COPY_DONE,
    encodeQuery('SELECT last'),
  ];
  const expected = ['12TTDCZ', 'NCTDCZ', '12EZ', 'CSZ', 'HdddcCZ', 'GCZ', 'TDCZ'];

  test('of what the client sends arrives as the same request', async () => {
    await start();
    const bytes = Buffer.concat(script);
    const sizes = [1, 2, 3, 5, 7, 11, 64];
    for (const size of sizes) {
      const client = await pooler.login();
      await client.sendInPieces(bytes, size);
      const seen: string[] = [];
      for (const _ of expected) seen.push((await client.readReply()).types);
      expect([size, seen]).toEqual([size, expected]);
      await client.terminate();
    }
    await settled();
  });

  test('at every single offset of the client’s stream', async () => {
    await start();
    const bytes = Buffer.concat(script.slice(0, 10));
    for (let at = 1; at < bytes.length; at++) {
      const client = await pooler.login();
      client.send(bytes.subarray(0, at));
      await new Promise((resolve) => setImmediate(resolve));
      client.send(bytes.subarray(at));
      const seen: string[] = [];
      for (let index = 0; index < 3; index++) seen.push((await client.readReply()).types);
      expect([at, seen]).toEqual([at, expected.slice(0, 3)]);
      client.destroy();
    }
  });

  test.each([
    1, 2, 3, 4, 7, 13,
  ])('of what the server sends in pieces of %i arrives unchanged', async (pieceBytes) => {
    await start({}, { pieceBytes });
    const client = await pooler.login();
    client.send(...script);
    const seen: string[] = [];
    for (const _ of expected) seen.push((await client.readReply()).types);
    // What was asked for in the same connection state gives other first answers only once.
    expect(seen).toEqual(expected);
    await settled();
  });
});

describe('large messages and slow readers', () => {
  test('rows beyond every buffer pass, and the connection is lent again afterwards', async () => {
    await start();
    const client = await pooler.login();
    for (const [count, bytes] of [
      [1, 20_000],
      [3, 1_000_000],
      [200, 3_000],
      [1, 70_000],
    ]) {
      const reply = await client.query(`ROWS ${count} ${bytes}`);
      expect(reply.rows.length).toBe(count);
      expect(reply.rows.every(([value]) => value?.length === bytes)).toBe(true);
    }
    const other = await pooler.login();
    expect((await other.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    expect(mini.backends.length).toBe(1);
  });

  test('a large Bind value passes with its statement renamed', async () => {
    await start();
    const client = await pooler.login();
    const value = 'v'.repeat(3_000_000);
    client.send(encodeParse('s1', 'SELECT 1'), encodeBind('', 's1', [value]), encodeExecute(''), SYNC);
    const reply = await client.readReply();
    expect(reply.rows[0]?.[1]?.length).toBe(value.length);
    await settled();
  });

  test('a client that does not read holds up its own server only, within bounded memory', async () => {
    await start({ general: 'default_pool_size = 2' });
    const slow = await pooler.login();
    slow.pause();
    slow.sendQuery('ROWS 20000 10000');
    const other = await pooler.login();
    await until(
      () => [...pooler.worker.view.sessions()].some((s) => s.relay.server?.wire.paused),
      'the pause',
      8_000,
    );
    const before = process.memoryUsage();
    for (let index = 0; index < 50; index++) {
      expect((await other.query(`SELECT ${index}`)).rows).toEqual([[`SELECT ${index}`]]);
    }
    const grownBytes = process.memoryUsage().arrayBuffers - before.arrayBuffers;
    expect(grownBytes).toBeLessThan(32 * 1024 * 1024);
    slow.destroy();
    await settled();
    expect((await other.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('a server that does not read pauses its client, who goes on when the request is over', async () => {
    await start();
    const client = await pooler.login();
    client.sendQuery('COPYIN x');
    await client.expectTypes('G');
    // The first line is bad: PostgreSQL answers at once while megabytes are still on their way.
    client.send(frame('d', 'bad'));
    const line = frame('d', Buffer.alloc(60_000, 0x61));
    for (let index = 0; index < 100; index++) client.send(line);
    client.send(COPY_DONE);
    expect((await client.readReply(8_000)).types).toBe('EZ');
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    await settled();
  });
});

describe('what only a pooler can get wrong', () => {
  test('DEALLOCATE of a mapped name, then the same name prepared again in the same breath', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT old'), SYNC);
    await client.readReply();
    client.send(encodeQuery('DEALLOCATE s1'), encodeParse('s1', 'SELECT new'), ...bindAll('s1'), SYNC);
    expect((await client.readReply()).tags).toEqual(['DEALLOCATE']);
    expect((await client.readReply()).rows).toEqual([['SELECT new']]);
    expect((await client.query('DEALLOCATE nobody')).error?.code).toBe('26000');
  });

  test.each([
    'DISCARD ALL',
    'DEALLOCATE ALL',
  ])('%s behind another request in flight holds back what follows', async (text) => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    await client.readReply();
    client.send(
      encodeQuery('SELECT before'),
      encodeQuery(text),
      encodeParse('s1', 'SELECT 1'),
      ...bindAll('s1'),
      SYNC,
    );
    expect((await client.readReply()).rows).toEqual([['SELECT before']]);
    expect((await client.readReply()).tags).toEqual([text]);
    expect((await client.readReply()).types).toBe('12TDCZ');
    await settled();
  });

  test('a request that comes between a stale plan’s error and its ReadyForQuery keeps its place', async () => {
    await start({}, { pieceBytes: 1 });
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    await client.readReply();
    backend().makeStale('SELECT 1');
    client.send(encodeBind('', 's1', []), encodeExecute(''), SYNC);
    for (let turn = 0; turn < 40; turn++) {
      client.send(encodeQuery(`SELECT turn${turn}`));
      await new Promise((resolve) => setImmediate(resolve));
    }
    const first = await client.readReply();
    // Either the request went alone and was prepared anew, or others were in flight and the error is the client's.
    expect(first.rows.length === 1 ? first.rows : first.error?.code).toEqual(
      first.rows.length === 1 ? [['SELECT 1']] : '0A000',
    );
    for (let turn = 0; turn < 40; turn++) {
      expect((await client.readReply()).rows).toEqual([[`SELECT turn${turn}`]]);
    }
    await settled();
  });

  test('answers that cost the server nothing cannot pile up without a bound', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('s1', 'SELECT 1'), SYNC);
    await client.readReply();
    client.sendQuery('HANG');
    await until(() => backend().texts.includes('HANG'), 'the statement');
    const closes = Buffer.concat(Array.from({ length: 10_000 }, () => encodeClose('S', 'turnstile_none')));
    for (let index = 0; index < 20; index++) client.send(closes);
    const session = [...pooler.worker.view.sessions()][0]!;
    await until(() => session.relay.wire.paused, 'the pause');
    expect(session.relay.server?.pending.length).toBeLessThan(32_768);
    client.send(SYNC);
    backend().cancel();
    expect((await client.readReply()).error?.code).toBe('57014');
    const reply = await client.readReply(10_000);
    expect(reply.frames.length).toBe(200_001);
    await settled();
  });

  test('a COPY whose second Sync comes late keeps its connection until then', async () => {
    await start();
    const client = await pooler.login();
    client.send(encodeParse('', 'COPYIN x'), ...bindAll(''), SYNC);
    await client.expectTypes('12G');
    client.send(COPY_DONE);
    await client.expectTypes('C');
    const other = await pooler.login();
    other.sendQuery('SELECT 1');
    await until(() => pooler.waitingCount === 1, 'the wait of the other client');
    client.send(SYNC);
    expect((await client.readReply()).types).toBe('Z');
    expect((await other.readReply()).rows).toEqual([['SELECT 1']]);
  });

  test('SET statements of two clients who share a text do not share its meaning', async () => {
    await start();
    const one = await pooler.login('alice', 'app', { search_path: 'a' });
    const two = await pooler.login('alice', 'app', { search_path: 'b' });
    for (const client of [one, two]) {
      client.send(encodeParse('s1', 'SELECT same'), ...bindAll('s1'), SYNC);
      expect((await client.readReply()).types).toBe('12TDCZ');
    }
    expect([...backend().statements.values()].filter((text) => text === 'SELECT same').length).toBe(2);
  });
});
