/** Random and mutated frames from both sides of a running pooler. The seed is printed; FUZZ_SEED repeats a run. */
import { afterEach, describe, expect, test } from 'vitest';
import {
  COPY_DONE,
  encodeBind,
  encodeClose,
  encodeCommandComplete,
  encodeDataRow,
  encodeDescribe,
  encodeErrorResponse,
  encodeExecute,
  encodeParse,
  encodeQuery,
  encodeReadyForQuery,
  FLUSH,
  PARSE_COMPLETE,
  SYNC,
  TERMINATE,
} from '../../src/protocol/message-writer.ts';
import { type MiniBackend, MiniPostgres } from '../support/mini-postgres.ts';
import { Random, seedOf } from '../support/random.ts';
import { frame } from '../support/scripted-client.ts';
import { TestWorker, until } from '../support/worker.ts';

const seed = seedOf('FUZZ_SEED');
const random = new Random(seed);

const RUN_MS = Number(process.env['FUZZ_MS'] ?? 1_000);

let mini: MiniPostgres;
let pooler: TestWorker;

afterEach(async () => {
  await pooler.stop();
  await mini.close();
});

const CLIENT_SEEDS: Buffer[] = [
  encodeQuery('SELECT 1'),
  encodeQuery('BEGIN'),
  encodeQuery('COMMIT'),
  encodeQuery('COPYIN x'),
  encodeQuery('ERROR 22012'),
  encodeQuery("SET work_mem = '1MB'"),
  encodeQuery('DISCARD ALL'),
  encodeQuery('DEALLOCATE s1'),
  encodeParse('s1', 'SELECT 1'),
  encodeParse('', 'SELECT 2'),
  encodeParse('s2', 'BAD'),
  encodeBind('', 's1', ['v']),
  encodeBind('p', '', []),
  encodeDescribe('S', 's1'),
  encodeDescribe('P', ''),
  encodeExecute(''),
  encodeExecute('p', 1),
  encodeClose('S', 's1'),
  SYNC,
  SYNC,
  SYNC,
  FLUSH,
  frame('d', 'line'),
  COPY_DONE,
  frame('f', 'no\0'),
  frame('F', Buffer.from([0, 0, 3, 0xbb, 0, 0, 0, 0, 0, 0])),
  TERMINATE,
];

const SERVER_SEEDS: Buffer[] = [
  encodeReadyForQuery(0x49),
  encodeReadyForQuery(0x54),
  encodeReadyForQuery(0x45),
  encodeDataRow(['x'.repeat(50)]),
  encodeCommandComplete('SELECT 1'),
  encodeErrorResponse({ code: '22012', message: 'no' }),
  encodeErrorResponse({ code: '57P01', message: 'bye', severity: 'FATAL' }),
  PARSE_COMPLETE,
  frame('2'),
  frame('3'),
  frame('s'),
  frame('n'),
  frame('I'),
  frame('c'),
  frame('G', Buffer.from([0, 0, 1, 0, 0])),
  frame('H', Buffer.from([0, 0, 1, 0, 0])),
  frame('d', 'row'),
  frame('S', 'TimeZone\0Mars\0'),
  frame('N', 'SNOTICE\0C00000\0Mhello\0\0'),
  frame('A', '\0\0\0\x01news\0hello\0'),
  frame('t', '\0\0'),
  frame('T', '\0\0'),
  frame('V', '\xff\xff\xff\xff'),
];

/** Requests whose answer the test gives in the server's place. */
const HANGING: Buffer[][] = [
  [encodeQuery('HANG')],
  [encodeQuery('BEGIN'), encodeQuery('HANG')],
  [encodeParse('s1', 'HANG'), encodeBind('', 's1', []), encodeExecute(''), SYNC, encodeQuery('SELECT 2')],
  [encodeQuery('COPYIN x')],
  [encodeParse('', 'COPYIN x'), encodeBind('', '', []), encodeExecute(''), SYNC, SYNC],
];

/** A few frames, some of them bent: a byte changed, a length that lies, an end that is missing, noise. */
function bent(seeds: Buffer[], mutations: boolean): Buffer {
  const parts: Buffer[] = [];
  for (let count = random.below(6) + 1; count > 0; count--) {
    const part = Buffer.from(random.pick(seeds));
    if (mutations && random.below(4) === 0) {
      switch (random.below(5)) {
        case 0:
          part[random.below(part.length)] = random.below(256);
          break;
        case 1:
          part.writeInt32BE(random.pick([-1, 0, 3, 4, 5, 100, 70_000, 0x3fffffff, 0x7fffffff]), 1);
          break;
        case 2:
          parts.push(part.subarray(0, random.below(part.length)));
          continue;
        case 3:
          parts.push(random.bytes(random.below(40)));
          continue;
        default:
          part[0] = random.below(256);
      }
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

describe(`with seed ${seed}`, () => {
  test('whatever clients send, the pooler lives, others work, and everything returns', async () => {
    mini = await MiniPostgres.listen();
    pooler = await TestWorker.start({
      serverPort: mini.port,
      general: 'default_pool_size = 3\nrollback_timeout = 150\nlog_level = "fatal"',
    });
    const steady = await pooler.login('bob');
    const deadlineMs = performance.now() + RUN_MS;
    let rounds = 0;
    while (performance.now() < deadlineMs) {
      const clients = await Promise.all([1, 2, 3].map(() => pooler.login('alice')));
      for (const client of clients) {
        for (let count = random.below(4); count >= 0; count--) {
          const bytes = bent(CLIENT_SEEDS, rounds % 2 === 0);
          if (random.below(3) === 0) await client.sendInPieces(bytes, random.below(20) + 1);
          else if (!client.socket.destroyed) client.send(bytes);
        }
      }
      expect((await steady.query(`SELECT ${rounds}`)).rows).toEqual([[`SELECT ${rounds}`]]);
      for (const client of clients) client.destroy();
      rounds++;
    }
    await until(() => pooler.sessionCount === 1, 'the end of all other sessions');
    await until(() => pooler.busyCount === 0 && pooler.waitingCount === 0, 'the return of all connections');
    const alice = await pooler.login('alice');
    expect((await alice.query('SELECT last')).rows).toEqual([['SELECT last']]);
    await until(() => mini.open.length === pooler.serverCount, 'as many backends as pooled connections');
    expect(pooler.worker.view.pools.capacity.total).toBe(pooler.serverCount);
    expect(rounds).toBeGreaterThan(3);
  });

  test('whatever servers answer, the pooler lives, others work, and everything returns', async () => {
    mini = await MiniPostgres.listen();
    pooler = await TestWorker.start({
      serverPort: mini.port,
      general: 'default_pool_size = 2\nrollback_timeout = 100\nlog_level = "fatal"',
    });
    const steady = await pooler.login('bob');
    await steady.query('SELECT 1');
    const deadlineMs = performance.now() + RUN_MS;
    let rounds = 0;
    while (performance.now() < deadlineMs) {
      const client = await pooler.login('alice');
      client.send(...random.pick(HANGING));
      const isHanging = (backend: MiniBackend): boolean => /^(HANG|COPYIN)/.test(backend.texts.at(-1) ?? '');
      await until(() => mini.open.some(isHanging), 'the request');
      const victim = mini.open.find(isHanging)!;
      for (let count = random.below(3); count >= 0; count--) {
        const bytes = bent(SERVER_SEEDS, rounds % 2 === 0);
        if (random.below(3) === 0) await victim.peer.sendInPieces(bytes, random.below(20) + 1);
        else victim.inject(bytes);
        if (random.below(2) === 0) client.send(bent(CLIENT_SEEDS, false));
      }
      expect((await steady.query(`SELECT ${rounds}`)).rows).toEqual([[`SELECT ${rounds}`]]);
      client.destroy();
      victim.peer.socket.destroy();
      await until(() => pooler.busyCount === 0 && pooler.waitingCount === 0, 'the return of all connections');
      rounds++;
    }
    await until(() => pooler.sessionCount === 1, 'the end of all other sessions');
    await until(() => mini.open.length === pooler.serverCount, 'as many backends as pooled connections');
    expect(pooler.worker.view.pools.capacity.total).toBe(pooler.serverCount);
    const alice = await pooler.login('alice');
    expect((await alice.query('SELECT last')).error).toBeNull();
    expect(rounds).toBeGreaterThan(3);
  });
});
