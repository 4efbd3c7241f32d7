/** The connection alone, on a wire that exists only here: every split of a stream, owners, streams, fakes. */
import { describe, expect, test } from 'vitest';
import type { Wire, WireHandler } from '../../src/net/wire.ts';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  encodeCommandComplete,
  encodeDataRow,
  encodeErrorResponse,
  encodeParameterStatus,
  encodeReadyForQuery,
  PARSE_COMPLETE,
} from '../../src/protocol/message-writer.ts';
import { ownBatch } from '../../src/server/own-batch.ts';
import { PendingAction, PendingKind } from '../../src/server/pending-responses.ts';
import { ServerConnection, ServerState } from '../../src/server/server-connection.ts';
import type { ServerOwner } from '../../src/server/server-owner.ts';
import { ParameterSet } from '../../src/session/parameters.ts';
import { Random, seedOf } from '../support/random.ts';
import { frame } from '../support/scripted-client.ts';

const seed = seedOf('CONNECTION_SEED');

/** Takes what it is given and remembers it; `slow` refuses to say that a view was taken. */
class Owner implements ServerOwner {
  received: Buffer = Buffer.alloc(0);
  sendingPart = false;
  slow = false;
  readonly settings: string[] = [];
  readonly idle: number[] = [];
  lost: boolean[] = [];
  completed: unknown[] = [];
  failed: unknown[] = [];

  onServerBytes(view: Buffer): boolean {
    this.received = Buffer.concat([this.received, view]);
    return !this.slow;
  }
  onCompleted(kind: PendingKind): void {
    this.completed.push(kind);
  }
  onNotCompleted(kind: PendingKind, _data: unknown, failed: boolean): void {
    this.failed.push([kind, failed]);
  }
  onError(): Buffer | null {
    return null;
  }
  onParameterStatus(name: string, value: string): boolean {
    this.settings.push(`${name}=${value}`);
    return true;
  }
  onCommand(): void {}
  onSkipping(): void {}
  onServerIdle(): void {
    this.idle.push(this.received.length);
  }
  onReadyForQuery(): boolean {
    return true;
  }
  onServerDrain(): void {}
  onServerLost(_server: ServerConnection, fatalSent: boolean): void {
    this.lost.push(fatalSent);
  }
}

class FakeWire {
  written: Buffer = Buffer.alloc(0);
  keeps = 0;
  writeBlocked = false;
  end(bytes?: Buffer): void {
    if (bytes !== undefined) this.written = Buffer.concat([this.written, bytes]);
  }
  destroy(): void {}
  pause(): void {}
  resume(): void {}
  keepReadBuffer(): void {
    this.keeps++;
  }
  write(bytes: Buffer): boolean {
    this.written = Buffer.concat([this.written, bytes]);
    return true;
  }
  writeView(bytes: Buffer): boolean {
    return this.write(bytes);
  }
}

function open(): { server: ServerConnection; owner: Owner; wire: FakeWire; closed: string[] } {
  const wire = new FakeWire();
  const closed: string[] = [];
  const owner = new Owner();
  const server = new ServerConnection({
    openWire: (_handler: WireHandler) => wire as unknown as Wire,
    listener: { onServerClosed: (_server, reason) => closed.push(reason), onSessionUser() {} },
    processId: 1,
    secretKey: Buffer.alloc(4),
    reported: new Map(),
    emptyParameters: new ParameterSet(new Map()),
    preparedStatementsLimit: 10,
    nowMs: 0,
    retireAtMs: Number.POSITIVE_INFINITY,
  });
  server.linked = owner;
  return { server, owner, wire, closed };
}

const K = PendingKind;
const kinds = [
  K.Parse,
  K.Bind,
  K.Describe,
  K.Execute,
  K.Sync,
  K.Query,
  K.Close,
  K.Bind,
  K.Execute,
  K.Sync,
] as const;
const stream = Buffer.concat([
  PARSE_COMPLETE,
  BIND_COMPLETE,
  frame('T', Buffer.from([0, 0])),
  encodeDataRow(['x'.repeat(30), null]),
  frame('N', 'SNOTICE\0C00000\0Mhello\0\0'),
  encodeDataRow(['', 'y'.repeat(300)]),
  frame('s'),
  encodeReadyForQuery(0x49),
  encodeParameterStatus('TimeZone', 'Mars'),
  frame('H', Buffer.from([0, 0, 1, 0, 0])),
  frame('d', 'row'),
  frame('c'),
  encodeCommandComplete('COPY 1'),
  encodeReadyForQuery(0x54),
  CLOSE_COMPLETE,
  encodeErrorResponse({ code: '26000', message: 'no such statement' }),
  encodeReadyForQuery(0x49),
]);

function run(pieces: Buffer[], prepare: (owner: Owner) => void = () => {}): Owner {
  const { server, owner, closed } = open();
  prepare(owner);
  for (const kind of kinds) server.expect(kind, PendingAction.Forward, owner, {});
  for (const piece of pieces) server.onBytes(piece, 0, piece.length);
  expect(closed).toEqual([]);
  expect(server.quiet).toBe(true);
  return owner;
}

describe('a stream of answers', () => {
  test('arrives unchanged whatever the two pieces it comes in', () => {
    for (let at = 1; at < stream.length; at++) {
      const owner = run([stream.subarray(0, at), stream.subarray(at)]);
      expect([at, owner.received.equals(stream)]).toEqual([at, true]);
      expect(owner.settings).toEqual(['timezone=Mars']);
      expect(owner.completed).toEqual([
        K.Parse,
        K.Bind,
        K.Describe,
        K.Execute,
        K.Sync,
        K.Query,
        K.Close,
        K.Sync,
      ]);
      expect(owner.failed).toEqual([
        [K.Bind, true],
        [K.Execute, false],
      ]);
      expect(owner.idle).toEqual([stream.length]);
    }
  });

  test(`arrives unchanged in any pieces, in one reused buffer, with an owner that keeps views (seed ${seed})`, () => {
    const random = new Random(seed);
    for (let round = 0; round < 300; round++) {
      const pieces: Buffer[] = [];
      for (let at = 0; at < stream.length; ) {
        const length = Math.min(stream.length - at, random.below(random.pick([3, 8, 60, 400])) + 1);
        pieces.push(Buffer.from(stream.subarray(at, at + length)));
        at += length;
      }
      const owner = run(pieces, (fresh) => {
        fresh.slow = round % 2 === 0;
      });
      expect([round, owner.received.equals(stream)]).toEqual([round, true]);
    }
  });

  test('with a row of any size passes in parts, its header split or not', () => {
    const row = encodeDataRow(['z'.repeat(1_000_000)]);
    for (const first of [1, 4, 5, 6, 100]) {
      const { server, owner } = open();
      server.expect(K.Query, PendingAction.Forward, owner, null);
      server.onBytes(row, 0, first);
      for (let at = first; at < row.length; at += 65_536) {
        server.onBytes(row, at, Math.min(row.length, at + 65_536));
      }
      expect(owner.received.equals(row)).toBe(true);
    }
  });

  test('keeps the read buffer exactly when the owner still refers to it', () => {
    for (const slow of [true, false]) {
      const { server, owner, wire } = open();
      owner.slow = slow;
      server.expect(K.Query, PendingAction.Forward, owner, null);
      const row = encodeDataRow(['v']);
      server.onBytes(row, 0, row.length);
      expect(wire.keeps).toBe(slow ? 1 : 0);
    }
  });
});

describe('entries of the queue', () => {
  test('fakes come out in their turn, and not at all when their request fails before them', () => {
    const fake = PARSE_COMPLETE;
    const good = open();
    good.server.expect(K.Bind, PendingAction.Forward, good.owner, null);
    good.server.fake(good.owner, fake, null);
    good.server.expect(K.Sync, PendingAction.Forward, good.owner, null);
    const answers = Buffer.concat([BIND_COMPLETE, encodeReadyForQuery(0x49)]);
    good.server.onBytes(answers, 0, answers.length);
    expect(good.owner.received.equals(Buffer.concat([BIND_COMPLETE, fake, encodeReadyForQuery(0x49)]))).toBe(
      true,
    );

    const bad = open();
    bad.server.expect(K.Bind, PendingAction.Forward, bad.owner, null);
    bad.server.fake(bad.owner, fake, { name: 's1' });
    bad.server.expect(K.Sync, PendingAction.Forward, bad.owner, null);
    const failure = Buffer.concat([
      encodeErrorResponse({ code: '26000', message: 'no' }),
      encodeReadyForQuery(0x49),
    ]);
    bad.server.onBytes(failure, 0, failure.length);
    expect(bad.owner.received.equals(failure)).toBe(true);
    expect(bad.owner.failed).toEqual([[K.Fake, false]]);
  });

  test('answers of two owners in one read go to each his own, in order', () => {
    const { server, owner } = open();
    const other = new Owner();
    for (const who of [owner, other, owner]) server.expect(K.Query, PendingAction.Forward, who, null);
    const parts = ['one', 'two', 'three'].map((word) =>
      Buffer.concat([encodeDataRow([word]), encodeCommandComplete('SELECT 1'), encodeReadyForQuery(0x49)]),
    );
    const bytes = Buffer.concat(parts);
    server.onBytes(bytes, 0, bytes.length);
    expect(owner.received.equals(Buffer.concat([parts[0]!, parts[2]!]))).toBe(true);
    expect(other.received.equals(parts[1]!)).toBe(true);
  });

  test('of our own reach nobody, their rows and errors come to the batch', () => {
    const { server, owner } = open();
    const rows: (string | null)[][] = [];
    const ends: (string | undefined)[] = [];
    const batch = ownBatch(
      (error) => ends.push(error?.get('C')),
      (row) => rows.push(row),
    );
    server.expect(K.Execute, PendingAction.Own, null, batch);
    server.expect(K.Sync, PendingAction.Own, null, batch);
    const bytes = Buffer.concat([
      encodeDataRow(['name', null]),
      encodeErrorResponse({ code: '22023', message: 'no' }),
      encodeReadyForQuery(0x49),
    ]);
    for (let at = 0; at < bytes.length; at++) server.onBytes(bytes, at, at + 1);
    expect([rows, ends, owner.received.length]).toEqual([[['name', null]], ['22023'], 0]);
  });

  test('of our own inside a client’s request are told of their failure although they have no Sync', () => {
    const { server, owner } = open();
    const ends: (string | undefined)[] = [];
    const batch = ownBatch((error) => ends.push(error?.get('C')));
    server.expect(K.Execute, PendingAction.Forward, owner, null);
    server.expect(K.Parse, PendingAction.Own, null, batch);
    server.expect(K.Execute, PendingAction.Own, null, batch);
    server.expect(K.Sync, PendingAction.Forward, owner, null);
    const bytes = Buffer.concat([
      encodeCommandComplete('DISCARD ALL'),
      encodeErrorResponse({ code: '42501', message: 'no' }),
      encodeReadyForQuery(0x49),
    ]);
    server.onBytes(bytes, 0, bytes.length);
    expect(ends).toEqual(['42501']);
  });

  test('end with the connection: batches hear 08006 once, the owner hears of the loss', () => {
    const { server, owner, closed } = open();
    const ends: (string | undefined)[] = [];
    const batch = ownBatch((error) => ends.push(error?.get('C')));
    server.expect(K.Bind, PendingAction.Own, null, batch);
    server.expect(K.Sync, PendingAction.Own, null, batch);
    server.onClose(null);
    server.close('again');
    expect([ends, owner.lost, closed.length, server.state]).toEqual([
      ['08006'],
      [false],
      1,
      ServerState.Closed,
    ]);
  });
});

describe('quiet', () => {
  test('is not what a request without its Sync leaves behind', () => {
    const { server, owner } = open();
    expect(server.quiet).toBe(true);
    server.expect(K.Execute, PendingAction.Forward, owner, null);
    const answer = encodeCommandComplete('INSERT 0 1');
    server.onBytes(answer, 0, answer.length);
    expect([server.pending.length, server.quiet, owner.idle.length]).toEqual([0, false, 0]);
    server.expect(K.Sync, PendingAction.Forward, owner, null);
    const ready = encodeReadyForQuery(0x49);
    server.onBytes(ready, 0, ready.length);
    expect([server.quiet, owner.idle.length]).toEqual([true, 1]);
  });
});

test('requests longer than the buffer leave in order', () => {
  const { server, wire } = open();
  const parts = [10, 50, 16_384, 3, 40_000, 16_380, 8].map((length, index) =>
    Buffer.alloc(length, index + 1),
  );
  for (const part of parts) server.send(part);
  for (let index = 0; index < 5_000; index++) server.sendInt32(index);
  server.sendByte(7);
  server.flush();
  const numbers = Buffer.alloc(20_001, 7);
  for (let index = 0; index < 5_000; index++) numbers.writeInt32BE(index, index * 4);
  expect(wire.written.equals(Buffer.concat([...parts, numbers]))).toBe(true);
});
