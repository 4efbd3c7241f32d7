/** The relay alone, for a guarded role: what is refused must be refused whatever pieces it comes in. */
import { expect, test } from 'vitest';
import { Clock } from '../../src/base/clock.ts';
import { Relay } from '../../src/client/relay.ts';
import type { Wire } from '../../src/net/wire.ts';
import { encodeQuery } from '../../src/protocol/message-writer.ts';
import { ServerConnection } from '../../src/server/server-connection.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { StatementRegistry } from '../../src/session/prepared-statements.ts';
import { StatementAnalyzer } from '../../src/sql/statement.ts';
import { frame } from '../support/scripted-client.ts';

class FakeWire {
  sent: Buffer = Buffer.alloc(0);
  writeBlocked = false;
  write(bytes: Buffer): boolean {
    this.sent = Buffer.concat([this.sent, bytes]);
    return true;
  }
  writeView(bytes: Buffer): boolean {
    return this.write(bytes);
  }
  pause(): void {}
  resume(): void {}
  end(): void {}
  destroy(): void {}
  keepReadBuffer(): void {}
}

const analyzer = await StatementAnalyzer.load();

/** A guarded session that is linked already; `sent` is what PostgreSQL got. */
function guarded(): { relay: Relay; sent: () => Buffer } {
  const sets = new ParameterSets();
  const serverWire = new FakeWire();
  const server = new ServerConnection({
    openWire: () => serverWire as unknown as Wire,
    listener: { onServerClosed() {} },
    processId: 1,
    secretKey: Buffer.alloc(4),
    reported: new Map(),
    emptyParameters: sets.empty,
    preparedStatementsLimit: 10,
    nowMs: 0,
    retireAtMs: Number.POSITIVE_INFINITY,
  });
  const relay = new Relay({
    wire: new FakeWire() as unknown as Wire,
    host: { checkout: () => null, onServerIdle() {}, link() {}, onClientGone() {}, onServerLost() {} },
    clock: new Clock(),
    analyzer,
    registry: new StatementRegistry(),
    parameterSets: sets,
    parameters: sets.empty,
    mapNamed: true,
    mapUnnamed: false,
    guardedRole: 'alice',
    provenStatements: new WeakSet(),
  });
  relay.server = server;
  server.linked = relay;
  return { relay, sent: () => serverWire.sent };
}

/** FunctionCall of the function with this OID, long enough to be passed on in parts. */
function functionCall(oid: number): Buffer {
  const body = Buffer.alloc(20_000);
  body.writeUInt32BE(oid, 0);
  return frame('F', body);
}

const LO_OPEN = 952;
const SET_CONFIG = 2078;

test('a function that is not harmless is refused although the buffer still holds the OID of one that is', () => {
  for (let first = 5; first <= 9; first++) {
    const { relay, sent } = guarded();
    // The read buffer is shared and used again: behind the new bytes stand old ones.
    const buffer = Buffer.alloc(30_000);
    functionCall(LO_OPEN).copy(buffer);
    const bad = functionCall(SET_CONFIG);
    bad.copy(buffer, 0, 0, first);
    relay.onBytes(buffer, 0, first);
    relay.onBytes(bad, first, bad.length);
    expect([first, sent().includes(bad.subarray(5, 9))]).toEqual([first, false]);
  }
});

test('a large-object function passes in whatever pieces it comes', () => {
  for (let first = 1; first <= 12; first++) {
    const { relay, sent } = guarded();
    const call = functionCall(LO_OPEN);
    relay.onBytes(call, 0, first);
    relay.onBytes(call, first, call.length);
    expect([first, sent().includes(call)]).toEqual([first, true]);
  }
});

test('an escape is refused wherever its text is cut', () => {
  const query = encodeQuery('SELECT 1; SET ROLE postgres');
  for (let first = 1; first < query.length; first++) {
    const { relay, sent } = guarded();
    relay.onBytes(query, 0, first);
    relay.onBytes(query, first, query.length);
    expect([first, sent().toString('latin1').includes('SET ROLE')]).toEqual([first, false]);
    expect(sent().toString('latin1')).toContain('refused by pgturnstile');
  }
});
