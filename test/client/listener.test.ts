import net from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { LOGINS_BEYOND_MAX_CLIENTS } from '../../src/client/listener.ts';
import type { ScriptedClient } from '../support/scripted-client.ts';
import { fakeToken, TestListener, type TestListenerOptions, until } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  pooler = await TestListener.start(options);
  return pooler;
}

const full = { severity: 'FATAL', code: '53300', message: 'sorry, too many clients already' };
const stopping = { severity: 'FATAL', code: '57P03', message: 'the pooler is shutting down' };

describe('max_clients', () => {
  test('counts sessions and logins under way, and a client that leaves makes room', async () => {
    await start({ turnstile: { maxClients: 2 } });
    const session = await pooler.connect();
    await session.login({ user: 'alice', database: 'app', password: fakeToken('role:alice') });
    const asked = await pooler.connectAs('alice');
    await asked.expect('R');
    const third = await pooler.connectAs('alice');
    expect(await third.expectFatal()).toMatchObject(full);
    expect(pooler.loudLines[0]).toMatchObject({
      event: 'login_refused',
      fields: { reason: 'too_many_clients' },
    });

    asked.destroy();
    await until(() => pooler.listener.admittedCount === 0, 'the end of the login');
    const fourth = await pooler.connectAs('alice');
    await fourth.expect('R');
    session.destroy();
    await until(() => pooler.target.sessionCount === 0, 'the end of the session');
    const fifth = await pooler.connectAs('alice');
    await fifth.expect('R');
  });

  test('a connection that has said nothing takes no place, and cancel requests pass when all are taken', async () => {
    await start({ turnstile: { maxClients: 1 } });
    await pooler.connect();
    const session = await pooler.connect();
    await session.login({ user: 'alice', database: 'app', password: fakeToken('role:alice') });
    const cancel = await pooler.connect();
    cancel.sendCancelRequest(1, Buffer.alloc(4));
    expect(await cancel.readToEnd()).toHaveLength(0);
    expect(pooler.target.cancels).toHaveLength(1);
  });

  test('a client that wants TLS is told so inside it', async () => {
    await start({ tls: true, turnstile: { maxClients: 0 } });
    const client = await pooler.connect();
    await client.requestTls();
    client.sendStartup({ user: 'alice' });
    expect(await client.expectFatal()).toMatchObject(full);
  });

  test('silent connections are bounded too: past the room beyond max_clients they are told at once', async () => {
    await start({ turnstile: { maxClients: 2 } });
    const bound = 2 + LOGINS_BEYOND_MAX_CLIENTS;
    const silent: ScriptedClient[] = [];
    for (let count = 0; count < bound; count++) silent.push(await pooler.connect());
    await until(() => pooler.listener.loginCount === bound, 'the accepts');
    const last = await pooler.connect();
    expect(await last.expectFatal()).toMatchObject(full);
    expect(pooler.listener.loginCount).toBe(bound);
    silent[0]?.destroy();
    await until(() => pooler.listener.loginCount === bound - 1, 'the end of one');
    const next = await pooler.connectAs('alice');
    await next.expect('R');
  });
});

describe('client_login_timeout', () => {
  const timeout = { severity: 'FATAL', code: '57014', message: 'canceling authentication due to timeout' };

  test('counts from the first tick that saw the client, and ends silent and slow ones alike', async () => {
    await start({ general: { clientLoginTimeoutMs: 1_000 } });
    const silent = await pooler.connect();
    const asked = await pooler.connectAs('alice');
    await asked.expect('R');
    const dribbling = await pooler.connect();
    dribbling.send(Buffer.from([0, 0, 0]));
    await until(() => pooler.listener.loginCount === 3, 'the accepts');
    pooler.listener.tick(50_000);
    const late = await pooler.connectAs('alice');
    await late.expect('R');
    pooler.listener.tick(50_999);
    expect(pooler.listener.loginCount).toBe(4);
    pooler.listener.tick(51_000);
    expect(pooler.listener.loginCount).toBe(1);
    for (const client of [silent, asked, dribbling])
      expect(await client.expectFatal()).toMatchObject(timeout);
    pooler.listener.tick(51_998);
    expect(pooler.listener.loginCount).toBe(1);
    pooler.listener.tick(51_999);
    expect(await late.expectFatal()).toMatchObject(timeout);
  });

  test('ends a verification that hangs; a verdict that still comes is dropped', async () => {
    await start({ general: { clientLoginTimeoutMs: 10 } });
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('hang:alice'));
    await until(() => pooler.verifier.seen.length === 1, 'the verification');
    pooler.listener.tick(0);
    pooler.listener.tick(10);
    expect(await client.expectFatal()).toMatchObject(timeout);
    pooler.verifier.release();
    await new Promise((resolve) => setImmediate(resolve));
    expect(pooler.target.results).toEqual([]);
  });

  test('ends a TLS handshake that never comes and a cancel that hangs, both without a word', async () => {
    await start({ tls: true, general: { clientLoginTimeoutMs: 10 } });
    const handshaking = await pooler.connect();
    handshaking.sendSslRequest();
    expect((await handshaking.readBytes(1)).toString()).toBe('S');
    pooler.target.cancelled = new Promise(() => {});
    const cancelling = await pooler.connect();
    cancelling.sendCancelRequest(1, Buffer.alloc(4));
    await until(() => pooler.target.cancels.length === 1, 'the cancel');
    pooler.listener.tick(0);
    pooler.listener.tick(10);
    expect(await handshaking.readToEnd()).toHaveLength(0);
    expect(await cancelling.readToEnd()).toHaveLength(0);
    expect(pooler.listener.loginCount).toBe(0);
  });

  test('does not reach a client whose login is over', async () => {
    await start({ general: { clientLoginTimeoutMs: 10 } });
    const client = await pooler.connect();
    await client.login({ user: 'alice', database: 'app', password: fakeToken('role:alice') });
    pooler.listener.tick(0);
    pooler.listener.tick(1_000_000);
    await expect(client.readToEnd(50)).rejects.toThrow('the connection was not closed');
  });
});

describe('shutting down', () => {
  test('a drain refuses logins under way at once and new ones after their startup packet', async () => {
    await start({ tls: true });
    const asked = await pooler.connectAs('alice');
    await asked.expect('R');
    const verifying = await pooler.connectAs('alice');
    await verifying.expect('R');
    verifying.sendPassword(fakeToken('hang:alice'));
    await until(() => pooler.verifier.seen.length === 1, 'the verification');
    const silent = await pooler.connect();
    await until(() => pooler.listener.loginCount === 3, 'the accepts');
    pooler.listener.drain();
    expect(await asked.expectFatal()).toMatchObject(stopping);
    expect(await verifying.expectFatal()).toMatchObject(stopping);
    silent.sendStartup({ user: 'alice' });
    expect(await silent.expectFatal()).toMatchObject(stopping);
    const secure = await pooler.connect();
    await secure.requestTls();
    secure.sendStartup({ user: 'alice' });
    expect(await secure.expectFatal()).toMatchObject(stopping);
    expect(pooler.listener.loginCount).toBe(0);
    const cancel = await pooler.connect();
    cancel.sendCancelRequest(1, Buffer.alloc(4));
    await cancel.readToEnd();
    expect(pooler.target.cancels).toHaveLength(1);
  });

  test('stop refuses connections and leaves sessions and logins alone', async () => {
    await start();
    const asked = await pooler.connectAs('alice');
    await asked.expect('R');
    pooler.listener.stop();
    await expect(pooler.connect()).rejects.toThrow(/ECONNREFUSED/);
    asked.sendPassword(fakeToken('role:alice'));
    await asked.expectTypes('RKZ');
  });
});

describe('connections that mean nothing', () => {
  test('a health check that connects and leaves is no error', async () => {
    await start();
    for (const leave of ['end', 'destroy'] as const) {
      const client = await pooler.connect();
      await until(() => pooler.listener.loginCount === 1, 'the accept');
      client[leave]();
      await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    }
    expect(pooler.loudLines).toEqual([]);
    expect(pooler.log.map(({ fields }) => fields['heard'])).toEqual([false, false]);
  });

  test('psql leaving to prompt for a password is no error', async () => {
    await start();
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.end();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    expect(pooler.loudLines).toEqual([]);
    expect(pooler.log[0]).toMatchObject({ event: 'client_left_during_login', fields: { state: 'proof' } });
  });

  test('a reset in the middle of a packet ends the login', async () => {
    await start();
    const client = await pooler.connect();
    client.send(Buffer.from([0, 0, 1]));
    await until(() => pooler.listener.loginCount === 1, 'the accept');
    client.socket.resetAndDestroy();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    expect(pooler.loudLines).toEqual([]);
  });
});

test('a port in use rejects with the system’s own code', async () => {
  const taken = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => taken.once('listening', resolve));
  try {
    const { port } = taken.address() as net.AddressInfo;
    await expect(TestListener.start({ general: { port } })).rejects.toMatchObject({ code: 'EADDRINUSE' });
  } finally {
    taken.close();
  }
});

test('a hundred logins at a time all come through, each with its own identity', async () => {
  await start();
  const names = Array.from({ length: 100 }, (_, index) => `user${index}`);
  await Promise.all(names.map((name) => pooler.login(name, `role:${name}`)));
  expect(pooler.target.results.map(({ identity }) => identity?.role).sort()).toEqual([...names].sort());
  for (const { identity, startup } of pooler.target.results) expect(identity?.role).toBe(startup.user);
});
