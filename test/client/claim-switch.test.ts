/** Claims on one server connection, byte by byte: what is sent ahead of whom, and what is not sent at all. */
import { beforeAll, describe, expect, test } from 'vitest';
import type { TokenFacts } from '../../src/auth/identity.ts';
import { Clock } from '../../src/base/clock.ts';
import { clearForeignClaims } from '../../src/client/claim-switch.ts';
import { Relay } from '../../src/client/relay.ts';
import type { Wire } from '../../src/net/wire.ts';
import { TxStatus } from '../../src/protocol/codes.ts';
import {
  encodeCommandComplete,
  encodeErrorResponse,
  encodeQuery,
  encodeReadyForQuery,
} from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import { ServerConnection } from '../../src/server/server-connection.ts';
import { ClaimSettingSets, type ClaimSettings } from '../../src/session/claim-settings.ts';
import { ParameterSets } from '../../src/session/parameters.ts';
import { StatementRegistry } from '../../src/session/prepared-statements.ts';
import { StatementAnalyzer } from '../../src/sql/statement.ts';

let analyzer: StatementAnalyzer;

beforeAll(async () => {
  analyzer = await StatementAnalyzer.load();
});

class FakeWire {
  sent: Buffer = Buffer.alloc(0);
  readonly writeBlocked = false;
  write(bytes: Uint8Array): boolean {
    this.sent = Buffer.concat([this.sent, bytes]);
    return true;
  }
  writeView(view: Buffer): boolean {
    this.write(view);
    return true;
  }
  pause(): void {}
  resume(): void {}
  end(): void {}
  destroy(): void {}
}

const sets = new ParameterSets();
const claimSets = new ClaimSettingSets({
  claimSettings: [{ claim: 'tenant', setting: 'app.tenant' }],
  turnstile: { claimsSetting: 'request.jwt.claims', claimsMacKey: null, claimsMacKeyId: 'k1' },
});

function claimsOf(tenant: string): ClaimSettings {
  const claims = { tenant };
  return claimSets.of({ claims, payload: JSON.stringify(claims), actor: null } as unknown as TokenFacts)!;
}

const ONE = claimsOf('t1');
const TWO = claimsOf('t2');
const hex = (text: string): string => Buffer.from(text).toString('hex');

function connect(): { server: ServerConnection; wire: FakeWire } {
  const wire = new FakeWire();
  const server = new ServerConnection({
    openWire: () => wire as unknown as Wire,
    listener: { onServerClosed() {}, onSessionUser() {} },
    processId: 1,
    secretKey: Buffer.alloc(4),
    reported: new Map(),
    emptyParameters: sets.empty,
    preparedStatementsLimit: 10,
    nowMs: 0,
    retireAtMs: Number.POSITIVE_INFINITY,
  });
  return { server, wire };
}

/** The types of the messages that were sent. */
function typesOf(bytes: Buffer): string {
  let types = '';
  for (let at = 0; at < bytes.length; at += bytes.readInt32BE(at + 1) + 1)
    types += String.fromCharCode(bytes[at]!);
  return types;
}

const READY = encodeReadyForQuery(TxStatus.Idle);
const row = (type: string): Buffer => Buffer.from([type.charCodeAt(0), 0, 0, 0, 4]);
/** What PostgreSQL answers to Close, Parse, Bind, Execute and Sync of ours. */
const SET_ANSWER = Buffer.concat([row('3'), row('1'), row('2'), encodeCommandComplete('SELECT 1'), READY]);
const CANCELLED = Buffer.concat([
  encodeErrorResponse(new PgError({ code: '57014', message: 'canceling statement due to user request' })),
  READY,
]);

function answer(server: ServerConnection, bytes: Buffer): void {
  server.onBytes(bytes, 0, bytes.length);
}

describe('a connection that comes with the claims of another', () => {
  test('is not used before PostgreSQL has confirmed that they are gone', () => {
    const { server, wire } = connect();
    server.claims.settings = ONE;
    let doneCount = 0;
    expect(clearForeignClaims(server, TWO, sets.empty, () => doneCount++)).toBe(false);
    expect(typesOf(wire.sent)).toBe('CPBES');
    expect(wire.sent.toString('latin1')).not.toContain(hex('t2'));
    expect(doneCount).toBe(0);
    answer(server, SET_ANSWER);
    expect(doneCount).toBe(1);
    expect(server.claims).toMatchObject({ settings: null, stale: false, tainted: false });
    expect(clearForeignClaims(server, TWO, sets.empty, () => doneCount++)).toBe(true);
  });

  test('is closed when that fails, by a cancel for instance', () => {
    const { server } = connect();
    server.claims.settings = ONE;
    let doneCount = 0;
    clearForeignClaims(server, TWO, sets.empty, () => doneCount++);
    answer(server, CANCELLED);
    expect([server.closed, doneCount]).toEqual([true, 0]);
  });

  test('loses every setting, of names that nobody knows too, when code ran on it', () => {
    const { server, wire } = connect();
    server.claims.tainted = true;
    server.parameters = sets.of(new Map([['work_mem', '1MB']]));
    let doneCount = 0;
    expect(clearForeignClaims(server, TWO, sets.empty, () => doneCount++)).toBe(false);
    expect(typesOf(wire.sent)).toBe('QCPBES');
    expect(wire.sent.toString('latin1')).toContain('RESET ALL');
    answer(server, Buffer.concat([encodeCommandComplete('RESET'), READY]));
    expect(doneCount).toBe(0);
    answer(server, SET_ANSWER);
    expect([doneCount, server.parameters]).toEqual([1, sets.empty]);
  });

  test.each([
    ['nobody to nobody', null, null, false],
    ['nobody to nobody, after code that no text shows', null, null, true],
    ['one to itself', ONE, ONE, false],
    ['one to itself, after such code', ONE, ONE, true],
    ['nobody to one', null, ONE, false],
  ])('nothing is cleared from %s', (_, before, after, tainted) => {
    const { server, wire } = connect();
    server.claims.settings = before;
    server.claims.tainted = tainted;
    expect(clearForeignClaims(server, after, sets.empty, () => {})).toBe(true);
    expect(wire.sent).toHaveLength(0);
  });
});

/** A session with claims that is linked to a fresh connection. */
function linked(guardedRole: string | null = null): {
  relay: Relay;
  server: ServerConnection;
  /** What was sent since the last call, as types. */
  sent: () => string;
  client: FakeWire;
  host: { contended: boolean };
} {
  const { server, wire } = connect();
  const client = new FakeWire();
  const host = {
    checkout: () => null,
    onServerIdle() {},
    link: () => true,
    contended: false,
    mustRest: () => false,
    guardedRole,
    onClientGone() {},
    onServerLost() {},
    verifyToken() {},
    refusalOf: () => null,
    renew() {},
  };
  const relay = new Relay({
    wire: client as unknown as Wire,
    host,
    clock: new Clock(),
    analyzer,
    registry: new StatementRegistry(),
    parameterSets: sets,
    parameters: sets.empty,
    mapNamed: true,
    mapUnnamed: false,
    guardedRole,
    guardsClaims: true,
    readOnly: false,
    claims: ONE,
    provenStatements: new WeakSet(),
  });
  relay.server = server;
  server.linked = relay;
  const sent = (): string => {
    const types = typesOf(wire.sent);
    wire.sent = Buffer.alloc(0);
    return types;
  };
  return { relay, server, sent, client, host };
}

function say(relay: Relay, sql: string): void {
  const bytes = encodeQuery(sql);
  relay.onBytes(bytes, 0, bytes.length);
}

const DONE = Buffer.concat([encodeCommandComplete('SELECT 1'), READY]);

describe('a session', () => {
  test('has its claims sent ahead of its first request, in one write, and not again', () => {
    const { relay, server, sent } = linked();
    say(relay, 'SELECT 1');
    expect(sent()).toBe('CPBESQ');
    answer(server, Buffer.concat([SET_ANSWER, DONE]));
    say(relay, 'SELECT 1');
    say(relay, 'INSERT INTO t VALUES (1)');
    expect(sent()).toBe('QQ');
  });

  test.each([
    'SELECT f(1)',
    'DO $$ $$',
    'CALL p()',
    'EXECUTE p',
    'RESET ALL',
    'SELECT 1; SELECT f(2)',
  ])('has them sent again behind %s', (sql) => {
    const { relay, server, sent } = linked();
    say(relay, 'SELECT 1');
    answer(server, Buffer.concat([SET_ANSWER, DONE]));
    sent();
    say(relay, sql);
    expect(sent()).toBe('Q');
    answer(server, DONE);
    say(relay, 'SELECT 1');
    expect(sent()).toBe('BESQ');
  });

  test('hears nothing of it', () => {
    const { relay, server, client } = linked();
    say(relay, 'SELECT 1');
    answer(server, Buffer.concat([SET_ANSWER, DONE]));
    expect(client.sent.equals(DONE)).toBe(true);
  });

  test('loses its connection, not its claims, when PostgreSQL refuses them', () => {
    const { relay, server, client } = linked();
    say(relay, 'SELECT 1');
    answer(server, Buffer.concat([CANCELLED, DONE]));
    expect(server.closed).toBe(true);
    expect(client.sent).toHaveLength(0);
  });

  test('clears them behind its request where somebody else waits for the connection', () => {
    const { relay, server, sent, host } = linked('alice');
    host.contended = true;
    say(relay, 'SELECT 1');
    expect(sent()).toBe('CPBESQBEPBES');
    answer(server, Buffer.concat([SET_ANSWER, DONE]));
    expect(server.claims).toMatchObject({ settings: ONE, stale: true });
    answer(
      server,
      Buffer.concat([row('2'), encodeCommandComplete('SELECT 1'), row('1'), SET_ANSWER.subarray(10)]),
    );
    expect(server.claims).toMatchObject({ settings: null, stale: false });
    expect(server.roleSafe).toBe(true);
  });

  test('keeps neither promise when what is behind its request is cancelled', () => {
    const { relay, server, host } = linked('alice');
    host.contended = true;
    say(relay, 'SELECT 1');
    answer(server, Buffer.concat([SET_ANSWER, DONE, CANCELLED]));
    expect(server.claims).toMatchObject({ settings: ONE, stale: true });
    expect(server.roleSafe).toBe(false);
  });
});
