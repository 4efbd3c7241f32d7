import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { MESSAGE_BYTES_MAX } from '../../src/admin/inbox.ts';
import { PREPARED_MAX } from '../../src/admin/prepared-commands.ts';
import { PRODUCT_VERSION } from '../../src/admin/product.ts';
import { Clock } from '../../src/base/clock.ts';
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  MessageWriter,
  SYNC,
  TERMINATE,
} from '../../src/protocol/message-writer.ts';
import { until } from '../client/support.ts';
import { closeStatement, frame, ScriptedClient } from '../support/scripted-client.ts';
import { ConsoleServer, FakeView, fakeSession } from './support.ts';

let server: ConsoleServer;
let view: FakeView;
let client: ScriptedClient;

beforeEach(async () => {
  view = new FakeView();
  server = await new ConsoleServer(view).listen();
  client = await server.login();
});
afterEach(() => server.close());

async function stillWorks(): Promise<void> {
  expect((await client.query('SHOW VERSION')).rows).toEqual([[PRODUCT_VERSION]]);
}

test('the welcome reports what drivers count on, and a cancel key that names nobody', async () => {
  const other = await ScriptedClient.connect({ port: server.port });
  const { parameters, processId, secretKey, status } = await other.login({ user: 'root', database: 'admin' });
  expect(parameters.get('server_version')).toMatch(/^1\.25\.0\/pgturnstile \d/);
  expect(Object.fromEntries(parameters)).toMatchObject({
    client_encoding: 'UTF8',
    server_encoding: 'UTF8',
    DateStyle: 'ISO, MDY',
    TimeZone: 'UTC',
    integer_datetimes: 'on',
    standard_conforming_strings: 'on',
    is_superuser: 'on',
    session_authorization: 'root',
  });
  expect([processId, secretKey.length, status]).toEqual([0, 4, 'I']);
  other.destroy();
});

describe('simple queries', () => {
  test.each([
    'SHOW VERSION',
    'show version;',
    '  Show\n\tVersion ; ',
    '/* monitoring */ SHOW -- now\nVERSION',
    'SHOW "version"',
  ])('%j is SHOW VERSION', async (sql) => {
    const reply = await client.query(sql);
    expect(reply.types).toBe('TDCZ');
    expect(reply.columns).toEqual(['version']);
    expect(reply.rows).toEqual([[PRODUCT_VERSION]]);
    expect(reply.tags).toEqual(['SHOW']);
  });

  test.each(['', ' ', ';', '-- ping', '/* */ ; ;'])('%j is an empty query', async (sql) => {
    expect((await client.query(sql)).types).toBe('IZ');
  });

  test.each([
    ['SHOW', '42601'],
    ['SHOW NOTHING', '42601'],
    ['SHOW constructor', '42601'],
    ['SHOW VERSION POOLS', '42601'],
    ["SHOW 'VERSION'", '42601'],
    ['"SHOW" VERSION', '42601'],
    ['constructor', '42601'],
    ['PAUSE', '42601'],
    ['SELECT * FROM pg_class', '42601'],
    ['SELECT 99999999999', '42601'],
    ['SHOW "VERSION', '42601'],
    ['RECONNECT app now', '42601'],
    ['RECONNECT 1=1', '42601'],
    ['SET', '42601'],
    ['SET a', '42601'],
    ['SET a =', '42601'],
    ['SET ROLE alice', '42601'],
    ['SET SESSION AUTHORIZATION alice', '42601'],
    ['ROLLBACK TO SAVEPOINT a', '42601'],
    ['COMMIT AND CHAIN', '42601'],
    ['SET client_encoding TO latin1', '0A000'],
    ["SET NAMES 'LATIN1'", '0A000'],
    ['SET default_pool_size = 100', '55P02'],
    ['SET admin.password = x', '55P02'],
    ['DEALLOCATE nothing', '26000'],
    ['RECONNECT nowhere', '3D000'],
    ['RECONNECT APP', '3D000'],
  ])('%s is refused with %s, and the session stays', async (sql, code) => {
    const reply = await client.query(sql);
    expect(reply.types).toBe('EZ');
    expect(reply.error).toMatchObject({ code, severity: 'ERROR' });
    expect(reply.status).toBe('I');
    expect(view.reconnects).toEqual([]);
    await stillWorks();
  });

  test('an unknown command is named, shortened, with a hint where to look', async () => {
    const { error } = await client.query(`FROBNICATE ${'x'.repeat(10_000)}`);
    expect(error?.message).toMatch(/^unknown command: FROBNICATE x+…$/);
    expect(error?.message.length).toBeLessThan(100);
    expect(error?.hint).toContain('SHOW HELP');
  });

  test('SHOW HELP is a notice that names every command', async () => {
    const reply = await client.query('SHOW HELP');
    expect(reply.types).toBe('NCZ');
    const { detail } = reply.notices[0] as { detail: string };
    for (const name of [
      'POOLS',
      'CLIENTS',
      'SERVERS',
      'LISTS',
      'DATABASES',
      'CONFIG',
      'VERSION',
      'RECONNECT',
    ]) {
      expect(detail).toContain(name);
    }
  });

  test('RECONNECT takes all databases, one, or one in quotes', async () => {
    for (const sql of ['RECONNECT', 'reconnect app;', 'RECONNECT my-reports', 'RECONNECT "my-reports"']) {
      const reply = await client.query(sql);
      expect(reply.types).toBe('CZ');
      expect(reply.tags).toEqual(['RECONNECT']);
    }
    expect(view.reconnects).toEqual([null, 'app', 'my-reports', 'my-reports']);
  });

  test('several statements in one string are answered one by one, with one ReadyForQuery', async () => {
    const reply = await client.query('SHOW VERSION; RECONNECT app;; SHOW LISTS;');
    expect(reply.types).toBe(`TDCCT${'D'.repeat(14)}CZ`);
    expect(reply.tags).toEqual(['SHOW', 'RECONNECT', 'SHOW']);
  });

  test('an error ends the string: what stands behind it is not run', async () => {
    const reply = await client.query('RECONNECT app; NONSENSE; RECONNECT my-reports');
    expect(reply.types).toBe('CEZ');
    expect(view.reconnects).toEqual(['app']);
    await stillWorks();
  });

  test.each([
    ['SET extra_float_digits = 3', 'SET'],
    ["SET SESSION application_name TO 'it''s'", 'SET'],
    ['SET LOCAL statement_timeout = 0', 'SET'],
    ['set datestyle to iso, mdy', 'SET'],
    ["SET client_encoding TO 'UTF-8'", 'SET'],
    ["SET NAMES 'utf8'", 'SET'],
    ['SET TIME ZONE DEFAULT', 'SET'],
    ['SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY', 'SET'],
    ['SET TRANSACTION ISOLATION LEVEL SERIALIZABLE', 'SET'],
    ['RESET ALL', 'RESET'],
    ['DISCARD ALL', 'DISCARD ALL'],
    ['DEALLOCATE ALL', 'DEALLOCATE ALL'],
    ['COMMIT', 'COMMIT'],
    ['ROLLBACK', 'ROLLBACK'],
  ])('%s, as drivers send it, is taken', async (sql, tag) => {
    const reply = await client.query(sql);
    expect([reply.types, reply.tags[0], reply.status]).toEqual(['CZ', tag, 'I']);
  });

  test.each([
    ['SELECT 1', '?column?', '1'],
    ['SHOW transaction_read_only', 'transaction_read_only', 'off'],
    ['SHOW TRANSACTION ISOLATION LEVEL', 'transaction_isolation', 'read committed'],
    ['show datestyle', 'DateStyle', 'ISO, MDY'],
    ['SHOW TIME ZONE', 'TimeZone', 'UTC'],
  ])('%s is answered as by PostgreSQL', async (sql, column, value) => {
    const reply = await client.query(sql);
    expect([reply.columns, reply.rows]).toEqual([[column], [[value]]]);
  });

  test('BEGIN … COMMIT shows in ReadyForQuery, so that drivers end what they began', async () => {
    const states: string[] = [];
    for (const sql of [
      'BEGIN ISOLATION LEVEL READ COMMITTED',
      'NONSENSE',
      'SHOW VERSION',
      'COMMIT',
      'START TRANSACTION',
      'ABORT',
    ]) {
      states.push((await client.query(sql)).status);
    }
    expect(states.join('')).toBe('TTTITI');
  });

  test('queries sent all at once are answered in order', async () => {
    client.send(...Array.from({ length: 500 }, (_, at) => encodeQuery(`SELECT ${at}`)));
    for (let at = 0; at < 500; at++) expect((await client.readReply()).rows).toEqual([[`${at}`]]);
  });

  test('a request that comes byte by byte is understood', async () => {
    await client.sendInPieces(encodeQuery('SHOW VERSION'));
    expect((await client.readReply()).rows).toEqual([[PRODUCT_VERSION]]);
  });
});

describe('extended queries', () => {
  test('Parse, Bind, Describe, Execute, Sync', async () => {
    const reply = await client.extended({ sql: 'SHOW VERSION;' });
    expect(reply.types).toBe('12TDCZ');
    expect(reply.rows).toEqual([[PRODUCT_VERSION]]);
  });

  test.each([
    ['', '12nIZ', []],
    ['RECONNECT app', '12nCZ', ['app']],
    ['SHOW HELP', '12nNCZ', []],
    ['BEGIN', '12nCZ', []],
  ])('%j has no rows: NoData', async (sql, types, reconnects) => {
    expect((await client.extended({ sql })).types).toBe(types);
    expect(view.reconnects).toEqual(reconnects);
  });

  test('describing a statement tells that it has no parameters', async () => {
    client.send(encodeParse('s', 'SHOW LISTS'), encodeDescribe('S', 's'), SYNC);
    const { types, frames, columns } = await client.readReply();
    expect(types).toBe('1tTZ');
    expect(frames[1]?.body).toEqual(Buffer.from([0, 0]));
    expect(columns).toEqual(['list', 'items']);
  });

  test('a named statement outlives its Sync, simple queries and its portals; a Close ends it', async () => {
    await client.extended({ sql: 'SHOW VERSION', statement: 's' });
    await stillWorks();
    expect((await client.extended({ sql: '', statement: 's', prepared: true })).types).toBe('2TDCZ');
    client.send(closeStatement('s'), closeStatement('never there'), SYNC);
    expect((await client.readReply()).types).toBe('33Z');
    expect((await client.extended({ sql: '', statement: 's', prepared: true })).error?.code).toBe('26000');
  });

  test('int4 columns come in binary where a driver asks for it', async () => {
    client.send(
      encodeParse('', 'SHOW LISTS'),
      bind([0, 1]),
      encodeDescribe('P', ''),
      encodeExecute(''),
      SYNC,
    );
    const { frames } = await client.readReply();
    const description = frames[2]?.body as Buffer;
    expect(description.readInt16BE(description.length - 2)).toBe(1);
    const row = frames[3]?.body as Buffer;
    const nameLength = row.readInt32BE(2);
    expect(row.toString('latin1', 6, 6 + nameLength)).toBe('databases');
    expect([row.readInt32BE(6 + nameLength), row.readInt32BE(10 + nameLength)]).toEqual([4, 2]);
  });

  test('one format stands for all columns; text is the same in binary', async () => {
    client.send(encodeParse('', 'SELECT 258'), bind([1]), encodeExecute(''), SYNC);
    const { frames } = await client.readReply();
    expect(frames[2]?.body).toEqual(Buffer.from([0, 1, 0, 0, 0, 4, 0, 0, 1, 2]));
  });

  test('a portal with a row limit is suspended and goes on', async () => {
    client.send(encodeParse('', 'SHOW LISTS'), encodeBind('p', '', []));
    client.send(
      encodeExecute('p', 5),
      encodeExecute('p', 5),
      encodeExecute('p', 5),
      encodeExecute('p', 5),
      SYNC,
    );
    expect((await client.readReply()).types).toBe('12DDDDDsDDDDDsDDDDCCZ');
  });

  test('a command does not run twice by one portal', async () => {
    client.send(
      encodeParse('', 'RECONNECT'),
      encodeBind('', '', []),
      encodeExecute(''),
      encodeExecute(''),
      SYNC,
    );
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code]).toEqual(['12CEZ', '55000']);
    expect(view.reconnects).toEqual([null]);
  });

  test('portals end with their transaction, not before', async () => {
    const execute = async (): Promise<string> => {
      client.send(encodeExecute('p'), SYNC);
      return (await client.readReply()).types;
    };
    client.send(encodeParse('', 'SELECT 1'), encodeBind('p', '', []), SYNC);
    await client.readReply();
    expect(await execute()).toBe('EZ');
    await client.query('BEGIN');
    client.send(encodeParse('', 'SELECT 1'), encodeBind('p', '', []), SYNC);
    await client.readReply();
    expect(await execute()).toBe('DCZ');
    await client.query('COMMIT');
    expect(await execute()).toBe('EZ');
  });

  test.each<[string, Buffer[], string]>([
    ['an unknown command', [encodeParse('', 'NONSENSE')], '42601'],
    ['two commands', [encodeParse('', 'SHOW VERSION; SHOW POOLS')], '42601'],
    ['an unterminated quote', [encodeParse('', 'SHOW "')], '42601'],
    ['a statement that is not there', [encodeBind('', 'x', [])], '26000'],
    ['a portal that is not there', [encodeExecute('x')], '34000'],
    ['a description of nothing', [encodeDescribe('P', 'x')], '34000'],
    ['a parameter', [encodeParse('', 'SELECT 1'), encodeBind('', '', ['1'])], '08P01'],
    ['too many formats', [encodeParse('', 'SELECT 1'), bind([0, 0])], '08P01'],
    ['a format of no kind', [encodeParse('', 'SELECT 1'), bind([2])], '22023'],
    ['a name that is taken', [encodeParse('a', 'SELECT 1'), encodeParse('a', 'SELECT 1')], '42P05'],
    [
      'a portal name that is taken',
      [encodeParse('', 'SELECT 1'), encodeBind('a', '', []), encodeBind('a', '', [])],
      '42P03',
    ],
  ])('%s is refused and everything up to Sync is dropped, queries too', async (_name, parts, code) => {
    client.send(...parts, encodeParse('late', 'SELECT 1'), encodeQuery('RECONNECT'), FLUSH, SYNC);
    const reply = await client.readReply();
    expect(reply.types).toMatch(/^[12]*EZ$/);
    expect(reply.error).toMatchObject({ code, severity: 'ERROR' });
    expect(view.reconnects).toEqual([]);
    await stillWorks();
  });

  test('a failed Parse leaves no old unnamed statement behind', async () => {
    client.send(
      encodeParse('', 'SELECT 1'),
      SYNC,
      encodeParse('', 'NONSENSE'),
      SYNC,
      encodeBind('', '', []),
      SYNC,
    );
    expect((await client.readReply()).types).toBe('1Z');
    expect((await client.readReply()).types).toBe('EZ');
    expect((await client.readReply()).error?.code).toBe('26000');
  });

  test('a hundred statements and a hundred portals fit, one more does not', async () => {
    const names = Array.from({ length: PREPARED_MAX }, (_, at) => `n${at}`);
    client.send(
      ...names.flatMap((name) => [encodeParse(name, 'SELECT 1'), encodeBind(name, name, [])]),
      SYNC,
    );
    expect((await client.readReply()).types).toBe(`${'12'.repeat(PREPARED_MAX)}Z`);
    client.send(encodeParse('more', 'SELECT 1'), SYNC);
    expect((await client.readReply()).error?.code).toBe('54000');
    client.send(...names.map((name) => encodeBind(name, 'n0', [])), encodeBind('more', 'n0', []), SYNC);
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code]).toEqual([`${'2'.repeat(PREPARED_MAX)}EZ`, '54000']);
    await client.query('DEALLOCATE n7');
    client.send(encodeParse('more', 'SELECT 1'), SYNC);
    expect((await client.readReply()).types).toBe('1Z');
    await client.query('DISCARD ALL');
    expect((await client.extended({ sql: '', statement: 'n0', prepared: true })).error?.code).toBe('26000');
  });

  test('answers to a Flush come before the Sync', async () => {
    client.send(encodeParse('', 'SELECT 1'), FLUSH);
    await client.expect('1');
    client.send(SYNC);
    await client.expect('Z');
  });

  test('a function call is refused, and the session stays', async () => {
    client.sendFrame('F', Buffer.alloc(10));
    const reply = await client.readReply();
    expect([reply.types, reply.error?.code]).toEqual(['EZ', '0A000']);
    await stillWorks();
  });
});

describe('what breaks the protocol ends the session with 08P01', () => {
  test.each<[string, Buffer]>([
    ['an unknown type', frame('?')],
    ['a backend message', frame('Z', 'I')],
    ['COPY data without a COPY', frame('d', 'x')],
    ['a password after the login', frame('p', 'x\0')],
    ['a message that is too long', frame('Q', '', MESSAGE_BYTES_MAX)],
    ['a length below four', frame('Q', '', 3)],
    ['a negative length', frame('Q', '', -5)],
    ['a query without a terminator', frame('Q', 'SHOW VERSION')],
    ['a query with something behind it', frame('Q', 'SHOW VERSION\0x')],
    ['a truncated Parse', frame('P', '\0SELECT 1\0')],
    ['a truncated Bind', frame('B', Buffer.from([0, 0, 0, 0, 0]))],
    [
      'a Bind with a value longer than itself',
      frame('B', Buffer.from([0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 1, 0, 0])),
    ],
    ['a Describe of neither', frame('D', 'X\0')],
    ['a truncated Execute', frame('E', '\0\0')],
    ['a Close without a name', frame('C', 'S')],
  ])('%s', async (_name, bytes) => {
    client.send(encodeParse('', 'SELECT 1'), bytes, encodeQuery('RECONNECT'));
    await client.expect('1');
    expect(await client.expectFatal()).toMatchObject({ code: '08P01', severity: 'FATAL' });
    expect(view.reconnects).toEqual([]);
    expect(server.ends).toEqual([1]);
  });

  test('random bytes neither crash nor hang it', async () => {
    let seed = Date.now() >>> 0;
    const firstSeed = seed;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    for (let round = 0; round < 40; round++) {
      const guest = await ScriptedClient.login({ port: server.port, user: 'root', database: 'admin' });
      const types = 'QPBDECHSXFd?';
      for (let at = 0; at < 20; at++) {
        const body = Buffer.from(
          Array.from({ length: random(40) }, () => (random(3) === 0 ? 0 : random(256))),
        );
        guest.sendFrame(types[random(types.length)] as string, body);
      }
      guest.send(TERMINATE);
      const rest = await guest.readToEnd().catch((error: unknown) => {
        throw new Error(`seed ${firstSeed}, round ${round}`, { cause: error });
      });
      expect(rest.toString('latin1'), `seed ${firstSeed}, round ${round}`).not.toContain('XX000');
      guest.destroy();
    }
    expect(server.ends.slice(1).every((count) => count === 1)).toBe(true);
    await stillWorks();
  });
});

describe('a client that does not read', () => {
  const rows = 300;
  const sql = 'SHOW CLIENTS';

  beforeEach(() => {
    view.sessionList = Array.from({ length: rows }, (_, at) => fakeSession({ id: at + 1 }));
  });

  async function quiet(): Promise<void> {
    const wire = server.wires[0] as (typeof server.wires)[number];
    await until(() => wire.writeBlocked, 'back-pressure');
    for (let turns = 0, before = -1; turns < 50; turns++) {
      turns = wire.bytesWritten === before ? turns : 0;
      before = wire.bytesWritten;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  test.each([
    ['many queries', (count: number) => Buffer.concat(new Array(count).fill(encodeQuery(sql)))],
    ['one string of many statements', (count: number) => encodeQuery(`${sql};`.repeat(count))],
    [
      'a pipeline of executions',
      (count: number) =>
        Buffer.concat([
          encodeParse('s', sql),
          ...new Array(count).fill(Buffer.concat([encodeBind('', 's', []), encodeExecute('')])),
          SYNC,
        ]),
    ],
  ])('makes the console stop working and reading: %s', async (_name, request) => {
    const count = 4_000;
    client.pause();
    client.send(request(count));
    await quiet();
    const [wire] = server.wires as [(typeof server.wires)[number]];
    const stoppedAt = view.listed;
    expect(wire.paused).toBe(true);
    // 4,000 answers of 60 kB are 240 MB; the kernel's buffers take a few of them.
    expect(stoppedAt).toBeLessThan(count / 4);
    expect(wire.bytesWritten).toBeLessThan(64 * 1024 * 1024);
    server.wires[0]?.destroy();
  });

  test('everything is answered in order once it reads again', async () => {
    const count = 400;
    client.pause();
    client.send(encodeQuery(`${sql};`.repeat(count)), encodeQuery('SELECT 7'));
    await quiet();
    client.resume();
    const reply = await client.readReply(15_000);
    expect(reply.tags).toEqual(new Array(count).fill('SHOW'));
    expect(reply.rows.length).toBe(count * rows);
    expect((await client.readReply()).rows).toEqual([['7']]);
  });

  test('does not keep the console from ending', async () => {
    client.pause();
    client.send(encodeQuery(`${sql};`.repeat(1_000)));
    await quiet();
    server.consoles[0]?.end();
    expect(server.ends).toEqual([1]);
    expect(server.wires[0]?.closed).toBe(true);
  });
});

test('ten thousand clients are shown, in turns that let others work', async () => {
  const slowView = new FakeView(new Clock());
  slowView.sessionList = Array.from({ length: 10_000 }, (_, at) => fakeSession({ id: at + 1 }));
  const slowServer = await new ConsoleServer(slowView).listen();
  const guest = await slowServer.login();
  let turns = 0;
  let done = false;
  const count = (): void => {
    turns++;
    if (!done) setImmediate(count);
  };
  setImmediate(count);
  const reply = await guest.query('SHOW CLIENTS');
  done = true;
  expect(reply.rows.length).toBe(10_000);
  expect(new Set(reply.rows.map((row) => row[20])).size).toBe(10_000);
  expect(turns).toBeGreaterThan(3);
  slowServer.close();
});

describe('the end', () => {
  test('Terminate closes, after the answers to what came before it', async () => {
    client.send(encodeQuery('SHOW VERSION'), TERMINATE);
    expect((await client.readReply()).rows).toEqual([[PRODUCT_VERSION]]);
    expect(await client.readToEnd()).toHaveLength(0);
    expect(server.ends).toEqual([1]);
  });

  test('a client that just goes is noticed', async () => {
    client.destroy();
    await until(() => server.ends[0] === 1, 'onEnd');
  });

  test('end() says why, closes, and is heard once', async () => {
    server.consoles[0]?.end();
    server.consoles[0]?.end();
    expect(server.ends).toEqual([1]);
    expect(await client.expectFatal()).toMatchObject({ code: '57P01', severity: 'FATAL' });
    expect(server.ends).toEqual([1]);
  });

  test('end() after Terminate is nothing new', async () => {
    await client.terminate();
    await until(() => server.ends[0] === 1, 'onEnd');
    server.consoles[0]?.end();
    expect(server.ends).toEqual([1]);
  });

  test('a fault of ours ends this session only, and says nothing of what it saw', async () => {
    const bad = fakeSession();
    Object.defineProperty(bad, 'identity', {
      get: () => {
        throw new TypeError('secret-of-nobody');
      },
    });
    view.sessionList = [bad];
    client.sendQuery('SHOW CLIENTS');
    const error = await client.expectFatal().catch(async () => client.expectFatal());
    expect(error).toMatchObject({ code: 'XX000', severity: 'FATAL' });
    expect(error.message).not.toContain('secret');
    expect(server.ends).toEqual([1]);
    const other = await server.login();
    expect((await other.query('SHOW VERSION')).rows).toEqual([[PRODUCT_VERSION]]);
  });
});

/** Bind of the unnamed statement to the unnamed portal with these result formats. */
function bind(formats: readonly number[]): Buffer {
  const writer = new MessageWriter()
    .begin(0x42)
    .cstring('')
    .cstring('')
    .int16(0)
    .int16(0)
    .int16(formats.length);
  for (const format of formats) writer.int16(format);
  return writer.end().take();
}
