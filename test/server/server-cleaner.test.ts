/** Between two owners: what goes out, in which order, and when a connection counts as clean. */
import { describe, expect, test } from 'vitest';
import type { Wire } from '../../src/net/wire.ts';
import {
  BIND_COMPLETE,
  encodeCommandComplete,
  encodeErrorResponse,
  encodeParameterStatus,
  encodeReadyForQuery,
  PARSE_COMPLETE,
} from '../../src/protocol/message-writer.ts';
import { type CleaningPlan, cleanServer } from '../../src/server/server-cleaner.ts';
import { ServerConnection } from '../../src/server/server-connection.ts';
import { ParameterSet } from '../../src/session/parameters.ts';

const empty = new ParameterSet(new Map());
const ready = encodeReadyForQuery(0x49);

class Bench {
  sent: Buffer = Buffer.alloc(0);
  readonly done: boolean[] = [];
  readonly server: ServerConnection;

  constructor() {
    const wire = {
      writeBlocked: false,
      writeView: (bytes: Buffer): boolean => {
        this.sent = Buffer.concat([this.sent, bytes]);
        return true;
      },
      end() {},
      destroy() {},
      keepReadBuffer() {},
    };
    this.server = new ServerConnection({
      openWire: () => wire as unknown as Wire,
      listener: { onServerClosed() {}, onSessionUser() {} },
      processId: 1,
      secretKey: Buffer.alloc(4),
      reported: new Map(),
      emptyParameters: empty,
      preparedStatementsLimit: 10,
      nowMs: 0,
      retireAtMs: Number.POSITIVE_INFINITY,
    });
  }

  clean(plan: CleaningPlan): void {
    cleanServer(this.server, plan, 500, 1_000, (clean) => this.done.push(clean));
  }

  answer(...parts: Buffer[]): void {
    const bytes = Buffer.concat(parts);
    this.server.onBytes(bytes, 0, bytes.length);
  }

  /** The order in which these words were sent; -1 for one that was not. */
  order(...words: string[]): number[] {
    const text = this.sent.toString('latin1');
    const places = words.map((word) => text.indexOf(word));
    const sorted = places.filter((place) => place >= 0).sort((a, b) => a - b);
    return places.map((place) => (place < 0 ? -1 : sorted.indexOf(place)));
  }
}

describe('cleanServer', () => {
  test('leaves a login no prepared statement of ours: pg_prepared_statements is the next session’s own', () => {
    const bench = new Bench();
    bench.clean({ role: 'none', discard: true, emptyParameters: empty });
    expect(bench.order('DISCARD ALL', "set_config('role'", 'turnstile_role')).toEqual([0, 1, -1]);
    expect(bench.server.ownStatements.size).toBe(0);
    const guarded = new Bench();
    guarded.clean({ role: 'alice', discard: false });
    expect(guarded.order('turnstile_role')).toEqual([0]);
  });

  test('rolls back, discards and takes the role again in one write, and is done after the last answer only', () => {
    const bench = new Bench();
    bench.server.txStatus = 0x54;
    bench.clean({ role: 'alice', discard: true, emptyParameters: empty });
    expect(bench.order('ROLLBACK', 'DISCARD ALL', "set_config('role'")).toEqual([0, 1, 2]);
    expect(bench.server.cleanDeadlineMs).toBe(1_500);
    bench.answer(encodeCommandComplete('ROLLBACK'), ready);
    bench.answer(encodeCommandComplete('DISCARD ALL'), encodeParameterStatus('TimeZone', 'UTC'), ready);
    expect(bench.done).toEqual([]);
    bench.answer(PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete('SELECT 1'), ready);
    expect(bench.done).toEqual([true]);
    expect(bench.server.parameters).toBe(empty);
  });

  test('sends nothing that is not needed', () => {
    const bench = new Bench();
    bench.clean({ role: null, discard: false });
    expect(bench.sent.toString('latin1')).toBe('S\0\0\0\x04');
    bench.answer(ready);
    expect(bench.done).toEqual([true]);
  });

  test('ends an implicit transaction, which the status does not show', () => {
    const bench = new Bench();
    bench.server.unsynced = true;
    bench.clean({ role: null, discard: false });
    expect(bench.order('ROLLBACK')).toEqual([0]);
  });

  test.each([0, 1, 2])('is not clean when step %i is refused', (step) => {
    const bench = new Bench();
    bench.server.txStatus = 0x54;
    bench.clean({ role: 'alice', discard: true, emptyParameters: empty });
    const refusal = encodeErrorResponse({ code: '42501', message: 'no' });
    const good = [
      [encodeCommandComplete('ROLLBACK')],
      [encodeCommandComplete('DISCARD ALL')],
      [PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete('SELECT 1')],
    ];
    for (const [index, parts] of good.entries()) bench.answer(...(index === step ? [refusal] : parts), ready);
    expect(bench.done).toEqual([false]);
  });

  test('is not clean when the connection ends in between, and says so once', () => {
    const bench = new Bench();
    bench.clean({ role: null, discard: true, emptyParameters: empty });
    bench.server.close('gone');
    expect(bench.done).toEqual([false]);
  });

  test('waits for a cancel request that is on its way, and for one more round trip behind it', () => {
    const bench = new Bench();
    bench.server.cancelsInFlight = 1;
    bench.clean({ role: null, discard: false });
    bench.answer(ready);
    expect(bench.done).toEqual([]);
    bench.server.cancelsInFlight = 0;
    bench.server.onCancelsDone?.();
    expect(bench.done).toEqual([]);
    bench.answer(ready);
    expect(bench.done).toEqual([true]);
  });

  test('settings that the rollback takes back are not believed to be in force', () => {
    const bench = new Bench();
    bench.server.txStatus = 0x54;
    bench.server.parameters = new ParameterSet(new Map([['timezone', 'Venus']]));
    bench.clean({ role: null, discard: false });
    bench.answer(encodeCommandComplete('ROLLBACK'), encodeParameterStatus('TimeZone', 'Mars'), ready, ready);
    expect(bench.done).toEqual([true]);
    expect(bench.server.parameters.values.get('timezone')).toBe('Mars');
  });
});
